package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// keepIdle is for connections that may be used again, on both sides: the layers of an image follow each other.
	keepIdle = time.Minute
	// maxHeader is more than any client of a registry sends; tokens are a few KiB.
	maxHeader = 64 << 10
	// spare is how many connections to the registry are kept for use again.
	spare = 16
)

// errNoCA is the answer as long as the registry could not be told from an impostor.
var errNoCA = errors.New("this node does not know the registry's CA yet")

// upstream sends requests to the registry, over connections that trust the bundle as it is now. Those under way keep
// the connection they have.
type upstream struct {
	now atomic.Pointer[http.Transport]
}

func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	t := u.now.Load()
	if t == nil {
		return nil, errNoCA
	}
	return t.RoundTrip(r)
}

func (u *upstream) trust(t *http.Transport) {
	if old := u.now.Swap(t); old != nil {
		old.CloseIdleConnections()
	}
}

func (u *upstream) close() {
	if t := u.now.Load(); t != nil {
		t.CloseIdleConnections()
	}
}

// transport connects to the registry and to nobody else: the address of a request is not looked at, and neither are
// the proxies of the environment.
func (n *Node) transport(trusted *x509.CertPool) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := n.dial(ctx)
			if err != nil {
				return nil, err
			}
			return &patient{c, n.times.idle}, nil
		},
		TLSClientConfig:       &tls.Config{RootCAs: trusted, ServerName: n.serverName(), MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   n.times.first,
		ExpectContinueTimeout: time.Second, // as in http.DefaultTransport
		MaxIdleConnsPerHost:   spare,
		IdleConnTimeout:       keepIdle,
		DisableCompression:    true, // what the client asks for and gets is what it is
	}
}

// patient is a connection that ends when nothing has moved on it, either way, for the idle time.
type patient struct {
	net.Conn
	idle time.Duration
}

func (p *patient) Read(b []byte) (int, error) {
	_ = p.SetDeadline(time.Now().Add(p.idle)) // a closed connection fails at the read
	return p.Conn.Read(b)
}

func (p *patient) Write(b []byte) (int, error) {
	_ = p.SetDeadline(time.Now().Add(p.idle))
	return p.Conn.Write(b)
}

// server serves HTTP on the connections that are handed over to it.
func (n *Node) server() (*http.Server, *handover) {
	quiet := log.New(io.Discard, "", 0)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { // X-Forwarded-… of the client are gone by now
			r.Out.URL.Scheme, r.Out.URL.Host = "https", n.serverName()
			r.Out.URL.RawQuery = r.In.URL.RawQuery
			r.Out.Host = r.In.Host // the registry knows itself by the name that the client uses
		},
		Transport:     &n.upstream,
		FlushInterval: -1,
		ErrorLog:      quiet,
		ErrorHandler:  fail,
	}
	return &http.Server{Handler: n.handler(proxy), ErrorLog: quiet, ReadHeaderTimeout: n.times.first, IdleTimeout: keepIdle, MaxHeaderBytes: maxHeader},
		&handover{conns: make(chan net.Conn), done: make(chan struct{})}
}

// handler answers the kubelet's probes and passes everything else on.
func (n *Node) handler(proxy http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodConnect: // we lead to one place only
			w.WriteHeader(http.StatusMethodNotAllowed)
		case r.URL.Path == "/livez":
			_, _ = io.WriteString(w, "ok\n")
		case r.URL.Path == "/healthz":
			if err := n.Ready(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			_, _ = io.WriteString(w, "ok\n")
		default:
			r.Body = &body{r.Body, http.NewResponseController(w), n.times.idle}
			proxy.ServeHTTP(w, r)
		}
	})
}

// body gives a client the idle time for each part of what it sends.
type body struct {
	io.ReadCloser
	conn *http.ResponseController
	idle time.Duration
}

func (b *body) Read(p []byte) (int, error) {
	_ = b.conn.SetReadDeadline(time.Now().Add(b.idle))
	k, err := b.ReadCloser.Read(p)
	if err != nil {
		_ = b.conn.SetReadDeadline(time.Time{}) // the answer may take longer
	}
	return k, err
}

// fail is what a client is told when the registry is not there to answer: the form is that of the distribution spec
// ("Error Codes"), the code Docker's.
func fail(w http.ResponseWriter, _ *http.Request, err error) {
	status, message := http.StatusBadGateway, "this node cannot reach the registry, or does not trust it"
	if errors.Is(err, errNoCA) {
		status, message = http.StatusServiceUnavailable, err.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Retry-After", "5")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": "UNAVAILABLE", "message": message}}}) // the client may be gone
}

// handover is the listener of those who have accepted their connections elsewhere.
type handover struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// give hands over a connection, or closes it if nobody takes any more.
func (h *handover) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		c.Close()
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handover) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }
