package bench

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestResponsesAreRead(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	long := strings.Repeat("0123456789abcdef", streamBuffer/8) // twice the buffer
	sized := fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(long), long)
	interim := "HTTP/1.1 100 Continue\r\n\r\n"
	tests := map[string]struct {
		method, text string
		status       int
		length       int64
		body         string
	}{
		"with a length":             {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, 5, "hello"},
		"without a body":            {"PUT", "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 201, 0, ""},
		"HEAD announces a length":   {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, 5, ""},
		"HEAD without a length":     {"HEAD", "HTTP/1.1 404 Not Found\r\n\r\n", 404, -1, ""},
		"204 has no body":           {"DELETE", "HTTP/1.1 204 No Content\r\n\r\n", 204, 0, ""},
		"chunked":                   {"GET", chunked + "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", 200, 5, "hello"},
		"chunked with an extension": {"GET", chunked + "3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", 200, 5, "hello"},
		"chunked with a trailer":    {"GET", chunked + "A\r\n0123456789\r\n0\r\nX: y\r\n\r\n", 200, 10, "0123456789"},
		"until the connection ends": {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", 200, 5, "hello"},
		"HTTP/1.0":                  {"GET", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, 1, "x"},
		"100-continue before":       {"PUT", interim + "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 201, 0, ""},
		"longer than the buffer":    {"GET", ok + sized, 200, int64(len(long)), long},
		"longer, and of an error":   {"GET", "HTTP/1.1 500 Oh\r\n" + sized, 500, int64(len(long)), long},
	}
	for name, test := range tests {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", streamed is ", stream), func(t *testing.T) {
				c := scripted(t, test.text).connect(t.Context())
				defer c.close()
				sum := sha256.New()
				r, err := c.conn.do(&request{method: test.method, path: "/", stream: stream}, "", sum)
				if err != nil {
					t.Fatal(err)
				}
				if r.status != test.status || r.length != test.length {
					t.Errorf("status %d, length %d", r.status, r.length)
				}
				if kept := !stream || test.status != 200; kept && string(r.body) != test.body {
					t.Errorf("body %.40q", r.body)
				}
				if want := sha256.Sum256([]byte(test.body)); !bytes.Equal(sum.Sum(nil), want[:]) {
					t.Error("the sum is not that of the body")
				}
			})
		}
	}
}

const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

func TestInvalidResponses(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\n"
	tests := map[string]struct {
		text string
		want error
	}{
		"nothing":                  {"", errNoAnswer},
		"half a line":              {"HTTP/1.1 200", errShort},
		"half a head":              {head + "Content-Length: 5\r\n", errShort},
		"a short body":             {head + "Content-Length: 5\r\n\r\nhell", errShort},
		"a short chunk":            {chunked + "5\r\nhell", errShort},
		"no last chunk":            {chunked + "2\r\nhe\r\n", errShort},
		"a chunk that is too long": {chunked + "2\r\nhello\r\n", errMalformed},
		"a size that is not valid": {chunked + "-2\r\n", errMalformed},
		"a huge size":              {chunked + "ffffffffffffffffff\r\n", errMalformed},
		"two lengths":              {head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", errMalformed},
		"a negative length":        {head + "Content-Length: -5\r\n\r\n", errMalformed},
		"another encoding":         {head + "Transfer-Encoding: gzip\r\n\r\n", errMalformed},
		"a field without a name":   {head + ": x\r\n\r\n", errMalformed},
		"an endless line":          {head + "X: " + strings.Repeat("x", 2*ioBuffer), errMalformed},
		"endless interim answers":  {strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 1000), errMalformed},
		"another protocol":         {"SSH-2.0-OpenSSH_9.2\r\n\r\n", errMalformed},
		"a switch of protocols":    {"HTTP/1.1 101 Switching Protocols\r\n\r\n", errMalformed},
		"a huge body":              {head + "Content-Length: 99999999999\r\n\r\n", errTooLarge},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := scripted(t, test.text).connect(t.Context())
			defer c.close()
			if _, err := c.do(&request{method: "GET", path: "/"}); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
}

// scripted returns a server that sends the given answers, one for each request on a connection, and then closes it.
func scripted(t *testing.T, answers ...string) *target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(c)
			for _, answer := range answers {
				for line := "x"; line != "\r\n" && err == nil; {
					line, err = in.ReadString('\n')
				}
				if err != nil {
					break
				}
				io.WriteString(c, answer)
			}
			c.Close()
		}
	}()
	return at(t, l)
}

