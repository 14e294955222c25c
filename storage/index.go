package storage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Index answers questions about what the repos hold, from memory, and is the one way to change it. Open it with
// [OpenIndex]. It is safe for concurrent use.
//
// Why one lock for all repos: it is held for map look-ups and to apply what has been committed, never across I/O, so a
// reader waits for microseconds at most.
type Index struct {
	journal Journal
	traits  Traits // of the journal
	shared  bool   // of traits
	options IndexOptions
	head    heads
	made    made
	// confirmed is when the state last caught up with the journal's head, as it was read before, in Unix nanoseconds.
	confirmed atomic.Int64
	silent    atomic.Int64             // until when CatchUp does not wait, in Unix nanoseconds
	behind    atomic.Pointer[error]    // see Behind
	suspected atomic.Pointer[wentBack] // of the journal, until a record says so; see Suspicion
	leases    *leases
	queue     chan *change
	ctx       context.Context // ends with Close
	close     context.CancelFunc
	done      sync.WaitGroup
	refused   refusals      // because of a limit
	stopped   chan struct{} // closed when the committer has ended, so that no function runs any more
	searching chan struct{} // holds who looks for holders; see Holders

	// These two belong to the committer alone.
	needLoads int  // how many full states must have been loaded before the next commit
	unsure    bool // a commit failed, and what the state shows has not been confirmed since

	mu       sync.RWMutex // guards all below
	state    *state
	changed  chan struct{}      // closed and replaced with every change of state
	loads    int                // how many full states have been loaded
	restored int                // Update.Restored of the last one
	rewatch  context.CancelFunc // ends the current Watch, so that the full state is loaded again
	broken   error              // why the last Watch ended; nil once the next one has loaded the full state
	quotas   *quotas
	name     string // of this process; see Beat
	ownSeal  []byte // the seal with which this Index writes; nil: it writes without one

	recordNews []recordNews // see NotifyRecords
}

// IndexOptions are the options of an Index; all have defaults.
type IndexOptions struct {
	// Progress is called about once a second while the full state is loaded, with the number of facts read so far.
	Progress func(facts int)
	// Uploads counts the open uploads of the engine for quotas. nil: they do not count.
	Uploads *Uploads
	// Placed: the engine for bytes is a Placed one.
	Placed bool
	// Grace is that of the Collector. With a shared journal, it decides when the age of a link is recorded anew.
	Grace time.Duration
	// Format makes the process claim to know a newer format than this version does; for tests. 0: it does not.
	Format int
	// Limits bound what is added.
	Limits Limits
	// Migration: this Index is for a migration, whose target it may open.
	Migration bool
	// Warn is called with what the Index handled without the caller, such as a Watch that failed.
	Warn func(error)
}

// Stats counts what the Index knows.
type Stats struct {
	Repos, Manifests, Tags int
	Links                  int // blobs of repos: one that three repos hold counts three times
	Contents               int // digests that a fact names
	Quarantined            int // contents whose bytes were found damaged or missing
}

// reloadTimeout bounds how long a commit waits for the state to be loaded again after a failed commit.
const reloadTimeout = 10 * time.Second

// OpenIndex loads the journal's state and follows it until Close. Errors: those of the journal; ErrDamaged for a
// journal that contradicts itself; *SealedError for the target of a migration that has not finished.
func OpenIndex(ctx context.Context, j Journal, o IndexOptions) (*Index, error) {
	if o.Warn == nil {
		o.Warn = func(error) {}
	}
	x := &Index{journal: j, traits: j.Traits(), shared: j.Traits().Shared, options: o,
		leases: newLeases(), queue: make(chan *change, maxGroup), state: newState(),
		quotas: newQuotas(nil), changed: make(chan struct{}), stopped: make(chan struct{}),
		searching: make(chan struct{}, 1)}
	o.Uploads.set(x)
	// ctx bounds the loading alone; the Index lives until Close.
	x.ctx, x.close = context.WithCancel(context.WithoutCancel(ctx))
	x.done.Go(x.follow)
	// Before the load: follow may record a suspicion, and that goroutine has to end as well if the load fails.
	x.done.Go(func() {
		defer close(x.stopped)
		if x.awaitLoad(x.ctx, 1) == nil {
			x.committer()
		}
	})
	if x.shared && o.Uploads != nil {
		x.NotifyRecords(wantedRecord, o.Uploads.noteWanted)
		x.done.Go(x.keepReservation)
	}
	if err := x.awaitLoad(ctx, 1); err != nil {
		x.Close()
		return nil, fmt.Errorf("load the index: %w", err)
	}
	if sealed := (*SealedError)(nil); errors.As(x.Sealed(), &sealed) && !sealed.Moved() && !o.Migration {
		x.Close()
		return nil, sealed
	}
	return x, nil
}

