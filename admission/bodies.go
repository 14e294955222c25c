package admission

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// Bodies bounds the memory of the reviews that are read and processed at once.
type Bodies interface {
	// Read reads the body of a request, of at most most bytes, into a buffer. It reserves factor times the size of the
	// body until release is called. Errors: *http.MaxBytesError if the body is larger; one with a method RetryAfter() int,
	// in seconds, if there is no memory; those of the body. On an error there is nothing to release.
	Read(into *bytes.Buffer, w http.ResponseWriter, r *http.Request, most int64, factor int) (release func(), err error)
}

const (
	// maxBody bounds a review, in bytes. The API server accepts requests up to 3 MiB, and the review of an UPDATE
	// contains the object twice.
	maxBody = 7 << 20

	// maxKept bounds the buffers that are kept for later bodies, in bytes. Nearly all reviews are smaller. A body that
	// does not come may hold such a buffer, so larger ones would cost more than its size says.
	maxKept = 64 << 10

	// large is the size in bytes from which on reviews have places; see maxLarge.
	large = 256 << 10

	// maxFactor is how many times its size a review allocates, the body included; a test measures hostile ones.
	maxFactor = 24

	// maxLarge bounds the reviews larger than large that are processed at once where no Bodies are given. Reviews of real
	// pods have a tenth of large.
	maxLarge = 4

	// maxWait bounds how long a large review waits for its turn. By default the API server waits 10 s for an answer, and
	// when it gives up, the context of the request ends.
	maxWait = 10 * time.Second
)

// places are the Bodies of a Webhook that gets none: a place for each large review under way.
type places chan struct{}

// errPlaces is the error of a large review that gets no place.
type errPlaces struct{}

func (errPlaces) Error() string   { return "too many large AdmissionReviews at once; retry" }
func (errPlaces) RetryAfter() int { return 1 }

// Read implements Bodies.
func (p places) Read(into *bytes.Buffer, w http.ResponseWriter, r *http.Request, most int64, _ int) (func(), error) {
	release := func() {}
	if r.ContentLength > most {
		return nil, &http.MaxBytesError{Limit: most}
	}
	if r.ContentLength < 0 || r.ContentLength > large { // a body of unknown length counts as large
		turn, cancel := context.WithTimeout(r.Context(), maxWait)
		defer cancel()
		select {
		case p <- struct{}{}:
			release = func() { <-p }
		case <-turn.Done():
			return nil, errPlaces{}
		}
	}
	if r.ContentLength > large {
		into.Grow(int(r.ContentLength) + bytes.MinRead) // once, not by doubling
	}
	if _, err := into.ReadFrom(http.MaxBytesReader(w, r.Body, most)); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

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
