// Package server is the HTTP server around everything else: registry, webhook, probes and metrics.
//
// # Words
//
//   - access log: the outermost handler and the outermost ResponseWriter, around the handler of the program.
//   - record: what the access log knows of one request; it is in the request's context.
//   - annotation: a fact that a handler adds to its record with [Annotate], for the access log.
//   - route: the annotation that is a label of the metrics: "manifest", "blob", "validate".
//   - stall: a time in which not one byte moves although the server waits for the client.
//   - piece: the 64 KiB that are written under one deadline.
//   - surplus connection: one over the limit. Only probes and vital paths are answered on it, and it ends with its
//     first answer.
//
// # Invariants
//
//  1. A transfer may take hours, a stall no longer than [Options.StallTimeout]: the deadline is set for each piece that
//     is read or written, never for a request. It runs only while the server waits for the client: a handler that works
//     for minutes cuts no connection.
//  2. A file is sent with sendfile where the connection allows it (plain HTTP). Over TLS, a piece takes one write, not
//     one for each record.
//  3. Each request has one line in the log, written when it ends and not held back. The line contains the path without
//     the query and no header, so no credentials.
//  4. The labels of the metrics have few values, whatever clients send.
//  5. The number of connections is bounded, and so is the memory of headers and of bodies that are kept whole.
//     Connections without a request make room for new ones, and what decides whether pods start is answered even when
//     all connections are busy.
//  6. A body that was started and not finished breaks the connection, so that a client never takes it for complete.
//
// # Why HTTP/1.1 alone
//
// A layer over HTTP/2 costs a server in Go twice the processor time of one over HTTP/1.1, and a client too: each frame
// of 16 KiB passes between goroutines and has its own flow control. containerd, Docker, podman and skopeo do not ask
// for HTTP/2 of a registry with its own CA anyway; crane, oras, regctl and the API server take what is offered, and
// open as many connections as they have requests at once.
//
// # The slowest client that is not cut
//
// A piece is 64 KiB, so with a stall timeout of a minute one kilobyte per second is enough. With sendfile any byte is
// enough. A client that reads slowly after it was fast needs more for a while: the kernel wakes a writer when a third
// of the send buffer is free, and that buffer grows to 4 MiB (23 kB/s).
//
// # What it does not do
//
// It knows no path except those of the probes, and decides nothing about who may do what. It does not limit the size of
// a body: handlers know what they expect.
package server

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"trow/registry/redact"
)

const (
	// headerTimeout bounds the TLS handshake and the headers of a request, which are small. A client that needs longer
	// only holds connections open.
	headerTimeout = 10 * time.Second
	// maxHeader is four times the largest bearer token seen in the field, and a tenth of what net/http accepts.
	maxHeader           = 64 << 10
	defaultStallTimeout = 60 * time.Second
	defaultIdle         = 3 * time.Minute
	// shutdownTimeout is how long requests under way may take after the server was asked to stop. Kubernetes kills the
	// process 30 s after it asked.
	shutdownTimeout = 25 * time.Second
	// cutTimeout is how long the handlers of requests that were cut off may take to return.
	cutTimeout = 3 * time.Second
)

// probePaths are the paths whose requests are logged at debug, and answered on surplus connections.
var probePaths = []string{"/healthz", "/livez", "/readyz", "/metrics"}

// Server serves one handler on any number of listeners. Make one with [New].
type Server struct {
	http   http.Server
	log    zerolog.Logger
	probes *Probes // nil: no probes
	drains drains
	open   atomic.Int64  // connections
	delay  time.Duration // see Options.ShutdownDelay

	handlers handlers
}

