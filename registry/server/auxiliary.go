package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/rs/zerolog"
)

// auxiliaryHeaderTimeout bounds how long a client of an auxiliary listener may take for the headers of a request.
const auxiliaryHeaderTimeout = 10 * time.Second

// ServeAuxiliary serves h on a listener of its own, without access log, metrics and limits, until ctx is done: the
// administration socket and the listener for profiles. It closes l, and the requests under way are cut off: their
// context is done, and ServeAuxiliary waits until their handlers have returned, at most 25 s. connContext, if it is not
// nil, adds to the context of each connection. Without a listener ServeAuxiliary returns nil at once. Errors: those of
// the listener.
func ServeAuxiliary(ctx context.Context, l net.Listener, h http.Handler,
	connContext func(context.Context) context.Context) error {
	if l == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	jobs := &handlers{next: secured(h)}
	s := &http.Server{
		Handler:           answering(jobs),
		ReadHeaderTimeout: auxiliaryHeaderTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnState:         awaitRequest,
		// Or net/http would answer OPTIONS * itself, without the headers of all other answers.
		DisableGeneralOptionsHandler: true,
	}
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if connContext != nil {
			ctx = connContext(ctx)
		}
		return context.WithValue(ctx, auxiliaryKey{}, c)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // what it reports, Serve reports as well
	defer stop()
	err := s.Serve(auxiliaryListener{l})
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	// A job must not be at work on a data directory that is closed. It ends also when the listener has failed.
	cancel()
	_ = s.Close()
	jobs.wait(shutdownTimeout)
	return err
}

// auxiliaryConn is a connection of an auxiliary listener: what net/http answers itself has the form of all
// answers; see wire.
type auxiliaryConn struct {
	net.Conn
	wire wire
}

// auxiliaryKey finds the auxiliaryConn of a request in its context.
type auxiliaryKey struct{}

// Write implements net.Conn.
func (c *auxiliaryConn) Write(p []byte) (int, error) { return c.wire.writeTo(p, c.Conn.Write) }

// CloseWrite reports to the client that nothing follows; net/http then waits for what the client still sends.
func (c *auxiliaryConn) CloseWrite() error {
	if to, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return to.CloseWrite()
	}
	return nil
}

// auxiliaryListener makes auxiliaryConns of the connections that it accepts.
type auxiliaryListener struct{ net.Listener }

// Accept implements net.Listener.
func (l auxiliaryListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &auxiliaryConn{Conn: c}, nil
}

// answering notes that a handler answers.
func answering(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Context().Value(auxiliaryKey{}).(*auxiliaryConn).wire.answering = true
		endIfAmbiguous(w.Header(), r, nil)
		h.ServeHTTP(w, r)
	})
}

// awaitRequest is http.Server.ConnState: the next answer may be one of net/http. It is called in the goroutine that
// reads the connection.
func awaitRequest(c net.Conn, state http.ConnState) {
	if state == http.StateIdle {
		c.(*auxiliaryConn).wire.next()
	}
}

// probeConnections is how many connections the listener for probes has. The kubelet opens one for each probe.
const probeConnections = 64

// ServeProbes answers /healthz and /readyz with o.Probes on the listener of probe-listen until ctx is done, and for
// ShutdownDelay after that. Silent connections give way there too. If the setting is empty, it returns nil at once.
// Errors: those of the listener.
func (o *Options) ServeProbes(ctx context.Context) error {
	if o.ProbeListen == "" {
		return nil
	}
	l, err := net.Listen("tcp", o.ProbeListen)
	if err != nil {
		return listenError("probe-listen", err)
	}
	m := http.NewServeMux()
	m.HandleFunc("GET /healthz", o.Probes.ServeHealth)
	m.HandleFunc("GET /readyz", o.Probes.ServeReady)
	s, err := New(Options{Handler: m, MaxConnections: probeConnections, Log: zerolog.Nop(),
		ShutdownDelay: o.ShutdownDelay})
	if err != nil {
		_ = l.Close() // nothing was accepted on it yet
		return err
	}
	return s.Run(ctx, l)
}

// Profiles returns the handler of the listener for profiles, below /debug/pprof/. It shows the inside of the process,
// except for its command line, which may contain a password.
func Profiles() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("/debug/pprof/", pprof.Index)
	m.HandleFunc("/debug/pprof/profile", pprof.Profile)
	m.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	m.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return m
}
