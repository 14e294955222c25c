package server

import (
	"net/http"
	"sync/atomic"
	"time"
)

// handlers counts the requests that a handler is at work on. http.Server.Close ends connections and waits for no
// handler, but what the handlers use is closed when the server has ended: the data directory, above all. The zero value
// counts; a handlers must not be copied.
type handlers struct {
	next http.Handler
	n    atomic.Int64
	last atomic.Bool                   // the server is stopping: each connection ends with its next answer
	end  atomic.Pointer[chan struct{}] // not nil: no request begins any more; it gets a value when none is left
}

// ServeHTTP implements http.Handler.
func (h *handlers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.n.Add(1)
	defer h.leave()
	if h.end.Load() != nil { // after n was counted: wait sees it, or it sees wait
		panic(http.ErrAbortHandler) // its connection is closed, or about to be
	}
	if h.last.Load() {
		w.Header().Set("Connection", "close")
	}
	h.next.ServeHTTP(w, r)
}

func (h *handlers) leave() {
	if h.n.Add(-1) > 0 {
		return
	}
	if end := h.end.Load(); end != nil {
		select {
		case *end <- struct{}{}:
		default: // there is a value already
		}
	}
}

// wait waits until no handler is at work, and no longer than most. It reports whether none is. No request begins after
// it; the connections must have been closed. Call it once.
func (h *handlers) wait(most time.Duration) (none bool) {
	end := make(chan struct{}, 1)
	h.end.Store(&end)
	over := time.NewTimer(most)
	defer over.Stop()
	for h.n.Load() > 0 {
		select {
		case <-end:
		case <-over.C:
			return false
		}
	}
	return true
}