// New makes a server. Errors: the names of the metrics are taken in o.Registerer.
func New(o Options) (*Server, error) {
	if o.StallTimeout <= 0 {
		o.StallTimeout = defaultStallTimeout
	}
	if o.Idle <= 0 {
		o.Idle = defaultIdle
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	s := &Server{log: o.Log, probes: o.Probes, delay: o.ShutdownDelay, http: http.Server{
		TLSConfig:         o.TLSConfig.Clone(), // because net/http changes it
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       o.Idle,
		MaxHeaderBytes:    maxHeader,
		// Or net/http would answer OPTIONS * itself, without the headers and the log of all other answers.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(errorLog{o.Log}, "", 0),
	}}
	s.handlers.next = newAccessLog(o, m)
	s.http.Handler = &s.handlers
	s.http.Protocols.SetHTTP1(true)
	if s.http.TLSConfig != nil {
		// Small records at the start of an answer are good for web pages, not for layers.
		s.http.TLSConfig.DynamicRecordSizingDisabled = true
	}
	limit := connectionLimit(o.MaxConnections, o.Log)
	s.drains.most = min(maxDraining, max(1, limit/4))
	c := newConnections(limit, o.Log, m)
	s.http.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return c.accept(withConn(ctx, conn), conn)
	}
	s.http.ConnState = c.changed
	return s, nil
}

// Run serves on l until ctx is done, and then stops: the probes report at once that the server is not ready; for the
// time of [Options.ShutdownDelay] everything is answered as before, each connection once more; then requests under way
// have 25 s to end before they are cut off. Run closes l. Errors: those of the listener, after the same stop, but
// without that delay.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	ended := make(chan struct{})
	var failed error
	go func() {
		defer close(ended)
		failed = s.Serve(l)
	}()
	select {
	case <-ctx.Done():
	case <-ended: // a listener that failed stops the server as well
	}
	s.stop(ended)
	<-ended
	return failed
}

// stop ends the serving. ended is closed if there is no listener left to serve on.
func (s *Server) stop(ended <-chan struct{}) {
	// The probes come first, so that Kubernetes sends no further requests while the listener closes.
	if s.probes != nil {
		s.probes.Stop()
	}
	s.log.Info().Msg("stopping")
	s.handlers.last.Store(true)
	if s.delay > 0 {
		left := time.NewTimer(s.delay)
		defer left.Stop()
		select {
		case <-left.C:
		case <-ended:
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		s.log.Warn().Err(err).Msg("requests were cut off")
	}
}

// Serve answers on l until Shutdown, and closes l. After Shutdown it returns nil at once: requests under way go on, and
// Shutdown waits for them. Errors: those of the listener.
func (s *Server) Serve(l net.Listener) error {
	serve := func() error { return s.http.Serve(listener{l, false, nil, &s.drains, &s.open}) }
	if s.http.TLSConfig != nil {
		local := newPlain(l.Addr())
		defer local.Close()
		go s.http.Serve(local) // ends with local, or with Shutdown
		config := s.http.TLSConfig.Clone()
		config.NextProtos = []string{"http/1.1"} // see above
		serve = func() error {
			return s.http.Serve(secureListener{listener{l, true, local, &s.drains, &s.open}, config, s.handshakeFailed})
		}
	}
	if err := serve(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// handshakeFailed logs a handshake that has failed, at debug because it is about the client.
func (s *Server) handshakeFailed(from net.Addr, err error) {
	s.http.ErrorLog.Printf("TLS handshake error from %s: %v", from, err)
}

// Shutdown accepts no more connections and waits for the requests under way. If ctx is done first, it cuts them off,
// waits until their handlers have returned, at most 3 s, and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
		if !s.handlers.wait(cutTimeout) {
			err = errors.Join(err, errors.New("some handlers have not returned"))
		}
	}
	s.drains.wait(ctx) // the end of the process, and of its pod's network, would take what the clients have not got yet
	return err
}

// errorLog logs the messages of net/http, at debug because they are about clients (failed handshakes, garbage). A panic
// is a mistake of the program; those of handlers do not get here, because the access log recovers them.
type errorLog struct {
	log zerolog.Logger
}

func (e errorLog) Write(line []byte) (int, error) {
	level, text := zerolog.DebugLevel, redact.Secrets(strings.TrimSuffix(string(line), "\n")) // it may quote a request
	if strings.Contains(text, "panic serving") {
		level = zerolog.ErrorLevel
	}
	e.log.WithLevel(level).Str("err", text).Msg("connection")
	return len(line), nil
}
