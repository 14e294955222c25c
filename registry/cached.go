package registry

import (
	"context"
	"iter"

	"github.com/opencontainers/go-digest"

	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/upstream"
	"trow/storage"
)

// This file is what the bound of the cache needs of the registry: package mirror decides what goes.

// use notes that a content of a repository below f/ is read, and keeps it until release is called.
func (r *Registry) use(repo string, d digest.Digest) (release func()) {
	if r.options.Cache == nil || !namespace.Within(repo) {
		return func() {}
	}
	return r.options.Cache.Use(d)
}

// usedManifest is manifest that is not evicted until release is called.
func (r *Registry) usedManifest(ctx context.Context, repo, ref string) (m manifest, release func(), err error) {
	if m, err = r.manifest(ctx, repo, ref); err != nil {
		return m, nil, err
	}
	if r.options.Cache == nil || !namespace.Within(repo) {
		return m, func() {}, nil
	}
	release = r.options.Cache.Use(m.digest)
	// It may have been evicted before. Then it is fetched once more.
	if m, err = r.manifest(ctx, repo, ref); err != nil {
		release()
		return m, nil, err
	}
	return m, release, nil
}

// Cached implements mirror.CacheStore.
func (s mirrorStore) Cached(ctx context.Context) iter.Seq[mirror.CachedContent] {
	type found struct {
		size          int64
		repos, within int // that hold it, and of those the ones that may let it go
		kept          bool
	}
	return func(yield func(mirror.CachedContent) bool) {
		all := map[digest.Digest]*found{}
		for _, repo := range s.options.Index.Names() {
			if !namespace.Within(repo) {
				continue
			}
			if ctx.Err() != nil {
				return
			}
			for _, c := range s.options.Index.CachedContents(repo) {
				f := all[c.Digest]
				if f == nil {
					f = &found{}
					all[c.Digest] = f
				}
				f.size, f.repos = c.Size, c.Repos
				f.within++
			}
			for d := range s.kept(ctx, repo) {
				if f := all[d]; f != nil {
					f.kept = true
				}
			}
		}
		for d, f := range all {
			if !yield(mirror.CachedContent{Digest: d, Size: f.size, Pushed: f.repos > f.within, Kept: f.kept}) {
				return
			}
		}
	}
}

// kept lists what the tags of a repository consist of that its upstream's keep: names.
func (s mirrorStore) kept(ctx context.Context, repo string) iter.Seq[digest.Digest] {
	return func(yield func(digest.Digest) bool) {
		name, ok := s.options.Namespaces.Upstream(repo)
		if !ok {
			return
		}
		up, there, err := s.options.Upstreams.Find(name.Host, name.Repo)
		if err != nil || !keeps(up, there) {
			return
		}
		h, _, err := s.options.Index.Holdings(ctx, repo)
		if err != nil { // what is held cannot be confirmed now; the next look finds it
			return
		}
		manifests := map[digest.Digest]storage.HeldManifest{}
		for _, m := range h.Manifests {
			manifests[m.Digest] = m
		}
		seen := map[digest.Digest]bool{}
		var walk func(d digest.Digest) bool
		walk = func(d digest.Digest) bool {
			if seen[d] {
				return true
			}
			seen[d] = true
			for _, ref := range manifests[d].Refs {
				if !walk(ref) {
					return false
				}
			}
			return yield(d)
		}
		for _, m := range h.Manifests {
			for _, tag := range m.Tags {
				if up.Keeps(there, tag.Name) && !walk(m.Digest) {
					return
				}
			}
		}
	}
}

// keeps reports whether keep: of an upstream names a repository.
func keeps(up *upstream.Upstream, repo string) bool {
	for _, kept := range up.Kept() {
		if kept == repo {
			return true
		}
	}
	return false
}

// Evict implements mirror.CacheStore.
func (s mirrorStore) Evict(ctx context.Context, all []digest.Digest) (stay []digest.Digest, err error) {
	stays := map[digest.Digest]bool{}
	for repo, held := range s.options.Index.HoldersOf(namespace.Prefix, all) {
		err := storage.InSteps(held, func(held []digest.Digest) error {
			var here []digest.Digest
			err := s.options.Index.Update(ctx, repo, func(tx *storage.Tx) error {
				here = nil
				for _, d := range held {
					if !tx.Evict(d) {
						here = append(here, d)
					}
				}
				return nil
			})
			for _, d := range here {
				stays[d] = true
			}
			return err
		})
		if err != nil {
			return nil, err
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
	return stay, s.options.Drop(ctx, gone)
}

// Records implements mirror.CacheStore.
func (s mirrorStore) Records(prefix string) iter.Seq2[string, []byte] {
	return s.options.Index.Records(prefix)
}

// SetRecord implements mirror.CacheStore.
func (s mirrorStore) SetRecord(ctx context.Context, name string, old, value []byte) error {
	return s.options.Index.SetRecord(ctx, name, old, value)
}
