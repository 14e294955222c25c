// Package server is the HTTP server in front of everything: registry, webhook, health and metrics.
//
// # Words
//
//   - front: the outermost handler and the outermost ResponseWriter, around the handler of the program.
//   - record: what the front knows of one request; it is in the request's context.
//   - annotation: a fact that a handler adds to its record with [Annotate], for the access log.
//   - route: the annotation that the metrics have as a label: "manifest", "blob", "validate".
//   - stall: a time in which not one byte moves though we wait for the peer.
//
// # Invariants
//
//  1. A transfer may take hours, a stall no longer than [Options.Stall]: the deadline is set for each piece
//     that is read or written, never for a request. It runs only while we wait for the peer: a handler that
//     works on its own for minutes cuts nobody.
//  2. A file goes out by sendfile where the connection allows it (plain HTTP), and over TLS a piece takes one write, not one for each record.
//  3. One line per request in the log, written when the request ends and not kept back. It has the path
//     without the query and no header, so no credentials.
//  4. The labels of the metrics have few values, whatever clients send.
//  5. Connections are bounded. Those that wait give way to those that come, and what decides whether pods start is
//     answered even when all are busy.
//  6. A body that was begun and not finished breaks the connection, so that a short one never looks whole.
//
// # Why HTTP/1.1 alone
//
// A layer over HTTP/2 costs a server in Go twice the processor time of one over HTTP/1.1, and a client too: each frame
// of 16 KiB passes between goroutines and is flow-controlled by itself. containerd, Docker, podman and skopeo do not ask
// for HTTP/2 of a registry with a CA of its own anyway; crane, oras, regctl and the API server take what is offered, and
// keep as many connections as they have requests at once.
//
// # The slowest peer that lives
//
// A piece is 64 KiB, so over a minute of stall one kilobyte per second is enough. With sendfile any byte is. A
// peer that reads slowly after it was fast needs more for a while: the kernel lets a writer go on when a third of
// the send buffer is free, and that buffer grows to 4 MiB (23 kB/s).
//
// # What it does not do
//
// It knows no path but those of the probes, no OCI error but the one for a panic, and decides nothing about who
// may do what. It does not limit the size of a body: handlers know what they expect.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Options say what to serve. Handler must be set; the zero value of the rest works.
type Options struct {
	Handler http.Handler

	// Log gets the access log. Its writer gets each line at once.
	Log zerolog.Logger

	// Registerer gets the metrics trow_http_*. nil: they are counted and not shown.
	Registerer prometheus.Registerer

	// TLSConfig makes the server speak TLS, and lead those who speak plain HTTP to that. nil: plain HTTP.
	TLSConfig *tls.Config

	// Stall cuts a peer that neither takes nor sends a byte for so long while we wait for it. 0 means 60 s:
	// longer than TCP needs to get over a lost route or a moved pod, and a pull that waits longer has failed for
	// whoever looks at it.
	Stall time.Duration

	// Idle closes a connection without a request. 0 means 3 min: the usual client lets go after 90 s, and it must
	// be the client that does, or it sends a request into a closed connection.
	Idle time.Duration

	// MaxConnections is how many connections there may be at once; see [connections]. 0 means no limit.
	MaxConnections int

	// Vital are the paths that are answered on a connection over the limit too, beside the probes.
	Vital []string

	// Probes are the paths whose requests are logged at debug. nil means /healthz, /livez, /readyz, /metrics.
	Probes []string
}

const (
	// headerTimeout bounds the TLS handshake and the headers of a request, which are small: who needs longer
	// holds connections open for their own sake.
	headerTimeout = 10 * time.Second
	// maxHeader is four times the largest bearer token seen in the field, and a tenth of what net/http takes.
	maxHeader    = 64 << 10
	defaultStall = 60 * time.Second
	defaultIdle  = 3 * time.Minute
)

// Server serves one handler on any number of listeners. Make one with [New].
type Server struct {
	http http.Server
}

// New makes a server. Errors: the metrics' names are taken in o.Registerer.
func New(o Options) (*Server, error) {
	if o.Stall <= 0 {
		o.Stall = defaultStall
	}
	if o.Idle <= 0 {
		o.Idle = defaultIdle
	}
	if o.Probes == nil {
		o.Probes = []string{"/healthz", "/livez", "/readyz", "/metrics"}
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	s := &Server{http: http.Server{
		Handler:           newFront(o, m),
		TLSConfig:         o.TLSConfig.Clone(), // net/http adds to it
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       o.Idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(errorLog{o.Log}, "", 0),
	}}
	s.http.Protocols.SetHTTP1(true)
	if s.http.TLSConfig != nil {
		s.http.TLSConfig.DynamicRecordSizingDisabled = true // small records first are for pages, not for layers
	}
	s.http.ConnContext = withWire
	if o.MaxConnections > 0 {
		c := newConnections(o, m)
		s.http.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
			return c.accepted(withWire(ctx, conn), conn)
		}
		s.http.ConnState = c.changed
	}
	return s, nil
}

// Handler returns the front without a listener, for tests and for listeners of other kinds.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// Serve answers on l until Shutdown, and closes l. It returns nil after Shutdown, and then at once: requests
// under way go on, Shutdown waits for them. Errors: what the listener reports.
func (s *Server) Serve(l net.Listener) error {
	serve := func() error { return s.http.Serve(wires{l, true}) }
	if s.http.TLSConfig != nil {
		serve = func() error { return s.http.ServeTLS(wires{l, false}, "", "") }
	}
	if err := serve(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown takes no more connections and waits for the requests under way. When ctx is done first it cuts them
// and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// errorLog takes what net/http has to say: at debug, because it is about clients (failed handshakes, garbage).
// A panic is ours; one in a handler does not get here, the front recovers it.
type errorLog struct {
	log zerolog.Logger
}

func (e errorLog) Write(line []byte) (int, error) {
	level, text := zerolog.DebugLevel, strings.TrimSuffix(string(line), "\n")
	if strings.Contains(text, "panic serving") {
		level = zerolog.ErrorLevel
	}
	e.log.WithLevel(level).Str("err", text).Msg("connection")
	return len(line), nil
}
