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

// dial connects to trow node and sends something.
func (w *world) dial(sent string) net.Conn {
	w.Helper()
	c, err := net.Dial("tcp", w.address("127.0.0.1:21000"))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { c.Close() })
	_, _ = c.Write([]byte(sent)) // may fail: the connection may have given way already
	return c
}

// echo is a registry that answers each byte of a connection with the same one, from the first on if it answers.
func echo(t *testing.T, answers bool) string {
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
			if !answers {
				t.Cleanup(func() { c.Close() })
				continue
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	return l.Addr().String()
}

// echoes reports whether what was sent comes back.
func echoes(c net.Conn, sent string) error {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != sent {
		return fmt.Errorf("%q, %v", got, err)
	}
	return nil
}

// ended reports whether trow node closed the connection.
func ended(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := io.Copy(io.Discard, c)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// probe asks as the kubelet does, which waits for a second.
func (w *world) probe() {
	w.Helper()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(w.url() + "/livez")
	if err != nil {
		w.Errorf("a probe: %v", err)
		return
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || !resp.Close {
		w.Errorf("a probe: %d, close %v", resp.StatusCode, resp.Close)
	}
}

// TestConnectionsOfOneByteDoNotFillTheNode: 600 of them, more than there are slots, of each kind that does not say what
// it wants. The probes and the runtime are served.
func TestConnectionsOfOneByteDoNotFillTheNode(t *testing.T) {
	w := newWorld(t, "").start(echo(t, true))
	for _, sent := range []string{"", "\x16", "\x16\x03\x01\x02\x00", "G", "GET /v2/ HTTP/1.1", "GET /livez HTTP/1.1"} {
		var all []net.Conn
		for range 600 {
			all = append(all, w.dial(sent))
		}
		w.probe()
		if err := echoes(w.dial(string(hello)), string(hello)); err != nil {
			t.Errorf("%q: TLS: %v", sent, err)
		}
		if !ended(all[0]) || ended(all[len(all)-1]) {
			t.Errorf("%q: the oldest ended: %v; the latest ended: %v", sent, ended(all[0]), ended(all[len(all)-1]))
		}
		for _, c := range all {
			c.Close()
		}
	}
}

// TestConnectionsWithoutAnAnswerGiveWay: TLS that the registry has not answered, and requests whose headers never end.
func TestConnectionsWithoutAnAnswerGiveWay(t *testing.T) {
	for what, sent := range map[string]string{"TLS": string(hello), "HTTP": "GET /v2/ HTTP/1.1\r\nX: y\r\n"} {
		w := newWorld(t, "")
		w.change = func(n *node.Node) { node.Crowd(n, 8, 50*time.Millisecond, time.Minute) }
		w.start(echo(t, what != "TLS"))
		var all []net.Conn
		for range 8 {
			all = append(all, w.dial(sent))
			time.Sleep(5 * time.Millisecond) // so that the first is the oldest
		}
		w.probe()
		w.dial(string(hello))
		w.until(what+": the oldest gives way", func() bool { return ended(all[0]) })
		if ended(all[7]) {
			t.Errorf("%s: the latest gave way", what)
		}
	}
}

// TestIdleTunnelsGiveWayAndBusyOnesDoNot, when all slots are taken.
func TestIdleTunnelsGiveWayAndBusyOnesDoNot(t *testing.T) {
	w := newWorld(t, "")
	w.change = func(n *node.Node) { node.Crowd(n, 4, time.Minute, 400*time.Millisecond) }
	w.start(echo(t, true))
	var all []net.Conn
	for range 4 {
		c := w.dial(string(hello))
		if err := echoes(c, string(hello)); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	busy := make(chan error, 1)
	stop := make(chan struct{})
	go func() { // the oldest is in use
		for {
			select {
			case <-stop:
				busy <- nil
				return
			case <-time.After(20 * time.Millisecond):
			}
			if _, err := all[0].Write([]byte(".")); err != nil {
				busy <- err
				return
			}
			if err := echoes(all[0], "."); err != nil {
				busy <- err
				return
			}
		}
	}()
	for i := range 3 {
		if err := echoes(w.dial(string(hello)), string(hello)); err != nil {
			t.Errorf("connection %d after the slots were taken: %v", i, err)
		}
		w.probe()
	}
	close(stop)
	if err := <-busy; err != nil {
		t.Errorf("the connection in use gave way: %v", err)
	}
	for i, c := range all[1:] {
		if !ended(c) {
			t.Errorf("idle connection %d keeps its slot", i+1)
		}
	}
}

// TestIdleHTTPConnectionsGiveWay: those that are kept for the next request.
func TestIdleHTTPConnectionsGiveWay(t *testing.T) {
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	w := newWorld(t, ca.pem)
	w.change = func(n *node.Node) { node.Crowd(n, 2, time.Minute, 100*time.Millisecond) }
	w.start(r.address()).ready()
	var all []net.Conn
	for range 4 {
		c := w.dial("GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Fatalf("%q, %v", line, err)
		}
		all = append(all, c)
	}
	if !ended(all[0]) || !ended(all[1]) || ended(all[3]) {
		t.Errorf("ended: %v %v, the latest %v", ended(all[0]), ended(all[1]), ended(all[3]))
	}
}

// TestAConnectionWaitsForASlot while all others are in use; probes do not.
func TestAConnectionWaitsForASlot(t *testing.T) {
	w := newWorld(t, "")
	w.change = func(n *node.Node) { node.Crowd(n, 2, time.Minute, time.Minute) }
	w.start(echo(t, true))
	first, second := w.dial(string(hello)), w.dial(string(hello))
	for _, c := range []net.Conn{first, second} {
		if err := echoes(c, string(hello)); err != nil {
			t.Fatal(err)
		}
	}
	third := w.dial(string(hello))
	_ = third.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := third.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it does not wait: %v", err)
	}
	w.probe()
	first.Close()
	if err := echoes(third, string(hello)); err != nil {
		t.Errorf("after a slot became free: %v", err)
	}
}

// TestTheLinesOfHeadersAreBounded, of the first request of a connection and of the next ones, whole or not. A body has
// as many as it likes.
func TestTheLinesOfHeadersAreBounded(t *testing.T) {
	ca := makeAuthority(t)
	registry := startRegistry(t, ca, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})
	w := newWorld(t, ca.pem).start(registry.address()).ready()
	head := func(lines int, more string) string {
		return "PUT /v2/ HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a:\r\n", lines) + more
	}
	body := head(10, "Content-Length: 3000\r\n\r\n") + strings.Repeat("\n", 3000)
	for _, c := range []struct {
		sent []string
		want []int
	}{
		{[]string{head(400, "\r\n")}, []int{200}},
		{[]string{head(600, "")}, []int{431}},
		{[]string{body, body, head(600, "")}, []int{200, 200, 431}},
	} {
		conn := w.dial("")
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		r := bufio.NewReader(conn)
		for i, sent := range c.sent {
			write(t, conn, []byte(sent))
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("request %d: %v", i, err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != c.want[i] {
				t.Errorf("request %d: %d, want %d", i, resp.StatusCode, c.want[i])
			}
		}
	}
}
