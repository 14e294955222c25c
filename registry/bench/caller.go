package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"strings"
	"time"
)

// field is a header field.
type field struct{ name, value string }

// request is what a worker sends. The path is sent unchanged.
type request struct {
	method, path string
	repo         string // whose token is needed, if the server uses tokens
	fields       []field
	body         [2][]byte // sent one after the other
	stream       bool      // count the answer's body instead of keeping it; for large blobs
}

func (q *request) size() int { return len(q.body[0]) + len(q.body[1]) }

// idempotent reports whether a request may be sent again if there was no answer (RFC 9110, 9.2.2).
func (q *request) idempotent() bool { return q.method != "POST" && q.method != "PATCH" }

// conn is one connection with one request at a time. It is dialed when it is first needed, and again after it was
// closed.
type conn interface {
	// do sends a request, with an Authorization field if authorization is not empty. The answer is valid until the
	// next request. If sum is not nil, the answer's body is written to it.
	do(q *request, authorization string, sum hash.Hash) (*response, error)
	// setDeadline sets when the request under way is canceled; the zero time means never.
	setDeadline(t time.Time)
	close()
}

// How an answer can be missing or wrong, in either protocol.
var (
	errNoAnswer  = errors.New("the server closed the connection without an answer")
	errShort     = errors.New("the answer ended early")
	errMalformed = errors.New("the answer is not valid HTTP")
)

// statusError reports an answer with another status than the expected one.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

// caller is a connection that logs in when the server asks for it.
type caller struct {
	ctx    context.Context
	target *target
	conn   conn
	sum    hash.Hash // for the body of the next answer only
}

func (c *caller) close() { c.conn.close() }

// do sends a request. If the server asks for a login or for another token, do obtains it and sends the request again.
func (c *caller) do(q *request) (*response, error) {
	sum := c.sum
	c.sum = nil
	for try := 0; ; try++ {
		authorization := c.target.access.header(q.repo)
		resp, err := c.conn.do(q, authorization, sum)
		if err != nil || resp.status != http.StatusUnauthorized {
			return resp, err
		}
		// The first 401 asks for a login, the second for a token of a larger scope. A third one is a refusal.
		if try == 2 {
			return nil, c.target.access.refused()
		}
		err = c.target.access.answer(c.ctx, q.repo, string(resp.challenge), authorization)
		if err != nil {
			return nil, err
		}
		if sum != nil {
			sum.Reset() // it has the body of the 401
		}
	}
}

// want sends a request and expects a status. Errors: a *statusError for any other status, and those of do.
func (c *caller) want(q *request, status int) (*response, error) {
	resp, err := c.do(q)
	if err == nil && resp.status != status {
		return nil, c.refusal(q.method, q.path, resp)
	}
	return resp, err
}

// refusal returns the error for an unexpected answer, with the server's own message.
func (c *caller) refusal(method, path string, resp *response) error {
	var body struct {
		Errors []struct{ Code, Message string }
	}
	message := ""
	if json.Unmarshal(resp.body, &body) == nil && len(body.Errors) > 0 {
		message = ": " + body.Errors[0].Code + " " + body.Errors[0].Message
	}
	path, _, _ = strings.Cut(path, "?")
	text := fmt.Sprintf("%s %s: %d %s%.200s", method, path, resp.status, http.StatusText(resp.status), message)
	return &statusError{resp.status, text}
}
