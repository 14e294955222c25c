package server

import (
	"crypto/tls"
	"sync/atomic"
)

// The memory of connections, in bytes, each measured by a test: for a connection over TLS that is idle, and in addition
// for one with headers of almost maxHeader that are not complete.
const (
	idleCost = 48 << 10
	headCost = 96 << 10
)

const (
	// heavyHead is how much may come before a request, with a TLS handshake, without counting as heavy: more than nearly
	// all clients send, and less than what is in the buffers of a connection anyway.
	heavyHead = 16 << 10
	// mostConnections bounds the number of connections that follows from the memory.
	mostConnections = 10000
)

// defaultConnections returns how many connections fit into a quarter of the memory, less what headsLimit takes.
func defaultConnections(memory int64) int {
	return int(min(max(memory/32*7/idleCost, 64), mostConnections))
}

// headsLimit returns how many of so many connections may have large headers that are not complete: as many as fit into
// a 32nd of the memory. Large headers of honest clients are complete within milliseconds.
func headsLimit(connections int, memory int64) int {
	return max(8, min(connections/8, int(memory/32/headCost)))
}

// heads counts what comes on a connection before the headers of a request are complete. The methods of a nil *heads do
// nothing.
type heads struct {
	all   *connections
	place *place
	done  atomic.Bool  // the headers are complete
	bytes atomic.Int64 // of the headers that are not

	member *memberOf[*heads] // of connections.heavy; guarded by connections.mu
}

// watch returns what counts the headers of a connection; nil if nothing does.
func (c *connections) watch(p *place) *heads {
	inner := p.conn
	if t, ok := inner.(*tls.Conn); ok {
		inner = t.NetConn()
	}
	counted, ok := inner.(*conn)
	if !ok {
		return nil
	}
	counted.heads = &heads{all: c, place: p} // before net/http reads
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

// complete ends the counting: the headers are complete, or the connection has ended. The caller holds connections.mu.
func (h *heads) complete() {
	if h == nil {
		return
	}
	h.done.Store(true)
	if h.member != nil {
		h.all.heavy.Remove(h.member)
		h.member = nil
	}
}

// await starts to count the headers of the next request.
func (h *heads) await() {
	if h != nil {
		h.bytes.Store(0)
		h.done.Store(false)
	}
}
