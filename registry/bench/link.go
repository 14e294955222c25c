package bench

import (
	"context"
	"net"
	"sync/atomic"
)

// link is the network connection below [http1]. It observes what happens to the request under way, and can discard
// bytes that are received.
type link struct {
	net.Conn
	stop     func() bool // ends the watch of the context
	closed   atomic.Bool // fasthttp closes idle connections in a goroutine of its own
	received int64       // bytes, since begin
	discard  int64       // how many of the next bytes need not reach the reader
	writeErr error       // the first, since begin
}

// newLink closes the connection when ctx ends.
func newLink(ctx context.Context, c net.Conn) *link {
	return &link{Conn: c, stop: context.AfterFunc(ctx, func() { c.Close() })}
}

// begin starts a request.
func (l *link) begin() { l.received, l.discard, l.writeErr = 0, 0, nil }

func (l *link) Close() error {
	l.closed.Store(true)
	l.stop()
	return l.Conn.Close()
}

// Write reports success even if it fails, and keeps the error in writeErr. A server may answer, with 401 for example,
// and close before it has read the whole body: fasthttp would not read that answer after an error. If there is no
// answer either, reading fails.
func (l *link) Write(b []byte) (int, error) {
	if l.writeErr == nil {
		_, l.writeErr = l.Conn.Write(b)
	}
	return len(b), nil
}

func (l *link) Read(b []byte) (n int, err error) {
	if l.discard > 0 {
		n, err = readDiscard(l.Conn, b[:min(int64(len(b)), l.discard)])
		l.discard -= int64(n)
	} else {
		n, err = l.Conn.Read(b)
	}
	l.received += int64(n)
	return n, err
}
