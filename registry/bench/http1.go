package bench

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/valyala/fasthttp"
)

// http1 is one connection of HTTP/1.1. fasthttp implements the protocol. http1 adds what a load generator needs: one
// connection only, an exact rule for sending a request again, and large bodies that are counted instead of copied.
type http1 struct {
	ctx      context.Context
	target   *target
	client   fasthttp.HostClient
	req      fasthttp.Request
	resp     fasthttp.Response
	link     *link // nil before the first request
	dialErr  error // of the request under way
	deadline time.Time
	uri      []byte
	answer   response
}

// ioBuffer is the size of the read and of the write buffer of a connection. It bounds the head of an answer. A request
// that fits is sent by one system call.
const ioBuffer = 16 << 10

func newHTTP1(ctx context.Context, t *target) *http1 {
	c := &http1{ctx: ctx, target: t}
	c.client = fasthttp.HostClient{
		Addr:     t.addr,
		Dial:     func(string) (net.Conn, error) { return c.dial() },
		MaxConns: 1,
		// do itself decides whether a request is sent again.
		MaxIdemponentCallAttempts: 1,
		MaxIdleConnDuration:       overtime,
		ReadBufferSize:            ioBuffer,
		WriteBufferSize:           ioBuffer,
		MaxResponseBodySize:       maxBody,
		// Digests and queries are sent as they are.
		DisablePathNormalizing: true,
	}
	return c
}

// dial connects, and does the TLS handshake if there is one: fasthttp sees a connection without TLS, so that errors of
// the handshake keep their types for [target.explain].
func (c *http1) dial() (net.Conn, error) {
	conn, err := c.target.dial(c.ctx)
	if c.dialErr = err; err != nil {
		return nil, err
	}
	conn.SetDeadline(c.deadline)
	c.link = newLink(c.ctx, conn)
	return c.link, nil
}

func (c *http1) setDeadline(t time.Time) {
	c.deadline = t
	if c.link != nil {
		c.link.SetDeadline(t)
	}
}

func (c *http1) close() {
	c.client.CloseIdleConnections()
	if c.link != nil {
		c.link.Close()
	}
}

func (c *http1) do(q *request, authorization string, sum hash.Hash) (*response, error) {
	for {
		reused := c.link != nil && !c.link.closed.Load()
		if reused {
			c.link.begin()
		}
		c.prepare(q, authorization)
		c.dialErr = nil
		err := c.client.Do(&c.req, &c.resp)
		if err == nil {
			err = c.take(q, sum)
		}
		if err == nil {
			return &c.answer, nil
		}
		if c.link != nil {
			c.link.Close()
		}
		switch {
		case c.ctx.Err() != nil:
			return nil, c.ctx.Err()
		case c.dialErr != nil:
			return nil, c.dialErr
		case c.link == nil:
			return nil, fmt.Errorf("%s: %w", q.method, err)
		}
		// A reused connection that ends without an answer was most likely closed while it was idle. Then the request
		// is sent again over a new one, but only if the server cannot have seen it or may see it twice.
		unseen := c.link.received == 0 && (c.link.writeErr != nil || q.idempotent())
		if !reused || !unseen {
			return nil, fmt.Errorf("%s: %w", q.method, c.cause(err))
		}
	}
}

// cause replaces the library's text for an answer that is cut off or is not HTTP.
func (c *http1) cause(err error) error {
	_, network := errors.AsType[net.Error](err)
	switch {
	case c.link.writeErr != nil:
		return c.link.writeErr
	case network, errors.Is(err, errMalformed), errors.Is(err, errTooLarge):
		return err
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		return errTooLarge
	case c.link.received == 0:
		return errNoAnswer
	case errors.Is(err, fasthttp.ErrConnectionClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errShort // fasthttp reports it in all three ways
	}
	return fmt.Errorf("%w: %w", errMalformed, err)
}

// prepare fills in the request.
func (c *http1) prepare(q *request, authorization string) {
	c.req.Reset()
	// The scheme is for fasthttp only, see dial; it is not sent.
	c.uri = append(append(append(c.uri[:0], "http://"...), c.target.host...), q.path...)
	c.req.SetRequestURIBytes(c.uri)
	h := &c.req.Header
	h.SetMethod(q.method)
	h.SetUserAgent("trow-bench")
	h.SetNoDefaultContentType(true)
	if authorization != "" {
		h.Set("Authorization", authorization)
	}
	for _, f := range q.fields {
		h.Set(f.name, f.value)
	}
	switch {
	case len(q.body[1]) > 0:
		c.req.SetBodyStream(&parts{rest: q.body}, q.size())
	case len(q.body[0]) > 0:
		c.req.SetBodyRaw(q.body[0])
	}
	c.resp.StreamBody = q.stream && q.method != http.MethodHead
}

// take reads the answer after fasthttp has read its head, or all of it if it is not streamed.
func (c *http1) take(q *request, sum hash.Hash) error {
	h, a := &c.resp.Header, &c.answer
	a.status = c.resp.StatusCode()
	if a.status < 200 {
		return fmt.Errorf("%w: status %d", errMalformed, a.status) // 101: nothing asked for another protocol
	}
	a.location, a.digest = h.Peek("Location"), h.Peek("Docker-Content-Digest")
	if a.status == http.StatusUnauthorized {
		a.challenge = a.challenge[:0]
		for i, v := range h.PeekAll("WWW-Authenticate") {
			if i > 0 {
				a.challenge = append(a.challenge, ", "...)
			}
			a.challenge = append(a.challenge, v...)
		}
	}
	if stream := c.resp.BodyStream(); stream != nil { // a 204 has none
		return c.takeStream(stream, sum)
	}
	a.body = c.resp.Body()
	a.length = int64(len(a.body))
	if q.method == http.MethodHead {
		a.length = int64(max(h.ContentLength(), -1)) // fasthttp has several negative values for none
	}
	if sum != nil {
		sum.Write(a.body)
	}
	return nil
}

// takeStream reads a streamed body. Unless it is needed for a sum, most of it is discarded within the kernel.
func (c *http1) takeStream(stream io.Reader, sum hash.Hash) (err error) {
	defer func() { err = errors.Join(err, c.resp.CloseBodyStream()) }()
	success, length := c.answer.status == http.StatusOK, int64(c.resp.Header.ContentLength())
	if success && sum == nil && length > 0 {
		// At most this many bytes of the body are still to be received: received counts the head as well, and
		// whatever of the body is in the buffers already. So nothing behind the body is discarded.
		c.link.discard = length - c.link.received
	}
	c.answer.body = nil // it may be fasthttp's
	return c.answer.readStream(stream, !success, sum)
}

// parts is a request's body in two parts. fasthttp sends it without copying it together.
type parts struct{ rest [2][]byte }

func (p *parts) SupportsBodyWriteTo() bool { return true }

func (p *parts) WriteTo(w io.Writer) (n int64, err error) {
	for _, part := range p.rest {
		written, err := w.Write(part)
		n += int64(written)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Read is for fasthttp's type of a body; WriteTo is what is used.
func (p *parts) Read(b []byte) (n int, err error) {
	for i := range p.rest {
		if len(p.rest[i]) > 0 {
			n = copy(b, p.rest[i])
			p.rest[i] = p.rest[i][n:]
			return n, nil
		}
	}
	return 0, io.EOF
}
