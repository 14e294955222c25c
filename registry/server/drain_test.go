package server_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// endingConn reports when the server ends it.
type endingConn struct {
	*net.TCPConn
	ended chan struct{}
}

func (c endingConn) CloseWrite() error {
	defer func() { c.ended <- struct{}{} }()
	return c.TCPConn.CloseWrite()
}

func (c endingConn) Close() error {
	defer func() { c.ended <- struct{}{} }()
	return c.TCPConn.Close()
}

// exchange sends a request on a connection of its own, which the server ends after the answer.
func exchange(t *testing.T, url string) (raw *net.TCPConn, c net.Conn) {
	t.Helper()
	scheme, address, _ := strings.Cut(url, "://")
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	raw, c = conn.(*net.TCPConn), conn
	if scheme == "https" {
		c = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	return raw, c
}

// TestAClientThatStillSendsReadsTheAnswer: the server does not reset a connection on which the client sends after the
// end, as each TLS client does with its own close_notify.
func TestAClientThatStillSendsReadsTheAnswer(t *testing.T) {
	for name, isTLS := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			for range 3 {
				stillSends(t, isTLS)
			}
		})
	}
}

func stillSends(t *testing.T, isTLS bool) {
	t.Helper()
	const size = 100 << 10
	ended := make(chan struct{}, 100)
	wrap := func(c net.Conn) net.Conn { return endingConn{c.(*net.TCPConn), ended} }
	url, stop := serveOn(t, isTLS, wrap, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(make([]byte, size))
	})
	raw, c := exchange(t, url)
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	<-ended // the answer and the end are in buffers of the kernel
	// A segment at a time, each of which a closed socket would answer with a reset.
	for range 20 {
		if _, err := raw.Write([]byte("more")); err != nil {
			t.Fatalf("the server has reset the connection: %v", err)
		}
		time.Sleep(time.Millisecond) // so that a reset could arrive
	}
	if n, err := io.Copy(io.Discard, c); err != nil || n < size {
		t.Errorf("%d bytes of the answer, %v", n+1, err)
	}
	if _, err := raw.Write([]byte("more")); errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		t.Errorf("the server has reset the connection after its end: %v", err)
	}
	c.Close()
	stop()
}

// TestTheCloseOfAClientIsRead: its close_notify, which it sends when it has read that of the server, finds a socket
// that is open. The server then closes at once, and shutting down waits for that.
func TestTheCloseOfAClientIsRead(t *testing.T) {
	url, stop := serveOn(t, true, func(c net.Conn) net.Conn { return c },
		func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "answer") })
	raw, c := exchange(t, url)
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Fatal(err)
	}
	if err := c.(*tls.Conn).CloseWrite(); err != nil {
		t.Errorf("close_notify: %v", err)
	}
	if err := raw.CloseWrite(); err != nil {
		t.Errorf("the end: %v", err)
	}
	if n, err := raw.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
	stop()
}
