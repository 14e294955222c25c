package storage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// heads shares calls of Journal.Head among the requests that wait for one. A call serves the requests that came before
// it began: for a later one, its answer may be too old.
type heads struct {
	mu      sync.Mutex // guards all below
	running *headCall
	next    *headCall // waits for running
}

type headCall struct {
	done chan struct{}
	head Revision // valid once done is closed, as err
	err  error
}

// maxHead bounds one call of Head, so that a call without an answer does not hold up the next one.
const maxHead = time.Second

// headNow returns a revision of the journal that is not older than the call.
func (x *Index) headNow(ctx context.Context) (Revision, error) {
	if !x.shared { // this process knows it, without a request
		return x.journal.Head(ctx)
	}
	c := x.head.join(x)
	select {
	case <-c.done:
		return c.head, c.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// join returns a call of Head that begins after join was called.
func (h *heads) join(x *Index) *headCall {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.next != nil {
		return h.next
	}
	c := &headCall{done: make(chan struct{})}
	if h.running != nil {
		h.next = c
		return c
	}
	h.start(x, c)
	return c
}

// start begins a call; the caller holds mu.
func (h *heads) start(x *Index, c *headCall) {
	h.running = c
	go func() {
		ctx, cancel := context.WithTimeout(x.ctx, maxHead) // not the context of one request: others wait as well
		defer cancel()
		c.head, c.err = x.journal.Head(ctx)
		close(c.done)
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.running = nil; h.next != nil {
			next := h.next
			h.next = nil
			h.start(x, next)
		}
	}()
}

// confirm catches up with the Journal, so that a miss is certain. It reports whether there may be something new: then
// the caller has to look again. Error: ErrUnavailable.
func (x *Index) confirm(ctx context.Context) (news bool, err error) {
	asked := time.Now()
	head, err := x.headNow(ctx)
	if err == nil {
		x.mu.RLock()
		behind := x.state.revision < head || !x.followed()
		x.mu.RUnlock()
		if !behind {
			x.caughtUp(asked)
			// A change of another process may have shown since the caller looked, while Head was under way.
			return x.shared, nil
		}
		err = x.await(ctx, func() (bool, error) { return x.followed() && x.state.revision >= head, x.damaged() })
	}
	if err != nil {
		return false, fmt.Errorf("index: confirm with the journal: %w: %w", ErrUnavailable, err)
	}
	x.caughtUp(asked)
	return true, nil
}

// followed reports whether a shared journal is followed at the moment. After its Watch has ended, maybe because another
// journal has taken its place, revisions say nothing until the next Watch has delivered the full state. The caller
// holds mu.
func (x *Index) followed() bool { return !x.shared || x.broken == nil }

// damaged returns the error after which the journal is not followed any more. The caller holds mu.
func (x *Index) damaged() error {
	if errors.Is(x.broken, ErrDamaged) {
		return x.broken
	}
	return nil
}

// CatchUp waits until the Index shows what the Journal had when it was called, for at most wait: what is read after it
// is no older than that. It reports how old the Index may be if the Journal did not answer in time; 0 means that it is
// not older. With a journal that one process writes to, it returns at once. Errors: ctx's.
func (x *Index) CatchUp(ctx context.Context, wait time.Duration) (age time.Duration, err error) {
	if !x.shared {
		return 0, nil
	}
	if time.Now().UnixNano() < x.silent.Load() {
		return x.age(), nil
	}
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	_, why := x.confirm(limited)
	if why == nil {
		return 0, nil
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	x.behind.Store(&why)
	x.silent.Store(time.Now().Add(silence).UnixNano())
	return x.age(), nil
}

// Behind returns why CatchUp last failed to catch up with the Journal; nil: it never did. It may have caught up since;
// see Confirmed.
func (x *Index) Behind() error {
	if why := x.behind.Load(); why != nil {
		return *why
	}
	return nil
}

// silence is how long CatchUp returns at once after the journal has not answered, so that not every request waits.
const silence = time.Second

func (x *Index) age() time.Duration { return max(time.Since(x.Confirmed()), 1) }

// refresh is confirm for a list, where an old answer is better than none: with a shared journal it waits for at most
// CatchUpTime. It reports how old the Index may be. Errors: as CatchUp; without a shared journal, as confirm.
func (x *Index) refresh(ctx context.Context) (age time.Duration, err error) {
	if !x.shared {
		_, err := x.confirm(ctx)
		return 0, err
	}
	return x.CatchUp(ctx, CatchUpTime)
}

// CatchUpTime is how long a read of what can change waits at most for a shared journal.
const CatchUpTime = 200 * time.Millisecond

// Confirmed returns when the Index last caught up with the Journal: it then showed all that the Journal had when its
// head was asked for, or when the load of the full state began.
func (x *Index) Confirmed() time.Time {
	if !x.shared {
		return time.Now()
	}
	return time.Unix(0, x.confirmed.Load())
}

// caughtUp notes that the Index has all that the journal had at a time. Of two requests, the answer to the earlier one
// may come later.
func (x *Index) caughtUp(at time.Time) {
	for old := x.confirmed.Load(); x.shared && old < at.UnixNano(); old = x.confirmed.Load() {
		if x.confirmed.CompareAndSwap(old, at.UnixNano()) {
			return
		}
	}
}
