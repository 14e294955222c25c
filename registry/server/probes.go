package server

import (
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
)

// Probes answers the probes of Kubernetes, /healthz and /readyz. The zero value is not ready, and not stopping. Safe
// for concurrent use.
type Probes struct {
	// Details reports whether a request may see the lines of /readyz?verbose. nil: all may. Set it before the first
	// request.
	Details func(*http.Request) bool

	ready, stopping atomic.Bool

	mu     sync.Mutex // guards checks
	checks []Check
}

// Check describes one aspect of the server for /readyz?verbose: whether it is as it should be, and a line of text about
// it. With an empty text there is no line. A Check does not decide whether the server is ready.
type Check func() (ok bool, text string)

// Add adds lines to /readyz?verbose.
func (p *Probes) Add(checks ...Check) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checks = append(p.checks, checks...)
}

// SetReady sets whether the index is loaded, so that requests can be answered.
func (p *Probes) SetReady(ready bool) {
	p.ready.Store(ready)
	if ready {
		// What the start has left behind may be as much as the index. Beside requests, because it takes a collection.
		go debug.FreeOSMemory()
	}
}

// Stop makes the server not ready for good, so that clients are sent elsewhere while it ends.
func (p *Probes) Stop() { p.stopping.Store(true) }

// Ready reports whether the server is ready: the index is loaded, and the server is not stopping.
func (p *Probes) Ready() bool { return p.ready.Load() && !p.stopping.Load() }

// ServeHealth answers /healthz: the process is alive.
func (p *Probes) ServeHealth(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "ok\n")
}

// ServeReady answers /readyz: 200 if the server is ready, else 503. With ?verbose the answer has one line for each
// condition and each Check, marked [+] or [-], unless Details says that the client may not see them.
func (p *Probes) ServeReady(w http.ResponseWriter, r *http.Request) {
	Annotate(r.Context(), "route", "probe")
	// Both are read once, so that the status, the lines and the last word agree.
	ready, stopping := p.ready.Load(), p.stopping.Load()
	var body strings.Builder
	if r.URL.Query().Has("verbose") && (p.Details == nil || p.Details(r)) {
		writeCheck(&body, ready, "index loaded")
		writeCheck(&body, !stopping, "not stopping")
		for _, check := range p.list() {
			if ok, text := check(); text != "" {
				writeCheck(&body, ok, text)
			}
		}
	}
	if ready && !stopping {
		body.WriteString("ok\n")
	} else {
		w.WriteHeader(http.StatusServiceUnavailable)
		body.WriteString("not ready\n")
	}
	_, _ = io.WriteString(w, body.String())
}

// list returns the checks. They are called without the lock, because a check may take its time.
func (p *Probes) list() []Check {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.checks[:len(p.checks):len(p.checks)]
}

func writeCheck(w io.Writer, ok bool, text string) {
	mark := "-"
	if ok {
		mark = "+"
	}
	fmt.Fprintf(w, "[%s]%s\n", mark, text)
}
