package storage

import (
	"context"
	"errors"
	"hash/maphash"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// leases remember what the Collector has to leave alone although no fact says so: content that is being pushed (pins),
// and blobs that a client knows to be here and will refer to later (leases of links). They are in memory. So after a
// start, the Collector unlinks nothing until its grace has passed: by then no client relies on a lease that we have
// forgotten.
type leases struct {
	seed maphash.Seed
	born time.Time // since when leases are remembered

	mu sync.Mutex // guards all below
	// pins counts the pins of each content.
	pins map[key]int
	// used is when a client last learned of a link, Unix ns. Keys are hashes, to save memory: if two links collide,
	// both live longer.
	used map[uint64]int64
	// unlinking has the links that the Collector is taking away at this moment.
	unlinking map[uint64]*sync.WaitGroup
}

type linkKey struct {
	repo string
	key  key
}

func newLeases() *leases {
	return &leases{seed: maphash.MakeSeed(), born: time.Now(), pins: map[key]int{},
		used: map[uint64]int64{}, unlinking: map[uint64]*sync.WaitGroup{}}
}

func (l *leases) hash(repo string, k key) uint64 { return maphash.Comparable(l.seed, linkKey{repo, k}) }

// use records that a client learns of a link. If the Collector is taking the link away, use waits for the outcome, so
// that the caller's look-up after it is right.
func (l *leases) use(repo string, k key) {
	id := l.hash(repo, k)
	l.mu.Lock()
	l.used[id] = time.Now().UnixNano()
	unlinking := l.unlinking[id]
	l.mu.Unlock()
	if unlinking != nil {
		unlinking.Wait()
	}
}

// take marks those links that no client has learned of since a time, and returns them. From then on, use of one of them
// waits until done is called.
func (l *leases) take(repo string, links []key, since time.Time) (free []key, done func()) {
	// Leases are compared and links marked under one lock: use comes either before, and the link stays, or after, and
	// waits.
	l.mu.Lock()
	defer l.mu.Unlock()
	var wait sync.WaitGroup
	wait.Add(1)
	for _, k := range links {
		id := l.hash(repo, k)
		if at, ok := l.used[id]; ok && at >= since.UnixNano() || l.unlinking[id] != nil {
			continue
		}
		l.unlinking[id] = &wait
		free = append(free, k)
	}
	return free, func() {
		l.mu.Lock()
		for _, k := range free {
			delete(l.unlinking, l.hash(repo, k))
		}
		l.mu.Unlock()
		wait.Done()
	}
}

// forget drops the leases from before a time.
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

// Lease records that a client learns that repo holds the blob d. The client may skip pushing it, and refer to it in a
// manifest much later, so the Collector then keeps the link for its grace. Call Lease before looking the link up; a
// link that is found after it stays. With a shared journal it stays for at least half of the grace, because the age of
// an older link is recorded anew. Errors: those of Update; without a shared journal none.
func (x *Index) Lease(ctx context.Context, repo string, d digest.Digest) error {
	x.leases.use(repo, keyOf(d))
	if !x.shared || !x.staleLink(repo, keyOf(d), time.Now().Unix()) {
		return nil
	}
	return x.Update(ctx, repo, func(tx *Tx) error {
		if size, linked := tx.linkedSize(d); linked {
			tx.Link(d, size)
		}
		return nil
	})
}

// Pin keeps the Collector from deleting the bytes of d while a caller is about to make them or to name them, until
// release is called. It waits while they are being deleted. Errors: ctx's, ErrClosed.
func (x *Index) Pin(ctx context.Context, d digest.Digest) (release func(), err error) {
	k := keyOf(d)
	// First the pin, then the look at the mark; the Collector first sets the mark and then looks at the pins. So at
	// least one of the two sees the other.
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

// Commit makes an upload the blob d. The Collector leaves its bytes alone until release is called: link the blob, or
// record it as a manifest, before that. If d was quarantined, it is healed. Errors: as Pin, [Upload.Commit] and Update.
func (x *Index) Commit(ctx context.Context, u Upload, d digest.Digest) (release func(), err error) {
	// The pin comes before the bytes: without it, the Collector could see bytes that no fact names, and delete them.
	if release, err = x.Pin(ctx, d); err != nil {
		return nil, errors.Join(err, u.Close(ctx))
	}
	abandon := func() {}
	if err = u.Commit(ctx, d); err == nil {
		if placed, ok := placedUpload(u); ok {
			abandon, err = x.commitPlaced(ctx, placed, d)
		} else {
			err = x.heal(ctx, d)
		}
	}
	if err != nil {
		release()
		return nil, err
	}
	unpin := release
	return func() {
		abandon()
		x.giveUp(ctx, d)
		unpin()
	}, nil
}

// giveUp ends the counting of committed bytes. If they were not named, because the client has gone or a limit was
// reached, they wait to be collected: otherwise a client could fill the disk by leaving at the right moment.
func (x *Index) giveUp(ctx context.Context, d digest.Digest) {
	for _, l := range x.options.Uploads.abandoned(keyOf(d)) {
		if x.counted(l.repo) {
			// An error leaves them uncounted until they are collected, and is reported by the next commit.
			_ = x.Update(context.WithoutCancel(ctx), waitingOf(l.repo), func(tx *Tx) error {
				if tx.x.present(l.key) {
					return nil
				}
				tx.set(KindLink, string(l.key), linkValue(x.options.Uploads.pending(l.repo, l.key), tx.now, false))
				return nil
			})
		}
		x.options.Uploads.drop(l)
	}
}

func (x *Index) isCondemned(k key) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, yes := x.state.condemned[k]
	return yes
}
