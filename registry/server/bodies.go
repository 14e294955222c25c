package server

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"trow/registry/address"
)

// Bodies bounds the memory of the request bodies that handlers keep whole, and of what they make of them. A body takes
// its size while it is read, and a multiple of it while it is processed. Small bodies have a part of the memory that
// large ones cannot take. A request waits for memory for a few seconds; of several, the newest of the address that
// holds least comes first. Meanwhile, bodies that have been read for longer than readGrace give way, as silent
// connections do: the oldest one of the address that holds most. So a client that sends slowly does not keep out
// others.
//
// Each use of memory that clients must not take from another has its own Bodies. Safe for concurrent use.
type Bodies struct {
	small, large pool // for reading
	// For processing. Clients cannot hold these, because processing waits for none. What takes much, and so takes long,
	// has a part of its own: a verdict on a pod must not wait behind reviews of megabytes.
	light, heavy pool
	patience     time.Duration
}

const (
	// bodyWait is how long a request waits for memory, once before it is read and once after. The API server waits 10 s
	// for an answer.
	bodyWait = 3 * time.Second
	// maxBodiesWaiting bounds the requests that wait for one pool.
	maxBodiesWaiting = 256
	// leastBody is what the smallest body counts: the request with its buffers.
	leastBody = 4 << 10
	// readGrace is how long a body may be read before it gives way. A client that is not hindered needs less for a body
	// that is kept in memory.
	readGrace = 500 * time.Millisecond
	// pressInterval is the time between two looks for bodies that give way.
	pressInterval = 100 * time.Millisecond
	// A body that is kept in memory must arrive within bodyTime, plus its size at bodyRate in bytes per second. Without
	// a limit for the whole, one byte within each stall timeout would hold the memory for days.
	bodyTime = 10 * time.Second
	bodyRate = 64 << 10
	// unsizedStep is what is read of a body of unknown length before it gets a buffer of the largest size.
	unsizedStep = 64 << 10
)

// NewBodies returns a Bodies of so many bytes.
func NewBodies(bytes int64) *Bodies {
	b := &Bodies{patience: bodyTime}
	// Reading gets half and processing gets half, and of each half small bodies get half.
	for _, p := range []*pool{&b.small, &b.large, &b.light, &b.heavy} {
		p.init(bytes / 4)
	}
	return b
}

// errBusy is the error of a request that gets no memory.
type errBusy struct{}

func (errBusy) Error() string {
	return "too many requests with large bodies are under way; retry in a moment"
}

// RetryAfter returns after how many seconds the client should try again. Callers recognize the error by this method.
func (errBusy) RetryAfter() int { return 1 }

// Read reads the body of r into a buffer, and takes factor times its size of the memory until release is called, which
// the caller does when it has processed the body. Errors: *http.MaxBytesError if the body has more than most bytes; one
// with a method RetryAfter if there is no memory; those of the body. On an error there is nothing to release.
func (b *Bodies) Read(into *bytes.Buffer, w http.ResponseWriter, r *http.Request, most int64, factor int) (
	release func(), err error) {
	size := r.ContentLength
	if size < 0 {
		size = most // the largest that may come
	}
	if size > most {
		return nil, &http.MaxBytesError{Limit: most}
	}
	from, p := client(r), &b.large
	if size <= b.large.size/8 {
		p = &b.small
	}
	c := http.NewResponseController(w)
	reading, err := p.take(r.Context(), from, max(size, int64(into.Cap()), leastBody),
		// its reading fails; without a connection, it ends by itself
		func(now time.Time) { _ = c.SetReadDeadline(now) })
	if err != nil {
		return nil, err
	}
	defer reading.release() // after the memory for the work is taken, because the body is part of that
	_ = c.SetReadDeadline(time.Now().Add(b.patience + time.Duration(size)*time.Second/bodyRate))
	err = fillBuffer(into, w, r, most)
	if reading.end() {
		return nil, errBusy{} // even if all was read: the connection has a deadline in the past
	}
	if err != nil {
		return nil, err
	}
	need, work := max(int64(into.Len())*int64(factor), leastBody), &b.heavy
	if need <= b.light.size/8 {
		work = &b.light
	}
	working, err := work.take(r.Context(), from, need, nil)
	if err != nil {
		return nil, err
	}
	return working.release, nil
}

// fillBuffer reads a body of at most most bytes into a buffer.
func fillBuffer(into *bytes.Buffer, w http.ResponseWriter, r *http.Request, most int64) error {
	body := http.MaxBytesReader(w, r.Body, most)
	if r.ContentLength >= 0 {
		into.Grow(int(r.ContentLength) + bytes.MinRead) // once, not by doubling
	} else {
		n, err := io.CopyN(into, body, unsizedStep)
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			return err
		}
		into.Grow(int(most-n) + bytes.MinRead)
	}
	_, err := into.ReadFrom(body)
	return err
}

// client returns the address that a request counts for.
func client(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{} // on the administration socket
	}
	return address.Network(a.Addr())
}

// pool is an amount of memory.
type pool struct {
	size int64

	mu      sync.Mutex // guards what follows, and the members of its holds and waiters
	free    int64
	held    crowdOf[*hold]
	waiting crowdOf[*waiter]
	pressed time.Time
}

