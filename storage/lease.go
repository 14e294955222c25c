package storage

import (
	"context"
	"errors"
	"hash/maphash"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// leases remember what the Collector has to leave alone although no fact says so: content that is being pushed
// (pins), and blobs that a client was told of and will refer to later (leases of links). They are in memory: after
// a start, nobody unlinks anything until it is certain that no client remembers more than we do.
type leases struct {
	seed maphash.Seed
	born time.Time // when this began to remember

	mu    sync.Mutex
	pins  map[key]int                // commits under way
	used  map[uint64]int64           // links: when a client was told of it last, Unix ns; two that collide both live longer
	going map[uint64]*sync.WaitGroup // links that the Collector is taking away just now
}

type linkKey struct {
	repo string
	key  key
}

func newLeases() *leases {
	return &leases{seed: maphash.MakeSeed(), born: time.Now(), pins: map[key]int{},
		used: map[uint64]int64{}, going: map[uint64]*sync.WaitGroup{}}
}

func (l *leases) hash(repo string, k key) uint64 { return maphash.Comparable(l.seed, linkKey{repo, k}) }

// use notes that a client is told of a link. If it is being taken away just then, it waits for the outcome.
func (l *leases) use(repo string, k key) {
	id := l.hash(repo, k)
	l.mu.Lock()
	l.used[id] = time.Now().UnixNano()
	going := l.going[id]
	l.mu.Unlock()
	if going != nil {
		going.Wait()
	}
}

// take marks those links that nobody was told of since, and returns them. Whoever asks for one of them from now on
// waits for done.
func (l *leases) take(repo string, links []key, since time.Time) (free []key, done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var wait sync.WaitGroup
	wait.Add(1)
	for _, k := range links {
		id := l.hash(repo, k)
		if at, ok := l.used[id]; ok && at >= since.UnixNano() || l.going[id] != nil {
			continue
		}
		l.going[id] = &wait
		free = append(free, k)
	}
	return free, func() {
		l.mu.Lock()
		for _, k := range free {
			delete(l.going, l.hash(repo, k))
		}
		l.mu.Unlock()
		wait.Done()
	}
}

// forget drops what was used before a time.
func (l *leases) forget(before time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, at := range l.used {
		if at < before.UnixNano() {
			delete(l.used, id)
		}
	}
}

func (l *leases) pin(k key, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pins[k] += n; l.pins[k] == 0 {
		delete(l.pins, k)
	}
}

func (l *leases) pinned(k key) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pins[k] > 0
}

// Lease notes that a client is told that repo holds the blob d: he may leave out pushing it, and refer to it in a
// manifest much later. The Collector then leaves the link alone for its grace. Call it before looking the link up;
// what is found after it stays.
func (x *Index) Lease(repo string, d digest.Digest) { x.leases.use(repo, keyOf(d)) }

// Pin keeps the Collector off the bytes of d while somebody is about to make them or to name them, until release is
// called. It waits while they are being deleted. Errors: ctx's, ErrClosed.
func (x *Index) Pin(ctx context.Context, d digest.Digest) (release func(), err error) {
	k := keyOf(d)
	// First the pin, then the look at the mark; the Collector first sets the mark and then looks at the pins. So one
	// of the two always sees the other.
	x.leases.pin(k, 1)
	if err = x.awaitSpared(ctx, k); err != nil {
		x.leases.pin(k, -1)
		return nil, err
	}
	return sync.OnceFunc(func() { x.leases.pin(k, -1) }), nil
}

// awaitSpared waits until k is not condemned.
func (x *Index) awaitSpared(ctx context.Context, k key) error {
	return x.await(ctx, func() (bool, error) {
		_, condemned := x.state.condemned[k]
		return !condemned, nil
	})
}

// Commit makes an upload the blob d, whose bytes the Collector leaves alone until release is called: link it, or
// record it as a manifest, before that. What was known to be damaged about it is healed. Errors: as Pin and
// [Upload.Commit]; those of Update.
func (x *Index) Commit(ctx context.Context, u Upload, d digest.Digest) (release func(), err error) {
	if release, err = x.Pin(ctx, d); err != nil {
		return nil, errors.Join(err, u.Close())
	}
	if err = u.Commit(ctx, d); err == nil {
		err = x.heal(ctx, d)
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// Link records that repo holds the blob d, of size bytes, which the caller has pinned or just committed.
func (x *Index) Link(ctx context.Context, repo string, d digest.Digest, size int64) error {
	x.Lease(repo, d)
	return x.Update(ctx, repo, func(tx *Tx) error {
		tx.Link(d, size)
		return nil
	})
}

func (x *Index) isCondemned(k key) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, yes := x.state.condemned[k]
	return yes
}
