package limit

import (
	"context"
	"io"
	"math"
	"net/http"

	"golang.org/x/time/rate"
)

// writer is a ResponseWriter that waits before each step of the body until the rate allows it.
type writer struct {
	http.ResponseWriter
	ctx   context.Context
	limit *rate.Limiter
}

// Unwrap lets http.ResponseController reach the connection.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write writes p. Errors: those of the connection; that of the context, if the client disconnected while its bytes
// waited.
func (w *writer) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+w.limit.Burst())]
		if err := w.limit.WaitN(w.ctx, len(part)); err != nil {
			return n, err
		}
		m, err := w.ResponseWriter.Write(part)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// ReadFrom writes all of src. It passes each step on as a LimitedReader of the source, so that a file still goes out by
// sendfile.
func (w *writer) ReadFrom(src io.Reader) (total int64, err error) {
	// io.CopyN has wrapped the source already. It is unwrapped, because the standard library finds a file below one
	// LimitedReader, and not below two.
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: src, N: math.MaxInt64}
	}
	for limited.N > 0 {
		step := min(limited.N, int64(w.limit.Burst()))
		if err := w.limit.WaitN(w.ctx, int(step)); err != nil {
			return total, err
		}
		part := &io.LimitedReader{R: limited.R, N: step}
		n, err := io.Copy(w.ResponseWriter, part)
		limited.N -= step - part.N
		total += n
		if err != nil || part.N > 0 {
			return total, err
		}
	}
	return total, nil
}

// body is a request's body. Read waits after it has read, until the rate allows what it has read: the number of bytes
// is known only then.
type body struct {
	io.ReadCloser
	ctx   context.Context
	limit *rate.Limiter
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), b.limit.Burst())])
	if n > 0 {
		if werr := b.limit.WaitN(b.ctx, n); err == nil {
			err = werr
		}
	}
	return n, err
}