// hold is what a request has of a pool.
type hold struct {
	pool    *pool
	member  *memberOf[*hold]
	since   time.Time
	giveWay func(now time.Time) // aborts a body or an answer, with the pool's mu held; nil: the hold does not give way
	evicted bool
}

// waiter is a request that waits for its hold.
type waiter struct {
	bytes  int64
	hold   hold
	member *memberOf[*waiter]
	done   chan struct{} // closed when the hold is granted, or the waiter gives way
	err    error         // why there is no hold; set before done is closed
}

func (p *pool) init(size int64) { p.size, p.free = size, size }

// take takes bytes for a request, or the whole pool if that is less. Errors: errBusy; that of ctx.
func (p *pool) take(ctx context.Context, from netip.Addr, bytes int64, giveWay func(time.Time)) (*hold,
	error) {
	bytes = min(bytes, p.size)
	p.mu.Lock()
	if p.free >= bytes && p.waiting.Len() == 0 {
		h := &hold{pool: p, giveWay: giveWay}
		p.grant(h, from, bytes)
		p.mu.Unlock()
		return h, nil
	}
	w := &waiter{bytes: bytes, hold: hold{pool: p, giveWay: giveWay}, done: make(chan struct{})}
	w.member = p.waiting.Add(from, 1, w)
	if p.waiting.Len() > maxBodiesWaiting {
		p.dismiss(p.waiting.First().Value)
	}
	p.mu.Unlock()
	return p.await(ctx, w)
}

// await waits until a waiter has its hold.
func (p *pool) await(ctx context.Context, w *waiter) (*hold, error) {
	end := time.NewTimer(bodyWait)
	defer end.Stop()
	press := time.NewTicker(pressInterval)
	defer press.Stop()
	p.press(time.Now())
	for {
		var err error
		select {
		case <-w.done:
			return &w.hold, w.err
		case now := <-press.C:
			p.press(now)
			continue
		case <-end.C:
			err = errBusy{}
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		select {
		case <-w.done: // it was granted meanwhile, and the hold must not get lost
			return &w.hold, w.err
		default:
			p.waiting.Remove(w.member)
			return nil, err
		}
	}
}

// grant gives a hold its bytes. The caller holds mu and has checked that they are free.
func (p *pool) grant(h *hold, from netip.Addr, bytes int64) {
	p.free -= bytes
	h.since = time.Now()
	h.member = p.held.Add(from, bytes, h)
}

// dismiss ends the wait of a waiter without a hold. The caller holds mu.
func (p *pool) dismiss(w *waiter) {
	p.waiting.Remove(w.member)
	w.err = errBusy{}
	close(w.done)
}

// release gives the bytes back, and grants them to waiters.
func (h *hold) release() {
	p := h.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held.Remove(h.member)
	p.free += h.member.Weight()
	p.serve()
}

// shrink gives back all but some bytes.
func (h *hold) shrink(bytes int64) {
	p := h.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if had := h.member.Weight(); bytes < had {
		from := h.member.Group().Key
		p.held.Remove(h.member)
		h.member = p.held.Add(from, bytes, h)
		p.free += had - bytes
		p.serve()
	}
}

// serve grants what is free to waiters. The caller holds mu.
func (p *pool) serve() {
	for next := p.next(); next != nil; next = p.next() {
		p.waiting.Remove(next.member)
		p.grant(&next.hold, next.member.Group().Key, next.bytes)
		close(next.done)
	}
}

// next returns the waiter that gets what is free, of those for which there is enough: of the address that holds least,
// then of the one that waits least, the newest. The newest, because those that came before may be many that send
// nothing, and it would wait in vain behind them. It returns nil if no waiter fits. The caller holds mu.
func (p *pool) next() (best *waiter) {
	var least int64
	for g := range p.waiting.Groups() { // at most maxBodiesWaiting
		w, held := g.Newest().Value, p.held.Of(g.Key)
		if w.bytes > p.free || best != nil && held > least {
			continue
		}
		if best == nil || held < least || g.Weight() < best.member.Group().Weight() {
			best, least = w, held
		}
	}
	return best
}

// press makes bodies give way that have been read for too long, until there will be enough for the oldest waiter of the
// address that waits most.
func (p *pool) press(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := p.waiting.First()
	if first == nil || now.Sub(p.pressed) < pressInterval/2 { // other waiters press too
		return
	}
	p.pressed = now
	missing := first.Value.bytes - p.free
	for g := range p.held.Groups() { // the address that holds most comes first; the others come in no particular order
		for m := range g.Members() {
			h := m.Value
			if missing <= 0 || h.giveWay == nil || now.Sub(h.since) < readGrace {
				break // there is enough, or those behind it are younger
			}
			if !h.evicted {
				h.evicted = true
				h.giveWay(now)
			}
			missing -= m.Weight()
		}
	}
}

// end ends the reading. It reports whether the hold had to give way; from now on it need not.
func (h *hold) end() (evicted bool) {
	h.pool.mu.Lock()
	defer h.pool.mu.Unlock()
	h.giveWay = nil
	return h.evicted
}

// ReserveBodies returns the memory for the bodies of one kind of requests, of which the program has two, pushes and
// verdicts: a sixteenth of what the process may use.
func ReserveBodies() *Bodies { return NewBodies(Memory() / 16) }
