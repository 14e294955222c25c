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
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestResponsesAreRead(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", bodyBuffer/8) // twice the buffer
	tests := map[string]struct {
		method, text string
		status       int
		length       int64
		body         string
		closing      bool
	}{
		"with a length":              {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, 5, "hello", false},
		"without a body":             {"PUT", "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 201, 0, "", false},
		"HEAD promises and sends no": {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, 5, "", false},
		"HEAD without a promise":     {"HEAD", "HTTP/1.1 404 Not Found\r\n\r\n", 404, -1, "", false},
		"204 has no body":            {"DELETE", "HTTP/1.1 204 No Content\r\n\r\n", 204, -1, "", false},
		"chunked":                    {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", 200, 5, "hello", false},
		"chunked with a trailer":     {"GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n", 200, 10, "0123456789", false},
		"up to the end":              {"GET", "HTTP/1.1 200 OK\r\n\r\nhello", 200, 5, "hello", true},
		"HTTP/1.0":                   {"GET", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, 1, "x", true},
		"the connection ends":        {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", 200, 1, "x", true},
		"100-continue before":        {"PUT", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 201, 0, "", false},
		"bare line feeds":            {"GET", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 200, 2, "ok", false},
		"longer than the buffer":     {"GET", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long), 200, int64(len(long)), "", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, in := range []io.Reader{strings.NewReader(test.text), iotest.OneByteReader(strings.NewReader(test.text))} {
				r := response{sum: sha256.New()}
				if err := r.read(bufio.NewReaderSize(in, headBuffer), test.method); err != nil {
					t.Fatal(err)
				}
				if r.status != test.status || r.length != test.length || r.closing != test.closing {
					t.Errorf("status %d, length %d, closing %v", r.status, r.length, r.closing)
				}
				if !r.truncated && string(r.body) != test.body {
					t.Errorf("body %.40q", r.body)
				}
				if r.truncated != (test.length > bodyBuffer) {
					t.Errorf("truncated is %v", r.truncated)
				}
				if want := sha256.Sum256([]byte(long)); r.truncated && !bytes.Equal(r.sum.Sum(nil), want[:]) {
					t.Error("the sum is not that of the body")
				}
			}
		})
	}
}

func TestWhatIsNoResponseIsRefused(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\n"
	tests := map[string]struct {
		text string
		want error
	}{
		"nothing":                  {"", io.EOF},
		"half a line":              {"HTTP/1.1 200", io.ErrUnexpectedEOF},
		"half a head":              {head + "Content-Length: 5\r\n", io.ErrUnexpectedEOF},
		"a short body":             {head + "Content-Length: 5\r\n\r\nhell", io.ErrUnexpectedEOF},
		"a short chunk":            {head + "Transfer-Encoding: chunked\r\n\r\n5\r\nhell", io.ErrUnexpectedEOF},
		"no last chunk":            {head + "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n", io.ErrUnexpectedEOF},
		"a chunk that is too long": {head + "Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n", errMalformed},
		"a size that is no number": {head + "Transfer-Encoding: chunked\r\n\r\n-2\r\n", errMalformed},
		"a size beyond all":        {head + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", errMalformed},
		"two lengths":              {head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", errMalformed},
		"length and chunks":        {head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", errMalformed},
		"a negative length":        {head + "Content-Length: -5\r\n\r\n", errMalformed},
		"another encoding":         {head + "Transfer-Encoding: gzip\r\n\r\n", errMalformed},
		"a field without a name":   {head + ": x\r\n\r\n", errMalformed},
		"a line without an end":    {head + "X: " + strings.Repeat("x", headBuffer), errMalformed},
		"fields without an end":    {head + strings.Repeat("X: y\r\n", maxLines+1), errMalformed},
		"answers without an end":   {strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", maxInterim+1), errMalformed},
		"another protocol":         {"SSH-2.0-OpenSSH_9.2\r\n", errMalformed},
		"a switch of protocols":    {"HTTP/1.1 101 Switching Protocols\r\n\r\n", errMalformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var r response
			if err := r.read(bufio.NewReaderSize(strings.NewReader(test.text), headBuffer), "GET"); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
}

// FuzzResponse looks for what makes the reader panic, or take more than there is.
func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), "GET")
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n0\r\n\r\n"), "GET")
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nWWW-Authenticate: Basic\r\n\r\n"), "HEAD")
	f.Fuzz(func(t *testing.T, text []byte, method string) {
		var r response
		err := r.read(bufio.NewReaderSize(bytes.NewReader(text), headBuffer), method)
		if err == nil && method != "HEAD" && r.length > int64(len(text)) {
			t.Errorf("%d bytes of %d", r.length, len(text))
		}
		challenge(string(r.challenge), "bearer")
	})
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
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok":       "the answer ends early",
		"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\nok": "the answer ends early",
		"": "the server closes the connection without an answer",
	} {
		c := scripted(t, text).connect(t.Context())
		if _, err := c.do(&request{method: "GET", path: "/"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		c.close()
	}
}

func TestLargeBodiesAreCountedWithoutBeingCopied(t *testing.T) {
	body := strings.Repeat("x", 5<<20)
	c := scripted(t, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body), fine).connect(t.Context())
	defer c.close()
	resp, err := c.want(&request{method: "GET", path: "/"}, 200)
	if err != nil || resp.length != int64(len(body)) || !resp.truncated {
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
