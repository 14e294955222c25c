package server

import (
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"time"

	"github.com/rs/zerolog"
)

// statusAborted stands for the answer that nobody got: the client was gone, or cut, before it began. It is the
// number that nginx uses, and never goes out.
const statusAborted = 499

// front is the outermost handler.
type front struct {
	next    http.Handler
	log     zerolog.Logger
	metrics *metrics
	stall   time.Duration
	probes  []string
	vital   []string
}

func newFront(o Options, m *metrics) *front {
	return &front{next: o.Handler, log: o.Log, metrics: m, stall: o.Stall, probes: o.Probes, vital: o.Vital}
}

// ServeHTTP gives the request a record, an id and the watched body and ResponseWriter, and afterwards counts
// and logs it.
func (f *front) ServeHTTP(inner http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rec := newRecord(r)
	w := newResponse(inner, r, f.stall)
	outer := r
	r = r.WithContext(rec)
	if outer.Body != nil && outer.Body != http.NoBody {
		w.body = &body{ReadCloser: outer.Body, w: w}
		r.Body = w.body
	}
	inner.Header()["X-Request-Id"] = rec.header[:]

	f.metrics.inFlight.Inc()
	p := f.serve(w, r, rec)
	w.finish()
	f.metrics.inFlight.Dec()
	f.end(ending{w: w, rec: rec, request: outer, took: time.Since(start), panicked: p})
	if p.cut {
		panic(http.ErrAbortHandler)
	}
}

// panicked is how a handler ended that did not return.
type panicked struct {
	cut   bool   // the connection is to be broken
	cause any    // nil: it returned, or asked for the cut itself
	stack []byte // of cause
}

// serve runs the handler and turns a panic into an answer where there was none yet, else into a cut.
func (f *front) serve(w *response, r *http.Request, rec *record) (p panicked) {
	defer func() {
		cause := recover()
		switch {
		case cause == nil:
			return
		case cause == http.ErrAbortHandler:
			p.cut = true
			return
		}
		p = panicked{cut: w.status != 0, cause: cause, stack: debug.Stack()}
		if !p.cut {
			writePanic(w, r, rec.id)
		}
	}()
	if !f.refuse(w, r) {
		f.next.ServeHTTP(w, r)
	}
	return p
}

// writePanic answers for a handler that has not begun to. What it has put into the header was about another
// answer.
func writePanic(w *response, r *http.Request, id string) {
	h := w.Header()
	for key := range h {
		if key != "X-Request-Id" {
			delete(h, key)
		}
	}
	writeError(w, r, http.StatusInternalServerError, "UNKNOWN", "internal error, request "+id)
}

// ending is all there is to say about a request when it is over.
type ending struct {
	w       *response
	rec     *record
	request *http.Request
	took    time.Duration
	panicked
}

// end counts and logs a request.
func (f *front) end(e ending) {
	var in int64
	if e.w.body != nil {
		in = e.w.body.bytes
	}
	f.metrics.count(e.request.Method, e.rec.get("route"), e.status(), in, e.w.bytes, e.took)
	event := f.log.WithLevel(f.level(e))
	if !event.Enabled() {
		return
	}
	event.Str("req", e.rec.id).Str("method", cut(e.request.Method)).Str("path", cut(e.request.URL.Path)).
		Int("status", e.status()).Int64("bytes", in+e.w.bytes).Dur("dur", e.took)
	e.annotations(event)
	if e.stack != nil {
		event.Bytes("stack", e.stack)
	}
	event.Msg("request")
}

// annotations adds what the handler has to say, and the reason of a failure if it says none.
func (e ending) annotations(event *zerolog.Event) {
	e.rec.mu.Lock()
	defer e.rec.mu.Unlock()
	if err := e.err(); err != nil {
		if !slices.ContainsFunc(e.rec.fields, func(f field) bool { return f.key == "err" }) || e.cause != nil {
			e.rec.set(field{"err", cut(err.Error())})
		}
	}
	for _, f := range e.rec.fields {
		event.Str(f.key, f.value)
	}
}

// status is what the client got: 200 if the handler returned without a word, 499 if there was no answer.
func (e ending) status() int {
	switch {
	case e.w.status != 0:
		return e.w.status
	case e.cut || e.clientGone() != nil:
		return statusAborted
	}
	return http.StatusOK
}

// clientGone says how the client ended the request, nil if it did not.
func (e ending) clientGone() error {
	if e.w.err != nil {
		return e.w.err
	}
	if e.w.body != nil && e.w.body.err != nil {
		return e.w.body.err
	}
	return e.request.Context().Err()
}

// err is why the request failed, as far as the front can see.
func (e ending) err() error {
	switch {
	case e.cause != nil:
		return fmt.Errorf("panic: %v", e.cause)
	case e.clientGone() != nil:
		return e.clientGone()
	case e.cut:
		return errors.New("the handler broke off")
	}
	return nil
}

// level of a request's line: 5xx is an error, unless the client's going was the cause; a body that we broke off
// is a warning; a probe is debug.
func (f *front) level(e ending) zerolog.Level {
	switch {
	case e.cause != nil:
		return zerolog.ErrorLevel
	case slices.Contains(f.probes, e.request.URL.Path):
		return zerolog.DebugLevel
	case e.request.Context().Value(surplusKey{}) != nil && e.status() == http.StatusServiceUnavailable:
		return zerolog.DebugLevel // there may be thousands; connections tells of them all
	case e.clientGone() != nil:
		return zerolog.InfoLevel
	case e.cut && e.rec.get("err") != "":
		return zerolog.WarnLevel
	case e.status() >= http.StatusInternalServerError:
		return zerolog.ErrorLevel
	}
	return zerolog.InfoLevel
}
