package migrate

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// parallelRepos is how many repos are changed at once; they share the commits of the target.
const parallelRepos = 8

// copyError is an error of the copying, not of the Watch: no further pass follows, and another Run has to continue.
type copyError struct{ error }

func (e copyError) Unwrap() error { return e.error }

// copy copies what was found: first the bytes, then the facts, as for a push (invariant 1 of package storage).
func (m *migration) copy(ctx context.Context, w work) error {
	blobs := make([]digest.Digest, 0, len(w.blobs))
	for d := range w.blobs {
		blobs = append(blobs, d)
	}
	if err := each(ctx, m.Parallel, blobs, m.copyBlob); err != nil {
		return copyError{err}
	}
	repos := make([]string, 0, len(w.facts))
	for repo := range w.facts {
		repos = append(repos, repo)
	}
	err := each(ctx, parallelRepos, repos, func(ctx context.Context, repo string) error {
		facts := make([]storage.Fact, 0, len(w.facts[repo]))
		for f, value := range w.facts[repo] {
			facts = append(facts, storage.Fact{Kind: f.kind, Name: f.name, Value: value})
		}
		return m.copyFacts(ctx, repo, facts)
	})
	if err != nil {
		return copyError{err}
	}
	for repo := range w.histories {
		if _, err := m.copyHistory(ctx, repo); err != nil {
			return copyError{err}
		}
	}
	return nil
}

func (m *migration) copyFacts(ctx context.Context, repo string, facts []storage.Fact) error {
	if err := m.To.Index.CopyFacts(ctx, repo, facts); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done.Facts += len(facts)
	return nil
}

// each calls f for all, so many at a time, until one fails. It returns the first error, or ctx's, once no call runs any
// more.
func each[T any](ctx context.Context, parallel int, all []T, f func(context.Context, T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan T)
	var workers sync.WaitGroup
	for range min(parallel, len(all)) {
		workers.Go(func() {
			for one := range queue {
				if err := f(ctx, one); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	for _, one := range all {
		select {
		case queue <- one:
		case <-ctx.Done():
		}
	}
	close(queue)
	workers.Wait()
	return context.Cause(ctx)
}

// copyHistories copies the histories of tags, once the full state was seen, which does not have them. It returns how
// many facts differed.
func (m *migration) copyHistories(ctx context.Context) (differed int, err error) {
	var mu sync.Mutex
	names := slices.Concat(m.From.Index.Names(), m.To.Index.Names())
	slices.Sort(names)
	err = each(ctx, parallelRepos, slices.Compact(names), func(ctx context.Context, repo string) error {
		n, err := m.copyHistory(ctx, repo)
		mu.Lock()
		defer mu.Unlock()
		differed += n
		return err
	})
	if err != nil {
		return differed, copyError{err}
	}
	return differed, nil
}

// copyHistory makes the histories of a repo's tags those of the source, and returns how many facts differed.
func (m *migration) copyHistory(ctx context.Context, repo string) (int, error) {
	from, err := m.From.Index.Facts(ctx, repo)
	if err != nil {
		return 0, fmt.Errorf("read the history of %q: %w", repo, err)
	}
	to, err := m.To.Index.Facts(ctx, repo)
	if err != nil {
		return 0, fmt.Errorf("read the history of %q at the target: %w", repo, err)
	}
	old := make(map[string][]byte, len(to))
	for _, f := range to {
		old[f.Name] = f.Value
	}
	var differ []storage.Fact
	for _, f := range from {
		if value, had := old[f.Name]; !had || !bytes.Equal(value, f.Value) {
			differ = append(differ, f)
		}
		delete(old, f.Name)
	}
	for name := range old {
		differ = append(differ, storage.Fact{Kind: storage.KindHistory, Name: name})
	}
	if len(differ) == 0 {
		return 0, nil
	}
	return len(differ), m.copyFacts(ctx, repo, differ)
}
