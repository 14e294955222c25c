package storage

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/storage/internal/slab"
)

// linkedSize, manifest, tagsOf and refersTo are how a Tx reads what is committed.

func (x *Index) linkedSize(repo, d string) (size int64, linked bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if c := x.state.blobOf(repo, d); c != 0 {
		return x.state.contents.At(c).size, true
	}
	return 0, false
}

func (x *Index) manifest(repo, ref string) (Descriptor, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if e := x.state.manifestOf(repo, ref); e != 0 {
		return x.state.descriptor(e), true
	}
	return Descriptor{}, false
}

func (x *Index) tagsOf(repo string, k key) (names []string) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	if r := s.repos[repo]; r != nil {
		if e := s.manifest(r, []byte(k)); e != 0 {
			s.tagsOf(s.manifests.At(s.entries.At(e).manifest), func(t *tag) { names = append(names, t.name) })
		}
	}
	return names
}

func (x *Index) refersTo(repo string, k key, skip func(key) bool) (key, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if r := x.state.repos[repo]; r != nil {
		return x.state.refersTo(x, r, k, skip)
	}
	return "", false
}

// ReferredBy returns manifests of the repo that refer to d, at most n, whether d is present or not. It scans the repo.
func (x *Index) ReferredBy(repo string, d digest.Digest, n int) (all []digest.Digest) {
	x.refersTo(repo, keyOf(d), func(m key) bool {
		all = append(all, m.digest())
		return len(all) < n
	})
	return all
}

// sha512s returns the manifests whose digest is a sha512 that starts with these bytes of a key: at most one.
func (x *Index) sha512s(start []byte) (keys []key) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if m, ok := x.state.halves[half(start[1:])]; ok {
		keys = append(keys, x.state.keyOf(m.content).key())
	}
	return keys
}

// Resolve returns the manifest that ref, a tag or a digest, names in repo. It allocates nothing. It returns an error
// only if a miss could not be confirmed with the Journal.
func (x *Index) Resolve(ctx context.Context, repo, ref string) (Descriptor, bool, error) {
	d, ok := x.manifest(repo, ref)
	if ok {
		return d, true, nil
	}
	if news, err := x.confirm(ctx); err != nil || !news {
		return Descriptor{}, false, err
	}
	d, ok = x.manifest(repo, ref)
	return d, ok, nil
}

// Blob returns the size in bytes of a blob that the repo holds. A quarantined blob is not found. Errors: as Resolve.
func (x *Index) Blob(ctx context.Context, repo string, d digest.Digest) (size int64, found bool, err error) {
	if size, found = x.blob(repo, string(d)); found {
		return size, true, nil
	}
	if news, err := x.confirm(ctx); err != nil || !news {
		return 0, false, err
	}
	size, found = x.blob(repo, string(d))
	return size, found, nil
}

func (x *Index) blob(repo, d string) (int64, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	c := s.blobOf(repo, d)
	if c == 0 || len(s.quarantined) > 0 && s.isQuarantined(s.keyOf(c).key()) {
		return 0, false
	}
	return s.contents.At(c).size, true
}

