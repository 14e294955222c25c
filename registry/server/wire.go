package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"time"

	"trow/registry/ocierror"
)

// This file is what is done to the clear text between net/http and a connection, where no handler is asked: headers of
// requests with too many lines, and the answers of net/http itself.

// maxHeaderLines bounds the lines of a request and its headers, as net/http bounds their bytes: the fields of 64 KiB of
// short lines would take 1.6 MB. Clients and the proxies in front of them send some 30.
const maxHeaderLines = 128

const tooManyLines = "more than 128 lines"

// wire is the clear text of a conn. The goroutine of net/http that serves the connection uses it, and while a handler
// runs the one that reads the first byte of the next request, which changes nothing here.
type wire struct {
	head      head
	rest      []byte // read from the connection, and not given to net/http yet
	answering bool   // a handler has begun with the answer to this request
	refused   bool   // look has answered: net/http may answer what it got of the request as well, which is dropped
	answers   uint   // the requests so far
}

// turn is after how many answers a connection lets others run. A client that sends requests without waiting for answers
// never makes its goroutine wait: it would run for 10 ms at a time, and with 200 such clients a probe would take 2.8 s;
// so it takes 0.2 s. After each answer, that would cost a client that is alone 5 % more processor time.
const turn = 8

// next begins the next request.
func (w *wire) next() {
	w.head, w.answering, w.refused = head{}, false, false
	if w.answers++; w.answers%turn == 0 {
		runtime.Gosched()
	}
}

// head is where a request is whose headers are being read.
type head struct {
	bytes, lines int
	line         int  // the bytes of the last line, which has no end yet
	cr           bool // these are a CR
	ended        bool

	start            [18]byte // of that line; it has room for "Transfer-Encoding:"
	whole            bool     // the first line is that of a request: no line of the headers was missed
	length, encoding bool     // there is a line with Content-Length, or with Transfer-Encoding
}

// read counts what was read, and returns how much of it is up to the end of the headers: all if that is not in it.
func (h *head) read(p []byte) (n int) {
	for n < len(p) && !h.ended {
		end := bytes.IndexByte(p[n:], '\n')
		line := p[n:]
		if end >= 0 {
			line = line[:end]
		}
		h.cr = h.line == 0 && len(line) == 1 && line[0] == '\r' || h.cr && len(line) == 0
		if h.line < len(h.start) {
			copy(h.start[h.line:], line)
		}
		h.line += len(line)
		n += len(line)
		if end >= 0 {
			n++
			h.ended = h.line == 0 || h.cr // an empty line
			h.note()
			h.lines, h.line, h.cr = h.lines+1, 0, false
		}
	}
	h.bytes += n
	return n
}

// note notes what the line is that has ended. A line that begins in the middle, because its beginning came with the
// request before and was not counted, is not taken for that of a request: it has a colon in its first word, or no word
// that ends within 18 bytes.
func (h *head) note() {
	start := h.start[:min(h.line, len(h.start))]
	name, _, found := bytes.Cut(start, []byte{':'})
	switch {
	case h.lines == 0:
		h.whole = bytes.IndexByte(name, ' ') >= 0
	case found && bytes.EqualFold(name, []byte("Content-Length")):
		h.length = true
	case found && bytes.EqualFold(name, []byte("Transfer-Encoding")):
		h.encoding = true
	}
}

// ambiguous reports whether the headers have both a Content-Length and a Transfer-Encoding, or may have.
func (h *head) ambiguous() bool { return !h.ended || !h.whole || h.length && h.encoding }

// encoded reports whether the headers have a Transfer-Encoding, or may have.
func (h *head) encoded() bool { return !h.ended || !h.whole || h.encoding }

