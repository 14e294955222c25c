package node_test

import (
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// TestTheKernelKeepsLittleForClientsThatDoNotRead: it kept up to 10 MiB of an answer for each of 512 clients, in a
// container with 128 MiB.
func TestTheKernelKeepsLittleForClientsThatDoNotRead(t *testing.T) {
	const clients = 12
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var sent [clients]atomic.Int64 // by the registry
	go func() {
		for i := range sent {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close() // when all have come
			go func() {
				_ = c.(*net.TCPConn).SetWriteBuffer(4 << 10) // what it keeps is not of the node
				for step := make([]byte, 32<<10); err == nil; {
					var n int
					n, err = c.Write(step)
					sent[i].Add(int64(n))
				}
			}()
		}
		<-t.Context().Done()
	}()
	w := newWorld(t, "").start(l.Addr().String())
	for i := range sent {
		c := w.dial("")
		if err := c.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
			t.Fatal(err)
		}
		write(t, c, hello)
		w.until("the registry answers", func() bool { return sent[i].Load() > 0 })
	}
	var last int64
	w.until("nothing more is taken", func() bool {
		time.Sleep(300 * time.Millisecond)
		before := last
		last = sent[clients-1].Load()
		return last == before
	})
	const most = 1536 << 10 // a pipe, which does not count, has 1 MiB
	if last > most {
		t.Errorf("%d bytes were taken of an answer that nobody reads, want at most %d", last, most)
	}
}
