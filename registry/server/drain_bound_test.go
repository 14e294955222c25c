package server

import (
	"context"
	"net"
	"testing"
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
