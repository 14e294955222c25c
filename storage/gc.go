package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Collector takes away what nothing needs any more: links to blobs that no manifest of their repo refers to, and
// bytes that no repo holds as a blob or a manifest: a reference alone keeps no bytes. It works beside pushes and pulls, which neither wait nor break. Manifests and tags are
// not its concern: they end by DELETE or by retention.
//
// A link goes when it is older than Grace, no manifest of the repo consists of it, and no client was told of it for
// Grace: clients ask whether a blob is there, leave out pushing it, and push the manifest much later. Bytes go when
// no repo holds them and nobody is about to say otherwise (Pin): they are condemned in the Journal first, so that
// nobody can begin to name them, also after a crash or in another process, and deleted then.
type Collector struct {
	Blobs Blobs
	Index *Index
	Grace time.Duration

	mu sync.Mutex // one run at a time: the end of one takes marks away that another would rely on
}

// Collected says what a run has done, or would do.
type Collected struct {
	Repos    int   `json:"repositories"` // looked at
	Unlinked int   `json:"unlinked"`     // links taken away
	Blobs    int   `json:"blobs"`        // looked at
	Deleted  int   `json:"deleted"`      // blobs
	Freed    int64 `json:"freed"`        // bytes
	// Waiting tells that links were left alone since the process, or its view of the Journal, is younger than Grace.
	Waiting bool `json:"waiting,omitempty"`
}

// The sizes of a step: what one commit takes away. A step is short, so that pushes get their turn between two.
const (
	unlinkStep = 512
	sweepStep  = 256
)

// Run collects once. With dry it only looks: bytes that its own unlinking would free count as well. report, which
// may be nil, is told now and then how far it has come. Errors: what the engines say; what was done until then is
// in Collected, and the next run goes on.
func (c *Collector) Run(ctx context.Context, dry bool, report func(Collected)) (done Collected, err error) {
	return c.RunWith(ctx, c.Grace, dry, report)
}

// RunWith is Run with another grace.
func (c *Collector) RunWith(ctx context.Context, grace time.Duration, dry bool, report func(Collected)) (done Collected, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := collection{Collector: c, dry: dry, done: &done, report: report, told: time.Now(), unlinked: map[key]int32{}}
	since := time.Now().Add(-grace)
	c.Index.leases.forget(time.Now().Add(-max(grace, c.Grace)))
	if !dry {
		if err := r.finish(ctx); err != nil {
			return done, fmt.Errorf("collect: %w", err)
		}
	}
	// Leases are in memory: for a while after the start we do not know what clients remember.
	if done.Waiting = c.Index.leases.born.After(since); !done.Waiting {
		if err := r.unlink(ctx, since); err != nil {
			return done, fmt.Errorf("collect: unlink: %w", err)
		}
	}
	if err := r.sweep(ctx); err != nil {
		return done, fmt.Errorf("collect: sweep: %w", err)
	}
	if !dry {
		err = c.Index.forgetDamage(ctx)
	}
	return done, err
}

// Finish deletes what an earlier run that was cut short has condemned: pushes of it wait. Call it at the start.
func (c *Collector) Finish(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := collection{Collector: c, done: &Collected{}}
	return r.finish(ctx)
}

// collection is one run.
type collection struct {
	*Collector
	dry      bool
	done     *Collected
	report   func(Collected)
	told     time.Time
	unlinked map[key]int32 // of a dry run: links that would go, by content
}

func (r *collection) progress() {
	if r.report != nil && time.Since(r.told) >= time.Second {
		r.told = time.Now()
		r.report(*r.done)
	}
}

// finish is Finish. Nothing can have begun to name what is condemned.
func (r *collection) finish(ctx context.Context) error {
	var left []BlobInfo
	for _, k := range r.Index.condemned() {
		info, err := r.Blobs.Stat(ctx, k.digest())
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		left = append(left, BlobInfo{Digest: k.digest(), Size: info.Size})
	}
	return r.execute(ctx, left)
}

