package server

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"trow/registry/ocierror"
)

// connections keeps the number of connections within a limit. When a new one comes and all places are taken, another
// gives way:
//
//  1. the one that has been idle the longest;
//  2. of those whose small body (see Bodies) has not come for readGrace, the oldest one, of the address that holds most
//     connections if it has any;
//  3. of those that have not sent the headers of a request yet, whatever else they have sent, or whose last request is
//     answered but for a body that does not come, the oldest one of the address that holds most of them;
//  4. the oldest one of the address that holds most, if that is a quarter of all and far more than the address of the
//     new one holds: requests that wait for their client cost it nothing, and must not keep out others.
//
// If none does, up to maxSurplus more are accepted: on these surplus connections only probes and
// vital paths are answered, other requests get a 503, and they end with their first answer. When these are taken as
// well, of them gives way one without a request, as in 3, or else the oldest one of the address that holds most, if it
// is older than surplusTime. Beyond these, connections are closed without an answer.
//
// Behind a node port that hides addresses, all clients have one address. Then the oldest connection without a request
// gives way: a client is served if its handshake and headers take less time than it takes others to open as many
// connections as there are places.
type connections struct {
	max     int
	heads   int // how many connections may have large headers that are not complete
	log     zerolog.Logger
	metrics *metrics

	awaiting atomic.Int64 // requests that wait for a small body; see heads.awaitBody

	mu     sync.Mutex // guards what follows
	all    map[net.Conn]*place
	idle   *list.List      // of *place, the one that has been idle the longest first
	fresh  crowdOf[*place] // those without a request, of the ordinary ones
	every  crowdOf[*place] // all ordinary ones
	silent crowdOf[*place] // those without a request yet, of the surplus ones
	late   crowdOf[*place] // the surplus ones with a request
	heavy  crowdOf[*heads] // the connections with large headers that are not complete, or whose request is under way

	surplus int       // number of surplus connections
	warned  time.Time // when the log was last warned
}

// place is what connections knows of one connection.
type place struct {
	conn    net.Conn
	address netip.Addr
	since   time.Time
	surplus bool
	idle    *list.Element     // nil: the connection is not idle
	crowd   *crowdOf[*place]  // nil: the connection is in none
	member  *memberOf[*place] // of crowd
	among   *memberOf[*place] // of connections.every; nil: it is a surplus one
	heads   *heads            // nil in tests with connections of other kinds
}

const (
	// maxSurplus is the largest number of surplus connections: enough that a client that retries after a second gets a
	// 503 again, and few enough to cost nothing.
	maxSurplus = 128
	// surplusTime is how long a request on a surplus connection may take before it gives way to others. A probe or a
	// review takes milliseconds; one that takes longer waits for its client, or for memory that such clients hold.
	surplusTime = 2 * time.Second
	// far is how many times as many connections as the address of a new one another address must hold for one of these
	// to give way: nodes and build machines that are busy at the same time differ by less.
	far = 4
)

// surplusKey marks the context of a surplus connection's requests.
type surplusKey struct{}

func newConnections(limit int, log zerolog.Logger, m *metrics) *connections {
	return &connections{max: limit, heads: headsLimit(limit, Memory()), log: log, metrics: m,
		all: map[net.Conn]*place{}, idle: list.New()}
}

// accept is http.Server.ConnContext: it is called for each connection, one after the other, before anything is read.
func (c *connections) accept(ctx context.Context, conn net.Conn) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &place{conn: conn, address: addressOf(conn.RemoteAddr()), since: time.Now()}
	if over := len(c.all) - c.surplus - c.max; over >= 0 && !c.evict(p.address) {
		p.surplus = true
		c.metrics.refused.Inc()
		c.warn()
		if c.surplus == maxSurplus && !c.evictSurplus() {
			abort(conn)
			return ctx // without a place: changed ignores it
		}
		c.surplus++
		ctx = context.WithValue(ctx, surplusKey{}, true)
	}
	p.heads = c.watch(p)
	if c.all[conn] = p; p.surplus {
		c.join(p, &c.silent)
	} else {
		p.among = c.every.Add(p.address, 1, p)
		c.join(p, &c.fresh)
	}
	c.metrics.connections.Set(float64(len(c.all)))
	return ctx
}

// evict closes the connection that gives way to a new one from an address. It reports whether there was one. The caller
// holds mu.
func (c *connections) evict(from netip.Addr) bool {
	if first := c.idle.Front(); first != nil {
		c.close(first.Value.(*place))
		return true
	}
	now := time.Now()
	if c.awaiting.Load() > 0 { // otherwise the search would be in vain
		for g := range c.every.Groups() {
			for m := range g.Members() {
				if m.Value.heads.awaitsBody(now) {
					c.close(m.Value)
					return true
				}
			}
		}
	}
	if first := c.fresh.First(); first != nil {
		c.close(first.Value)
		return true
	}
	first := c.every.First()
	if first == nil || now.Sub(first.Value.since) < surplusTime {
		return false // a request that has just begun may be a short one
	}
	if n := first.Group().Weight(); n < int64(c.max/4) || n < far*(c.every.Of(from)+1) {
		return false
	}
	c.close(first.Value)
	return true
}

// unread notes that a request on a connection is answered, but for the rest of its body, for which net/http waits.
func (c *connections) unread(p *place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all[p.conn] == p && !p.surplus {
		c.join(p, &c.fresh)
	}
}

// evictSurplus closes the surplus connection that gives way to a new one. It reports whether there was one. The caller
// holds mu.
func (c *connections) evictSurplus() bool {
	first := c.silent.First()
	if first == nil {
		first = c.late.First()
		if first == nil || time.Since(first.Value.since) < surplusTime {
			return false
		}
	}
	c.close(first.Value)
	return true
}

// close closes a connection to make room for another one. The caller holds mu.
func (c *connections) close(p *place) {
	c.remove(p)
	abort(p.conn)
	c.metrics.evicted.Inc()
}

// join adds a connection to a crowd. The caller holds mu.
func (c *connections) join(p *place, to *crowdOf[*place]) {
	c.leave(p)
	p.crowd, p.member = to, to.Add(p.address, 1, p)
}

// leave takes a connection off the list of idle ones, or out of its crowd. The caller holds mu.
func (c *connections) leave(p *place) {
	if p.idle != nil {
		c.idle.Remove(p.idle)
		p.idle = nil
	}
	if p.crowd != nil {
		p.crowd.Remove(p.member)
		p.crowd, p.member = nil, nil
	}
}

// abort closes a connection at once. A tls.Conn would first send an alert, and might wait for that.
func abort(c net.Conn) {
	if counted := under(c); counted != nil {
		counted.abort()
		return
	}
	_ = c.Close() // in tests
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
	if counted := under(conn); counted != nil && state == http.StateIdle {
		counted.wire.next() // before the next request is read, in the goroutine that reads it
	}
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
		p.heads.await()
		// A surplus connection is about to end.
		if p.idle == nil && !p.surplus {
			c.leave(p)
			p.idle = c.idle.PushBack(p)
		}
	case http.StateActive: // net/http calls it when the headers of a request were read to their end, not before
		p.heads.complete()
		if p.surplus {
			c.join(p, &c.late)
		} else {
			c.leave(p)
		}
	}
}

// remove gives up the place of a connection. The caller holds mu.
func (c *connections) remove(p *place) {
	c.leave(p)
	p.heads.end()
	delete(c.all, p.conn)
	if p.surplus {
		c.surplus--
	} else {
		c.every.Remove(p.among)
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
