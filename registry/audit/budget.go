package audit

import (
	"hash/maphash"
	"math"
	"net/netip"
	"time"

	"trow/registry/address"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

const (
	// linesPerSecond and linesAtOnce bound the lines of a kind. A line has a few hundred bytes, so that one kind
	// usually is at most 300 MB a day.
	linesPerSecond = 10
	linesAtOnce    = 100
	// shareTime is how fast the lines of a peer cease to count against it. A peer may have as many as are left for the
	// others, so alone it gets half of a kind: 50 at once, and then up to 100 in 20 s, which are 5 a second. N peers
	// that write all they can leave 200/N of the 100 lines, and 100/(N+1) after a sudden start.
	shareTime = 2 * linesAtOnce / linesPerSecond * time.Second
	// maxPeers bounds the peers that are remembered, about 200 bytes each. A peer that was forgotten starts anew; the
	// budget of its kind still applies.
	maxPeers = 1024
)

// kind is the unit in which lines are bounded and counted.
type kind struct {
	what    What
	outcome Outcome
}

// bounded is a kind that has a bound.
type bounded struct {
	// The lines of peers that have proved who they are have a budget of their own. Anybody can have many addresses, and
	// would otherwise keep out the lines of users, or of the API server.
	proven, unproven *rate.Limiter
	leftOut          int64 // since the last report
}

func newBounded() *bounded {
	return &bounded{proven: rate.NewLimiter(linesPerSecond, linesAtOnce),
		unproven: rate.NewLimiter(linesPerSecond, linesAtOnce)}
}

// peer is who caused an event, and its kind. Names are hashed, so that a client does not choose the size of a peer.
type peer struct {
	kind
	proven bool
	name   uint64
}

// peers are the budgets of those seen last. Not safe for concurrent use.
type peers struct {
	seed maphash.Seed
	all  *simplelru.LRU[peer, *share]
}

// share is what a peer has had of the budget of its kind.
type share struct {
	lines float64 // at a time; they fade
	at    time.Time
}

// left returns how much of the share still counts.
func (s *share) left(now time.Time) float64 {
	return s.lines * math.Exp(-now.Sub(s.at).Seconds()/shareTime.Seconds())
}

func newPeers() *peers {
	all, err := simplelru.NewLRU[peer, *share](maxPeers, nil)
	if err != nil {
		panic(err) // impossible: the size is positive
	}
	return &peers{seed: maphash.MakeSeed(), all: all}
}

// allow takes one line of the peer from a budget, and reports whether there was room: a peer may have no more than is
// left for others after it, so that one which had none yet finds room, even if several others write all they can.
func (p *peers) allow(who peer, budget *rate.Limiter, now time.Time) bool {
	s, ok := p.all.Get(who)
	if !ok {
		s = &share{at: now}
		p.all.Add(who, s)
	}
	had := s.left(now)
	if budget.TokensAt(now) < had+1 || !budget.AllowN(now, 1) {
		return false
	}
	s.lines, s.at = had+1, now
	return true
}

// of returns the peer of an event: the identity that was proved, otherwise the address.
func (p *peers) of(e *Event) peer {
	who := peer{kind: kind{e.What, e.Outcome}, proven: e.proven()}
	var h maphash.Hash
	h.SetSeed(p.seed)
	if !who.proven {
		h.WriteString(network(e.From))
		who.name = h.Sum64()
		return who
	}
	h.WriteString(e.Kind)
	h.WriteByte(0)
	h.WriteString(e.User)
	if e.What == Verdict {
		// The user of most reviews is a controller, which makes the pods of everybody. The namespace tells them apart.
		h.WriteByte(0)
		h.WriteString(e.Object.Namespace)
	}
	who.name = h.Sum64()
	return who
}

// proven reports whether User is the identity of the client. A failed login proves nothing, and the user of a review
// is only as good as the caller that sent it.
func (e *Event) proven() bool {
	switch {
	case e.What == Verdict:
		return e.Authenticated
	case e.What == Login:
		return false
	}
	return e.Kind != "anonymous" && e.Kind != "unknown"
}

// network returns the address by which a client is counted. Of IPv6 it is the network (/64), because a host there has
// as many addresses as it likes.
func network(from string) string {
	a, err := netip.ParseAddr(from)
	if err != nil {
		return from
	}
	return address.Network(a).String()
}

// room reports whether there may be a line of this event. It counts the events without room, and records their number
// when their kind has room again.
func (l *Log) room(e *Event) bool {
	now := time.Now()
	l.mu.Lock()
	who := l.peers.of(e)
	b := l.kinds[who.kind]
	if b == nil {
		b = newBounded()
		l.kinds[who.kind] = b
	}
	lines := b.unproven
	if who.proven {
		lines = b.proven
	}
	// The count is taken and reset under the lock, so that each event is reported once, here or by reportLeftOut.
	room, left := l.peers.allow(who, lines, now), b.leftOut
	if b.leftOut = 0; !room {
		b.leftOut = left + 1
		l.leftOut.Add(1)
	}
	l.mu.Unlock()
	if room && left > 0 {
		l.writeLeftOut(who.kind, left)
	}
	return room
}
