package auth

import (
	"context"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"trow/registry/address"
	"trow/registry/bounded"
)

// throttle slows down the guessing of passwords, and decides whose credentials are verified next. After a failure, the
// next comparison is delayed, longer with each failure. Failures are counted for a user and an address together,
// because behind trow node all pods of a node have the same address. Those of an address alone only decide on its turn
// (see turns.go), so that addresses with failures do not delay others. No user is locked out. Credentials that were
// verified before do not get here.
//
// Passwords and tokens of the cluster have a throttle each. In that of tokens the token stands for the user: each
// made-up one is new, so none is delayed, and the turns alone keep guesses from delaying others.
type throttle struct {
	mu        sync.Mutex // guards what follows
	pairs     *bounded.Map[pair, *score]
	addresses *bounded.Map[netip.Addr, *score]
	turns     turns
}

// pair is a user name, as the client sent it, and the client's address.
type pair struct {
	user string
	addr netip.Addr
}

// score counts consecutive failures.
type score struct {
	failures int
	right    bool // the last credentials were right
	waiting  int  // how many requests wait
	last     time.Time
	turn     uint64 // of an address: when it had its last turn, see turns
	first    uint64 // of an address: when it came
}

const (
	// freeFailures is how many failures have no consequence: people mistype.
	freeFailures = 3
	firstDelay   = 250 * time.Millisecond
	maxDelay     = 4 * time.Second
	// guessing is how many failures bar an address from the first lane.
	guessing = 20
	// forget is how long after the last one failures are forgotten.
	forget = 15 * time.Minute
	// maxScores bounds both maps; one entry takes about 100 bytes.
	maxScores = 4096
	// maxWaiting bounds the requests that wait, for a delay or a turn; maxWaitingAddr those from one address, and
	// maxWaitingPair those of one pair: 8 guesses every 4 seconds.
	maxWaiting     = 512
	maxWaitingAddr = 64
	maxWaitingPair = 8
)

// newThrottle makes a throttle that lets so many credentials be verified at once, on the lanes quick and round.
func newThrottle(onQuick, onRound int) *throttle {
	waits := func(s *score) bool { return s.waiting > 0 }
	return &throttle{pairs: bounded.New[pair](maxScores, waits), addresses: bounded.New[netip.Addr](maxScores, waits),
		turns: turns{width: [lanes]int{quick: onQuick, round: onRound}}}
}

// result is what became of a turn.
type result int

const (
	wasWrong result = iota
	wasRight
	notVerified
)

// enter waits until the caller may verify credentials. The caller then calls done with the result. Errors: ErrBusy;
// that of ctx.
func (t *throttle) enter(ctx context.Context, user string, addr netip.Addr) (done func(result), err error) {
	p := pair{user, addr}
	w, delay := t.queue(p)
	if w == nil {
		return nil, ErrBusy
	}
	// The delay comes before the turn: a request that is delayed must not keep others from comparing.
	if delay > 0 {
		select {
		case <-time.After(delay):
			t.ready(w)
		case <-w.answer: // it has lost its place: there is no turn before it is ready
			return nil, ErrBusy
		case <-ctx.Done():
			t.abandon(w)
			return nil, ctx.Err()
		}
	}
	select {
	case l, ok := <-w.answer:
		if !ok {
			return nil, ErrBusy
		}
		return func(r result) { t.done(l, p, r) }, nil
	case <-ctx.Done():
		t.abandon(w)
		return nil, ctx.Err()
	}
}

// queue takes a place for a request that waits, and returns for how long it is delayed. nil: too many wait.
func (t *throttle) queue(p pair) (*waiter, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	own, addr := scoreOf(t.pairs, p, now), t.address(p.addr, now)
	if addr.waiting == maxWaitingAddr || own.waiting == maxWaitingPair {
		return nil, 0
	}
	w := &waiter{own: own, addr: addr, answer: make(chan lane, 1)}
	if len(t.turns.waiting) == maxWaiting && !t.turns.displace(w) {
		return nil, 0
	}
	var delay time.Duration
	if n := own.failures - freeFailures; n >= 0 {
		delay = min(firstDelay<<min(n, 10), maxDelay)
	}
	w.ready = delay == 0
	t.turns.add(w)
	return w, delay
}

// ready lets a request that was delayed take part.
func (t *throttle) ready(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.ready = true
	t.turns.give()
}

// abandon ends the waiting of a request whose client has disconnected. It may have got its turn in the same moment.
func (t *throttle) abandon(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.turns.remove(w) {
		return
	}
	if l, ok := <-w.answer; ok { // does not block: it has an answer, or has lost its place
		t.turns.end(l)
	}
}

// done ends a turn, and counts the result.
func (t *throttle) done(l lane, p pair, r result) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r != notVerified {
		t.count(p, r == wasRight) // before the next turn is given, which depends on it
	}
	t.turns.end(l)
}

// count counts the result of a verification. The caller holds mu.
func (t *throttle) count(p pair, right bool) {
	now := time.Now()
	own, addr := scoreOf(t.pairs, p, now), t.address(p.addr, now)
	own.last, own.right = now, right
	addr.right = right
	if right {
		own.failures = 0
		return
	}
	own.failures++
	addr.failures++
	addr.last = now
}

// address finds or makes the score of an address. A new one takes its place in the round behind those that wait.
func (t *throttle) address(a netip.Addr, now time.Time) *score {
	s := scoreOf(t.addresses, a, now)
	if s.turn == 0 {
		s.turn = t.turns.next()
		s.first = s.turn
	}
	return s
}

// scoreOf finds or makes a score. The caller holds mu.
func scoreOf[K comparable](all *bounded.Map[K, *score], key K, now time.Time) *score {
	s, ok := all.Get(key)
	// A score with a waiting request stays, however old it is: leave counts it down.
	if ok && (s.waiting > 0 || now.Sub(s.last) <= forget) {
		return s
	}
	s = &score{last: now}
	all.Add(key, s)
	return s
}

// Address returns the address that a request comes from, as the unit by which clients without a login are counted: of
// IPv6 it is the network (/64), because a host there has as many addresses as it likes.
func Address(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return address.Network(a.Addr())
}
