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
	"os"
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
			boundBuffers(c, n.slots.few())
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
		Transport:      &n.upstream,
		FlushInterval:  -1,
		ModifyResponse: early,
		ErrorLog:       quiet,
		ErrorHandler:   fail,
	}
	server := &http.Server{Handler: n.handler(proxy), ErrorLog: quiet, ReadHeaderTimeout: n.times.first,
		IdleTimeout: keepIdle, MaxHeaderBytes: maxHeader, ConnState: ask,
		// or net/http would answer OPTIONS * without the headers of all other answers
		DisableGeneralOptionsHandler: true,
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
			c.answering = true
		}
		if own := r.Method == http.MethodConnect || r.URL.Path == livePath || r.URL.Path == readyPath; own {
			ocierror.Secure(w.Header()) // the registry's answers have these headers already
		}
		if len(r.TransferEncoding) > 0 || !r.ProtoAtLeast(1, 1) {
			// It may have had a Content-Length as well, which net/http has removed, or as HTTP/1.0 an encoding, which
			// it ignores: such a request is the last one of its connection (RFC 9112, section 6.1).
			w.Header().Set("Connection", "close")
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
			if r.Body != http.NoBody {
				b := &body{ReadCloser: r.Body, conn: http.NewResponseController(w), idle: n.times.idle}
				r.Body = b
				r = r.WithContext(context.WithValue(r.Context(), bodyKey{}, b))
				defer b.end()
			}
			proxy.ServeHTTP(w, r)
		}
	})
}

// body gives the client the idle time for each read of its body.
type body struct {
	io.ReadCloser
	conn *http.ResponseController
	idle time.Duration

	reading sync.Mutex // held by Read

	mu   sync.Mutex // guards what follows: the transport may read on when the request ends
	err  error      // of reading, also io.EOF
	over bool       // whether the request ends
}

// bodyKey is the key of a request's *body in its context. ReverseProxy wraps what it is given as a body.
type bodyKey struct{}

// linger is how long the rest of a body is waited for after the answer. net/http waits as well before it closes a
// connection whose client still sends.
const linger = 500 * time.Millisecond

func (b *body) Read(p []byte) (int, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	b.mu.Lock()
	if b.over {
		b.mu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	}
	_ = b.conn.SetReadDeadline(time.Now().Add(b.idle))
	b.mu.Unlock()
	k, err := b.ReadCloser.Read(p)
	if err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		// The time limit is for the body alone, not for the answer. It stays after an error: net/http would wait for
		// the rest.
		if b.err = err; err == io.EOF && !b.over {
			_ = b.conn.SetReadDeadline(time.Time{})
		}
	}
	return k, err
}

// end bounds how long the rest of a body is waited for, and waits for a read that is under way. Its deadline stays:
// with it net/http, which reads on when the handler has returned, ends at once. It would remove the deadline if a read
// were under way then.
func (b *body) end() {
	b.mu.Lock()
	b.over = true
	if b.err != io.EOF {
		_ = b.conn.SetReadDeadline(time.Now().Add(linger))
	}
	b.mu.Unlock()
	b.reading.Lock() // when the read under way is over
	defer b.reading.Unlock()
}

// ended returns the error that ended the body, which is nil while more may come.
func (b *body) ended() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// early makes an answer that comes before the end of the request's body the last one of the client's connection.
// Otherwise net/http reads the rest before it sends the answer, which takes as long as a client stalls.
func early(answer *http.Response) error {
	if b, ok := answer.Request.Context().Value(bodyKey{}).(*body); ok && b.ended() != io.EOF {
		answer.Header.Set("Connection", "close")
	}
	return nil
}

// fail answers a request that could not be passed on, in the form of the distribution specification.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	e := &ocierror.Error{Code: ocierror.Unavailable, Status: http.StatusBadGateway, Header: ocierror.RetryAfter(5),
		Message: "this node cannot reach the registry, or does not trust its certificate"}
	if errors.Is(err, errNoCA) {
		e.Status, e.Message = http.StatusServiceUnavailable, err.Error()
	}
	if b, ok := r.Context().Value(bodyKey{}).(*body); ok && errors.Is(b.ended(), os.ErrDeadlineExceeded) {
		e = &ocierror.Error{Code: ocierror.SizeInvalid, Status: http.StatusRequestTimeout,
			Header:  http.Header{"Connection": {"close"}},
			Message: "nothing of the body has come for too long; send the request again"}
	}
	ocierror.Secure(w.Header())
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
