package server

import (
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// connections keeps the number of connections within a limit. When one more comes, the one that has been idle the
// longest goes. If all are busy, some more are taken, and told that they are too many: on those only what is vital is
// answered, and they end with their first answer. Beyond these, connections are closed without a word.
type connections struct {
	max     int
	log     zerolog.Logger
	metrics *metrics

	mu      sync.Mutex
	all     map[net.Conn]*connection
	idle    *list.List // of *connection, the one that has been idle the longest first
	surplus int        // how many are over the limit
	warned  time.Time
}

type connection struct {
	conn    net.Conn
	surplus bool
	idle    *list.Element // nil: busy
}

// maxSurplus is how many connections are told that they are too many, at once: enough that a client that comes again
// after a second is told so as well, and few enough to cost nothing.
const maxSurplus = 128

// surplusKey marks the context of a connection's requests.
type surplusKey struct{}

func newConnections(o Options, m *metrics) *connections {
	return &connections{max: o.MaxConnections, log: o.Log, metrics: m, all: map[net.Conn]*connection{}, idle: list.New()}
}

// accepted is http.Server.ConnContext: it is called for each connection, one after the other, before anything is read.
func (c *connections) accepted(ctx context.Context, conn net.Conn) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	this := &connection{conn: conn}
	if over := len(c.all) - c.surplus - c.max; over >= 0 && !c.evict() {
		this.surplus = true
		c.metrics.refused.Inc()
		c.warn()
		if c.surplus == maxSurplus {
			abandon(conn)
			return ctx
		}
		c.surplus++
		ctx = context.WithValue(ctx, surplusKey{}, true)
	}
	c.all[conn] = this
	c.metrics.connections.Set(float64(len(c.all)))
	return ctx
}

// evict closes the connection that has been idle the longest, if one is.
func (c *connections) evict() bool {
	first := c.idle.Front()
	if first == nil {
		return false
	}
	this := first.Value.(*connection)
	c.forget(this)
	abandon(this.conn)
	c.metrics.evicted.Inc()
	return true
}

// abandon closes a connection at once: TLS would say goodbye first, and might wait for that.
func abandon(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	_ = conn.Close() // it is over either way
}

// warn tells once a minute. The caller holds mu.
func (c *connections) warn() {
	if time.Since(c.warned) < time.Minute {
		return
	}
	c.warned = time.Now()
	c.log.Warn().Int("limit", c.max).Msg("all connections are busy and more come: they are refused; see max-connections")
}

// changed is http.Server.ConnState.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	this := c.all[conn]
	if this == nil {
		return // evicted
	}
	switch state {
	case http.StateClosed, http.StateHijacked:
		c.forget(this)
		c.metrics.connections.Set(float64(len(c.all)))
	case http.StateIdle:
		if this.idle == nil && !this.surplus { // that one ends by itself, and makes no room
			this.idle = c.idle.PushBack(this)
		}
	default:
		c.busy(this)
	}
}

func (c *connections) busy(this *connection) {
	if this.idle != nil {
		c.idle.Remove(this.idle)
		this.idle = nil
	}
}

func (c *connections) forget(this *connection) {
	c.busy(this)
	delete(c.all, this.conn)
	if this.surplus {
		c.surplus--
	}
}

// refuse answers a request on a connection that is too many, unless it is vital. Either way the connection ends with
// the answer.
func (f *front) refuse(w *response, r *http.Request) (refused bool) {
	if r.Context().Value(surplusKey{}) == nil {
		return false
	}
	w.Header().Set("Connection", "close")
	if slices.Contains(f.probes, r.URL.Path) || slices.Contains(f.vital, r.URL.Path) {
		return false
	}
	w.Header().Set("Retry-After", "1")
	writeError(w, r, http.StatusServiceUnavailable, "TOOMANYREQUESTS", "all connections of the registry are busy; try again in a moment")
	return true
}

// writeError answers with a sentence, under /v2 in the form of the distribution spec.
func writeError(w *response, r *http.Request, status int, code, message string) {
	contentType, text := "text/plain; charset=utf-8", message+"\n"
	if r.URL.Path == "/v2" || strings.HasPrefix(r.URL.Path, "/v2/") {
		contentType = "application/json"
		text = `{"errors":[{"code":"` + code + `","message":"` + message + `"}]}` + "\n"
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	w.Write([]byte(text)) // an error means that the client is gone; w remembers it for the log
}
