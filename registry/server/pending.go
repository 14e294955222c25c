package server

import (
	"net/http"
	"sync/atomic"
)

// Pending is a handler that is ready later than the listener: until [Pending.Set], another handler answers that the
// server is still loading. Safe for concurrent use.
type Pending struct {
	loading http.Handler
	handler atomic.Pointer[http.Handler] // nil until Set
}

// NewPending makes a Pending that answers with loading until Set.
func NewPending(loading http.Handler) *Pending { return &Pending{loading: loading} }

// Set makes h answer all requests from now on.
func (p *Pending) Set(h http.Handler) { p.handler.Store(&h) }

// Ready reports whether Set was called.
func (p *Pending) Ready() bool { return p.handler.Load() != nil }

// ServeHTTP implements http.Handler.
func (p *Pending) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := p.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	p.loading.ServeHTTP(w, r)
}
