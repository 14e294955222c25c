package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"

	"trow/registry/ocierror"
)

const (
	// keepIdle is how long idle connections are kept on both sides: the layers of an image follow each other.
	keepIdle = time.Minute
	// maxHeader bounds the headers of a request. Those of registry clients are smaller; tokens have a few KiB.
	maxHeader = 64 << 10
	// maxIdle bounds the idle connections to the registry.
	maxIdle = 16
)

// errNoCA is the answer while this node cannot verify the registry's certificate.
var errNoCA = errors.New("this node does not know the registry's CA yet; retry")

// upstream sends requests to the registry, over connections that trust the current bundle. Requests in progress keep
// their connection when the bundle changes.
type upstream struct {
	current atomic.Pointer[http.Transport] // nil: no bundle yet
}

func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	t := u.current.Load()
	if t == nil {
		return nil, errNoCA
	}
	return t.RoundTrip(r)
}

// use replaces the transport.
func (u *upstream) use(t *http.Transport) {
	if old := u.current.Swap(t); old != nil {
		old.CloseIdleConnections()
	}
}

func (u *upstream) close() {
	if t := u.current.Load(); t != nil {
		t.CloseIdleConnections()
	}
}

// transport returns a transport that connects to the registry alone: it ignores the address of a request, and the
// proxies of the environment.
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
		MaxIdleConnsPerHost:   maxIdle,
		IdleConnTimeout:       keepIdle,
		DisableCompression:    true, // otherwise it would change the headers and the content
	}
}

// patient is a connection that ends after no byte has moved in either direction for the idle time.
type patient struct {
	net.Conn
	idle time.Duration
}

func (p *patient) Read(b []byte) (int, error) {
	_ = p.SetDeadline(time.Now().Add(p.idle)) // if this fails, the read fails as well
	return p.Conn.Read(b)
}

func (p *patient) Write(b []byte) (int, error) {
	_ = p.SetDeadline(time.Now().Add(p.idle))
	return p.Conn.Write(b)
}

// server returns a server and its listener, to which dispatch hands over connections.
func (n *Node) server() (*http.Server, *handover) {
	quiet := log.New(io.Discard, "", 0)
	proxy := &httputil.ReverseProxy{
		// ReverseProxy has removed the client's X-Forwarded-… headers before it calls Rewrite.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", n.serverName()
			r.Out.URL.RawQuery = r.In.URL.RawQuery
			r.Out.Host = r.In.Host // the registry answers for the name that the client uses
		},
		Transport:     &n.upstream,
		FlushInterval: -1,
		ErrorLog:      quiet,
		ErrorHandler:  fail,
	}
	server := &http.Server{Handler: n.handler(proxy), ErrorLog: quiet, ReadHeaderTimeout: n.times.first,
		IdleTimeout: keepIdle, MaxHeaderBytes: maxHeader, ConnState: ask,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		}}
	return server, &handover{conns: make(chan net.Conn), done: make(chan struct{})}
}

// The paths of the kubelet's probes. speaks knows them too.
const (
	livePath  = "/livez"
	readyPath = "/healthz"
)

// connKey is the key of a request's *conn in its context.
type connKey struct{}

// handler answers the kubelet's probes and passes everything else on.
func (n *Node) handler(proxy http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*conn); ok {
			c.shown.Store(true)
		}
		if r.URL.Path == livePath || r.URL.Path == readyPath {
			w.Header().Set("Connection", "close") // it may have no slot: no other request may follow
		}
		switch {
		case r.Method == http.MethodConnect: // invariant 1
			w.WriteHeader(http.StatusMethodNotAllowed)
		case r.URL.Path == livePath:
			_, _ = io.WriteString(w, "ok\n")
		case r.URL.Path == readyPath:
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

// body gives the client the idle time for each read of its body.
type body struct {
	io.ReadCloser
	conn *http.ResponseController
	idle time.Duration
}

func (b *body) Read(p []byte) (int, error) {
	_ = b.conn.SetReadDeadline(time.Now().Add(b.idle))
	k, err := b.ReadCloser.Read(p)
	if err != nil {
		_ = b.conn.SetReadDeadline(time.Time{}) // the time limit is for the body alone, not for the answer
	}
	return k, err
}

// fail answers a request that could not be passed on, in the form of the distribution specification.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	e := &ocierror.Error{Code: ocierror.Unavailable, Status: http.StatusBadGateway, Header: ocierror.RetryAfter(5),
		Message: "this node cannot reach the registry, or does not trust its certificate"}
	if errors.Is(err, errNoCA) {
		e.Status, e.Message = http.StatusServiceUnavailable, err.Error()
	}
	ocierror.Write(w, r, e)
}

// handover is a net.Listener for connections that were accepted elsewhere.
type handover struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// give hands over a connection, or closes it if the listener is closed.
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
