package server

import (
	"context"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// TestDrainedConnectionsAreBounded: of those whose clients do not end, the oldest is closed at once when there are too
// many, and all of them when the time of the server is over.
func TestDrainedConnectionsAreBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const most, all = 3, 10
	d := drains{most: most}
	var ends []net.Conn
	for range all {
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		d.end(c)
		ends = append(ends, c)
		d.mu.Lock()
		if n := d.all.Len(); n > most {
			t.Errorf("%d connections are drained", n)
		}
		d.mu.Unlock()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d.wait(ctx)
	for i, c := range ends[all-most:] {
		if err := c.Close(); err == nil {
			t.Errorf("connection %d is open", i)
		}
	}
	if d.all.Len() != 0 {
		t.Errorf("%d are left", d.all.Len())
	}
}

// TestASlowClientGetsTheRest: a connection is drained until the client's machine has all of the answer, however long
// that takes, and the server waits for it at its end.
func TestASlowClientGetsTheRest(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it is not known what the client has")
	}
	client, c, sent := stuffed(t)
	d := drains{time: time.Millisecond}
	d.end(c)
	waited := make(chan struct{})
	go func() {
		d.wait(t.Context())
		close(waited)
	}()
	for range 20 { // longer than the time for reading
		select {
		case <-waited:
			t.Fatalf("closed before the client had %d bytes", sent)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if n, err := io.Copy(io.Discard, client); int(n) != sent || err != nil {
		t.Errorf("%d of %d bytes, %v", n, sent, err)
	}
	client.Close()
	<-waited
}

// stuffed returns both ends of a connection whose buffers are full, and how many bytes the server has sent.
func stuffed(t *testing.T) (client, c net.Conn, sent int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if err := client.(*net.TCPConn).SetReadBuffer(128 << 10); err != nil {
		t.Fatal(err)
	}
	c, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	const size = 4 << 20
	if err := c.(*net.TCPConn).SetWriteBuffer(size); err != nil {
		t.Fatal(err)
	}
	_ = c.SetWriteDeadline(time.Now().Add(time.Second)) // the rest does not fit into the buffers
	sent, _ = c.Write(make([]byte, size))
	return client, c, sent
}

// TestAClientThatHasGoneIsNotWaitedFor: of a connection that was reset, nothing is acknowledged any more.
func TestAClientThatHasGoneIsNotWaitedFor(t *testing.T) {
	client, c, _ := stuffed(t)
	if err := client.(*net.TCPConn).SetLinger(0); err != nil { // so that closing resets
		t.Fatal(err)
	}
	d := drains{time: time.Millisecond}
	d.end(c)
	client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), stalled/2)
	defer cancel()
	d.wait(ctx)
	if ctx.Err() != nil {
		t.Error("it is waited for")
	}
}
