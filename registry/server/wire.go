package server

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
)

// wire is the connection below net/http or TLS, which write as much as they have room for: 4 KiB, or a record of 16.
// wire sends what belongs together with one call, which costs the kernel and the client's processor less.
type wire struct {
	net.Conn
	seen bool // the first byte was looked at, or need not be

	mu   sync.Mutex // guards what follows, and makes writes follow each other
	held *gathered  // nil: what is written goes out at once
	err  error      // of a flush: a record went out by half, and nothing can follow it
}

// gathered is what is held back.
type gathered struct{ b []byte }

// gatherSize has room for a piece in TLS records: each has at most 22 bytes of its own (RFC 8446, section 5.2), and
// what was written before the piece may have begun another one.
const gatherSize = piece + 8<<10

var gatherings = sync.Pool{New: func() any { return &gathered{make([]byte, 0, gatherSize)} }}

// Write keeps p until flush, if there is room for it.
func (c *wire) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if c.held == nil {
		return c.Conn.Write(p)
	}
	if len(c.held.b)+len(p) <= cap(c.held.b) {
		c.held.b = append(c.held.b, p...)
		return len(p), nil
	}
	if err := c.send(); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// hold begins to keep back what is written, until flush.
func (c *wire) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = gatherings.Get().(*gathered)
}

// flush sends what was held back, and holds nothing any more. Errors: the connection's.
func (c *wire) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.send()
	gatherings.Put(c.held)
	c.held = nil
	return err
}

// send writes what is held; the caller has mu.
func (c *wire) send() error {
	if len(c.held.b) == 0 {
		return nil
	}
	_, c.err = c.Conn.Write(c.held.b)
	c.held.b = c.held.b[:0]
	return c.err
}

// ReadFrom lets the kernel send a file.
func (c *wire) ReadFrom(src io.Reader) (int64, error) {
	if to, ok := c.Conn.(io.ReaderFrom); ok {
		return to.ReadFrom(src)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, src)
}

// CloseWrite tells the client that nothing follows; net/http waits then for what it still sends.
func (c *wire) CloseWrite() error {
	if to, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return to.CloseWrite()
	}
	return nil
}

// wireKey finds the wire of a request's connection in its context.
type wireKey struct{}

// withWire is http.Server.ConnContext: it notes what a connection is made of.
func withWire(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if w, ok := c.(*wire); ok {
		return context.WithValue(ctx, wireKey{}, w)
	}
	return ctx
}
