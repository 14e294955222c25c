package server

import (
	"sync/atomic"
	"time"
)

// The memory of connections, in bytes, each measured by a test: for a connection over TLS that is idle, and in addition
// for one with headers of almost maxHeader that are not complete.
const (
	idleCost = 48 << 10
	headCost = 96 << 10
)

const (
	// heavyHead is how much may come before a request, with a TLS handshake, without counting as heavy: more than
	// nearly all clients send, and less than what is in the buffers of a connection anyway.
	heavyHead = 16 << 10
	// mostConnections bounds the number of connections that follows from the memory.
	mostConnections = 10000
)

// defaultConnections returns how many connections fit into a quarter of the memory, less what headsLimit takes.
func defaultConnections(memory int64) int {
	return int(min(max(memory/32*7/idleCost, 64), mostConnections))
}

// headsLimit returns how many of so many connections may have large headers, complete or not: as many as fit into a
// 32nd of the memory.
func headsLimit(connections int, memory int64) int {
	return max(8, min(connections/8, int(memory/32/headCost)))
}

// heads counts what comes on a connection before the headers of a request are complete. The methods of a nil *heads do
// nothing.
type heads struct {
	all   *connections
	place *place
	head  *head       // of the request; for the goroutine that reads it
	done  atomic.Bool // the headers are complete
	// body is since when the request has waited for a body that is kept in memory, in nanoseconds since 1970; 0: it
	// does not.
	body  atomic.Int64
	bytes atomic.Int64 // of the headers that are not, over TLS with what else came

	member *memberOf[*heads] // of connections.heavy; guarded by connections.mu
}

// watch returns what counts the headers of a connection; nil if nothing does.
func (c *connections) watch(p *place) *heads {
	counted := under(p.conn)
	if counted == nil {
		return nil
	}
	counted.heads = &heads{all: c, place: p, head: &counted.wire.head} // before net/http reads
	return counted.heads
}

// read counts bytes that were read from the connection. When headers have become large, the connection takes one of the
// places for such, and if all are taken another gives way: the oldest one of the address that holds most.
func (h *heads) read(n int) {
	if h == nil || h.done.Load() || h.bytes.Add(int64(n)) <= heavyHead {
		return
	}
	c := h.all
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.member != nil || c.all[h.place.conn] != h.place {
		return // it has a place, or was closed
	}
	if c.heavy.Len() >= c.heads {
		c.close(c.heavy.First().Value.place)
	}
	h.member = c.heavy.Add(h.place.address, 1, h)
}

// complete ends the counting: the headers are complete. Large ones keep their place until the request has ended,
// because the request keeps the headers. Those of most requests that have taken a place are not: a part of the body
// came with them. The caller holds connections.mu, and reads the connection.
func (h *heads) complete() {
	if h == nil {
		return
	}
	h.done.Store(true)
	if h.head.bytes <= heavyHead {
		h.leave()
	}
}

// awaitBody notes since when the handler has waited for a body that must arrive in a given time; 0: it does not.
func (h *heads) awaitBody(since int64) {
	if h == nil {
		return
	}
	switch old := h.body.Swap(since); {
	case old == 0 && since != 0:
		h.all.awaiting.Add(1)
	case old != 0 && since == 0:
		h.all.awaiting.Add(-1)
	}
}

// awaitsBody reports whether the request has waited longer for a small body than a client needs that is not hindered.
func (h *heads) awaitsBody(now time.Time) bool {
	if h == nil {
		return false
	}
	since := h.body.Load()
	return since != 0 && now.UnixNano()-since >= int64(readGrace)
}

// end ends the counting: the connection has ended. The caller holds connections.mu.
func (h *heads) end() {
	if h != nil {
		h.done.Store(true)
		h.leave()
	}
}

// leave gives up the place for large headers. The caller holds connections.mu.
func (h *heads) leave() {
	if h.member != nil {
		h.all.heavy.Remove(h.member)
		h.member = nil
	}
}

// await starts to count the headers of the next request. The caller holds connections.mu.
func (h *heads) await() {
	if h != nil {
		h.leave()
		h.bytes.Store(0)
		h.done.Store(false)
	}
}
