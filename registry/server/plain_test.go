package server_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"trow/registry/server"
)

// TestPlainHTTPFromThisMachineIsServedOnTheTLSPort, with pushes, several requests on a connection, and TLS beside it.
func TestPlainHTTPFromThisMachineIsServedOnTheTLSPort(t *testing.T) {
	s := start(t, modes[1], server.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.Method, " ", r.TLS != nil, " ", n, " ", err)
	})})
	_, port, _ := net.SplitHostPort(s.addr)
	big := strings.Repeat("x", 5<<20)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	for _, host := range []string{s.addr, "localhost:" + port, s.addr} {
		for _, c := range []struct{ method, body, want string }{
			{"GET", "", "GET false 0 <nil>"},
			{"PUT", big, "PUT false 5242880 <nil>"},
			{"POST", "", "POST false 0 <nil>"},
		} {
			req, _ := http.NewRequest(c.method, "http://"+s.addr+"/v2/", strings.NewReader(c.body))
			req.Host = host
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(b) != c.want || resp.Header.Get("Strict-Transport-Security") != "" {
				t.Errorf("%s with Host %s: %q, %v", c.method, host, b, err)
			}
		}
	}
	if resp, body := s.do(t, "GET", "/v2/", nil); resp.StatusCode != 200 || body != "GET true 0 <nil>" {
		t.Errorf("over TLS: %s %q", resp.Status, body)
	}
}

// TestPlainHTTPIsServedToThisMachineAlone: each request is looked at, not only the first one of a connection.
func TestPlainHTTPIsServedToThisMachineAlone(t *testing.T) {
	s := start(t, modes[1], server.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "localhost" {
			t.Errorf("served: Host %s, %v", r.Host, r.Header)
		}
	})})
	for _, header := range []string{"Host: rebind.example", "Host: localhost\r\nForwarded: for=10.0.0.7",
		"Host: localhost\r\nX-Forwarded-Proto: https", "Host: localhost\r\nVia: 1.1 proxy"} {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		in := bufio.NewReader(c)
		fmt.Fprint(c, "GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%q: %v, %v", header, resp, err)
		}
		fmt.Fprintf(c, "PUT /v2/a/manifests/1 HTTP/1.1\r\n%s\r\nContent-Length: 1\r\n\r\n{", header)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != http.StatusBadRequest || !resp.Close {
			t.Errorf("%q: %v, %v", header, resp, err)
		}
	}
}

// remoteConn is a connection whose client seems to be on another machine.
type remoteConn struct{ net.Conn }

func (remoteConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 4000} }

func TestPlainHTTPOfAnotherMachineIsNotServed(t *testing.T) {
	url, stop := serveOn(t, true, func(c net.Conn) net.Conn { return remoteConn{c} },
		func(http.ResponseWriter, *http.Request) { t.Error("served") })
	defer stop()
	for request, want := range map[string]int{
		"GET /v2/ HTTP/1.1\r\nHost: localhost:8443\r\n\r\n": http.StatusTemporaryRedirect,

		"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n": http.StatusBadRequest,
	} {
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, request)
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != want {
			t.Errorf("%q: %v, %v", request, resp, err)
		}
	}
}

// TestShutdownEndsConnectionsInPlain: Shutdown knows them as it knows those over TLS.
func TestShutdownEndsConnectionsInPlain(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	h := newWaiting()
	s, err := server.New(server.Options{Log: zerolog.Nop(), Handler: h,
		TLSConfig: &tls.Config{Certificates: cert.TLS.Certificates}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served, stopped := make(chan error, 1), make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	got := background(l)
	<-h.entered
	go func() { stopped <- s.Shutdown(t.Context()) }()
	if err := <-served; err != nil { // Shutdown has begun
		t.Error(err)
	}
	close(h.leave)
	if g, err := <-got, <-stopped; g != "done" || err != nil {
		t.Errorf("%q, %v", g, err)
	}
}
