package auth

import (
	"context"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// throttle slows down the guessing of passwords: after a failure, the next comparison is delayed, longer with each
// failure. Failures are counted for a user and an address together, because behind trow node all pods of a node have
// the same address. Those of an address alone only decide on which of two lanes a comparison waits, so that addresses
// with many failures do not delay others. No user is locked out. Credentials that were verified before do not get here.
type throttle struct {
	lanes [2]chan struct{} // each makes one comparison at a time; the second is for addresses that guess

	mu        sync.Mutex // guards what follows
	pairs     *simplelru.LRU[pair, *score]
	addresses *simplelru.LRU[netip.Addr, *score]
	waiting   int
}

// pair is a user name, as the client sent it, and the client's address.
type pair struct {
	user string
	addr netip.Addr
}

// score counts consecutive failures.
type score struct {
	failures int
	right    bool // of a pair: the last password was right
	waiting  int  // how many requests wait
	last     time.Time
}

const (
	// freeFailures is how many failures have no consequence: people mistype.
	freeFailures = 3
	firstDelay   = 250 * time.Millisecond
	maxDelay     = 4 * time.Second
	// guessing is how many failures move an address to the second lane.
	guessing = 20
	// forget is how long after the last one failures are forgotten.
	forget = 15 * time.Minute
	// maxScores bounds both maps; one entry takes about 100 bytes.
	maxScores = 4096
	// maxWaiting bounds the requests that wait, for a delay or a lane; maxWaitingAddr those from one address, so that
	// others have room; and maxWaitingPair those of one pair: 8 guesses every 4 seconds.
	maxWaiting     = 512
	maxWaitingAddr = 64
	maxWaitingPair = 8
)

func newThrottle() *throttle {
	return &throttle{lanes: [2]chan struct{}{make(chan struct{}, 1), make(chan struct{}, 1)},
		pairs: newLRU[pair, *score](), addresses: newLRU[netip.Addr, *score]()}
}

// enter waits until the caller may compare a password. The caller then calls done with the result. Errors: ErrBusy;
// that of ctx.
func (t *throttle) enter(ctx context.Context, user string, addr netip.Addr) (done func(right bool), err error) {
	p := pair{user, addr}
	delay, lane, ok := t.queue(p)
	if !ok {
		return nil, ErrBusy
	}
	defer t.leave(p)
	// The delay comes before the lane: a request that is delayed must not keep others from comparing.
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

// queue counts a request that waits, and returns how long it is delayed and on which lane it compares. ok is false if
// too many wait.
func (t *throttle) queue(p pair) (delay time.Duration, lane chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	own, addr := scoreOf(t.pairs, p, now), scoreOf(t.addresses, p.addr, now)
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

// leave ends the waiting of a request.
func (t *throttle) leave(p pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting--
	// Both scores exist: those with a waiting request are never removed.
	own, _ := t.pairs.Peek(p)
	own.waiting--
	addr, _ := t.addresses.Peek(p.addr)
	addr.waiting--
}

// count counts the result of a comparison.
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
	addr := scoreOf(t.addresses, p.addr, now)
	addr.failures++
	addr.last = now
}

// scoreOf finds or makes a score. The caller holds mu.
func scoreOf[K comparable](all *simplelru.LRU[K, *score], key K, now time.Time) *score {
	s, ok := all.Get(key)
	// A score with a waiting request stays, however old it is: leave counts it down.
	if ok && (s.waiting > 0 || now.Sub(s.last) <= forget) {
		return s
	}
	s = &score{last: now}
	all.Add(key, s)
	bound(all, maxScores, func(s *score) bool { return s.waiting > 0 })
	return s
}

// Address returns the address that a request comes from, as the unit by which clients without a login are counted: of
// IPv6 it is the network (/64), because a host there has as many addresses as it likes.
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
