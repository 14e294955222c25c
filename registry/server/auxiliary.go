package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// auxiliaryHeaderTimeout bounds how long a client of an auxiliary listener may take for the headers of a request.
const auxiliaryHeaderTimeout = 10 * time.Second

// ServeAuxiliary serves h on a listener of its own, without access log, metrics and limits, until ctx is done: the
// administration socket and the listener for profiles. It closes l, and the requests under way are cut off: their
// context is done. connContext, if it is not nil, adds to the context of each connection. Without a listener
// ServeAuxiliary returns nil at once. Errors: those of the listener.
func ServeAuxiliary(ctx context.Context, l net.Listener, h http.Handler,
	connContext func(context.Context) context.Context) error {
	if l == nil {
		return nil
	}
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: auxiliaryHeaderTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	if connContext != nil {
		s.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return connContext(ctx) }
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // what it reports, Serve reports as well
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
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