// Tags lists a repo's tags after a given one (which need not exist), at most n, or all if n is negative, in ASCII
// order. found reports whether the repo exists. Errors: as Resolve.
func (x *Index) Tags(ctx context.Context, repo, after string, n int) (tags []string, found bool, err error) {
	age, err := x.refresh(ctx) // also for a repo that is known: what is not in the list is a miss
	if err != nil {
		return nil, false, err
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	r := x.state.repos[repo]
	switch {
	case r == nil && age > 0: // another process may have made it
		return nil, false, fmt.Errorf("index: repository %q is not known, and the journal does not answer: %w", repo,
			ErrUnavailable)
	case r == nil:
		return []string{}, false, nil
	}
	return r.order.after(after, n), true, nil
}

// Repos lists the repos that have a manifest, as Tags lists tags.
func (x *Index) Repos(ctx context.Context, after string, n int) ([]string, error) {
	if _, err := x.refresh(ctx); err != nil {
		return nil, err
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.catalog.after(after, n), nil
}

// Referrers lists the manifests of the repo whose subject is d, in order of their digests in binary form, after the
// given one, which need not exist: at most n, or all if n is negative. Errors: as Resolve.
func (x *Index) Referrers(ctx context.Context, repo string, d, after digest.Digest, n int) ([]Descriptor, error) {
	if _, err := x.refresh(ctx); err != nil {
		return nil, err
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	r := x.state.repos[repo]
	if r == nil {
		return nil, nil
	}
	list := r.referrers[x.state.lookup([]byte(keyOf(d)))]
	// The list is in this order. Looking at all of it for each page would hold the lock for long, again and again.
	at, found := slices.BinarySearchFunc(list, sumOf(keyOf(after)), func(e slab.ID, after sum) int {
		k := x.state.keyOf(x.state.entries.At(e).content)
		return bytes.Compare(k[:], after[:])
	})
	if found {
		at++
	}
	if list = list[at:]; n >= 0 && len(list) > n {
		list = list[:n]
	}
	out := make([]Descriptor, len(list))
	for i, e := range list {
		out[i] = x.state.descriptor(e)
	}
	return out, nil
}

// Holders lists repos that hold d as a blob, at most n > 0, in no order: for a mount that does not name its source. If
// few hold it, Holders looks at all repos, which can take a tenth of a second. So that clients cannot use up the CPU
// that way, one call looks at a time, and the others return nothing.
func (x *Index) Holders(d digest.Digest, n int) (names []string) {
	select {
	case x.searching <- struct{}{}:
		return x.holders(d, n)
	default:
		return nil
	}
}

// HoldersInTurn is Holders for those to whom a holder saves more than the time of a few looks: it waits until the
// others have looked. Errors: that of the context.
func (x *Index) HoldersInTurn(ctx context.Context, d digest.Digest, n int) ([]string, error) {
	select {
	case x.searching <- struct{}{}:
		return x.holders(d, n), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// holders looks for repos that hold d as a blob. The caller has sent to searching.
func (x *Index) holders(d digest.Digest, n int) (names []string) {
	defer func() { <-x.searching }()
	k := []byte(keyOf(d))
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	if s.present(key(k)) == 0 {
		return nil
	}
	hash := s.hash(k) // once for all
	for name, r := range yielding(x, s.repos) {
		if i := s.findHash(r, k, hash); i != 0 && s.entries.At(i).linked && !r.waiting {
			if names = append(names, name); len(names) == n {
				break
			}
		}
	}
	return names
}

// Stats returns the counts of what the Index knows.
func (x *Index) Stats() Stats {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state.stats
	s.Repos = x.state.repoCount()
	s.Contents = x.state.byDigest.Len()
	for k := range x.state.quarantined {
		if x.state.isQuarantined(k) {
			s.Quarantined++
		}
	}
	return s
}

// Names lists all repos, also those without a manifest, as of one moment, in ASCII order.
func (x *Index) Names() []string {
	names := slices.DeleteFunc(x.allNames(), func(name string) bool { return !ofRegistry(name) })
	slices.Sort(names)
	return names
}

// allNames lists all repos, also those that are not of the registry, in no order.
func (x *Index) allNames() []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.AppendSeq(make([]string, 0, len(x.state.repos)), maps.Keys(x.state.repos))
}

// Present reports whether a repo holds d as a blob or a manifest, so that its bytes must exist.
func (x *Index) Present(d digest.Digest) bool { return x.present(keyOf(d)) }

func (x *Index) present(k key) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.present(k) > 0
}

// Contents lists every digest that is present, in no order. Content that becomes present meanwhile may be left out, and
// so may other content if the state is loaded again.
func (x *Index) Contents() iter.Seq[digest.Digest] { return x.contents(0) }

// contents lists every digest that is present, from a record of the state on and around to it.
func (x *Index) contents(first int) iter.Seq[digest.Digest] {
	const step = 1024 // records per time that the lock is held: there may be millions
	return func(yield func(digest.Digest) bool) {
		n := x.records()
		for at := 0; at < n; at += step {
			for _, k := range x.presentAmong(first+at, min(step, n-at), n) {
				if !yield(k.digest()) {
					return
				}
			}
		}
	}
}

// records returns how many records of contents there are, free ones included.
func (x *Index) records() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return int(x.state.contents.Last())
}

// presentAmong lists those that are present among count records from first on, modulo n.
func (x *Index) presentAmong(first, count, n int) (keys []key) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for at := range count {
		i := slab.ID((first+at)%n + 1)
		// A state that was loaded again may have fewer records than n.
		if i <= x.state.contents.Last() && x.state.contents.At(i).present > 0 {
			keys = append(keys, x.state.keyOf(i).key())
		}
	}
	return keys
}
