package s3

import (
	"context"
	"errors"
	"fmt"
	"io"

	"trow/storage"
)

// Objects are read in windows, each a request of a range: the first is short, as many clients want little, and later
// ones are longer. When half of a window is read, the next one is asked for, so that its first bytes have arrived in
// the socket's buffer when they are needed. A window that is read to its end leaves its connection for others.
const (
	firstWindow = 256 << 10 // all of a manifest, and little enough to be thrown away by a Seek
	maxWindow   = 64 << 20
	skipAtMost  = 64 << 10 // bytes that a Seek reads away instead of making a new request
	maxBroken   = 5        // connections in a row that break without a byte
)

// reader reads an object. It is for one goroutine at a time.
type reader struct {
	ctx    context.Context
	cancel context.CancelFunc
	c      *client
	key    string

	at     int64 // where the next Read starts
	size   int64 // of the object; -1 until it is known
	window int64 // the length of the next one
	body   io.ReadCloser
	left   int64 // bytes of the window that are not read
	half   int64 // what is left when the next window is asked for
	ahead  chan opened
	broken int
	closed bool
}

// opened is a window that was asked for.
type opened struct {
	at, n, size int64
	body        io.ReadCloser
	err         error
}

func newReader(ctx context.Context, c *client, key string) *reader {
	ctx, cancel := context.WithCancel(ctx)
	return &reader{ctx: ctx, cancel: cancel, c: c, key: key, size: -1, window: firstWindow}
}

// Read implements [io.Reader]. A connection that breaks is replaced by another one, from where it broke: the name of
// the object is used once, so it has the same bytes, and its length is compared.
func (r *reader) Read(p []byte) (int, error) {
	for {
		switch {
		case r.closed:
			return 0, fmt.Errorf("read %s: %w", r.key, storage.ErrClosed)
		case len(p) == 0:
			return 0, nil
		case r.size >= 0 && r.at >= r.size:
			return 0, io.EOF
		case r.body == nil:
			if err := r.open(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
		r.at, r.left = r.at+int64(n), r.left-int64(n)
		if r.left == 0 {
			r.drop()
		} else if err != nil {
			r.drop()
			if r.broken++; n == 0 && (r.broken == maxBroken || sleep(r.ctx, pause(r.broken)) != nil) {
				return 0, r.c.error("read "+r.key, fmt.Errorf("%w: the connection broke after %d of %d bytes: %w",
					errLater, r.at, r.size, err))
			}
		}
		if n > 0 {
			r.broken = 0
			r.readAhead()
			return n, nil
		}
	}
}

// open opens the window at the reader's place.
func (r *reader) open() error {
	o := r.take()
	if o.body == nil {
		o = r.request(r.at, r.window)
	}
	if o.err != nil {
		var e *Error
		if errors.As(o.err, &e) && e.Code == "InvalidRange" {
			return r.beyond(o.err)
		}
		return o.err
	}
	if r.size >= 0 && r.size != o.size {
		_ = o.body.Close()
		return r.c.error("read "+r.key, fmt.Errorf("%w: %d bytes instead of %d", errShort, o.size, r.size))
	}
	r.size, r.body = o.size, o.body
	r.left = min(o.n, r.size-r.at)
	r.half = r.left / 2
	r.window = min(4*o.n, maxWindow)
	if r.left <= 0 {
		r.drop()
	}
	return nil
}

// beyond finds out what a refused range means: the object is empty, or ends before.
func (r *reader) beyond(refused error) error {
	if r.size >= 0 {
		return r.c.error("read "+r.key, fmt.Errorf("%w: %w", errShort, refused))
	}
	return r.stat()
}

func (r *reader) stat() error {
	info, err := r.c.head(r.ctx, r.key)
	if err == nil {
		r.size = info.Size
	}
	return err
}

func (r *reader) request(at, n int64) opened {
	body, size, err := r.c.get(r.ctx, r.key, at, n)
	return opened{at, n, size, body, err}
}

// readAhead asks for the next window if it is time.
func (r *reader) readAhead() {
	next := r.at + r.left
	if r.body == nil || r.ahead != nil || r.left > r.half || next >= r.size {
		return
	}
	ahead, window := make(chan opened, 1), r.window
	r.ahead = ahead
	go func() { ahead <- r.request(next, window) }()
}

// take returns the window that was asked for if it starts at the reader's place.
func (r *reader) take() (o opened) {
	if r.ahead == nil {
		return opened{}
	}
	o = <-r.ahead
	r.ahead = nil
	if o.body != nil && o.at != r.at {
		_ = o.body.Close()
		return opened{}
	}
	return o // one that has failed has no body, and is asked for again
}

// drop ends the window.
func (r *reader) drop() {
	if r.body != nil {
		_ = r.body.Close()
	}
	r.body, r.left = nil, 0
}

// Seek implements [io.Seeker]. If a new request is needed, Seek makes it, not the next Read, so that its error is
// returned here, where a server can still send it to its client; as with Open.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		if r.size < 0 {
			if err := r.stat(); err != nil {
				return 0, err
			}
		}
		offset += r.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("read %s: seek to %d", r.key, offset)
	}
	if skip := offset - r.at; skip != 0 {
		if skip > 0 && skip <= skipAtMost && skip < r.left {
			n, err := io.CopyN(io.Discard, r.body, skip)
			r.left -= n
			if err != nil {
				r.drop()
			}
		} else {
			r.drop()
			r.window = firstWindow
		}
		r.at = offset
	}
	if r.body == nil && r.size >= 0 && offset < r.size && !r.closed {
		if err := r.open(); err != nil {
			return 0, err
		}
	}
	return offset, nil
}

// Close implements [io.Closer].
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	r.cancel()
	r.drop()
	if ahead := r.ahead; ahead != nil { // its request ends soon: the context has
		r.ahead = nil
		go func() {
			if o := <-ahead; o.body != nil {
				_ = o.body.Close()
			}
		}()
	}
	return nil
}
