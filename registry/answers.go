package registry

import (
	"errors"
	"net/http"

	"trow/registry/ocierror"
)

// Answers bounds the memory of answers that are kept whole until the client has received them, and of making them.
type Answers interface {
	// Take reserves bytes for the answer to a request, until keep is called with 0. Before that, keep gives back all
	// but a number of bytes. Errors: one with a method RetryAfter() int, in seconds, if there is no memory; that of the
	// context.
	Take(req *http.Request, bytes int64) (keep func(bytes int64), err error)
}

// unbounded are Answers without a bound, for a Registry that has no others.
type unbounded struct{}

func (unbounded) Take(*http.Request, int64) (func(int64), error) { return uncounted, nil }

// uncounted is keep for an answer that takes nothing.
func uncounted(int64) {}

const (
	// smallAnswer is the size in bytes up to which answers are not counted: as many as there are requests under way
	// take little.
	smallAnswer = 64 << 10
	// answerFactor is how many times its size an answer may take while it is read or rendered.
	answerFactor = 2
)

// reserveAnswer reserves memory for an answer of so many bytes. The caller calls keep with what it needs while it
// writes, and with 0 when it has written. Errors: TOOMANYREQUESTS.
func (r *Registry) reserveAnswer(req *http.Request, bytes int64) (keep func(bytes int64), err error) {
	if bytes <= smallAnswer {
		return uncounted, nil
	}
	if keep, err = r.options.Answers.Take(req, bytes); err == nil {
		return keep, nil
	}
	var later interface{ RetryAfter() int }
	if !errors.As(err, &later) {
		return nil, err
	}
	return nil, &ocierror.Error{Code: ocierror.TooManyRequests,
		Message: "too many large answers are being received; retry in a moment",
		Header:  ocierror.RetryAfter(later.RetryAfter())}
}

// writeList answers with v, which has these names.
func (r *Registry) writeList(w http.ResponseWriter, req *http.Request, names []string, v any) error {
	var size int64
	for _, name := range names {
		size += int64(len(name)) + 3 // quotation marks and a comma
	}
	keep, err := r.reserveAnswer(req, answerFactor*size)
	if err != nil {
		return err
	}
	defer keep(0)
	writeJSON(w, req, v)
	return nil
}
