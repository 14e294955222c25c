package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// field is a header field.
type field struct{ name, value string }

// request is what is sent. The path is sent as it stands.
type request struct {
	method, path string
	repo         string // whose token is needed, where the server has tokens
	fields       []field
	body         [2][]byte // one after the other
}

func (q *request) size() int { return len(q.body[0]) + len(q.body[1]) }

// idempotent tells whether a request may be sent a second time if there was no answer (RFC 9110, 9.2.2).
func (q *request) idempotent() bool { return q.method != "POST" && q.method != "PATCH" }

// conn is a connection: one request at a time. It is dialled when it is needed, and again after it was closed.
type conn interface {
	// do sends a request, with an Authorization field if it is not empty. The answer is good until the next. sum, if
	// it is not nil, gets the answer's body.
	do(q *request, authorization string, sum hash.Hash) (*response, error)
	// until sets when whatever is under way is cut.
	until(t time.Time)
	close()
}

// statusError is an answer with another status than the one that was expected.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

// caller is a connection with what the server wants in addition to requests: a login.
type caller struct {
	ctx    context.Context
	target *target
	conn   conn
	sum    hash.Hash // of the next answer's body, once
}

func (c *caller) close() { c.conn.close() }

// do sends a request; if the server asks for a login or another token, again with that.
func (c *caller) do(q *request) (*response, error) {
	sum := c.sum
	c.sum = nil
	for try := 0; ; try++ {
		authorization := c.target.access.header(q.repo)
		resp, err := c.conn.do(q, authorization, sum)
		if err != nil || resp.status != http.StatusUnauthorized {
			return resp, err
		}
		if try == 2 {
			return nil, c.target.access.refused()
		}
		if err := c.target.access.learn(c.ctx, q.repo, string(resp.challenge), authorization); err != nil {
			return nil, err
		}
		if sum != nil {
			sum.Reset()
		}
	}
}

// want sends a request and expects a status.
func (c *caller) want(q *request, status int) (*response, error) {
	resp, err := c.do(q)
	if err == nil && resp.status != status {
		return nil, c.refusal(q.method, q.path, resp)
	}
	return resp, err
}

// refusal tells of an answer that was not expected, with what the server says about it.
func (c *caller) refusal(method, path string, resp *response) error {
	var body struct {
		Errors []struct{ Code, Message string }
	}
	said := ""
	if json.Unmarshal(resp.body, &body) == nil && len(body.Errors) > 0 {
		said = ": " + body.Errors[0].Code + " " + body.Errors[0].Message
	}
	path, _, _ = strings.Cut(path, "?")
	return &statusError{resp.status, fmt.Sprintf("%s %s: %d %s%.200s", method, path, resp.status, http.StatusText(resp.status), said)}
}

// wire is a connection of HTTP/1.1. It spares what net/http does for all that may be: goroutines, maps of header
// fields, and strings, which cost more than a small request costs the server.
type wire struct {
	ctx      context.Context
	target   *target
	conn     net.Conn // nil: to be dialled
	in       *bufio.Reader
	stop     func() bool // ends the watch of ctx
	deadline time.Time
	out      []byte
	vectors  [2][]byte
	resp     response
}

// combined is up to which size head and body are sent in one piece: copying that much is less than a system call.
const combined = 64 << 10

func newWire(ctx context.Context, t *target) *wire {
	return &wire{ctx: ctx, target: t, in: bufio.NewReaderSize(nil, headBuffer)}
}

func (w *wire) until(t time.Time) {
	w.deadline = t
	if w.conn != nil {
		w.conn.SetDeadline(t)
	}
}

func (w *wire) close() {
	if w.conn != nil {
		w.stop()
		w.conn.Close()
		w.conn = nil
	}
}

func (w *wire) dial() error {
	c, err := w.target.dial(w.ctx)
	if err != nil {
		return err
	}
	c.SetDeadline(w.deadline)
	w.conn, w.stop = c, context.AfterFunc(w.ctx, func() { c.Close() })
	w.in.Reset(c)
	w.resp.conn = c
	return nil
}

// do sends on the connection that there is. If the server has closed that meanwhile, it dials anew, once.
func (w *wire) do(q *request, authorization string, sum hash.Hash) (*response, error) {
	for {
		kept := w.conn != nil
		if !kept {
			if err := w.dial(); err != nil {
				return nil, err
			}
		}
		w.resp.status, w.resp.sum = 0, sum
		sent, err := w.exchange(q, authorization)
		if err == nil {
			if w.resp.closing {
				w.close()
			}
			return &w.resp, nil
		}
		w.close()
		if w.ctx.Err() != nil {
			return nil, w.ctx.Err()
		}
		if !kept || w.resp.status != 0 || sent && !q.idempotent() {
			return nil, fmt.Errorf("%s: %w", q.method, err)
		}
	}
}

// exchange sends and receives. sent tells whether the server may have got the request. A server that has answered
// before it has all of the body, and closes, is heard all the same.
func (w *wire) exchange(q *request, authorization string) (sent bool, err error) {
	writeErr := w.send(q, authorization)
	err = w.resp.read(w.in, q.method)
	if writeErr != nil {
		w.resp.closing = true
	}
	switch {
	case err != nil && writeErr != nil:
		return false, writeErr
	case errors.Is(err, io.EOF):
		return true, errors.New("the server closes the connection without an answer")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return true, errors.New("the answer ends early")
	}
	return true, err
}

func (w *wire) send(q *request, authorization string) error {
	w.out = w.head(w.out[:0], q, authorization)
	if q.size() > combined {
		return w.sendApart(q)
	}
	w.out = append(append(w.out, q.body[0]...), q.body[1]...)
	_, err := w.conn.Write(w.out)
	return err
}

// sendApart sends a large body from where it is.
func (w *wire) sendApart(q *request) error {
	if _, err := w.conn.Write(w.out); err != nil {
		return err
	}
	w.vectors = q.body
	parts := net.Buffers(w.vectors[:])
	_, err := parts.WriteTo(w.conn)
	return err
}

// head appends the request without its body.
func (w *wire) head(out []byte, q *request, authorization string) []byte {
	out = append(out, q.method...)
	out = append(out, ' ')
	out = append(out, q.path...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, w.target.host...)
	out = append(out, "\r\nUser-Agent: trow-bench\r\n"...)
	if authorization != "" {
		out = appendField(out, "Authorization", authorization)
	}
	for _, f := range q.fields {
		out = appendField(out, f.name, f.value)
	}
	if n := q.size(); n > 0 || q.method == "POST" || q.method == "PUT" || q.method == "PATCH" {
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, int64(n), 10)
		out = append(out, "\r\n"...)
	}
	return append(out, "\r\n"...)
}

func appendField(out []byte, name, value string) []byte {
	out = append(out, name...)
	out = append(out, ": "...)
	out = append(out, value...)
	return append(out, "\r\n"...)
}
