package registry

import (
	"errors"
	"net/http"

	"trow/registry/ocierror"
)

// Answers bounds the memory that is taken by answers that are rendered as a whole and kept until the client has
// received them.
type Answers interface {
	// Take reserves bytes for the answer to a request. The caller calls keep to give back all but a number of bytes,
	// and at the end with 0. Errors: one with a method RetryAfter() int, in seconds, if there is no memory; that of the
	// context.
	Take(req *http.Request, bytes int64) (keep func(bytes int64), err error)
}

// unbounded are Answers without a bound, for a Registry that has no others.
type unbounded struct{}

func (unbounded) Take(*http.Request, int64) (func(int64), error) { return uncounted, nil }

// uncounted is keep for an answer that is not counted.
func uncounted(int64) {}

const (
	// smallAnswer is the size in bytes up to which answers are not counted: even one for each request under way takes
	// little memory.
	smallAnswer = 64 << 10
	// answerFactor is how many times its size an answer may take in memory while it is read or rendered.
	answerFactor = 2
)

// reserveAnswer reserves memory for an answer of so many bytes. The caller calls keep with the bytes that it still
// needs while it writes, and with 0 after that. Errors: TOOMANYREQUESTS; that of the context.
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

// writeList answers with v, whose JSON has about the size of these names. Errors: as reserveAnswer.
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
