package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/registry/namespace"
	"trow/storage"
)

// EvictedImage is an image that was selected for eviction.
type EvictedImage struct {
	HeldImage
	Why string `json:"why,omitempty"` // why it stays; empty: it was, or would be, evicted
}

// EvictTotal is the outcome of an eviction.
type EvictTotal struct {
	Evicted int      `json:"evicted"`          // images
	Stay    int      `json:"stay"`             // images that were selected, and stay
	Freed   int64    `json:"freed"`            // bytes
	Reading int      `json:"reading"`          // contents that stay because clients have begun to read them meanwhile
	Absent  []string `json:"absent,omitempty"` // images that were named and are not here
}

// errSelect: without a selection, all would be evicted.
var errSelect = errors.New("nothing is selected; name images, or a host (--all-of), or an age (--older-than)")

// EvictImages evicts images at once: their facts, and the bytes that nothing else needs. It calls each with every image
// that is selected. Images that are being read or were imported stay, and so does what they need. With dry, it evicts
// nothing and only reports what it would evict. Errors: the selection is empty or not valid; the registry is read-only;
// those of the engines; what was evicted before such an error stays evicted.
func (r *Registry) EvictImages(ctx context.Context, sel Selection, dry bool, each func(EvictedImage)) (
	total EvictTotal, err error) {
	switch {
	case len(sel.Images) == 0 && sel.Below == "" && sel.Before.IsZero():
		return total, errSelect
	case r.options.ReadOnly || r.options.Drop == nil:
		return total, errors.New("the registry is read-only, and evicts nothing")
	}
	w, err := r.wanted(sel)
	if err != nil {
		return total, err
	}
	if r.options.Cache != nil {
		r.options.Cache.Look(ctx) // before the choice, so that all that is chosen is protected while it is read
	}
	var plans []eviction
	absent := maps.Clone(w.images)
	err = r.eachUpstreamRepo(ctx, w.place, func(s *upstreamRepo) error {
		var chosen []digest.Digest
		for _, m := range s.images {
			if !w.names(s, m) {
				continue
			}
			e := EvictedImage{HeldImage: r.image(ctx, s, m)}
			if w.late(e.HeldImage) {
				continue
			}
			w.found(absent, s, m)
			if e.Why = r.whyStays(s, e.HeldImage); e.Why == "" {
				chosen = append(chosen, m.Digest)
				total.Evicted++
			} else {
				total.Stay++
			}
			each(e)
		}
		if p := r.planEviction(s, w, chosen); len(p.contents) > 0 {
			plans = append(plans, p)
		}
		return nil
	})
	if err != nil {
		return total, err
	}
	total.Absent = slices.Sorted(maps.Values(absent))
	total.Freed = freed(plans)
	if dry {
		return total, nil
	}
	for _, p := range plans {
		spared, err := r.options.Cache.EvictChosen(ctx, p.contents, func(ctx context.Context, some []digest.Digest) (
			[]digest.Digest, error) {
			return mirrorStore{r}.evictNow(ctx, p.repo, some)
		})
		if total.Reading += len(spared); err != nil {
			return total, fmt.Errorf("%s: %w", p.repo, err)
		}
	}
	return total, nil
}

// found removes the names of an image from absent, the names that were not found yet.
func (w *wanted) found(absent map[string]string, s *upstreamRepo, m *storage.HeldManifest) {
	delete(absent, s.name.String()+"@"+m.Digest.String())
	for _, tag := range m.Tags {
		delete(absent, s.name.String()+":"+tag.Name)
	}
}

// whyStays returns why an image must not be evicted; empty: it may be.
func (r *Registry) whyStays(s *upstreamRepo, i HeldImage) string {
	if i.State == StateImported {
		return fmt.Sprintf("it was imported, and is never evicted; trow rm %s@%s deletes it", s.repo, i.Digest)
	}
	if r.options.Cache.Reading(slices.Collect(maps.Keys(s.reach([]digest.Digest{i.Digest}, true)))) {
		return "a client is reading it; try again when it has ended"
	}
	return ""
}

// eviction is the plan of what to evict from one repository.
type eviction struct {
	repo     string
	contents []digest.Digest // in the order in which they are evicted
	sizes    map[digest.Digest]storage.CachedContent
}

// planEviction returns what is evicted with the chosen images of a repository: their parts and what refers to them,
// unless another image needs it. If no image was named, content that belongs to no image is evicted as well, such as a
// layer whose manifest no client has asked for.
func (r *Registry) planEviction(s *upstreamRepo, w wanted, chosen []digest.Digest) eviction {
	e := eviction{repo: s.repo, sizes: map[digest.Digest]storage.CachedContent{}}
	var stay []digest.Digest
	for _, m := range s.images {
		if !slices.Contains(chosen, m.Digest) {
			stay = append(stay, m.Digest)
		}
	}
	needed, goes := s.reach(stay, true), s.reach(chosen, true)
	for _, m := range s.manifests {
		if !m.Cached { // it and its parts stay
			maps.Copy(needed, s.reach([]digest.Digest{m.Digest}, false))
		}
	}
	strays := len(w.images) == 0
	for _, c := range r.options.Index.CachedContents(s.repo) {
		_, isNeeded := needed[c.Digest]
		_, isGoing := goes[c.Digest]
		old := w.before.IsZero() || r.options.Cache.Used(c.Digest).Before(w.before)
		if !isNeeded && (isGoing || strays && old) {
			e.contents = append(e.contents, c.Digest)
			e.sizes[c.Digest] = c
		}
	}
	// Images come first, then their other manifests, then blobs: an eviction that is cut short leaves no manifest
	// without its parts.
	rank := func(d digest.Digest) int {
		switch {
		case slices.Contains(chosen, d):
			return 0
		case s.manifests[d] != nil:
			return 1
		}
		return 2
	}
	slices.SortFunc(e.contents, func(a, b digest.Digest) int { return rank(a) - rank(b) })
	return e
}

// freed returns the bytes of the contents that no repository holds after these evictions.
func freed(plans []eviction) (n int64) {
	leave := map[digest.Digest]int{} // by how many repositories
	for _, p := range plans {
		for d, c := range p.sizes {
			if leave[d]++; leave[d] == c.Repos {
				n += c.Size
			}
		}
	}
	return n
}

// evictNow removes contents from one repository, and deletes the bytes of those that no repository below f/ holds any
// more, which it returns.
func (s mirrorStore) evictNow(ctx context.Context, repo string, all []digest.Digest) (gone []digest.Digest, err error) {
	if _, err := s.evictFrom(ctx, repo, all); err != nil {
		return nil, err
	}
	held := map[digest.Digest]bool{}
	for _, some := range s.options.Index.HoldersOf(namespace.Prefix, all) {
		for _, d := range some {
			held[d] = true
		}
	}
	for _, d := range all {
		if !held[d] {
			gone = append(gone, d)
			s.contents.remove(d)
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	// Another repository may hold some of it by now: Drop keeps those bytes.
	return gone, s.options.Drop(ctx, gone)
}
