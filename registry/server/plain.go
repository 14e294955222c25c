package server

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
)

// wires is what a server listens on. If it speaks TLS, a client that speaks plain HTTP is told where to go: containerd
// takes it for granted that 127.0.0.1 with a port speaks that, and follows. Nothing is served in plain then.
type wires struct {
	net.Listener
	plain bool
}

func (l wires) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &wire{Conn: c, seen: l.plain}, nil
}

// tlsHandshake is the first byte of TLS (RFC 8446, section 5.1). No method of HTTP begins with it.
const tlsHandshake = 0x16

// Read looks at the first byte, unless plain HTTP is spoken. The first one to read is the goroutine of the TLS handshake, which has a deadline.
func (c *wire) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.seen || n == 0 {
		return n, err
	}
	c.seen = true
	if p[0] == tlsHandshake || p[0] < 'A' || p[0] > 'Z' { // of the rest TLS says what is wrong
		return n, err
	}
	redirect(c.Conn, p[:n])
	return 0, io.EOF
}

// redirect answers one request in plain HTTP, of which begun was read.
func redirect(c net.Conn, begun []byte) {
	in := io.LimitReader(c, maxHeader)
	r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader(begun), in)))
	if err != nil {
		return
	}
	answer := http.Response{ProtoMajor: 1, ProtoMinor: 1, Request: r, Close: true, Header: http.Header{}}
	if (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Host != "" {
		answer.StatusCode = http.StatusTemporaryRedirect
		answer.Header.Set("Location", "https://"+r.Host+r.URL.RequestURI())
	} else {
		text := "this port speaks TLS alone: use https\n"
		answer.StatusCode, answer.ContentLength, answer.Body = http.StatusBadRequest, int64(len(text)), io.NopCloser(strings.NewReader(text))
	}
	_ = answer.Write(c) // the client may be gone
}