// at returns the target at a listener.
func at(t *testing.T, l net.Listener) *target {
	t.Helper()
	o := Default()
	o.URL = "http://" + l.Addr().String()
	target, err := newTarget(o)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

const fine = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func TestRedialAfterTheServerClosed(t *testing.T) {
	c := scripted(t, fine).connect(t.Context())
	defer c.close()
	for range 3 {
		resp, err := c.want(&request{method: "GET", path: "/"}, 200)
		if err != nil || string(resp.body) != "ok" {
			t.Fatal(err)
		}
	}
}

// TestOnlyIdempotentRequestsAreSentAgain has a server that closes each connection after it has received the second
// request.
func TestOnlyIdempotentRequestsAreSentAgain(t *testing.T) {
	for method, again := range map[string]bool{
		"GET": true, "HEAD": true, "PUT": true, "DELETE": true, "POST": false, "PATCH": false,
	} {
		c := scripted(t, fine, "").connect(t.Context())
		if _, err := c.want(&request{method: "GET", path: "/"}, 200); err != nil {
			t.Fatal(err)
		}
		if _, err := c.do(&request{method: method, path: "/"}); again != (err == nil) {
			t.Errorf("%s: %v", method, err)
		}
		c.close()
	}
}

func TestShortAnswers(t *testing.T) {
	for text, want := range map[string]string{
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok":       "the answer ended early",
		"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\nok": "the answer ended early",
		"": "the server closed the connection without an answer",
	} {
		for _, stream := range []bool{false, true} {
			c := scripted(t, text).connect(t.Context())
			_, err := c.do(&request{method: "GET", path: "/", stream: stream})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %q; streamed is %v", err, want, stream)
			}
			c.close()
		}
	}
}

// TestBodyOfTwoParts has a server that returns the body it received, and closes each connection after the answer.
func TestBodyOfTwoParts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(conn, "HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			}
			conn.Close()
		}
	}()
	c := at(t, l).connect(t.Context())
	defer c.close()
	large := strings.Repeat("x", 3*ioBuffer)
	for _, body := range [][2][]byte{{[]byte("ab"), []byte("c")}, {[]byte(large), []byte("y")}, {[]byte(large)}} {
		resp, err := c.want(&request{method: "PUT", path: "/", body: body}, 201)
		if err != nil {
			t.Fatal(err)
		}
		if want := string(body[0]) + string(body[1]); string(resp.body) != want {
			t.Errorf("%d bytes arrived instead of %d", len(resp.body), len(want))
		}
	}
}

// TestEarlyAnswer has a server that refuses an upload after its head, and closes the connection.
func TestEarlyAnswer(t *testing.T) {
	c := scripted(t, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno").connect(t.Context())
	defer c.close()
	for range 10 {
		resp, err := c.do(&request{method: "PUT", path: "/", body: [2][]byte{make([]byte, 32<<20), []byte("x")}})
		if err != nil {
			// The kernel may drop an answer that was received, if the peer resets the connection.
			if strings.Contains(err.Error(), "reset by peer") || strings.Contains(err.Error(), "broken pipe") {
				continue
			}
			t.Fatal(err)
		}
		if resp.status != 413 || string(resp.body) != "no" {
			t.Errorf("status %d, body %q", resp.status, resp.body)
		}
		return
	}
	t.Error("the answer was never read")
}

func TestLargeBodiesAreCounted(t *testing.T) {
	body := strings.Repeat("x", 5<<20)
	large := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	c := scripted(t, large, fine).connect(t.Context())
	defer c.close()
	resp, err := c.want(&request{method: "GET", path: "/", stream: true}, 200)
	if err != nil || resp.length != int64(len(body)) || len(resp.body) > 0 {
		t.Fatalf("%+v %v", resp, err)
	}
	if resp, err = c.want(&request{method: "GET", path: "/"}, 200); err != nil || string(resp.body) != "ok" {
		t.Errorf("the next answer: %v", err)
	}
}
