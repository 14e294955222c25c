package server_test

import (
	"crypto/sha256"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"

	"trow/registry/server"
)

// countingListener counts the calls of Write on all of its connections.
type countingListener struct {
	net.Listener
	writes atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{c, &l.writes}, nil
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// TestRecordsOfTLSGoOutTogether: a large answer over TLS takes one write for each piece of 64 KiB, not one for each record
// of 16; it comes whole, also when several are under way; and who would like HTTP/2 gets HTTP/1.1.
func TestRecordsOfTLSGoOutTogether(t *testing.T) {
	const size = 4<<20 + 12345
	content := make([]byte, size)
	for i, r := 0, rand.New(rand.NewPCG(1, 2)); i < size; i++ {
		content[i] = byte(r.Uint32())
	}
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS() // for its certificate
	defer cert.Close()
	s, err := server.New(server.Options{
		Log:       zerolog.Nop(),
		TLSConfig: &tls.Config{Certificates: cert.TLS.Certificates},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write(content)
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	counted := &countingListener{Listener: l}
	served := make(chan error, 1)
	go func() { served <- s.Serve(counted) }()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	const clients = 4
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			resp, err := (&http.Client{Transport: transport}).Get("https://" + l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(content) {
				t.Errorf("%d bytes came, of %d, and err %v", len(got), size, err)
			}
			if resp.ProtoMajor != 1 {
				t.Errorf("the answer came over %s", resp.Proto)
			}
		})
	}
	all.Wait()
	transport.CloseIdleConnections()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	// A piece each, and for each connection the handshake, the header and the end.
	if n, most := counted.writes.Load(), int64(clients*(size>>16+12)); n > most {
		t.Errorf("%d writes, want at most %d", n, most)
	}
}

// cuttingConn takes only so many bytes and then fails.
type cuttingConn struct {
	net.Conn
	left *atomic.Int64
}

func (c cuttingConn) Write(p []byte) (int, error) {
	if left := c.left.Add(-int64(len(p))); left < 0 {
		n, _ := c.Conn.Write(p[:max(0, int64(len(p))+left)])
		return n, io.ErrShortWrite
	}
	return c.Conn.Write(p)
}

type cuttingListener struct {
	net.Listener
	left atomic.Int64
}

func (l *cuttingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return cuttingConn{c, &l.left}, nil
}

// TestAPieceThatFailsOverTLSEndsTheConnection: the handler hears of it, and nothing follows half a record.
func TestAPieceThatFailsOverTLSEndsTheConnection(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS() // for its certificate
	defer cert.Close()
	heard := make(chan error, 2)
	s, err := server.New(server.Options{
		Log:       zerolog.Nop(),
		TLSConfig: &tls.Config{Certificates: cert.TLS.Certificates},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for range 2 {
				_, err := w.Write(make([]byte, 1<<20))
				heard <- err
			}
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cutting := &cuttingListener{Listener: l}
	cutting.left.Store(300 << 10)
	served := make(chan error, 1)
	go func() { served <- s.Serve(cutting) }()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	resp, err := (&http.Client{Transport: transport}).Get("https://" + l.Addr().String())
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("the client took a short answer for whole")
	}
	for n := range 2 {
		if err := <-heard; err == nil {
			t.Errorf("write %d: no error", n)
		}
	}
	transport.CloseIdleConnections()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