// look looks at the n bytes that were read into p from a connection to which answer writes. It returns what net/http
// gets of them.
func (c *conn) look(p []byte, n int, err error, answer io.Writer) (int, error) {
	w := &c.wire
	if c.heads == nil || c.heads.done.Load() || w.head.ended {
		return n, err
	}
	if w.refused {
		return 0, io.EOF
	}
	end := w.head.read(p[:n])
	if w.head.lines > maxHeaderLines {
		w.answering = true
		_, _ = answer.Write(ocierror.Raw(manyLinesError())) // if it cannot be written, the client has gone
		w.refused = true
		return 0, io.EOF
	}
	// What follows is a body, or the next request of a client that does not wait for answers. Of that net/http would
	// keep lines that were not counted, as it does of what follows a body in its buffer of 4 KiB: see manyLines.
	if err == nil && bytes.Count(p[end:n], []byte{'\n'}) > maxHeaderLines {
		w.rest, n = slices.Clone(p[end:n]), end
	}
	return n, err
}

// manyLines reports whether a request has more lines than look lets pass: they came with the body of the one before.
func manyLines(h http.Header) bool {
	n := 0
	for _, values := range h {
		n += len(values)
	}
	return n > maxHeaderLines
}

// refuseLines answers a request with too many lines. It reports whether it has answered.
func refuseLines(w *response, r *http.Request) bool {
	if !manyLines(r.Header) {
		return false
	}
	w.Header().Set("Connection", "close")
	writeError(w, r, manyLinesError())
	return true
}

func manyLinesError() *ocierror.Error {
	return &ocierror.Error{Code: ocierror.Unsupported, Status: http.StatusRequestHeaderFieldsTooLarge,
		Message: "the headers have " + tooManyLines}
}

// take reads what look has kept back.
func (w *wire) take(p []byte) (n int) {
	n = copy(p, w.rest)
	if w.rest = w.rest[n:]; len(w.rest) == 0 {
		w.rest = nil
	}
	return n
}

// writeTo writes to net/http's side of the connection. What no handler has answered gets the form of all answers.
func (w *wire) writeTo(p []byte, write func([]byte) (int, error)) (int, error) {
	switch {
	case w.refused:
		return len(p), nil
	case w.answering:
		return write(p)
	}
	if _, err := write(ocierror.RawAnswer(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// secureConn is TLS over a conn, as net/http has it. It is no *tls.Conn, because that would write the answers of
// net/http past wire; net/http asks it for Request.TLS all the same.
type secureConn struct {
	*tls.Conn
	under    *conn
	failed   bool                           // the handshake has failed
	complain func(from net.Addr, err error) // called when it has
}

// ConnectionState does the handshake: net/http calls it first of all, in the connection's own goroutine.
func (c *secureConn) ConnectionState() tls.ConnectionState {
	_ = c.SetDeadline(time.Now().Add(headerTimeout)) // on an error the handshake fails as well
	err := c.HandshakeContext(context.Background())
	if c.failed = err != nil; !c.failed {
		_ = c.SetDeadline(time.Time{}) // on an error reading fails
	} else {
		c.complain(c.RemoteAddr(), err)
	}
	return c.Conn.ConnectionState()
}

// Read reads clear text. After a failed handshake it is the end, to which net/http has no answer.
func (c *secureConn) Read(p []byte) (int, error) {
	if c.failed {
		return 0, io.EOF
	}
	if n := c.under.wire.take(p); n > 0 {
		return c.under.look(p, n, nil, c)
	}
	n, err := c.Conn.Read(p)
	return c.under.look(p, n, err, c)
}

func (c *secureConn) Write(p []byte) (int, error) { return c.under.wire.writeTo(p, c.Conn.Write) }

// under returns the conn below a connection of net/http; nil in tests with others.
func under(c net.Conn) *conn {
	switch c := c.(type) {
	case *conn:
		return c
	case *secureConn:
		return c.under
	}
	return nil
}

// secureListener speaks TLS on the connections of a listener.
type secureListener struct {
	listener
	config   *tls.Config
	complain func(from net.Addr, err error)
}

func (l secureListener) Accept() (net.Conn, error) {
	c, err := l.listener.Accept()
	if err != nil {
		return nil, err
	}
	below := c.(*conn) // of listener
	return &secureConn{Conn: tls.Server(below, l.config), under: below, complain: l.complain}, nil
}
