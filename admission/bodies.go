package admission

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
)

// Bodies bounds the memory of the reviews that are read and processed at once.
type Bodies interface {
	// Read reads the body of a request, of at most most bytes, into a buffer. It reserves factor times the size of the
	// body until release is called. Errors: *http.MaxBytesError if the body is larger; one with a method RetryAfter()
	// int, in seconds, if there is no memory; those of the body. On an error there is nothing to release.
	Read(into *bytes.Buffer, w http.ResponseWriter, r *http.Request, most int64, factor int) (release func(), err error)
}

const (
	// maxBody bounds a review, in bytes. The API server accepts requests up to 3 MiB, and the review of an UPDATE
	// contains the object twice.
	maxBody = 7 << 20

	// maxKept bounds the buffers that are kept for later bodies, in bytes. Nearly all reviews are smaller. A body that
	// does not come may hold such a buffer, so larger ones would cost more than its size says.
	maxKept = 64 << 10

	// maxFactor is how many times its size a review allocates, the body included; a test measures hostile ones.
	maxFactor = 24
)

// buffers are those that reviews are read into.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// readReview reads and decodes the body. The result shares no memory with the body, whose buffer is used again. The
// caller calls release when it is done with the review; on an error there is nothing to release.
func (w *Webhook) readReview(rw http.ResponseWriter, r *http.Request) (q *review, release func(), err error) {
	buf := buffers.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= maxKept { // a large buffer would stay in the pool and never be used in full again
			buf.Reset()
			buffers.Put(buf)
		}
	}()
	if release, err = w.bodies.Read(buf, rw, r, maxBody, maxFactor); err != nil {
		return nil, nil, bodyError(err)
	}
	defer func() {
		if q == nil { // also after a panic
			release()
		}
	}()
	q, err = decodeReview(buf.Bytes())
	return q, release, err
}

// bodyError returns the answer for a body that could not be read.
func bodyError(err error) error {
	var later interface{ RetryAfter() int }
	switch tooLarge := (*http.MaxBytesError)(nil); {
	case errors.As(err, &tooLarge):
		return &httpError{http.StatusRequestEntityTooLarge, "body too large; an AdmissionReview has at most 7 MiB"}
	case errors.As(err, &later):
		return &httpError{http.StatusServiceUnavailable, err.Error()}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return malformed("the body ends early")
	}
	return malformed("the body cannot be read")
}
