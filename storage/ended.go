package storage

import (
	"context"
	"time"
)

// Where several processes write, a repo that loses its last fact keeps its revision. A batch that relies on a link has
// the revision as its only condition, and a repo to which nothing but links was ever added has the revision 0. If the
// revision became 0 again once the link was removed, a late batch from before would be committed without the link. So
// the revision ends only when the repo has had no fact for so long that no such batch can be under way any more.

// endRevisions ends the revisions of repos that the Collector has seen without a fact for a day, or for its grace if
// that is longer. A Collector that starts anew counts anew.
func (c *Collector) endRevisions(ctx context.Context) error {
	const after = 24 * time.Hour
	now, seen := time.Now(), map[string]ended{}
	for name, rev := range c.Index.endedRevisions() {
		e, known := c.ended[name]
		if !known || e.revision != rev {
			e = ended{rev, now}
		}
		if now.Sub(e.since) >= max(after, c.Grace) {
			if err := c.Index.endRevision(ctx, name, rev); err != nil {
				return err
			}
			continue
		}
		seen[name] = e
	}
	c.ended = seen
	return nil
}

// ended is a repo without a fact.
type ended struct {
	revision Revision
	since    time.Time
}

func (x *Index) endedRevisions() map[string]Revision {
	x.mu.RLock()
	defer x.mu.RUnlock()
	all := make(map[string]Revision, len(x.state.ended))
	for name, rev := range yielding(x, x.state.ended) {
		all[name] = rev
	}
	return all
}

func (x *Index) endRevision(ctx context.Context, name string, rev Revision) error {
	return x.Update(ctx, name, func(tx *Tx) error {
		x.mu.RLock()
		defer x.mu.RUnlock()
		tx.ends = x.state.ended[name] == rev && len(tx.pending) == 0
		tx.moved = tx.ends
		return nil
	})
}
