package server

import (
	"net/http"
	"time"
)

// Answers bounds the memory of answers that handlers render as a whole and keep until the client has received them. As
// with [Bodies], a request waits a few seconds for memory. If there is none, the oldest answer of the address that
// holds most is aborted, with its connection, if its client has not received it within readGrace. So a client that does
// not read does not block others. Answers is safe for concurrent use.
type Answers struct{ pool pool }

// maxAnswers bounds the memory for answers on a machine with much of it: rendering takes CPU time, which verdicts need
// as well, so the number of answers that are rendered at once must be bounded too.
const maxAnswers = 64 << 20

// NewAnswers returns Answers that take up to so many bytes.
func NewAnswers(bytes int64) *Answers {
	a := &Answers{}
	a.pool.init(bytes)
	return a
}

// ReserveAnswers returns the memory for answers: a sixteenth of what the process may use, up to maxAnswers.
func ReserveAnswers() *Answers { return NewAnswers(min(Memory()/16, maxAnswers)) }

// Take takes bytes for the answer to r. The caller calls keep to give back all but a number of bytes, and at the end
// with
// 0. Errors: one with a method RetryAfter if there is no memory; that of the request's context.
func (a *Answers) Take(r *http.Request, bytes int64) (keep func(bytes int64), err error) {
	c, _ := r.Context().Value(connKey{}).(*conn)
	h, err := a.pool.take(r.Context(), client(r), bytes, func(time.Time) {
		if c != nil { // it has no connection of its own in tests
			c.abort()
		}
	})
	if err != nil {
		return nil, err
	}
	return func(bytes int64) {
		if bytes > 0 {
			h.shrink(bytes)
		} else {
			h.release()
		}
	}, nil
}
