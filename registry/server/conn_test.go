package server_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"

	"trow/registry/server"
)

// wrapped is a listener that wraps each of its connections.
type wrapped struct {
	net.Listener
	conn func(net.Conn) net.Conn
}

func (l wrapped) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.conn(c), nil
}

// countingConn counts the calls of Write.
type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// serveOn serves on wrapped connections, over TLS or not, until stop is called after the last request. It returns its
// address as a URL.
func serveOn(t *testing.T, isTLS bool, wrap func(net.Conn) net.Conn, handler http.HandlerFunc) (url string,
	stop func()) {
	t.Helper()
	o := server.Options{Log: zerolog.Nop(), Handler: handler}
	scheme := "http"
	if isTLS {
		scheme, o.TLSConfig = "https", server.LocalTLS()
	}
	s, l := server.NewLocal(t, o)
	served := make(chan error, 1)
	go func() { served <- s.Serve(wrapped{l, wrap}) }()
	return scheme + "://" + l.Addr().String(), func() {
		t.Helper()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// TestTLSRecordsAreSentTogether: a large answer over TLS takes one write for each piece of 64 KiB, not one for each
// record of 16 KiB; it arrives intact, also when several are under way; and a client that prefers HTTP/2 gets HTTP/1.1.
func TestTLSRecordsAreSentTogether(t *testing.T) {
	const size = 4<<20 + 12345
	content := make([]byte, size)
	for i, r := 0, rand.New(rand.NewPCG(1, 2)); i < size; i++ {
		content[i] = byte(r.Uint32())
	}
	var writes atomic.Int64
	url, stop := serveOn(t, true, func(c net.Conn) net.Conn { return countingConn{c, &writes} },
		func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write(content)
		})
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	const clients = 4
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			resp, err := (&http.Client{Transport: transport}).Get(url)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(content) {
				t.Errorf("%d of %d bytes arrived, err %v", len(got), size, err)
			}
			if resp.ProtoMajor != 1 {
				t.Errorf("the answer came over %s", resp.Proto)
			}
		})
	}
	all.Wait()
	transport.CloseIdleConnections()
	stop()
	// One for each piece, and for each connection the handshake, the header and the end.
	if n, most := writes.Load(), int64(clients*(size>>16+12)); n > most {
		t.Errorf("%d writes, want at most %d", n, most)
	}
}

// cuttingConn writes a limited number of bytes and then fails.
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

// TestAPieceThatFailsOverTLSEndsTheConnection: the handler gets an error, and nothing follows half a record.
func TestAPieceThatFailsOverTLSEndsTheConnection(t *testing.T) {
	got := make(chan error, 2)
	var left atomic.Int64
	left.Store(300 << 10)
	url, stop := serveOn(t, true, func(c net.Conn) net.Conn { return cuttingConn{c, &left} },
		func(w http.ResponseWriter, r *http.Request) {
			for range 2 {
				_, err := w.Write(make([]byte, 1<<20))
				got <- err
			}
		})
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	resp, err := (&http.Client{Transport: transport}).Get(url)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("the client took a short answer for complete")
	}
	for n := range 2 {
		if err := <-got; err == nil {
			t.Errorf("write %d: no error", n)
		}
	}
	transport.CloseIdleConnections()
	stop()
}

// TestASmallAnswerTakesOneWrite: header and body are sent together, whatever the buffers of net/http have room for;
// also one after the other on one connection, and for HEAD.
func TestASmallAnswerTakesOneWrite(t *testing.T) {
	for name, isTLS := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			var writes atomic.Int64
			url, stop := serveOn(t, isTLS, func(c net.Conn) net.Conn { return countingConn{c, &writes} },
				func(w http.ResponseWriter, r *http.Request) {
					size, _ := strconv.Atoi(r.URL.Path[1:])
					w.Header().Set("Content-Type", "application/octet-stream")
					w.Header().Set("Content-Length", strconv.Itoa(size))
					_, _ = w.Write(bytes.Repeat([]byte{byte(size)}, size))
				})
			transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
			client := &http.Client{Transport: transport}
			ask := func(method string, size int) {
				r, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("%s/%d", url, size), nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				got, err := io.ReadAll(resp.Body)
				want := bytes.Repeat([]byte{byte(size)}, size)
				if method == http.MethodHead {
					want = nil
				}
				if err != nil || !bytes.Equal(got, want) || resp.ContentLength != int64(size) {
					t.Errorf("%s %d: %d bytes of %d, %v", method, size, len(got), resp.ContentLength, err)
				}
			}
			ask(http.MethodGet, 1) // the handshake
			for _, size := range []int{0, 1, 2 << 10, 2<<10 + 1, 4 << 10, 16 << 10, 64 << 10} {
				for _, method := range []string{http.MethodGet, http.MethodHead} {
					before := writes.Load()
					ask(method, size)
					if n := writes.Load() - before; n != 1 {
						t.Errorf("%s %d: %d writes", method, size, n)
					}
				}
			}
			transport.CloseIdleConnections()
			stop()
		})
	}
}
