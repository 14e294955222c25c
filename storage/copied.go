package storage

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// CopyFacts sets facts of a repo to their values in another journal; a nil Value deletes the fact. It checks nothing:
// together the facts must be such that an Index can load them. What does not fit into one commit is committed in steps,
// each of which leaves a state that an Index can load. It sorts facts. It is for a migration, see package migrate.
// Errors: as Update, after which some steps may be committed; ErrTooLarge for a fact that does not fit into a commit.
func (x *Index) CopyFacts(ctx context.Context, repo string, facts []Fact) error {
	// Across the steps as well, a tag must be set after its manifest, and a manifest deleted after its tags.
	slices.SortStableFunc(facts, func(a, b Fact) int { return cmp.Compare(a.phase(), b.phase()) })
	for len(facts) > 0 {
		n := x.copyStep(repo, facts)
		step := facts[:n]
		err := x.Update(ctx, repo, func(tx *Tx) error {
			tx.copied = true
			for _, f := range step {
				tx.set(f.Kind, f.Name, f.Value)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("copy facts of %q: %w", repo, err)
		}
		facts = facts[n:]
	}
	return nil
}

// copyStep returns how many of the facts fit into one commit: of half the bytes that the journal allows, at most 1 MiB.
func (x *Index) copyStep(repo string, facts []Fact) int {
	most, bytes := x.step(min(len(facts), unlinkStep), 1, 0), 1<<20
	if limit := x.traits.Bytes; limit > 0 {
		bytes = min(bytes, limit/2)
	}
	n := 0
	for n < most {
		bytes -= len(repo) + len(facts[n].Name) + len(facts[n].Value)
		if n > 0 && bytes < 0 {
			break
		}
		n++
	}
	return n
}

// Facts reads the histories of all tags of a repo from the journal; see Journal.History. Errors: those of the journal.
func (x *Index) Facts(ctx context.Context, repo string) ([]Fact, error) {
	return x.journal.History(ctx, repo, "")
}

// Size returns the bytes of a content, as far as they are known.
func (x *Index) Size(d digest.Digest) int64 { return x.sizeOf(keyOf(d)) }

// ForgetPlace deletes the fact that names the object of d, because that object does not exist. Errors: as Update.
func (x *Index) ForgetPlace(ctx context.Context, d digest.Digest) error {
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		if p, ok := x.placeOf(keyOf(d)); ok {
			tx.setStore(kindPlace, string(keyOf(d)), nil, p.value())
		}
		return nil
	})
}

// Empty reports whether the Index knows no repo and no object, so that a migration may make it its target.
func (x *Index) Empty() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for name := range x.state.repos {
		if name != storeRepo {
			return false
		}
	}
	return len(x.state.places) == 0
}

// IsHistoryEnd reports whether a fact ends the history of a tag as a whole; see Fact.
func (f Fact) IsHistoryEnd() bool {
	return f.Kind == KindHistory && f.Value == nil && strings.HasSuffix(f.Name, "\x00")
}
