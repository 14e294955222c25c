package bench

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestResponsesAreRead(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", streamBuffer/8) // twice the buffer
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
		"100-continue before":       {"PUT", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 201, 0, ""},
		"longer than the buffer":    {"GET", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long), 200, int64(len(long)), long},
		"longer, and of an error":   {"GET", fmt.Sprintf("HTTP/1.1 500 Oh\r\nContent-Length: %d\r\n\r\n%s", len(long), long), 500, int64(len(long)), long},
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

func TestWhatIsNoResponseIsRefused(t *testing.T) {
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
		"a size that is no number": {chunked + "-2\r\n", errMalformed},
		"a size beyond all":        {chunked + "ffffffffffffffffff\r\n", errMalformed},
		"two lengths":              {head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", errMalformed},
		"a negative length":        {head + "Content-Length: -5\r\n\r\n", errMalformed},
		"another encoding":         {head + "Transfer-Encoding: gzip\r\n\r\n", errMalformed},
		"a field without a name":   {head + ": x\r\n\r\n", errMalformed},
		"a line without an end":    {head + "X: " + strings.Repeat("x", 2*ioBuffer), errMalformed},
		"answers without an end":   {strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 1000), errMalformed},
		"another protocol":         {"SSH-2.0-OpenSSH_9.2\r\n\r\n", errMalformed},
		"a switch of protocols":    {"HTTP/1.1 101 Switching Protocols\r\n\r\n", errMalformed},
		"a body beyond all":        {head + "Content-Length: 99999999999\r\n\r\n", errTooLarge},
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

// FuzzChallenge looks for input that makes the parser panic.
func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"`)
	f.Add(`Basic realm="a, b", Bearer realm=https://a/t`)
	f.Fuzz(func(t *testing.T, text string) { challenge(text, "bearer") })
}

// scripted is a server that answers each request on a connection as a script says, and closes after the script.
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

// at returns the target that listens there.
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

func TestAConnectionThatTheServerClosedIsMadeAnew(t *testing.T) {
	c := scripted(t, fine).connect(t.Context())
	defer c.close()
	for range 3 {
		resp, err := c.want(&request{method: "GET", path: "/"}, 200)
		if err != nil || string(resp.body) != "ok" {
			t.Fatal(err)
		}
	}
}

// TestWhatMayHaveHadAnEffectIsNotSentTwice has a server that takes the second request of each connection and closes.
func TestWhatMayHaveHadAnEffectIsNotSentTwice(t *testing.T) {
	for method, again := range map[string]bool{"GET": true, "HEAD": true, "PUT": true, "DELETE": true, "POST": false, "PATCH": false} {
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

func TestAShortAnswerIsAnError(t *testing.T) {
	for text, want := range map[string]string{
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok":       "the answer ended early",
		"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\nok": "the answer ended early",
		"": "the server closed the connection without an answer",
	} {
		c := scripted(t, text).connect(t.Context())
		if _, err := c.do(&request{method: "GET", path: "/"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		c.close()
	}
}

// TestABodyOfTwoPartsIsSentAsOne has a server that returns what it received; the first connection is closed by it
// after the first request, so that the second body is sent twice.
func TestABodyOfTwoPartsIsSentAsOne(t *testing.T) {
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

// TestAnAnswerBeforeTheEndOfTheBodyIsRead has a server that refuses an upload after its head, and closes.
func TestAnAnswerBeforeTheEndOfTheBodyIsRead(t *testing.T) {
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

func TestLargeBodiesAreCountedWithoutBeingCopied(t *testing.T) {
	body := strings.Repeat("x", 5<<20)
	c := scripted(t, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body), fine).connect(t.Context())
	defer c.close()
	resp, err := c.want(&request{method: "GET", path: "/", stream: true}, 200)
	if err != nil || resp.length != int64(len(body)) || len(resp.body) > 0 {
		t.Fatalf("%+v %v", resp, err)
	}
	if resp, err = c.want(&request{method: "GET", path: "/"}, 200); err != nil || string(resp.body) != "ok" {
		t.Errorf("the answer after it: %v", err)
	}
}

func TestChallengesAreParsed(t *testing.T) {
	tests := []struct {
		text, scheme, name, want string
		found                    bool
	}{
		{`Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"`, "bearer", "scope", "repository:a/b:pull,push", true},
		{`Basic realm="a, b", Bearer realm="https://a/t"`, "bearer", "realm", "https://a/t", true},
		{`BEARER Realm=x, service="a\"b"`, "bearer", "service", `a"b`, true},
		{`Basic realm="Bearer realm=x"`, "bearer", "realm", "", false},
		{`Basic`, "basic", "realm", "", true},
		{`Bearer realm="never ends`, "bearer", "realm", "never ends", true},
		{``, "basic", "", "", false},
	}
	for _, test := range tests {
		params, found := challenge(test.text, test.scheme)
		if found != test.found || params[test.name] != test.want {
			t.Errorf("%s: %v, %v", test.text, params, found)
		}
	}
}

func TestPercentilesAreRightToOnePercent(t *testing.T) {
	var a, b histogram
	for i := 1; i <= 100_000; i++ {
		h := &a
		if i%2 == 0 {
			h = &b
		}
		h.add(time.Duration(i) * time.Microsecond)
	}
	a.merge(&b)
	for share, want := range map[float64]float64{0.5: 50e6, 0.99: 99e6, 1: 100e6, 0: 1e3} {
		if got := float64(a.percentile(share)); math.Abs(got-want) > want/100 {
			t.Errorf("%v: %v, want %v", share, time.Duration(got), time.Duration(want))
		}
	}
	for _, d := range []time.Duration{0, 1, 255, 256, 257, time.Hour, 1 << 62, -1} {
		if i := bucket(d); i < 0 || i >= buckets || d < time.Hour && upper(i) < d {
			t.Errorf("%d is in bucket %d, which ends at %d", d, i, upper(i))
		}
	}
}
