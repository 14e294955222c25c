package auth

import (
	"cmp"
	"slices"
)

// lane is one of the two places at which credentials are verified, with a bound of its own, see newThrottle.
type lane int

const (
	// quick gives the next turn to the request with the lowest rank, and of several to the address that came last: a
	// login from an address that has not failed waits behind no guess, however many addresses guess, except for those
	// that are being verified. The address that came last, because a flood of first guesses has rank 0 as well; not the
	// request that came last, because those that guess try again at once, and would always be newer. What the flood
	// leaves behind is for the other lane.
	quick lane = iota
	// round gives the next turn to the address whose last one is the longest ago: each makes progress, whatever the
	// others do.
	round
	lanes
)

// turns decides whose credentials are verified next. The throttle's mutex guards it. It looks at all that wait, at most
// maxWaiting, which takes microseconds; comparing a password takes 60 ms, and a review some milliseconds.
type turns struct {
	width   [lanes]int // how many are verified at once
	busy    [lanes]int
	waiting []*waiter // in the order of their arrival
	clock   uint64    // counts turns, and addresses
}

// waiter is a request that waits for its turn, or for its delay to end.
type waiter struct {
	own, addr *score
	ready     bool // it is not delayed
	// answer gets the lane of its turn; it is closed if the request loses its place. It has room for the lane, so that
	// nothing blocks while the mutex is held.
	answer chan lane
}

// rank is how much others go first: the failures of its address; 0 for a pair whose last password was right, because
// others may be at the same address; and -1, before the first guesses of new addresses, if the last credentials from
// the address were right. A client with one login gets that rank once: what was verified is not verified again. The
// rank is computed when turns are given: guesses that came at once, before the first of them failed, lose their rank
// with the first.
func (w *waiter) rank() int {
	switch {
	case w.addr.right:
		return -1
	case w.own.right:
		return 0
	}
	return w.addr.failures
}

func (t *turns) next() uint64 {
	t.clock++
	return t.clock
}

// add adds a request, and gives it its turn if a lane is free.
func (t *turns) add(w *waiter) {
	w.own.waiting++
	w.addr.waiting++
	t.waiting = append(t.waiting, w)
	t.give()
}

// remove removes a request. It reports whether it was waiting.
func (t *turns) remove(w *waiter) bool {
	i := slices.Index(t.waiting, w)
	if i < 0 {
		return false
	}
	t.waiting = slices.Delete(t.waiting, i, i+1)
	w.own.waiting--
	w.addr.waiting--
	return true
}

// displace takes the place of a request that has more reason to wait than a new one: of higher rank, or of the same
// rank from an address with more that wait; the newest of those with the most reason. Otherwise guesses that take all
// places would keep others from logging in. It reports whether there is one.
func (t *turns) displace(w *waiter) bool {
	worst := w
	for _, other := range t.waiting {
		a, b := other.rank(), worst.rank()
		waiting := worst.addr.waiting
		if worst == w {
			waiting++ // as if it waited already
		}
		if a > b || a == b && other.addr.waiting > waiting || worst != w && a == b && other.addr.waiting == waiting {
			worst = other
		}
	}
	if worst == w {
		return false
	}
	t.remove(worst)
	close(worst.answer)
	return true
}

// give gives turns while there are free lanes and requests for them.
func (t *turns) give() {
	for l := range lanes {
		for t.busy[l] < t.width[l] {
			w := t.pick(l)
			if w == nil {
				break
			}
			t.remove(w)
			t.busy[l]++
			w.addr.turn = t.next()
			w.answer <- l
		}
	}
}

// end ends a turn, and gives the next one.
func (t *turns) end(l lane) {
	t.busy[l]--
	t.give()
}

// before reports whether a request goes before another one, which came earlier, on the quick lane.
func (w *waiter) before(other *waiter) bool {
	return cmp.Or(cmp.Compare(w.rank(), other.rank()), cmp.Compare(other.addr.first, w.addr.first)) <= 0
}

// pick returns the request that is next on a lane, see the lanes; nil if no request is ready.
func (t *turns) pick(l lane) (next *waiter) {
	for _, w := range t.waiting {
		switch {
		case !w.ready, l == quick && w.rank() >= guessing:
		case next == nil, l == quick && w.before(next), l == round && w.addr.turn < next.addr.turn:
			next = w
		}
	}
	return next
}
