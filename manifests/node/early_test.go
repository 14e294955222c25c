package node_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"trow/manifests/node"
)

// TestAnEarlyAnswerReachesAClientThatStalls: the registry gives up on an upload of which nothing comes any more. The
// client waits, with a body that it has not sent, and must get the answer, and the end of the connection, all the same.
func TestAnEarlyAnswerReachesAClientThatStalls(t *testing.T) {
	const sent = 64 << 10 // more than the buffer from which net/http sends a body on
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadFull(r.Body, make([]byte, sent/2))
		rw.Header().Set("Connection", "close")
		rw.WriteHeader(http.StatusRequestTimeout)
		_, _ = io.WriteString(rw, "stalled")
	})
	w := newWorld(t, ca.pem).start(r.address()).ready()
	for i, framing := range []string{"Content-Length: 1000000", "Content-Length: 65537", "Transfer-Encoding: chunked"} {
		for range 4 {
			c, err := net.Dial("tcp", w.address("127.0.0.1:21000"))
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // the node's own time limit is ten minutes
			body := strings.Repeat("a", sent)
			if i == 2 {
				body = fmt.Sprintf("%x\r\n%s\r\n", sent, body)
			}
			_, _ = fmt.Fprintf(c, "PATCH /v2/a/blobs/uploads/1 HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n%s", framing, body)
			in := bufio.NewReader(c)
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("%s: %v", framing, err)
			}
			text, err := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusRequestTimeout || string(text) != "stalled" || err != nil || !resp.Close {
				t.Errorf("%s: %d %q %v, close: %v", framing, resp.StatusCode, text, err, resp.Close)
			}
			if _, err := in.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: the connection stays open: %v", framing, err)
			}
			_ = c.Close()
		}
	}
}

// connected returns a connection through trow node to a registry that answers with the body of the request.
func connected(t *testing.T) net.Conn {
	t.Helper()
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(rw http.ResponseWriter, r *http.Request) { _, _ = io.Copy(rw, r.Body) })
	w := newWorld(t, ca.pem).start(r.address()).ready()
	c, err := net.Dial("tcp", w.address("127.0.0.1:21000"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

// TestOneConnectionServesManyRequests: only a chunked request, which may have had a Content-Length as well, and an
// answer before the end of a body end it.
func TestOneConnectionServesManyRequests(t *testing.T) {
	c := connected(t)
	in := bufio.NewReader(c)
	for _, request := range []string{"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
		"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		"PATCH /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"} {
		write(t, c, []byte(request))
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("%.5s: %v", request, err)
		}
		chunked := strings.Contains(request, "chunked")
		if _, err := io.ReadAll(resp.Body); err != nil || resp.Close != chunked {
			t.Errorf("%.5s: %v, close: %v", request, err, resp.Close)
		}
	}
}

// TestHTTP10EndsTheConnection: net/http ignores its Transfer-Encoding, and something in between may not.
func TestHTTP10EndsTheConnection(t *testing.T) {
	c := connected(t)
	write(t, c, []byte("PUT /v2/ HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n"+
		"Content-Length: 3\r\n\r\nabcGET /v2/ HTTP/1.0\r\nHost: x\r\n\r\n"))
	answer, err := io.ReadAll(c) // the kernel may reset the connection
	if n := strings.Count(string(answer), " 200 OK"); n != 1 {
		t.Errorf("%d answers: %q (%v)", n, answer, err)
	}
}

// TestABodyThatStallsForTooLong is the client's fault, not the registry's.
func TestABodyThatStallsForTooLong(t *testing.T) {
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	w := newWorld(t, ca.pem)
	w.change = func(n *node.Node) { node.Impatient(n, 300*time.Millisecond, 10*time.Second) }
	w.start(r.address()).ready()
	c, err := net.Dial("tcp", w.address("127.0.0.1:21000"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	write(t, c, []byte("PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusRequestTimeout {
		t.Fatalf("%+v, %v", resp, err)
	}
}

// TestAnswersOfTheNodeAreNoPages: its own, and those of net/http before there is a request. What the registry answers
// is passed on as it is.
func TestAnswersOfTheNodeAreNoPages(t *testing.T) {
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(rw, "HTTP/1.1 of the registry\n") // the form of an answer, but a body
		rw.(http.Flusher).Flush()
		_, _ = io.WriteString(rw, "HTTP/1.1 of the registry\n")
	})
	w := newWorld(t, ca.pem).start(r.address()).ready()
	lost := newWorld(t, ca.pem).start("127.0.0.1:1").ready()
	const get = "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, c := range []struct {
		to      *world
		request string
		want    int
	}{
		{w, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		{w, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		{newWorld(t, "").start("127.0.0.1:1"), "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 503},
		{lost, get, 502},
		{w, "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405},
		{w, "GET / HTTP/1.1\r\n\r\n", 400},
		{w, "GET / HTTP/1.1\r\nHost: x\r\nExpect: more\r\n\r\n", 417},
		{w, "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
		{w, "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 600) + "\r\n", 431},
		{w, get + "GET / HTTP/1.1\r\n\r\n", 400}, // after a request that was answered
	} {
		conn, err := net.Dial("tcp", c.to.address("127.0.0.1:21000"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		go io.WriteString(conn, c.request)
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil)
		if strings.HasPrefix(c.request, get) && c.to == w && err == nil {
			if body, err := io.ReadAll(resp.Body); string(body) != strings.Repeat("HTTP/1.1 of the registry\n", 2) {
				t.Errorf("%q, %v", body, err)
			}
			resp, err = http.ReadResponse(in, nil)
		}
		if err != nil {
			t.Errorf("%.40q: %v", c.request, err)
		} else if resp.StatusCode != c.want || len(resp.Header["X-Content-Type-Options"]) != 1 ||
			resp.Header.Get("Content-Security-Policy") != "default-src 'none'; sandbox; frame-ancestors 'none'" {
			t.Errorf("%.40q: %d, %v; want %d", c.request, resp.StatusCode, resp.Header, c.want)
		} else if body, err := io.ReadAll(resp.Body); c.to == w && c.want != 405 && c.want >= 400 && (err != nil ||
			!strings.HasPrefix(string(body), `{"errors":[{"code":"UNSUPPORTED","message":"`)) {
			t.Errorf("%.40q: %s, %v", c.request, body, err)
		}
		_ = conn.Close()
	}
}
