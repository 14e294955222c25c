package server

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// TestRequestsThatWaitForTheirClientGiveWay: a client that holds back bodies on all connections keeps out nobody.
func TestRequestsThatWaitForTheirClientGiveWay(t *testing.T) {
	const most = 40
	open := make(chan struct{})
	t.Cleanup(func() { close(open) })
	bodies := NewBodies(64 << 20)
	handler := func(begun *atomic.Int64, w http.ResponseWriter, r *http.Request) {
		begun.Add(1)
		switch r.URL.Path {
		case "/kept":
			if release, err := bodies.Read(new(bytes.Buffer), w, r, 1<<20, 1); err == nil {
				release()
			}
		case "/slow":
			<-open
		}
	}
	for _, c := range []struct {
		name, request, from string
		want                int // what a client at 127.0.0.1 gets in the end
	}{
		{"bodies that nobody reads", "POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
			"127.0.0.1", 200},
		{"bodies that are kept", "POST /kept HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{", "127.0.0.1", 200},
		{"of unknown length", "POST /kept HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "127.0.0.1", 200},
		{"one address has all", "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", "127.0.0.2", 200},
		{"the same address", "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", "127.0.0.1", 503},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var begun atomic.Int64
			l := serveBusy(t, func(w http.ResponseWriter, r *http.Request) { handler(&begun, w, r) }, most)
			for range most {
				dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(c.from)}}
				conn, err := dialer.Dial("tcp", l)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				fmt.Fprint(conn, c.request)
			}
			for end := time.Now().Add(time.Minute); begun.Load() < most; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d requests have begun", begun.Load())
				}
			}
			status := 0
			wait := 10 * surplusTime
			if c.want != 200 {
				wait = 2 * surplusTime
			}
			for end := time.Now().Add(wait); status != 200 && time.Now().
				Before(end); time.Sleep(20 * time.Millisecond) {
				status = once(t, l)
			}
			if status != c.want {
				t.Errorf("a client gets %d, want %d", status, c.want)
			}
		})
	}
}

func serveBusy(t *testing.T, h http.HandlerFunc, most int) string {
	t.Helper()
	s, l := NewLocal(t, Options{Handler: h, MaxConnections: most})
	go s.Serve(l)
	t.Cleanup(func() { s.http.Close() })
	return l.Addr().String()
}

// once sends a request on a connection of its own, from 127.0.0.1, and returns the status.
func once(t *testing.T, addr string) int {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := c.Get("http://" + addr + "/v2/")
	if err != nil {
		return 0 // it gave way itself
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}
