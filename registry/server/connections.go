package server

import (
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"trow/registry/ocierror"
)

// connections keeps the number of connections within a limit. When a new one comes, the one that has been idle the
// longest is closed. If all are busy, up to maxSurplus more are accepted: on these surplus connections only probes and
// vital paths are answered, other requests get a 503, and they end with their first answer. Beyond these, connections
// are closed without an answer.
type connections struct {
	max     int
	log     zerolog.Logger
	metrics *metrics

	mu      sync.Mutex // guards what follows
	all     map[net.Conn]*place
	idle    *list.List // of *place, the one that has been idle the longest first
	surplus int        // number of surplus connections
	warned  time.Time  // when the log was last warned
}

// place is what connections knows of one connection.
type place struct {
	conn    net.Conn
	surplus bool
	idle    *list.Element // nil: the connection is busy
}

// maxSurplus is the largest number of surplus connections: enough that a client that retries after a second gets a 503
// again, and few enough to cost nothing.
const maxSurplus = 128

// surplusKey marks the context of a surplus connection's requests.
type surplusKey struct{}

func newConnections(limit int, log zerolog.Logger, m *metrics) *connections {
	return &connections{max: limit, log: log, metrics: m, all: map[net.Conn]*place{}, idle: list.New()}
}

// accept is http.Server.ConnContext: it is called for each connection, one after the other, before anything is read.
func (c *connections) accept(ctx context.Context, conn net.Conn) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &place{conn: conn}
	if over := len(c.all) - c.surplus - c.max; over >= 0 && !c.evict() {
		p.surplus = true
		c.metrics.refused.Inc()
		c.warn()
		if c.surplus == maxSurplus {
			abort(conn)
			return ctx // without a place: changed ignores it
		}
		c.surplus++
		ctx = context.WithValue(ctx, surplusKey{}, true)
	}
	c.all[conn] = p
	c.metrics.connections.Set(float64(len(c.all)))
	return ctx
}

// evict closes the connection that has been idle the longest. It reports whether there was one. The caller holds mu.
func (c *connections) evict() bool {
	first := c.idle.Front()
	if first == nil {
		return false
	}
	p := first.Value.(*place)
	c.remove(p)
	abort(p.conn)
	c.metrics.evicted.Inc()
	return true
}

// abort closes a connection at once. A tls.Conn would first send an alert, and might wait for that.
func abort(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	_ = conn.Close() // the connection is over even if this fails
}

// warn logs at most once a minute. The caller holds mu.
func (c *connections) warn() {
	if time.Since(c.warned) < time.Minute {
		return
	}
	c.warned = time.Now()
	c.log.Warn().Int("limit", c.max).Msg("all connections are busy; new ones are refused: see max-connections")
}

// changed is http.Server.ConnState.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.all[conn]
	if p == nil {
		return // it was evicted, or never had a place
	}
	switch state {
	case http.StateClosed, http.StateHijacked:
		c.remove(p)
		c.metrics.connections.Set(float64(len(c.all)))
	case http.StateIdle:
		// A surplus connection is about to end, and closing it would make no room.
		if p.idle == nil && !p.surplus {
			p.idle = c.idle.PushBack(p)
		}
	default:
		c.setBusy(p)
	}
}

// setBusy takes a connection off the list of idle ones. The caller holds mu.
func (c *connections) setBusy(p *place) {
	if p.idle != nil {
		c.idle.Remove(p.idle)
		p.idle = nil
	}
}

// remove gives up the place of a connection. The caller holds mu.
func (c *connections) remove(p *place) {
	c.setBusy(p)
	delete(c.all, p.conn)
	if p.surplus {
		c.surplus--
	}
}

// refuse answers a request on a surplus connection, unless its path is a probe or vital. In both cases the connection
// ends with the answer.
func (a *accessLog) refuse(w *response, r *http.Request) (refused bool) {
	if r.Context().Value(surplusKey{}) == nil {
		return false
	}
	w.Header().Set("Connection", "close")
	if slices.Contains(probePaths, r.URL.Path) || slices.Contains(a.vital, r.URL.Path) {
		return false
	}
	writeError(w, r, &ocierror.Error{Code: ocierror.TooManyRequests, Status: http.StatusServiceUnavailable,
		Message: "all connections to the registry are busy; retry in a moment", Header: ocierror.RetryAfter(1)})
	return true
}

// writeError answers with an error, in the form of the specification below /v2, and as text elsewhere.
func writeError(w http.ResponseWriter, r *http.Request, e *ocierror.Error) {
	if ocierror.IsPath(r.URL.Path) {
		ocierror.Write(w, r, e)
		return
	}
	for name, values := range e.Header {
		w.Header()[name] = values
	}
	http.Error(w, e.Message, e.HTTPStatus())
}