// Close stops following the journal and refuses further updates. It does not close the journal.
func (x *Index) Close() {
	x.close()
	x.done.Wait()
}

// follow keeps the state up to date. When a Watch ends, it starts another one. The new full state is built beside the
// old one, which serves readers until the new one is complete.
func (x *Index) follow() {
	for x.ctx.Err() == nil {
		ctx, cancel := context.WithCancel(x.ctx)
		x.mu.Lock()
		x.rewatch = cancel
		x.mu.Unlock()
		err := x.journal.Watch(ctx, x.loader())
		reload := ctx.Err() != nil // a failed commit asked for it
		cancel()
		x.mu.Lock()
		x.broken = err
		x.wake()
		first := x.loads == 0
		x.mu.Unlock()
		if first || x.ctx.Err() != nil { // OpenIndex reports the error of the first load
			return
		}
		x.Doubt(err)
		if errors.Is(err, ErrDamaged) { // it stays so: reads go on with what is in memory, and writes fail
			x.options.Warn(fmt.Errorf("following the journal: %w", err))
			return
		}
		if !reload {
			x.options.Warn(fmt.Errorf("following the journal: %w; starting again", err))
			pause(x.ctx, time.Second)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// loader returns the apply function for one Watch. No reader sees the state until it is complete.
func (x *Index) loader() func(Update) error {
	begun := time.Now()
	next, facts, last := newState(), 0, begun
	if x.shared {
		next.format = x.format()
	}
	return func(u Update) error {
		if next.synced {
			x.mu.Lock()
			defer x.mu.Unlock()
			defer x.wake()
			// Under the same lock as the state, so that quotas count an upload neither twice nor not at all.
			for _, b := range u.Batches {
				x.options.Uploads.shown(b)
			}
			if err := x.quotas.apply(next, u); err != nil {
				return err
			}
			x.notifyRecords(u) // after the state has changed, so that a goroutine that it wakes finds the change
			return nil
		}
		// An error in the full state is damage, and another Watch would end the same way. An error in a commit is not:
		// the full state decides.
		if err := next.apply(u); errors.Is(err, ErrFormat) {
			return err
		} else if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		for _, b := range u.Batches {
			facts += len(b.Facts)
		}
		if x.options.Progress != nil && time.Since(last) > time.Second {
			x.options.Progress(facts)
			last = time.Now()
		}
		if u.Synced {
			x.mu.Lock()
			// What was shown is not in the journal any more, or the engine says so.
			if seen := x.state.revision; next.revision < seen {
				x.suspect(wentBack{Seen: seen, Head: next.revision}, x.state)
			} else if u.Restored > x.restored {
				x.suspect(wentBack{}, x.state)
			}
			x.restored = max(x.restored, u.Restored)
			x.state, x.broken = next, nil
			x.caughtUp(begun)
			x.quotas.recount(next)
			x.loads++
			x.reloaded()
			x.wake()
			x.mu.Unlock()
		}
		return nil
	}
}

// wake makes every await look again; the caller holds mu.
func (x *Index) wake() {
	close(x.changed)
	x.changed = make(chan struct{})
}

// await waits until ready, which is called with mu held for reading, returns true or an error.
func (x *Index) await(ctx context.Context, ready func() (bool, error)) error {
	for {
		// The channel is read under the same lock as the state, so that no change between the look and the wait is
		// missed.
		x.mu.RLock()
		ok, err := ready()
		changed := x.changed
		x.mu.RUnlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-x.ctx.Done():
			return fmt.Errorf("index: %w", ErrClosed)
		}
	}
}

// awaitLoad waits until n full states have been loaded.
func (x *Index) awaitLoad(ctx context.Context, n int) error {
	return x.await(ctx, func() (bool, error) {
		// After these errors follow does not try again, so waiting would never end.
		if x.loads < n && x.broken != nil && (n == 1 || errors.Is(x.broken, ErrDamaged)) {
			return false, x.broken
		}
		return x.loads >= n, nil
	})
}

// awaitRevision waits until the state shows a revision.
func (x *Index) awaitRevision(ctx context.Context, rev Revision) error {
	return x.await(ctx, func() (bool, error) { return x.state.revision >= rev, nil })
}

// View calls fn with the repo as it is, without waiting for changes in progress. What fn changes is dropped. It
// predicts what an Update would probably say: a miss in it is not confirmed with the Journal.
func (x *Index) View(repo string, fn func(*Tx) error) error {
	return fn(&Tx{x: x, repo: repo, growth: &growth{quotas: x.currentQuotas()}, newest: new(int64), adding: &adding{},
		view: true})
}
