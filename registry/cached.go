package registry

import (
	"context"
	"iter"
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/storage"
)

// This file lists and evicts cached content for package mirror, which decides what is evicted.

// use notes that a content of a repository below f/ is read, so that it is not chosen for eviction until the caller
// calls release.
func (r *Registry) use(repo string, d digest.Digest) (release func()) {
	if r.options.Cache == nil || !namespace.Within(repo) {
		return func() {}
	}
	return r.options.Cache.Use(d)
}

// usedManifest is manifest, and use of what it returns.
func (r *Registry) usedManifest(ctx context.Context, repo, ref string) (m manifest, release func(), err error) {
	if m, err = r.manifest(ctx, repo, ref); err != nil {
		return m, nil, err
	}
	if r.options.Cache == nil || !namespace.Within(repo) {
		return m, func() {}, nil
	}
	release = r.options.Cache.Use(m.digest)
	// Which manifest a tag names is known only after the first look-up, and the manifest may have been evicted between
	// that and Use. Then the second look-up fetches it again. It is by digest: the upstream is asked about a tag once,
	// because one that does not answer delays each question.
	again, err := r.manifest(ctx, repo, m.digest.String())
	if err != nil {
		release()
		return m, nil, err
	}
	again.ref, again.stale = m.ref, m.stale
	return again, release, nil
}

// Cached implements mirror.CacheStore.
func (s mirrorStore) Cached(ctx context.Context) iter.Seq[mirror.CachedContent] {
	type found struct {
		size          int64
		repos, within int // that hold it; those below f/ that would let it go
		kept          bool
	}
	return func(yield func(mirror.CachedContent) bool) {
		all := map[digest.Digest]*found{}
		for repo := range upstreamRepos(ctx, s.options.Index) {
			for _, c := range s.options.Index.CachedContents(repo) {
				f := all[c.Digest]
				if f == nil {
					f = &found{}
					all[c.Digest] = f
				}
				f.size, f.repos = c.Size, c.Repos
				f.within++
			}
		}
		for d := range s.kept(ctx) {
			if f := all[d]; f != nil {
				f.kept = true
			}
		}
		if ctx.Err() != nil { // some of the repositories that hold a content may not have been seen
			return
		}
		for d, f := range all {
			if !yield(mirror.CachedContent{Digest: d, Size: f.size, Pushed: f.repos > f.within, Kept: f.kept}) {
				return
			}
		}
	}
}

// kept yields the manifests, and all that they refer to, of the tags that keep: of their upstreams names.
func (s mirrorStore) kept(ctx context.Context) iter.Seq[digest.Digest] {
	keeps := func(repo string) bool {
		n, ok := s.options.Namespaces.Upstream(repo)
		if !ok {
			return false
		}
		up, there, err := s.options.Upstreams.Find(n.Host, n.Repo)
		return err == nil && slices.Contains(up.Kept(), there)
	}
	return func(yield func(digest.Digest) bool) {
		for h, err := range upstreamHoldings(ctx, s.options.Index, keeps) {
			if err != nil { // the journal does not answer; until the next Look the rest does not count as kept
				return
			}
			n, _ := s.options.Namespaces.Upstream(h.Repo)
			var roots []digest.Digest
			for _, m := range h.Manifests {
				if slices.ContainsFunc(m.Tags, func(tag storage.HeldTag) bool { return s.keeps(n, tag.Name) }) {
					roots = append(roots, m.Digest)
				}
			}
			for d := range newHeldRepo(h).reach(roots, false) {
				if !yield(d) {
					return
				}
			}
		}
	}
}

// Evict implements mirror.CacheStore. First the facts are removed, then the bytes: after a crash in between, the
// Collector deletes bytes that no fact names.
func (s mirrorStore) Evict(ctx context.Context, all []digest.Digest) (stay []digest.Digest, err error) {
	stays := map[digest.Digest]bool{}
	for repo, held := range s.options.Index.HoldersOf(namespace.Prefix, all) {
		here, err := s.evictFrom(ctx, repo, held)
		if err != nil {
			return nil, err
		}
		for _, d := range here {
			stays[d] = true
		}
	}
	var gone []digest.Digest
	for _, d := range all {
		if stays[d] {
			stay = append(stay, d)
		} else {
			gone = append(gone, d)
			s.contents.remove(d)
		}
	}
	// Another repository may hold some of it, or hold it by now: Drop keeps those bytes.
	return stay, s.options.Drop(ctx, gone)
}

// evictFrom removes contents from one repository. It returns those that stay in the repository, see mirror.CacheStore.
func (s mirrorStore) evictFrom(ctx context.Context, repo string, all []digest.Digest) (stay []digest.Digest,
	err error) {
	err = storage.InSteps(all, func(some []digest.Digest) error {
		var here []digest.Digest
		err := s.options.Index.Update(ctx, repo, func(tx *storage.Tx) error {
			here = nil // the function may run more than once
			for _, d := range some {
				if !tx.Evict(d) {
					here = append(here, d)
				}
			}
			return nil
		})
		stay = append(stay, here...)
		return err
	})
	return stay, err
}

// Records implements mirror.CacheStore.
func (s mirrorStore) Records(prefix string) iter.Seq2[string, []byte] {
	return s.options.Index.Records(prefix)
}

// SetRecord implements mirror.CacheStore.
func (s mirrorStore) SetRecord(ctx context.Context, name string, old, value []byte) error {
	return s.options.Index.SetRecord(ctx, name, old, value)
}

// Notify implements mirror.CacheStore.
func (s mirrorStore) Notify(prefix string, changed func()) {
	s.options.Index.NotifyRecords(prefix, changed)
}
