package memory

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"trow/storage"
	"trow/storage/internal/local"
)

// Journal keeps facts in memory. Make one with [NewJournal].
type Journal struct {
	Is storage.Traits // what Traits returns, so that tests can have any kind of journal; set it before the first call

	feed  local.Feed
	repos map[string]*repo // guarded by feed
	leads leads
}

type repo struct {
	revision storage.Revision
	facts    map[name][]byte
}

// name is what identifies a fact within its repo.
type name struct {
	kind storage.Kind
	name string
}

// NewJournal returns an empty engine for facts.
func NewJournal() *Journal { return &Journal{repos: map[string]*repo{}} }

// Commit implements [storage.Journal].
func (j *Journal) Commit(_ context.Context, batches ...storage.Batch) (storage.Revision, error) {
	j.feed.Lock()
	defer j.feed.Unlock()
	if j.feed.Closed() {
		return 0, fmt.Errorf("journal: %w", storage.ErrClosed)
	}
	if err := j.bounded(batches); err != nil {
		return 0, err
	}
	// All batches are checked before anything changes: all or nothing.
	var conflict []string
	for _, b := range batches {
		if !j.repos[b.Repo].fits(b) || !j.leads.fit(b) {
			conflict = append(conflict, b.Repo)
		}
	}
	if len(conflict) > 0 {
		return 0, fmt.Errorf("journal: %w", &storage.ConflictError{Repos: conflict})
	}
	rev := j.feed.Head() + 1
	for _, b := range batches {
		j.put(b, rev)
	}
	j.feed.Publish(rev, batches)
	return rev, nil
}

// bounded returns an error for what is beyond the bounds that the journal says it has.
func (j *Journal) bounded(batches []storage.Batch) error {
	var is storage.Traits
	for _, b := range batches {
		if !b.Detached {
			is.Compares++
			is.Operations++
		}
		is.Compares += len(b.If)
		is.Operations += len(b.Facts)
		for _, f := range slices.Concat(b.If, b.Facts) {
			is.Bytes += len(b.Repo) + len(f.Name) + len(f.Value)
		}
	}
	over := func(n, most int) bool { return most > 0 && n > most }
	if over(is.Compares, j.Is.Compares) || over(is.Operations, j.Is.Operations) || over(is.Bytes, j.Is.Bytes) {
		return fmt.Errorf("journal: a commit has %d compares, %d operations and %d bytes; the bounds are %d, %d and %d",
			is.Compares, is.Operations, is.Bytes, j.Is.Compares, j.Is.Operations, j.Is.Bytes)
	}
	return nil
}

func (j *Journal) put(b storage.Batch, rev storage.Revision) {
	r := j.repos[b.Repo]
	if r == nil {
		r = &repo{facts: map[name][]byte{}}
		j.repos[b.Repo] = r
	}
	switch {
	case b.Ends && !b.Detached:
		r.revision = 0
	case !b.Detached:
		r.revision = rev
	}
	for _, f := range b.Facts {
		switch {
		case f.Value != nil:
			r.facts[name{f.Kind, f.Name}] = f.Value
		case f.Kind == storage.KindHistory && strings.HasSuffix(f.Name, "\x00"):
			maps.DeleteFunc(r.facts, func(n name, _ []byte) bool {
				return n.kind == f.Kind && strings.HasPrefix(n.name, f.Name)
			})
		default:
			delete(r.facts, name{f.Kind, f.Name})
		}
	}
	if len(r.facts) == 0 && r.revision == 0 {
		delete(j.repos, b.Repo)
	}
}

// fits reports whether a batch can be committed. r is nil for a repo that does not exist.
func (r *repo) fits(b storage.Batch) bool {
	if r == nil {
		r = &repo{}
	}
	if !b.Detached && b.Base != r.revision {
		return false
	}
	return !slices.ContainsFunc(b.If, func(f storage.Fact) bool {
		if f.Kind == storage.KindLead { // see leads.fit
			return false
		}
		value, held := r.facts[name{f.Kind, f.Name}]
		return held != (f.Value != nil) || !bytes.Equal(value, f.Value)
	})
}

// Traits implements [storage.Journal].
func (j *Journal) Traits() storage.Traits { return j.Is }

// Watch implements [storage.Journal].
func (j *Journal) Watch(ctx context.Context, apply func(storage.Update) error) error {
	return j.feed.Watch(ctx, j.load, apply)
}

func (j *Journal) load(apply func(storage.Update) error) error {
	u := storage.Update{Revision: j.feed.Head(), Synced: true}
	for _, repo := range slices.Sorted(maps.Keys(j.repos)) {
		r := j.repos[repo]
		u.Batches = append(u.Batches, storage.Batch{Repo: repo, Base: r.revision, Facts: r.sorted(isState)})
	}
	return apply(u)
}

// isState reports whether a fact is part of the full state.
func isState(n name) bool { return n.kind != storage.KindHistory }

// History implements [storage.Journal].
func (j *Journal) History(_ context.Context, repo, prefix string) ([]storage.Fact, error) {
	j.feed.Lock()
	defer j.feed.Unlock()
	r := j.repos[repo]
	if r == nil {
		return nil, nil
	}
	return r.sorted(func(n name) bool {
		return n.kind == storage.KindHistory && strings.HasPrefix(n.name, prefix)
	}), nil
}

// sorted returns some facts by kind and name. The kinds' letters put tags after the manifests that they name.
func (r *repo) sorted(include func(name) bool) (facts []storage.Fact) {
	for n, value := range r.facts {
		if !include(n) {
			continue
		}
		facts = append(facts, storage.Fact{Kind: n.kind, Name: n.name, Value: value})
	}
	slices.SortFunc(facts, func(a, b storage.Fact) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
	return facts
}

// Head implements [storage.Journal].
func (j *Journal) Head(context.Context) (storage.Revision, error) { return j.feed.Head(), nil }

// Close ends every Watch and refuses further commits.
func (j *Journal) Close() error {
	j.feed.Lock()
	defer j.feed.Unlock()
	j.feed.Close()
	return nil
}
