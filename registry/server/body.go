package server

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// errTooSlow is the error of a body that has not arrived in the time that it has. For errors.Is it is
// os.ErrDeadlineExceeded.
type errTooSlow struct{}

func (errTooSlow) Error() string { return "the body came too slowly" }
func (errTooSlow) Unwrap() error { return os.ErrDeadlineExceeded }

// body is the body of a request. It cuts off a client that stalls. Nothing is read, and no 100 Continue is sent, before
// the handler reads.
type body struct {
	io.ReadCloser
	w *response

	large bool // it has more than the kernel keeps of a connection, or its length is not known
	wide  bool // the handler reads it, so that the kernel may keep more

	bytes int64
	err   error     // the first error of reading, except io.EOF
	ended bool      // the body was read to its end, or reading failed
	armed time.Time // when the read deadline was last set

	// limit is when the whole body must have arrived, in nanoseconds since 1970; 0: whenever. It is atomic because
	// Bodies sets it while the handler reads.
	limit atomic.Int64
}

// isOpen reports whether there may be more to read, which is never so in a nil body.
func (b *body) isOpen() bool { return b != nil && !b.ended }

// Read reads under a deadline. net/http removes the deadline at the end of the body, before it waits for the connection
// to close.
func (b *body) Read(p []byte) (int, error) {
	if b.ended {
		return b.ReadCloser.Read(p)
	}
	b.arm()
	if b.large && !b.wide {
		b.wide = true
		b.w.conn.widen()
	}
	n, err := b.ReadCloser.Read(p)
	b.bytes += int64(n)
	if err == nil {
		return n, nil
	}
	b.ended = true
	b.w.heads().awaitBody(0)
	if err != io.EOF {
		err = b.failed(err)
	}
	return n, err
}

// failed keeps the reason why the body ended early. The deadline stays, so that net/http does not wait for the rest.
func (b *body) failed(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errStalled(b.w.stall)
		if limit := b.limit.Load(); limit != 0 && time.Now().UnixNano() >= limit {
			err = errTooSlow{}
		}
		// Without an answer yet, it can announce that no request may follow on this connection.
		if b.w.status == 0 {
			b.w.Header().Set("Connection", "close")
		}
	}
	b.err = err
	return err
}

// brokeOff reports whether the rest of the body may still come although the answer does not announce the end of the
// connection. net/http would take that rest for the next request: behind a proxy that shares connections, one client
// could send requests in the name of another. The answer itself is flushed.
func (w *response) brokeOff() bool {
	if w.body == nil || w.body.err == nil || w.status == 0 || w.Header().Get("Connection") == "close" {
		return false
	}
	_ = w.rc.Flush() // if it fails, the client gets no answer either way
	return true
}

// arm sets the deadline before a read. A deadline that is recent enough stays, because setting it for each read would
// cost a system call; see response.arm.
func (b *body) arm() {
	now := time.Now()
	if now.Sub(b.armed) > b.w.stall/4 {
		b.armed = now
		b.set(now.Add(b.w.stall + b.w.stall/4))
	}
}

// set sets the deadline of reading, at most to limit.
func (b *body) set(t time.Time) {
	if limit := b.limit.Load(); limit != 0 && t.UnixNano() > limit {
		t = time.Unix(0, limit)
	}
	_ = b.w.rc.SetReadDeadline(t)
}

// setLimit sets when the whole body must have arrived, also for a Read that waits.
func (b *body) setLimit(t time.Time) error {
	b.limit.Store(t.UnixNano())
	return b.w.rc.SetReadDeadline(t)
}

// Close drops the rest of the body. net/http reads a part of it, so that the connection can be used again.
func (b *body) Close() error {
	if b.isOpen() {
		b.arm()
		b.ended = true
	}
	return b.ReadCloser.Close()
}
