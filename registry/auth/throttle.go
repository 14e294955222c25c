package auth

import (
	"context"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// throttle slows down guessing: who has failed waits before the next comparison, longer with each failure. It counts
// for a user and an address together, since behind trow node all pods of a node have one address, and for the address
// alone it only decides on which of two lanes a comparison waits: those of an address with many failures do not hold up
// the others. Nobody is locked out, and whose credentials were verified lately never comes here.
type throttle struct {
	lanes [2]chan struct{} // a comparison at a time each; the second is for addresses that guess

	mu      sync.Mutex // guards what follows
	pairs   map[pair]*score
	from    map[netip.Addr]*score
	waiting int
}

// pair is a user's name, as given, at an address.
type pair struct {
	user string
	addr netip.Addr
}

// score counts failures in a row.
type score struct {
	failures int
	right    bool // of a pair: the last one was right
	waiting  int  // how many wait
	last     time.Time
}

const (
	// freeFailures is how often one may be wrong at no cost: people mistype.
	freeFailures = 3
	firstDelay   = 250 * time.Millisecond
	maxDelay     = 4 * time.Second
	// guessing is how many failures an address may have before it waits on its own lane.
	guessing = 20
	// forget is how long after the last failure nothing is held against anybody.
	forget = 15 * time.Minute
	// maxScores bounds both maps; one entry takes about 100 bytes.
	maxScores = 4096
	// maxWaiting bounds who waits, for a turn or for the end of a delay; maxWaitingAddr those from one address, so that
	// others have room; and maxWaitingPair those of one pair: 8 guesses every 4 seconds.
	maxWaiting     = 512
	maxWaitingAddr = 64
	maxWaitingPair = 8
)

func newThrottle() *throttle {
	return &throttle{lanes: [2]chan struct{}{make(chan struct{}, 1), make(chan struct{}, 1)},
		pairs: map[pair]*score{}, from: map[netip.Addr]*score{}}
}

// enter waits for the turn to compare. Whoever got it calls done, and says how it went. Errors: ErrBusy; that of ctx.
func (t *throttle) enter(ctx context.Context, user string, addr netip.Addr) (done func(right bool), err error) {
	p := pair{user, addr}
	delay, lane, ok := t.line(p)
	if !ok {
		return nil, ErrBusy
	}
	defer t.leave(p)
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case lane <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return func(right bool) { <-lane; t.count(p, right) }, nil
}

// line says how long and where to wait.
func (t *throttle) line(p pair) (delay time.Duration, lane chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	own, addr := scoreOf(t.pairs, p, now), scoreOf(t.from, p.addr, now)
	if t.waiting == maxWaiting || addr.waiting == maxWaitingAddr || own.waiting == maxWaitingPair {
		return 0, nil, false
	}
	t.waiting++
	own.waiting++
	addr.waiting++
	if n := own.failures - freeFailures; n >= 0 {
		delay = min(firstDelay<<min(n, 10), maxDelay)
	}
	lane = t.lanes[0]
	if addr.failures >= guessing && !own.right {
		lane = t.lanes[1]
	}
	return delay, lane, true
}

func (t *throttle) leave(p pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting--
	t.pairs[p].waiting-- // they are not forgotten while one waits
	t.from[p.addr].waiting--
}

func (t *throttle) count(p pair, right bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	own := scoreOf(t.pairs, p, now)
	own.last, own.right = now, right
	if right {
		own.failures = 0
		return
	}
	own.failures++
	addr := scoreOf(t.from, p.addr, now)
	addr.failures++
	addr.last = now
}

// scoreOf finds or makes a score. Those for whom somebody waits stay.
func scoreOf[K comparable](all map[K]*score, key K, now time.Time) *score {
	s := all[key]
	if s != nil && s.waiting == 0 && now.Sub(s.last) > forget {
		s = nil
	}
	if s != nil {
		return s
	}
	idle := func(s *score) bool { return s.waiting == 0 }
	makeRoom(all, maxScores, func(s *score) bool { return idle(s) && now.Sub(s.last) > forget }, idle)
	s = &score{last: now}
	all[key] = s
	return s
}

// Address is where a request comes from; of IPv6 the network, since a host has as many addresses as it likes.
func Address(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr := a.Addr().Unmap().WithZone("")
	if addr.Is6() {
		return netip.PrefixFrom(addr, 64).Masked().Addr()
	}
	return addr
}
