package server

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// connect serves h, with or without TLS, and returns a function that opens a connection.
func connect(t *testing.T, isTLS bool, o Options) func() net.Conn {
	t.Helper()
	o.Log = zerolog.Nop()
	if isTLS {
		o.TLSConfig = LocalTLS()
	}
	s, l := NewLocal(t, o)
	go s.Serve(l)
	t.Cleanup(func() { s.http.Close() })
	return func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if isTLS {
			return tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		}
		return c
	}
}

// TestAnswersOfNetHTTPAreNoPages: what net/http answers before there is a request has the headers of all answers, and
// the form of the specification: registry clients show no other.
func TestAnswersOfNetHTTPAreNoPages(t *testing.T) {
	for _, isTLS := range []bool{false, true} {
		open := connect(t, isTLS, Options{Handler: http.NotFoundHandler()})
		for _, c := range []struct {
			request string
			want    int
		}{
			{"GET / HTTP/1.1\r\n\r\n", 400},
			{"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
			{"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: a\r\n\r\n", 400},
			{"rubbish\r\n\r\n", 400},
			{"GET / HTTP/1.1\r\nHost: x\r\nExpect: more\r\n\r\n", 417},
			{"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
			{"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505},
			{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404},
			{"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404},
			{"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", 431},
			{"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", maxHeaderLines) + "\r\n", 431},
			// After a request that was answered.
			{"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n", 400},
		} {
			conn := open()
			go io.WriteString(conn, c.request)
			r := bufio.NewReader(conn)
			resp, err := http.ReadResponse(r, nil)
			if strings.Count(c.request, "HTTP/1.1") == 2 && err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp, err = http.ReadResponse(r, nil)
			}
			if err != nil {
				t.Errorf("TLS %v, %.40q: %v", isTLS, c.request, err)
				continue
			}
			body, err := io.ReadAll(resp.Body)
			if c.want != 404 && (err != nil || resp.Header.Get("Content-Type") != "application/json" ||
				!bytes.HasPrefix(body, []byte(`{"errors":[{"code":"UNSUPPORTED","message":"`)) ||
				bytes.Contains(body, []byte("HTTP/1.1"))) {
				t.Errorf("TLS %v, %.40q: %v, %s, %v", isTLS, c.request, resp.Header, body, err)
			}
			if resp.StatusCode != c.want || resp.Header.Get("X-Content-Type-Options") != "nosniff" ||
				resp.Header.Get("Content-Security-Policy") != "default-src 'none'; sandbox; frame-ancestors 'none'" {
				t.Errorf("TLS %v, %.40q: %d, %v; want %d", isTLS, c.request, resp.StatusCode, resp.Header, c.want)
			}
		}
	}
}

// TestTheLinesOfHeadersAreBounded: short lines take far more memory than bytes, in a request under way and in headers
// that are not complete. Lines of bodies do not count.
func TestTheLinesOfHeadersAreBounded(t *testing.T) {
	head := func(method string, lines int, more string) string {
		return method + " / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X:\r\n", lines-3) + more + "\r\n"
	}
	lines := strings.Repeat("\n", 1000)
	put := func(body string) string {
		return head("PUT", maxHeaderLines-1, fmt.Sprintf("Content-Length: %d\r\n", len(body))) + body
	}
	for _, isTLS := range []bool{false, true} {
		var bytes atomic.Int64
		open := connect(t, isTLS, Options{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			bytes.Add(n)
		})})
		for _, c := range []struct {
			request string
			want    []int
			bytes   int
		}{
			{head("GET", maxHeaderLines, ""), []int{200}, 0},
			{head("GET", maxHeaderLines+1, ""), []int{431}, 0},
			{strings.TrimSuffix(head("GET", maxHeaderLines+10, ""), "\r\n"), []int{431}, 0}, // it has no end
			{head("GET", 10, "") + head("GET", maxHeaderLines+1, ""), []int{200, 431}, 0},
			{put(lines) + put(lines+"x") + head("GET", maxHeaderLines, ""), []int{200, 200, 200}, 2001},
			{put(lines) + head("GET", maxHeaderLines+200, ""), []int{200, 431}, 1000}, // one piece for net/http
			{put(lines) + head("GET", maxHeaderLines+2000, ""), []int{200, 431}, 1000},
			{strings.ReplaceAll(head("GET", maxHeaderLines, ""), "\r\n", "\n"), []int{200}, 0},
		} {
			bytes.Store(0)
			conn := open()
			go io.WriteString(conn, c.request)
			r := bufio.NewReader(conn)
			for i, want := range c.want {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatalf("TLS %v, %.20q…, answer %d: %v", isTLS, c.request, i, err)
				}
				text, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != want || want == 431 && !strings.Contains(string(text), tooManyLines) {
					t.Errorf("TLS %v, %.20q…, answer %d: %d %s, want %d", isTLS, c.request, i,
						resp.StatusCode, text, want)
				}
			}
			if c.want[len(c.want)-1] == 431 {
				_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
				if more, _ := io.ReadAll(r); len(more) > 0 {
					t.Errorf("TLS %v, %.20q…: another answer: %s", isTLS, c.request, more)
				}
			}
			if got := int(bytes.Load()); got != c.bytes {
				t.Errorf("TLS %v, %.20q…: bodies of %d bytes, want %d", isTLS, c.request, got, c.bytes)
			}
		}
	}
}

