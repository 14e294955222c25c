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
		Handler:           jobs,
		ReadHeaderTimeout: auxiliaryHeaderTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	if connContext != nil {
		s.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return connContext(ctx) }
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // what it reports, Serve reports as well
	defer stop()
	err := s.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	// A job must not be at work on a data directory that is closed. It ends also when the listener has failed.
	cancel()
	_ = s.Close()
	jobs.wait(shutdownTimeout)
	return err
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
