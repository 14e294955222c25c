package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Collector removes what nothing needs any more: links to blobs that no manifest of their repo refers to, and bytes
// that are not present in any repo. Pushes and pulls go on meanwhile; they wait only for links and bytes that are being
// removed at that moment. It does not touch manifests and tags, which DELETE and retention remove.
//
// A link is removed when it is older than Grace, no manifest of the repo refers to it, and no client has learned of it
// within Grace (with a shared journal, within half of it; see [Index.Lease]): clients ask whether a blob exists, skip
// pushing it, and push the manifest much later. Bytes are deleted when they are not present in any repo and no pin says
// that they are about to be. They are condemned in the Journal first, so that no fact can start to name them, also
// after a crash or in another process, and deleted then. A reference alone keeps no bytes: it says nothing about this
// registry holding them.
type Collector struct {
	Blobs Blobs
	Index *Index
	Grace time.Duration

	mu sync.Mutex // one run at a time; guards ended
	// steps is held from setting marks to removing them: another step would take them for marks that a crash has left.
	steps sync.Mutex
	ended map[string]ended // see endRevisions

	suspicion atomic.Pointer[error] // see Suspicion
}

// Suspicion returns why the last look for objects that no fact names has deleted none of them, an ErrSuspicious; nil if
// it has deleted all. With Blobs that are not Placed it is nil.
func (c *Collector) Suspicion() error {
	if err := c.suspicion.Load(); err != nil {
		return *err
	}
	return nil
}

// Collected is what a run has done, or would do.
type Collected struct {
	Repos    int   `json:"repositories"` // examined
	Unlinked int   `json:"unlinked"`     // links removed
	Blobs    int   `json:"blobs"`        // examined
	Deleted  int   `json:"deleted"`      // blobs
	Freed    int64 `json:"freed"`        // bytes
	// Waiting: links were left alone, because this process or a migration to here is younger than Grace, or because the
	// clock of another process is not known yet.
	Waiting bool `json:"waiting,omitempty"`
}

// How much one commit removes. The steps are short, so that pushes are served in between.
const (
	unlinkStep = 512 // links
	sweepStep  = 256 // blobs
)

// Run collects once. With dry it only looks; bytes that its own unlinking would free count as well. report, which may
// be nil, is called about once a second with the progress. Errors: those of the engines; ErrMigrating; ErrClocks, if
// no links were removed; ErrSuspicious, see [Collector.Suspicion] and [Index.Suspicion]. Collected holds what was done
// until then, and the next run continues.
func (c *Collector) Run(ctx context.Context, dry bool, report func(Collected)) (done Collected, err error) {
	return c.RunWith(ctx, c.Grace, dry, report)
}

// RunWith is Run with another grace.
func (c *Collector) RunWith(ctx context.Context, grace time.Duration, dry bool,
	report func(Collected)) (done Collected, err error) {
	return c.run(ctx, grace, &collection{dry: dry, report: report})
}

// RunAll is RunWith for an administrator who has looked at what is suspicious: it always looks for objects that no fact
// names, deletes them however many there are, and at the end calls [Index.Trust].
func (c *Collector) RunAll(ctx context.Context, grace time.Duration,
	report func(Collected)) (done Collected, err error) {
	return c.run(ctx, grace, &collection{all: true, report: report})
}

