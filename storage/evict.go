package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/storage/internal/slab"
)

// Content of other registries is cached: it is fetched when a client asks for it, and evicted when the space is needed.
// Its fact has a mark for that. A cached blob stays while a manifest that was pushed to the repo refers to it. Content
// without the mark was pushed or imported, and is never evicted.

// Cached reports whether a manifest of a repo came from the repo's upstream; false for one that was pushed.
func (x *Index) Cached(repo string, d digest.Digest) bool { return x.cached(repo, keyOf(d)) }

func (x *Index) cached(repo string, k key) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.isCached(x.state.repos[repo], []byte(k))
}

func (s *state) isCached(r *repo, k []byte) bool {
	i := s.manifest(r, k)
	return i != 0 && s.manifests.At(s.entries.At(i).manifest).cached
}

// cached is Index.Cached with the changes of the same commit.
func (tx *Tx) cached(k key) bool {
	if v, changed := tx.fact(KindManifest, string(k)); changed {
		return v != nil && isCachedIn(v)
	}
	return tx.x.cached(tx.repo, k)
}

// isCachedIn reports whether a manifest's value says that it is cached.
func isCachedIn(v []byte) bool {
	m, err := parseManifest(v)
	if err != nil {
		return false
	}
	cached, err := m.rest(func([]byte) {})
	return cached && err == nil
}

// cachedLink reports whether a link of the repo is cached.
func (tx *Tx) cachedLink(k key) bool {
	if v, changed := tx.fact(KindLink, string(k)); changed {
		_, _, cached, _ := parseLink(v) // false for a link that is deleted
		return cached
	}
	x := tx.x
	x.mu.RLock()
	defer x.mu.RUnlock()
	i := x.state.find(x.state.repos[tx.repo], []byte(k))
	return i != 0 && x.state.entries.At(i).cached
}

// Evict records that the repo no longer holds d, as a blob or as a manifest with its tags, if d is cached. It reports
// whether the repo no longer holds d: false if d was pushed or imported, or if a manifest that was refers to it.
func (tx *Tx) Evict(d digest.Digest) bool {
	k := keyOf(d)
	_, held := tx.manifest(k)
	linked := tx.Linked(d)
	if held && !tx.cached(k) || linked && !tx.cachedLink(k) || tx.pushedRefer(k) {
		return false
	}
	if linked {
		tx.set(KindLink, string(k), nil)
	}
	if held {
		for _, name := range tx.TagsOf(d) {
			tx.removeTag(name)
		}
		// Without leave, unlike DeleteManifest: a client that relies on one of its parts gets it all the same, because
		// it is fetched again.
		tx.set(KindManifest, string(k), nil)
	}
	return true
}

// pushedRefer reports whether a manifest that was pushed to the repo refers to k.
func (tx *Tx) pushedRefer(k key) (yes bool) {
	tx.changes(KindManifest, func(name string) {
		if v, _ := tx.fact(KindManifest, name); v != nil && refersIn(v, k) {
			yes = yes || !isCachedIn(v)
		}
	})
	if yes {
		return true
	}
	x := tx.x
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	r := s.repos[tx.repo]
	if r == nil {
		return false
	}
	_, yes = s.refersTo(x, r, k, func(m key) bool {
		_, changed := tx.fact(KindManifest, string(m))
		return changed || s.isCached(r, []byte(m))
	})
	return yes
}

// Drop deletes the bytes of contents that no repo holds, at once, without a grace; it is for what Evict has removed. It
// spares contents that a repo holds or is about to hold. Errors: ErrMigrating; those of the engines. done has what was
// done until then, and the next run of the Collector does the rest.
func (c *Collector) Drop(ctx context.Context, all []digest.Digest) (done Collected, err error) {
	if err := c.Index.Resting(); err != nil {
		return done, fmt.Errorf("drop: %w", err)
	}
	r := &collection{Collector: c, done: &done, id: rand.Text()}
	var keys []key
	var infos []BlobInfo
	placed, ok := r.Blobs.(Placed)
	for _, d := range all {
		k := keyOf(d)
		if k == "" || r.Index.present(k) || !ok && r.Index.leases.pinned(k) {
			continue
		}
		if keys = append(keys, k); ok {
			continue
		}
		info, err := r.Blobs.Stat(ctx, d)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return done, err
		}
		infos = append(infos, BlobInfo{Digest: d, Size: info.Size})
	}
	if ok {
		return done, r.condemnPlaced(ctx, placed, keys)
	}
	return done, r.condemnAll(ctx, infos)
}

// CachedContent is a content that can be evicted from a repo.
type CachedContent struct {
	Digest digest.Digest
	Size   int64 // bytes
	Repos  int   // that hold it
}

// CachedContents lists the contents of a repo that Tx.Evict would remove now, in no order.
func (x *Index) CachedContents(repo string) []CachedContent {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if r := x.state.repos[repo]; r != nil {
		return x.state.cachedContents(r)
	}
	return nil
}

func (s *state) cachedContents(r *repo) (all []CachedContent) {
	pushed := map[slab.ID]bool{} // entries to which a manifest refers that is not cached
	for i := range r.entries.All() {
		e := s.entries.At(i)
		if e.manifest == 0 || s.manifests.At(e.manifest).cached {
			continue
		}
		for _, ref := range s.manifests.At(e.manifest).refs {
			pushed[ref] = true
		}
	}
	for i := range r.entries.All() {
		e := s.entries.At(i)
		if e.present() && !pushed[i] && (e.manifest == 0 || s.manifests.At(e.manifest).cached) &&
			(!e.linked || e.cached) {
			all = append(all, CachedContent{s.digest(e.content), s.contents.At(e.content).size,
				int(s.contents.At(e.content).present)})
		}
	}
	return all
}

// HasPushed reports whether a repo holds what was pushed or imported, or cached content that something pushed needs.
func (x *Index) HasPushed(repo string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	r := x.state.repos[repo]
	if r == nil {
		return false
	}
	present := 0
	for i := range r.entries.All() {
		if x.state.entries.At(i).present() {
			present++
		}
	}
	return present > len(x.state.cachedContents(r))
}

// HoldersOf returns, for each repo whose name starts with prefix, which of these contents it holds as blobs or
// manifests.
func (x *Index) HoldersOf(prefix string, all []digest.Digest) map[string][]digest.Digest {
	found := map[string][]digest.Digest{}
	for _, name := range x.Names() {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		x.mu.RLock() // for one repo at a time: there may be many, and a commit waits for the lock
		for _, d := range all {
			if i := x.state.find(x.state.repos[name], []byte(keyOf(d))); i != 0 && x.state.entries.At(i).present() {
				found[name] = append(found[name], d)
			}
		}
		x.mu.RUnlock()
	}
	return found
}

// Cached is Index.Cached as the change sees it.
func (tx *Tx) Cached(d digest.Digest) bool { return tx.cached(keyOf(d)) }
