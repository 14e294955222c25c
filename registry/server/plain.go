package server

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"trow/registry/address"
)

// plain is the listener for clients on this machine that speak plain HTTP to the port of TLS: BuildKit, oras, ko and
// many others take localhost and 127.0.0.1 for registries without TLS. Nothing of it leaves the machine, so it is
// served as it is; leadToTLS asks for each request whether that is so.
//
// A connection is known to speak plain HTTP when its first byte is read, which the goroutine of the TLS handshake does.
// It hands the connection over, and net/http serves it as one of this listener.
type plain struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{} // closed by Close
}

func newPlain(addr net.Addr) *plain {
	return &plain{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *plain) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *plain) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *plain) Addr() net.Addr { return l.addr }

// handOver makes a connection from this machine one of plain HTTP, whose first bytes were read. It reports whether it
// did: then nothing that is done to c reaches the connection any more.
func (c *conn) handOver(first []byte) bool {
	if c.local == nil || !loopbackPeer(c.Conn) {
		return false
	}
	next := &conn{Conn: c.Conn, checked: true, plain: true, clear: true, drains: c.drains,
		open: c.open, narrow: c.narrow, first: append([]byte(nil), first...)}
	// The handshake has set deadlines, of which net/http would renew only the one for reading.
	if c.Conn.SetDeadline(time.Time{}) != nil {
		return false
	}
	// Before next is served: net/http closes c at any time from now on.
	if c.closed.Swap(true) {
		return true // it was evicted meanwhile
	}
	select {
	case c.local.conns <- next:
	case <-c.local.done: // the server stops
		next.abort() // as it does with connections that have no request yet
	}
	return true
}

// loopbackPeer reports whether a connection comes from this machine.
func loopbackPeer(c net.Conn) bool {
	peer, err := netip.ParseAddrPort(c.RemoteAddr().String())
	return err == nil && peer.Addr().Unmap().IsLoopback()
}

// leadToTLS answers a request in plain HTTP to the port of TLS that may have come from elsewhere: with a redirect, or
// an error where a client would not follow one. It reports whether it has answered.
func leadToTLS(w *response, r *http.Request) bool {
	if w.conn == nil || !w.conn.plain || address.Local(r) {
		return false
	}
	w.Header().Set("Connection", "close")
	if to := onTLS(r); to != "" {
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	}
	writeError(w, r, plainRefused())
	return true
}
