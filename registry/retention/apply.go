package retention

import (
	"context"
	"fmt"
	"slices"
	"time"

	"trow/storage"
)

// applyStep is how many removals one commit contains, so that pushes are committed between two of them.
const applyStep = 100

// Apply removes from every repository what its rule does not keep, and calls report with it. If dry is true it only
// reports. What was changed since the decision stays. allowed, if it is not nil, is asked inside each Update that
// removes; its error ends the run. Errors: those of the Index, and of allowed.
func (p *Policy) Apply(ctx context.Context, x *storage.Index, dry bool, allowed func(*storage.Tx) error,
	report func(Removal)) error {
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
			// a tag with its history takes many operations
			err := storage.InSteps(step, func(step []Removal) (err error) {
				if !dry {
					if step, err = remove(ctx, x, repo, allowed, step); err != nil {
						return fmt.Errorf("retention: %s: %w", repo, err)
					}
				}
				for _, r := range step {
					report(r)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// remove removes what has not changed since the decision, and returns it.
func remove(ctx context.Context, x *storage.Index, repo string, allowed func(*storage.Tx) error, step []Removal) (
	done []Removal, err error) {
	err = x.Update(ctx, repo, func(tx *storage.Tx) error {
		done = nil // the Index may call this function again, if another change came first
		if allowed != nil {
			if err := allowed(tx); err != nil {
				return err
			}
		}
		for _, r := range step {
			removed, err := removeOne(tx, r)
			if err != nil {
				return err
			}
			if removed {
				done = append(done, r)
			}
		}
		return nil
	})
	return done, err
}

// removeOne removes a tag or a manifest unless it has changed since the decision.
func removeOne(tx *storage.Tx, r Removal) (bool, error) {
	if _, held := tx.Manifest(r.of); held {
		return false, nil // what it belongs to has been tagged or pushed again
	}
	if r.Tag != "" {
		if at, ok := tx.Tag(r.Tag); !ok || at.Digest() != r.Digest {
			return false, nil // moved or deleted
		}
		return true, tx.DeleteTag(r.Tag)
	}
	if _, ok := tx.Manifest(r.Digest); !ok || len(tx.TagsOf(r.Digest)) > 0 {
		return false, nil // deleted, or tagged again
	}
	if _, needed := tx.ReferredBy(r.Digest); needed {
		return false, nil // part of a manifest that was pushed meanwhile
	}
	return true, tx.DeleteManifest(r.Digest)
}