// unlink takes away the links that nothing needs, repo by repo.
func (r *collection) unlink(ctx context.Context, since time.Time) error {
	for _, name := range r.Index.Names() {
		for links := range slices.Chunk(r.Index.unneeded(name, since), unlinkStep) {
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
	free, release := r.Index.leases.take(name, links, since)
	defer release()
	if r.dry {
		r.done.Unlinked += len(free)
		r.Index.vanishing(name, free, r.unlinked)
		return nil
	}
	n := 0
	err := r.Index.Update(ctx, name, func(tx *Tx) error {
		n = 0
		for _, k := range free {
			d := k.digest()
			if _, needed := tx.ReferredBy(d); !needed && tx.Linked(d) {
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
}

// sweep deletes the bytes that no repo holds, step by step.
func (r *collection) sweep(ctx context.Context) error {
	var step []BlobInfo
	for info, err := range r.Blobs.All(ctx) {
		if err != nil {
			return err
		}
		r.done.Blobs++
		k := keyOf(info.Digest)
		if r.dry {
			if r.Index.presentBeside(k, r.unlinked[k]) || r.Index.leases.pinned(k) {
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

// condemn marks bytes, so that nobody can begin to name them, and deletes them.
func (r *collection) condemn(ctx context.Context, step []BlobInfo) error {
	if len(step) == 0 {
		return nil
	}
	err := r.Index.Update(ctx, Store, func(tx *Tx) error {
		for _, info := range step {
			tx.set(KindCondemned, string(keyOf(info.Digest)), condemnedValue(tx.now))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.execute(ctx, step)
}

// execute deletes condemned bytes, unless somebody was faster to name or pin them, and takes the marks away.
func (r *collection) execute(ctx context.Context, step []BlobInfo) error {
	if len(step) == 0 {
		return nil
	}
	var failed error
	for _, info := range step {
		k := keyOf(info.Digest)
		if r.Index.present(k) || r.Index.leases.pinned(k) {
			continue
		}
		switch err := r.Blobs.Delete(ctx, info.Digest); {
		case err == nil:
			r.done.Deleted++
			r.done.Freed += info.Size
		case !errors.Is(err, ErrNotFound):
			failed = errors.Join(failed, fmt.Errorf("delete %s: %w", info.Digest, err))
		}
		r.progress()
	}
	// The marks go also when ctx has ended meanwhile: pushes wait for that.
	err := r.Index.Update(context.WithoutCancel(ctx), Store, func(tx *Tx) error {
		for _, info := range step {
			tx.set(KindCondemned, string(keyOf(info.Digest)), nil)
		}
		return nil
	})
	return errors.Join(failed, err)
}

// unneeded lists the links of a repo from before a time that no manifest of it consists of.
func (x *Index) unneeded(name string, since time.Time) (links []key) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	r := x.state.repos[name]
	if r == nil {
		return nil
	}
	for i := range r.holds.all() {
		h := x.state.holds.at(i)
		if h.linked && h.refs == 0 && time.Unix(int64(h.since)+1, 0).Before(since) { // a moment is whole seconds
			links = append(links, x.state.keyOf(h.content).key())
		}
	}
	return links
}

// vanishing counts, by content, the links that are all that their repo has to do with it.
func (x *Index) vanishing(name string, links []key, count map[key]int32) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	r := x.state.repos[name]
	if r == nil {
		return
	}
	for _, k := range links {
		if h := x.state.find(r, []byte(k)); h != 0 && x.state.holds.at(h).manifest == 0 {
			count[k]++
		}
	}
}

// presentBeside reports whether k is present in more than n repos.
func (x *Index) presentBeside(k key, n int32) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.present(k) > n
}

func (x *Index) condemned() []key {
	x.mu.RLock()
	defer x.mu.RUnlock()
	keys := make([]key, 0, len(x.state.condemned))
	for k := range x.state.condemned {
		keys = append(keys, k)
	}
	return keys
}

// forgetDamage takes out of quarantine what nobody holds any more.
func (x *Index) forgetDamage(ctx context.Context) (err error) {
	for _, k := range x.stale() {
		err = errors.Join(err, x.heal(ctx, k.digest()))
	}
	return err
}
