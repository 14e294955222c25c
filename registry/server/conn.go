package server

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"trow/registry/socket"
)

// conn is the connection below net/http or TLS. They write as much as they have room for: 4 KiB, or a record of 16 KiB.
// conn sends what belongs together with one call, which costs the kernel and the client less processor time.
type conn struct {
	net.Conn
	checked bool   // the first byte was checked, or need not be; used by the reading goroutine alone
	first   []byte // what was read before this conn took over; used by the reading goroutine alone
	local   *plain // where a conn to the TLS port that speaks plain HTTP goes on; nil: nowhere
	plain   bool   // it came from there
	clear   bool   // net/http reads and writes it without TLS; otherwise through a secureConn
	narrow  bool   // see fewConns

	heads *heads // counts what comes before a request; nil: it does not count
	wire  wire

	drains *drains
	closed atomic.Bool
	open   *atomic.Int64 // the number of open connections

	mu   sync.Mutex  // guards what follows, and puts writes in sequence
	held *sendBuffer // nil: what is written is sent at once
	err  error       // of a flush. Part of a record may have been sent, so nothing may follow it
}

const (
	// fewConns is how many connections may be open until further ones are narrow: the kernel keeps less for each.
	fewConns = 32
	// unsent is how many bytes that may not be sent yet the kernel keeps for a narrow connection: enough to send on
	// while the process is not scheduled. 500 clients that do not read would take 1.5 GiB otherwise.
	unsent = 128 << 10
	// unsentOfFew is that of the others. Large blobs then take a fifth less processor time, as the process waits for
	// room less often.
	unsentOfFew = 1 << 20
	// unread is how many bytes the kernel keeps, twice, for a narrow connection while no body is read. 2,000 clients
	// that do not read their answers, and send on, would take 200 MiB otherwise.
	unread = 8 << 10
	// roomy is that while a body is read, to begin with: it grows, so that a connection with a long round-trip time is
	// not slower.
	roomy = 64 << 10
)

// sendBuffer holds back what is written.
type sendBuffer struct{ b []byte }

// sendBufferSize has room for a piece in TLS records. Each record has an overhead of at most 22 bytes (RFC 8446,
// section 5.2), and what was written before the piece may have started another one.
const sendBufferSize = piece + 8<<10

var sendBuffers = sync.Pool{New: func() any { return &sendBuffer{make([]byte, 0, sendBufferSize)} }}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if c.clear {
		return c.wire.writeTo(p, c.write)
	}
	return c.write(p)
}

// write holds p back until flush, between hold and flush and if there is room for it.
func (c *conn) write(p []byte) (int, error) {
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
	// There is no room: what is held goes first, so that the bytes keep their order.
	if err := c.send(); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// widen lets the kernel keep as much of a body as it usually does, while the body is read.
func (c *conn) widen() {
	if c != nil && c.narrow {
		socket.FreeUnread(c.Conn, roomy)
	}
}

// narrowed ends what widen has begun.
func (c *conn) narrowed() {
	if c != nil && c.narrow {
		socket.BoundUnread(c.Conn, unread)
	}
}

// hold makes writes wait until flush.
func (c *conn) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = sendBuffers.Get().(*sendBuffer)
}

// flush sends what was held back, and ends the holding. Errors: those of the connection.
func (c *conn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.send()
	sendBuffers.Put(c.held)
	c.held = nil
	return err
}

// send writes what is held. The caller holds mu.
func (c *conn) send() error {
	if len(c.held.b) == 0 {
		return nil
	}
	_, c.err = c.Conn.Write(c.held.b)
	c.held.b = c.held.b[:0]
	return c.err
}

// ReadFrom lets the kernel send a file.
func (c *conn) ReadFrom(src io.Reader) (int64, error) {
	if to, ok := c.Conn.(io.ReaderFrom); ok {
		return to.ReadFrom(src)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, src)
}

// CloseWrite reports to the client that nothing follows; net/http then waits for what the client still sends.
func (c *conn) CloseWrite() error {
	if to, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return to.CloseWrite()
	}
	return nil
}

// Close ends the connection without losing what the client has not read yet: see drains. Like abort, it has no effect
// after the first of either, nor on a connection that was handed over.
func (c *conn) Close() error {
	if !c.closed.Swap(true) {
		c.open.Add(-1)
		c.drains.end(c.Conn)
	}
	return nil
}

// abort closes the connection at once.
func (c *conn) abort() {
	if !c.closed.Swap(true) {
		c.open.Add(-1)
		_ = c.Conn.Close() // the connection is over even if this fails
	}
}

// connKey finds the conn of a request in its context.
type connKey struct{}

// withConn is http.Server.ConnContext: it adds the conn to the context of the connection's requests.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if c := under(c); c != nil {
		return context.WithValue(ctx, connKey{}, c)
	}
	return ctx
}
