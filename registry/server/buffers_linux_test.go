package server

import (
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// TestTheKernelKeepsLittleForAClientThatDoesNotRead: it took 4 MiB for each, beside what the client has room for. Where
// few are open, each may have more.
func TestTheKernelKeepsLittleForAClientThatDoesNotRead(t *testing.T) {
	var open atomic.Int64
	for _, want := range []struct{ open, atLeast, most int64 }{{0, 1 << 20, 3 << 20}, {fewConns, 0, 1 << 20}} {
		open.Store(want.open)
		if got := taken(t, &open); got < want.atLeast || got > want.most {
			t.Errorf("with %d connections, %d bytes were taken, want %d to %d", want.open, got, want.atLeast, want.most)
		}
		if n := open.Load(); n != want.open {
			t.Errorf("%d connections are open after the end of one, want %d", n, want.open)
		}
	}
}

// taken returns how many bytes a connection takes whose client does not read.
func taken(t *testing.T, open *atomic.Int64) int64 {
	t.Helper()
	client, c := connected(t, open)
	if err := client.SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	defer c.abort()
	return fill(c, make([]byte, 64<<10))
}

// connected returns both ends of a connection of a listener with so many open ones.
func connected(t *testing.T, open *atomic.Int64) (*net.TCPConn, *conn) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	client, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	c, err := listener{Listener: inner, open: open}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client.(*net.TCPConn), c.(*conn)
}

// fill writes until nothing more is taken, and returns how many bytes were.
func fill(c net.Conn, step []byte) (total int64) {
	var err error
	for err == nil && total < 64<<20 {
		if err = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err == nil {
			var n int
			n, err = c.Write(step)
			total += int64(n)
		}
	}
	return total
}

// TestTheKernelKeepsLittleOfWhatIsNotRead: 128 KiB of what a client sends that does not read its answer. While a body
// is read, it is as much as without a bound.
func TestTheKernelKeepsLittleOfWhatIsNotRead(t *testing.T) {
	few, many := given(t, 0, false), given(t, fewConns, false)
	if most := int64(80 << 10); many > most || few <= most {
		t.Errorf("%d bytes were taken, and %d where few are open, want at most %d, and more", many, few, most)
	}
	if body := given(t, fewConns, true); body < few*3/4 {
		t.Errorf("%d bytes of a body were taken, want about %d", body, few)
	}
}

// given returns how many bytes the kernel takes from a client on a connection from which nothing is read.
func given(t *testing.T, others int64, body bool) int64 {
	t.Helper()
	var open atomic.Int64
	open.Store(others)
	client, c := connected(t, &open)
	if err := client.SetWriteBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	defer c.abort()
	if body {
		c.widen()
	}
	return fill(client, make([]byte, 1<<10))
}
