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

// Content of other registries comes and goes without anybody's order: it is fetched when a client asks for it, and let
// go when the room is needed. A manifest that came so says it in its fact. A blob is cached in a repo if a manifest of
// the repo refers to it and all that do are cached. Everything else was pushed or imported, and stays.

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

// Evict records that the repo no longer holds d, as a blob or as a manifest with its tags, if it is cached. It reports
// whether the repo does not hold d any more: false for what was pushed or imported, and for a blob to which no manifest
// refers, because that may be on its way.
func (tx *Tx) Evict(d digest.Digest) bool {
	k := keyOf(d)
	linked := tx.Linked(d)
	if _, held := tx.manifest(k); held && !tx.cached(k) || linked && !tx.onlyCachedRefer(k) {
		return false
	}
	if linked {
		tx.set(KindLink, string(k), nil)
	}
	if _, held := tx.manifest(k); held {
		for _, name := range tx.TagsOf(d) {
			tx.removeTag(name)
		}
		// It leaves nothing behind, as a manifest does that is deleted: what a client has learned of its parts counts for
		// nothing, because they are fetched again.
		tx.set(KindManifest, string(k), nil)
	}
	return true
}

// onlyCachedRefer reports whether manifests of the repo refer to k, and all of them are cached.
func (tx *Tx) onlyCachedRefer(k key) bool {
	cached, pushed := false, false
	tx.changes(KindManifest, func(name string) {
		if v, _ := tx.fact(KindManifest, name); v != nil && refersIn(v, k) {
			cached, pushed = cached || isCachedIn(v), pushed || !isCachedIn(v)
		}
	})
	changed := func(m key) bool { _, ok := tx.fact(KindManifest, string(m)); return ok }
	some, all := tx.x.cachedRefer(tx.repo, k, changed)
	return (cached || some) && !pushed && all
}

// cachedRefer reports whether some manifests of a repo that refer to k are cached, and whether all are. Those that skip
// accepts do not count.
func (x *Index) cachedRefer(repo string, k key, skip func(key) bool) (some, all bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	r := s.repos[repo]
	if all = true; r == nil {
		return false, all
	}
	_, _ = s.refersTo(r, k, func(m key) bool {
		if skip(m) {
			return true
		}
		if s.isCached(r, []byte(m)) {
			some = true
		} else {
			all = false
		}
		return all // one that is not cached decides
	})
	return some, all
}

// Drop deletes the bytes of contents that no repo holds, at once, without a grace; it is for what Evict has let go. What
// a repo holds, or is about to, is left. Errors: those of the engines; Done holds what was done until then, and the next
// run of the Collector does the rest.
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

// CachedContent is a content that a repo may let go.
type CachedContent struct {
	Digest digest.Digest
	Size   int64 // bytes
	Repos  int   // that hold it
}

// CachedContents lists what of a repo Tx.Evict would let go now, in no order.
func (x *Index) CachedContents(repo string) (all []CachedContent) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	r := s.repos[repo]
	if r == nil {
		return nil
	}
	pushed := map[slab.ID]bool{} // entries to which a manifest refers that is not cached
	for i := range r.entries.All() {
		e := s.entries.At(i)
		if e.manifest == 0 || s.manifests.At(e.manifest).cached {
			continue
		}
		pushed[i] = true
		for _, ref := range s.manifests.At(e.manifest).refs {
			pushed[ref] = true
		}
	}
	for i := range r.entries.All() {
		e := s.entries.At(i)
		evictable := e.manifest != 0 && !pushed[i]
		if e.linked {
			evictable = (e.manifest == 0 || evictable) && e.refs > r.kept[i] && !pushed[i]
		}
		if evictable {
			all = append(all, CachedContent{s.digest(e.content), s.contents.At(e.content).size,
				int(s.contents.At(e.content).present)})
		}
	}
	return all
}

// HoldersOf lists which of some contents the repos hold whose names start with prefix, as blobs or manifests.
func (x *Index) HoldersOf(prefix string, all []digest.Digest) map[string][]digest.Digest {
	found := map[string][]digest.Digest{}
	for _, name := range x.Names() {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		x.mu.RLock() // for one at a time: there may be many
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
