package server

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Handler returns the outermost handler, for tests that need no connection.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// NewLocal makes a server, and a listener on loopback for it. The test calls Serve.
func NewLocal(t testing.TB, o Options) (*Server, net.Listener) {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return s, l
}

// BeforeActive makes the server call f when the headers of a request were read, before its connection counts as active.
func (s *Server) BeforeActive(f func(net.Conn)) {
	changed := s.http.ConnState
	s.http.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateActive {
			f(c)
		}
		changed(c, state)
	}
}

// LocalTLS returns a configuration with the certificate of net/http/httptest.
func LocalTLS() *tls.Config {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS() // makes the certificate
	defer s.Close()
	return &tls.Config{Certificates: s.TLS.Certificates}
}