func (c *Collector) run(ctx context.Context, grace time.Duration, r *collection) (done Collected, err error) {
	if err := c.Index.Resting(); err != nil && !r.dry {
		return done, fmt.Errorf("collect: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	dry := r.dry
	r.Collector, r.done, r.lastReport, r.unlinked, r.id = c, &done, time.Now(), map[key]int32{}, rand.Text()
	if err := r.rest(ctx); err != nil {
		return done, fmt.Errorf("collect: %w", err)
	}
	since := time.Now().Add(-grace)
	if grace == 0 {
		// Moments are whole seconds, and what is not surely older than since is kept. Without a grace nothing is.
		since = since.Add(time.Second)
	}
	// A run with a short grace must not drop leases that later runs need.
	c.Index.leases.forget(time.Now().Add(-max(grace, c.Grace)))
	if !dry { // first, because pushes of what an earlier run has marked wait
		if err := r.finish(ctx); err != nil {
			return done, fmt.Errorf("collect: %w", err)
		}
	}
	// Leases are in memory: for a grace after the start we do not know what clients learned before it. With a shared
	// journal, the links say it themselves.
	unsure, clocks := c.Index.clocks(grace)
	done.Waiting = !c.Index.shared && c.Index.leases.born.After(since) || unsure || c.Index.migratedSince(since)
	if !done.Waiting && clocks == nil {
		if err := r.unlink(ctx, since); err != nil {
			return done, fmt.Errorf("collect: unlink: %w", err)
		}
	}
	if err := r.sweep(ctx); err != nil {
		return done, fmt.Errorf("collect: sweep: %w", err)
	}
	if !dry {
		err = errors.Join(r.sweepWaiting(ctx), c.Index.healAbsent(ctx), c.endRevisions(ctx),
			c.Index.forgetReplicas(ctx, c.Grace))
	}
	if r.all && err == nil {
		err = c.Index.Trust(ctx) // last, so that a run that was cut short leaves the suspicion
	}
	return done, errors.Join(err, clocks)
}

// rest ends a run if the journal is suspicious, unless the run is dry or for all. Errors: ErrSuspicious; as Update.
func (r *collection) rest(ctx context.Context) error {
	why := r.Index.Suspicion()
	if why == nil || r.dry || r.all {
		return nil
	}
	// The marks go: pushes of marked content wait for that, and it may have been pushed again since the mark was set.
	return errors.Join(why, r.pardon(ctx))
}

// Finish deletes what an earlier run that was cut short has condemned; pushes of it wait. Call it at the start.
func (c *Collector) Finish(ctx context.Context) error {
	if c.Index.Sealed() != nil {
		return nil // no push waits: writes are refused
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Index.Suspicion() != nil { // Run reports it
		return c.pardon(ctx)
	}
	r := collection{Collector: c, done: &Collected{}, id: rand.Text()}
	return r.finish(ctx)
}

// Pardon removes the marks that an earlier run has set, and deletes nothing. It is for a journal that is older than the
// bytes: they may have been pushed again since. Errors: as Update.
func (c *Collector) Pardon(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pardon(ctx)
}

// pardon is Pardon with the lock held.
func (c *Collector) pardon(ctx context.Context) error {
	return InSteps(c.Index.condemned(), func(keys []key) error {
		return c.Index.Update(ctx, storeRepo, func(tx *Tx) error {
			for _, k := range keys {
				tx.set(kindCondemned, string(k), nil)
			}
			return nil
		})
	})
}

// collection is one run.
type collection struct {
	*Collector
	dry        bool
	all        bool // delete more unnamed objects than is likely
	done       *Collected
	report     func(Collected)
	lastReport time.Time
	id         string        // in the marks of this run
	unlinked   map[key]int32 // of a dry run: how many links of a content would be removed that alone make it present
}

func (r *collection) progress() {
	if r.report != nil && time.Since(r.lastReport) >= time.Second {
		r.lastReport = time.Now()
		r.report(*r.done)
	}
}

// finish is Finish. No fact can have started to name what is condemned.
func (r *collection) finish(ctx context.Context) error {
	if placed, ok := r.Blobs.(Placed); ok {
		// Marked anew: if the run that set the marks is only slow, in another process, it must not continue with them.
		return r.condemnPlaced(ctx, placed, r.Index.condemned())
	}
	r.steps.Lock()
	defer r.steps.Unlock()
	var left []BlobInfo
	for _, k := range r.Index.condemned() {
		info, err := r.Blobs.Stat(ctx, k.digest())
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		left = append(left, BlobInfo{Digest: k.digest(), Size: info.Size})
	}
	return r.deleteCondemned(ctx, left)
}

// unlink removes the links that nothing needs, repo by repo.
func (r *collection) unlink(ctx context.Context, since time.Time) error {
	for _, name := range r.Index.Names() {
		if err := r.forgetDeparted(ctx, name, since); err != nil {
			return err
		}
		for links := range slices.Chunk(r.Index.unneeded(name, since), r.Index.step(unlinkStep, 1, 0)) {
			if err := r.unlinkStep(ctx, name, links, since); err != nil {
				return err
			}
			r.progress()
		}
		r.done.Repos++
	}
	return nil
}

func (r *collection) unlinkStep(ctx context.Context, name string, links []key, since time.Time) error {
	// take compares the leases and marks the links under one lock. A HEAD first leases, waits while the link is marked,
	// and then looks it up. So either the HEAD's lease keeps the link, or the HEAD does not find it.
	free, release := r.Index.leases.take(name, links, since)
	defer release()
	if r.dry {
		r.done.Unlinked += len(free)
		r.Index.countVanishing(name, free, r.unlinked)
		return nil
	}
	return InSteps(free, func(links []key) error { // with a quota each link takes more operations: it starts to wait
		n := 0
		err := r.Index.Update(ctx, name, func(tx *Tx) error {
			n = 0
			for _, k := range links {
				d := k.digest()
				// Checked again inside the commit: a manifest that refers to the link may have been pushed, or another
				// process may have recorded the link anew, because a client has learned of it.
				if _, needed := tx.ReferredBy(d); !needed && tx.Linked(d) && r.Index.isUnneeded(name, k, since) {
					n++
					if err := tx.Unlink(d); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err == nil {
			r.done.Unlinked += n
		}
		return err
	})
}

// sweep deletes the bytes that are not present in any repo, step by step.
func (r *collection) sweep(ctx context.Context) error {
	if placed, ok := r.Blobs.(Placed); ok {
		return r.sweepPlaced(ctx, placed)
	}
	var step []BlobInfo
	for info, err := range r.Blobs.All(ctx) {
		if err != nil {
			return err
		}
		r.done.Blobs++
		k := keyOf(info.Digest)
		if r.dry {
			if r.Index.presentInMore(k, r.unlinked[k]) || r.Index.leases.pinned(k) {
				continue
			}
			r.done.Deleted++
			r.done.Freed += info.Size
			continue
		}
		if r.Index.present(k) || r.Index.leases.pinned(k) {
			continue
		}
		if step = append(step, info); len(step) == sweepStep {
			if err := r.condemn(ctx, step); err != nil {
				return err
			}
			step = step[:0]
		}
		r.progress()
	}
	return r.condemn(ctx, step)
}

// sweepWaiting deletes what waits and came too late for sweep, and ends the waiting of what is not there or is held
// again.
func (r *collection) sweepWaiting(ctx context.Context) error {
	var held, free []key
	for _, k := range r.Index.allWaiting() {
		if r.Index.present(k) {
			held = append(held, k)
		} else {
			free = append(free, k)
		}
	}
	if err := r.Index.collected(ctx, held); err != nil {
		return err
	}
	if _, ok := r.Blobs.(Placed); ok { // sweep finds all by its place, which stays when the last repo lets it go
		return nil
	}
	var left []BlobInfo
	for _, k := range free {
		info, err := r.Blobs.Stat(ctx, k.digest())
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		left = append(left, BlobInfo{Digest: k.digest(), Size: info.Size})
	}
	return r.condemnAll(ctx, left)
}

// condemnAll is condemn, step by step.
func (r *collection) condemnAll(ctx context.Context, all []BlobInfo) error {
	for step := range slices.Chunk(all, sweepStep) {
		if err := r.condemn(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

// condemn marks bytes in the Journal, so that no fact can start to name them, and deletes them.
func (r *collection) condemn(ctx context.Context, step []BlobInfo) error {
	if len(step) == 0 {
		return nil
	}
	r.steps.Lock()
	defer r.steps.Unlock()
	err := r.Index.Update(ctx, storeRepo, func(tx *Tx) error {
		for _, info := range step {
			tx.set(kindCondemned, string(keyOf(info.Digest)), condemnedValue(tx.now, r.id))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.deleteCondemned(ctx, step)
}

// deleteCondemned deletes condemned bytes and removes the marks. It spares bytes that were named or pinned before the
// mark was set.
func (r *collection) deleteCondemned(ctx context.Context, step []BlobInfo) error {
	if len(step) == 0 {
		return nil
	}
	var failed error
	var gone []key
	for _, info := range step {
		k := keyOf(info.Digest)
		// The mark is set: from here on no fact can start to name k, and a new pin waits. What came before shows now.
		if r.Index.present(k) || r.Index.leases.pinned(k) {
			continue
		}
		switch err := r.Blobs.Delete(ctx, info.Digest); {
		case err == nil:
			r.done.Deleted++
			r.done.Freed += info.Size
			gone = append(gone, k)
		case errors.Is(err, ErrNotFound):
			gone = append(gone, k)
		default:
			failed = errors.Join(failed, fmt.Errorf("delete %s: %w", info.Digest, err))
		}
		r.progress()
	}
	// Before the marks are removed: as long as there is a mark, nothing of this can have been pushed again.
	failed = errors.Join(failed, r.Index.collected(context.WithoutCancel(ctx), gone))
	// The marks are removed even if ctx has ended meanwhile: pushes wait for that.
	err := r.Index.Update(context.WithoutCancel(ctx), storeRepo, func(tx *Tx) error {
		for _, info := range step {
			tx.set(kindCondemned, string(keyOf(info.Digest)), nil)
		}
		return nil
	})
	return errors.Join(failed, err)
}

// unneeded lists the links of a repo from before a time that no manifest of it refers to.
func (x *Index) unneeded(name string, since time.Time) (links []key) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	r := s.repos[name]
	if r == nil {
		return nil
	}
	for i := range r.entries.Walk(yieldEvery, x.yield) {
		if e := s.entries.At(i); e.unneeded(since) {
			links = append(links, s.keyOf(e.content).key())
		}
	}
	return links
}

// unneeded reports whether an entry is a link from before a time that no manifest of the repo refers to.
func (e *entry) unneeded(since time.Time) bool {
	// A moment is whole seconds, so the link may be almost a second younger than it says.
	return e.linked && e.refs == 0 && time.Unix(int64(e.since)+1, 0).Before(since)
}

// isUnneeded reports whether unneeded lists a link.
func (x *Index) isUnneeded(name string, k key, since time.Time) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	i := x.state.find(x.state.repos[name], []byte(k))
	return i != 0 && x.state.entries.At(i).unneeded(since)
}

// step returns how many things one commit can change if each takes some operations and compares, at most n.
func (x *Index) step(n, operations, compares int) int {
	const spare = 8 // for the revision and the conditions that the change has besides
	if most := x.traits.Operations; most > 0 {
		n = min(n, (most-spare)/operations)
	}
	if most := x.traits.Compares; most > 0 && compares > 0 {
		n = min(n, (most-spare)/compares)
	}
	return max(n, 1)
}

// countVanishing counts, by content, the links without which the content is not present in the repo.
func (x *Index) countVanishing(name string, links []key, count map[key]int32) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	r := x.state.repos[name]
	if r == nil {
		return
	}
	for _, k := range links {
		if i := x.state.find(r, []byte(k)); i != 0 && x.state.entries.At(i).manifest == 0 {
			count[k]++
		}
	}
}

// presentInMore reports whether k is present in more than n repos.
func (x *Index) presentInMore(k key, n int32) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.present(k) > n
}

// Condemned reports whether a collection is about to delete something, or was cut short.
func (x *Index) Condemned() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.state.condemned) > 0
}

func (x *Index) condemned() []key {
	x.mu.RLock()
	defer x.mu.RUnlock()
	keys := make([]key, 0, len(x.state.condemned))
	for k := range yielding(x, x.state.condemned) {
		keys = append(keys, k)
	}
	return keys
}
