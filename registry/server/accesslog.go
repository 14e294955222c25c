package server

import (
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"trow/registry/ocierror"
)

// statusAborted is the status in log and metrics of a request without an answer: the client went away, or was cut off,
// before the answer started. nginx uses the same number. It is never sent.
const statusAborted = 499

// accessLog is the outermost handler.
type accessLog struct {
	next    http.Handler
	log     zerolog.Logger
	metrics *metrics
	stall   time.Duration
	vital   []string
	origins *origins
	prefix  string
}

func newAccessLog(o Options, m *metrics) *accessLog {
	return &accessLog{next: o.Handler, log: o.Log, metrics: m, stall: o.StallTimeout, vital: o.Vital,
		origins: newOrigins(&o), prefix: o.Prefix}
}

// ServeHTTP gives the request a record, an id, and a body and a ResponseWriter with deadlines. When the request has
// ended, it counts and logs it.
func (a *accessLog) ServeHTTP(inner http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rec := newRecord(r)
	w := newResponse(inner, r, a.stall)
	if w.conn != nil {
		if w.conn.closed.Load() {
			// It gave way to another one while its request was read. A client that gets no answer sends the request
			// again, so it must not have had an effect.
			panic(http.ErrAbortHandler)
		}
		w.conn.wire.answering = true
	}
	outer := r
	r = r.WithContext(rec)
	if a.prefix != "" {
		r.URL = below(a.prefix, r.URL)
	}
	if outer.Body != nil && outer.Body != http.NoBody {
		w.body = &body{ReadCloser: outer.Body, w: w, large: outer.ContentLength < 0 || outer.ContentLength > unread}
		r.Body = w.body
	}
	inner.Header()["X-Request-Id"] = rec.header[:]
	ocierror.Secure(inner.Header())
	endIfAmbiguous(inner.Header(), r, w.conn)

	a.metrics.inFlight.Inc()
	p := a.serve(w, r, rec)
	w.finish()
	w.heads().awaitBody(0)
	if h := w.heads(); h != nil && w.body.isOpen() {
		h.all.unread(h.place)
	}
	a.metrics.inFlight.Dec()
	a.end(ending{w: w, rec: rec, request: outer, took: time.Since(start), panicked: p})
	if p.cut || w.brokeOff() { // last, because net/http closes the connection and recovers
		panic(http.ErrAbortHandler)
	}
}

// panicked says how a handler ended that did not return.
type panicked struct {
	cut   bool   // the connection must be closed
	cause any    // nil: the handler returned, or asked for the cut with http.ErrAbortHandler
	stack []byte // of cause
}

// serve runs the handler. It turns a panic into an answer if none was started yet, else into a cut (invariant 6).
func (a *accessLog) serve(w *response, r *http.Request, rec *record) (p panicked) {
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
	if !refuseLines(w, r) && !a.refuse(w, r) && !leadToTLS(w, r) && !a.origins.answer(w, r) {
		a.next.ServeHTTP(w, r)
	}
	return p
}

// writePanic answers for a handler that has not started its answer. The header that the handler has set belongs to
// another answer, so it is removed.
func writePanic(w *response, r *http.Request, id string) {
	h := w.Header()
	for key := range h {
		if key != "X-Request-Id" {
			delete(h, key)
		}
	}
	ocierror.Secure(h)
	endIfAmbiguous(h, r, w.conn)
	writeError(w, r, &ocierror.Error{Code: ocierror.Unknown, Message: "internal error, request " + id})
}

// ending is what is known of a request when it has ended.
type ending struct {
	w       *response
	rec     *record
	request *http.Request
	took    time.Duration
	panicked
}

// end counts and logs a request.
func (a *accessLog) end(e ending) {
	var in int64
	if e.w.body != nil {
		in = e.w.body.bytes
	}
	a.metrics.count(e.request.Method, e.rec.get("route"), e.status(), in, e.w.bytes, e.took)
	event := a.log.WithLevel(a.level(e))
	if !event.Enabled() {
		return
	}
	event.Str("req", e.rec.id).Str("method", clip(e.request.Method)).Str("path", clip(e.request.URL.Path)).
		Int("status", e.status()).Int64("bytes", in+e.w.bytes).Dur("dur", e.took)
	e.annotations(event)
	if e.stack != nil {
		event.Bytes("stack", e.stack)
	}
	event.Msg("request")
}

// annotations adds the annotations of the handler, and the reason of a failure unless the handler has set one.
func (e ending) annotations(event *zerolog.Event) {
	e.rec.mu.Lock()
	defer e.rec.mu.Unlock()
	if err := e.err(); err != nil {
		if !slices.ContainsFunc(e.rec.fields, func(f field) bool { return f.key == "err" }) || e.cause != nil {
			e.rec.set(field{"err", clip(err.Error())})
		}
	}
	for _, f := range e.rec.fields {
		event.Str(f.key, f.value)
	}
}

// status is the status that the client got: 200 if the handler returned without writing, 499 if there was no answer.
func (e ending) status() int {
	switch {
	case e.w.status != 0:
		return e.w.status
	case e.cut || e.clientGone() != nil:
		return statusAborted
	}
	return http.StatusOK
}

// clientGone returns the error by which the client ended the request, nil if it did not.
func (e ending) clientGone() error {
	if e.w.err != nil {
		return e.w.err
	}
	if e.w.body != nil && e.w.body.err != nil {
		return e.w.body.err
	}
	return e.request.Context().Err()
}

// err is why the request failed, as far as it can be seen from outside the handler.
func (e ending) err() error {
	switch {
	case e.cause != nil:
		return fmt.Errorf("panic: %v", e.cause)
	case e.clientGone() != nil:
		return e.clientGone()
	case e.cut:
		return errors.New("the handler aborted the answer")
	}
	return nil
}

// level is the level of a request's line: 5xx is an error unless the client went away; an answer that the handler
// aborted is a warning; a probe is debug.
func (a *accessLog) level(e ending) zerolog.Level {
	switch {
	case e.cause != nil:
		return zerolog.ErrorLevel
	case slices.Contains(probePaths, e.request.URL.Path):
		return zerolog.DebugLevel
	case e.request.Context().Value(surplusKey{}) != nil && e.status() == http.StatusServiceUnavailable:
		return zerolog.DebugLevel // there may be thousands; connections logs one warning for all of them
	case e.clientGone() != nil:
		return zerolog.InfoLevel
	case e.cut && e.rec.get("err") != "":
		return zerolog.WarnLevel
	case e.status() >= http.StatusInternalServerError:
		return zerolog.ErrorLevel
	}
	return zerolog.InfoLevel
}
