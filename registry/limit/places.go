package limit

import (
	"hash/maphash"
	"sync/atomic"
)

// Places bounds the requests of one kind that are under way: how many in all, and how many of one client. Safe for
// concurrent use.
//
// A client may hold as many places as are free. So one client alone holds half of them at most, two together two
// thirds, and each further one finds a place, while a fixed share that is small enough for that would refuse the
// many callers that share one address behind a node port, a proxy or trow node. Slow readers hold their places for as
// long as stall-timeout lets them, so without this bound one client could keep everybody out.
//
// The counts are kept by hash, without a lock, an allocation or a bound on the number of clients. A client has a
// counter in each row, and the lower one counts. Two clients share both by a chance of 1 to 16 million, which no client
// can bring about, because the seed is random.
type Places struct {
	max   int64 // 0: no bound
	seed  maphash.Seed
	taken atomic.Int64
	rows  [2][counters]atomic.Int32
}

// counters is how many counters a row has: 16 KiB. It is a power of two.
const counters = 4096

// NewPlaces makes a Places that bounds the requests under way to max. 0: no bound.
func NewPlaces(max int) *Places {
	return &Places{max: int64(max), seed: maphash.MakeSeed()}
}

// Take takes a place, for a client that is not known yet, and reports whether there was one. The caller calls Leave in
// any case.
func (p *Places) Take() bool {
	n := p.taken.Add(1)
	return p.max == 0 || n <= p.max
}

// Leave gives up the place that Take has taken.
func (p *Places) Leave() { p.taken.Add(-1) }

// Held is a place that counts for a client.
type Held struct {
	places *Places
	sum    uint64
}

// Hold makes a place, which Take has taken, count for a client. ok is false if the client holds as many as are free
// already. The caller calls Release in any case.
func (p *Places) Hold(c Client) (h Held, ok bool) {
	if p.max == 0 {
		return Held{}, true
	}
	h = Held{p, maphash.Comparable(p.seed, c)}
	one, two := h.counters()
	// The other places of the client, which do not count this one.
	mine := int64(min(one.Add(1), two.Add(1))) - 1
	return h, mine < p.max-(p.taken.Load()-1)
}

// Release ends the count for the client. The place itself is kept until Leave.
func (h Held) Release() {
	if h.places == nil {
		return
	}
	one, two := h.counters()
	one.Add(-1)
	two.Add(-1)
}

func (h Held) counters() (one, two *atomic.Int32) {
	return &h.places.rows[0][h.sum%counters], &h.places.rows[1][h.sum>>32%counters]
}
