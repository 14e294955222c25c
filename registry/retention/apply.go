package retention

import (
	"context"
	"fmt"
	"slices"
	"time"

	"trow/storage"
)

// applyStep is how many removals one commit takes, so that pushes get their turn between two.
const applyStep = 100

// Apply removes what has had its time from every repository, and reports it. With dry it only reports. What was
// changed since the decision stays. Errors: those of the Index.
func (p *Policy) Apply(ctx context.Context, x *storage.Index, dry bool, report func(Removal)) error {
	for _, repo := range x.Names() {
		if p.ruleOf(repo) == nil {
			continue
		}
		h, found, err := x.Holdings(ctx, repo)
		if err != nil {
			return fmt.Errorf("retention: %w", err)
		}
		if !found {
			continue
		}
		for step := range slices.Chunk(p.Plan(time.Now(), h), applyStep) {
			if !dry {
				if step, err = remove(ctx, x, repo, step); err != nil {
					return fmt.Errorf("retention: %s: %w", repo, err)
				}
			}
			for _, r := range step {
				report(r)
			}
		}
	}
	return nil
}

// remove takes away what is still as it was, and returns that.
func remove(ctx context.Context, x *storage.Index, repo string, step []Removal) (done []Removal, err error) {
	err = x.Update(ctx, repo, func(tx *storage.Tx) error {
		done = nil
		for _, r := range step {
			gone, err := removeOne(tx, r)
			if err != nil {
				return err
			}
			if gone {
				done = append(done, r)
			}
		}
		return nil
	})
	return done, err
}

func removeOne(tx *storage.Tx, r Removal) (bool, error) {
	if r.Tag != "" {
		if at, ok := tx.Tag(r.Tag); !ok || at.Digest() != r.Digest {
			return false, nil // it was moved or deleted
		}
		return true, tx.DeleteTag(r.Tag)
	}
	if _, ok := tx.Manifest(r.Digest); !ok || len(tx.TagsOf(r.Digest)) > 0 {
		return false, nil // it was deleted, or tagged again
	}
	if _, needed := tx.ReferredBy(r.Digest); needed {
		return false, nil
	}
	return true, tx.DeleteManifest(r.Digest)
}
