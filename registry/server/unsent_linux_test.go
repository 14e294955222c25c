package server

import (
	"net"
	"testing"
	"time"
)

// TestTheKernelKeepsLittleForAClientThatDoesNotRead: it took 4 MiB for each, beside what the client has room for.
func TestTheKernelKeepsLittleForAClientThatDoesNotRead(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	client, err := (&net.Dialer{}).Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	c, err := listener{Listener: inner}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.(*conn).abort()
	total, step := 0, make([]byte, 64<<10)
	for err == nil && total < 64<<20 {
		if err = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err == nil {
			var n int
			n, err = c.Write(step)
			total += n
		}
	}
	if total > 1<<20 {
		t.Errorf("%d bytes were taken, want at most 1 MiB: %v", total, err)
	}
}