// TestTheEndOfHeadersIsFound in whatever pieces they come.
func TestTheEndOfHeadersIsFound(t *testing.T) {
	for text, want := range map[string][2]int{ // lines, and bytes up to the end
		"GET\r\nA: b\r\n\r\nbody\n\n": {3, 13}, "GET\nA: b\n\nbody": {3, 10}, "GET\nA: \r\r\n\r\nx": {3, 12},
		"\r\nx": {1, 2}, "\nx": {1, 1}, "GET\r\nA": {1, 6}, "GET\r\n\r": {1, 6}, "GET\r\n\rA\r\n": {2, 9}, "": {0, 0},
		"GET\r\n\r\r\nA\n\n": {4, 11},
	} {
		for piece := 1; piece <= len(text)+1; piece++ {
			var h head
			n := 0
			for rest := []byte(text); len(rest) > 0; rest = rest[min(piece, len(rest)):] {
				n += h.read(rest[:min(piece, len(rest))])
			}
			if h.lines != want[0] || n != want[1] || h.bytes != n {
				t.Errorf("%q in pieces of %d: %d lines, %d bytes; want %v", text, piece, h.lines, n, want)
			}
		}
	}
}

// TestRequestsWithLargeHeadersAreBounded: a request keeps its headers, so that those under way count like those that
// are not complete. A body that comes with small headers does not count.
func TestRequestsWithLargeHeadersAreBounded(t *testing.T) {
	const most = 500
	limit := headsLimit(most, Memory())
	for _, c := range []struct {
		name, request string
		open          int
	}{
		{"large", "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nX: " +
			strings.Repeat("a", 2*heavyHead) + "\r\n\r\n", limit},
		{"small, with a body", "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" +
			strings.Repeat("\n", 2*heavyHead), 2 * limit},
	} {
		t.Run(c.name, func(t *testing.T) {
			var begun atomic.Int64
			open := connect(t, true, Options{MaxConnections: most, Handler: http.HandlerFunc(func(_ http.ResponseWriter,
				r *http.Request) {
				begun.Add(1)
				_, _ = io.Copy(io.Discard, r.Body)
			})})
			var left atomic.Int64
			for i := range 2 * limit {
				conn := open()
				left.Add(1)
				if _, err := io.WriteString(conn, c.request); err != nil {
					t.Fatal(err)
				}
				go func() {
					_, _ = io.Copy(io.Discard, conn)
					left.Add(-1)
				}()
				for end := time.Now().Add(time.Minute); begun.Load() <= int64(i); time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("request %d does not begin", i)
					}
				}
			}
			for end := time.Now().Add(time.Minute); left.Load() > int64(c.open); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d are open, want %d", left.Load(), c.open)
				}
			}
			if left.Load() != int64(c.open) {
				t.Errorf("%d are open, want %d", left.Load(), c.open)
			}
		})
	}
}
