package server

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"sync/atomic"

	"trow/registry/ocierror"
	"trow/registry/socket"
)

// listener makes conns of the connections that it accepts. If the server speaks TLS, a client that speaks plain HTTP is
// redirected: containerd assumes that 127.0.0.1 with a port speaks plain HTTP, and follows the redirect. Only clients
// on this machine are served in plain then: see plain.
type listener struct {
	net.Listener
	tls    bool
	local  *plain // with tls
	drains *drains
	open   *atomic.Int64 // connections
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	open := l.open.Add(1)
	k := &conn{Conn: c, checked: !l.tls, clear: !l.tls, local: l.local, drains: l.drains, open: l.open,
		narrow: open > fewConns}
	if k.narrow {
		socket.BoundUnsent(c, unsent)
		socket.BoundUnread(c, unread)
	} else {
		socket.BoundUnsent(c, unsentOfFew)
	}
	return k, nil
}

// tlsHandshake is the first byte of a TLS connection (RFC 8446, section 5.1). No HTTP method starts with it.
const tlsHandshake = 0x16

// Read checks the first byte of the connection, unless plain HTTP is spoken. The first to read is the goroutine of the
// TLS handshake, which has a deadline.
func (c *conn) Read(p []byte) (int, error) {
	if c.closed.Load() { // drains, or another conn, reads what still comes
		return 0, net.ErrClosed
	}
	if n := c.wire.take(p); n > 0 { // it was counted when it was read
		return c.look(p, n, nil, c)
	}
	n, err := len(c.first), error(nil)
	if n > 0 {
		n = copy(p, c.first)
		c.first = c.first[n:]
	} else {
		n, err = c.Conn.Read(p)
	}
	if c.heads != nil {
		c.heads.read(n)
	}
	if c.clear {
		return c.look(p, n, err, c)
	}
	if c.checked || n == 0 {
		return n, err
	}
	c.checked = true
	// Everything that does not look like an HTTP method goes on to TLS, which reports what is wrong with it.
	if p[0] == tlsHandshake || p[0] < 'A' || p[0] > 'Z' {
		return n, err
	}
	if !c.handOver(p[:n]) {
		answerPlain(c.Conn, p[:n])
	}
	return 0, io.EOF
}

// maxPlainHeader bounds the headers of a request in plain HTTP from elsewhere, which are not among the counted ones.
// The longest path of the API with a digest has less than 500 bytes.
const maxPlainHeader = 8 << 10

// headReader reads the headers of one request, up to maxHeaderLines.
type headReader struct {
	io.Reader
	head head
}

func (r *headReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.head.read(p[:n]); r.head.lines > maxHeaderLines {
		return 0, io.EOF
	}
	return n, err
}

// answerPlain answers one request in plain HTTP whose first bytes were read: with a redirect, or an error where a
// client would not follow one.
func answerPlain(c net.Conn, first []byte) {
	in := io.LimitReader(io.MultiReader(bytes.NewReader(first), c), maxPlainHeader)
	r, err := http.ReadRequest(bufio.NewReaderSize(&headReader{Reader: in}, 1<<10))
	if err != nil {
		return
	}
	answer := http.Response{ProtoMajor: 1, ProtoMinor: 1, Request: r, Close: true, Header: http.Header{}}
	ocierror.Secure(answer.Header)
	if to := onTLS(r); to != "" {
		answer.StatusCode = http.StatusTemporaryRedirect
		answer.Header.Set("Location", to)
	} else {
		setPlainError(&answer)
	}
	_ = answer.Write(c) // on an error the client has gone
}

// onTLS returns where a request in plain HTTP is redirected to; empty: its client would not follow a redirect.
func onTLS(r *http.Request) string {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.Host == "" {
		return ""
	}
	return "https://" + r.Host + r.URL.RequestURI()
}

// plainRefused refuses a request in plain HTTP.
func plainRefused() *ocierror.Error {
	return &ocierror.Error{Code: ocierror.Unsupported, Message: "this port speaks TLS only: use https",
		Status: http.StatusBadRequest}
}

// setPlainError makes the answer an error, in the form of the specification below /v2, and as text elsewhere.
func setPlainError(answer *http.Response) {
	e := plainRefused()
	contentType, body := "text/plain; charset=utf-8", []byte(e.Message+"\n")
	if ocierror.IsPath(answer.Request.URL.Path) {
		contentType, body = "application/json", e.Body()
	}
	answer.StatusCode = e.HTTPStatus()
	answer.Header.Set("Content-Type", contentType)
	answer.ContentLength, answer.Body = int64(len(body)), io.NopCloser(bytes.NewReader(body))
}
