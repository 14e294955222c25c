package inventory

import (
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// Target is what to remove from a repository: a tag, a manifest, or everything.
type Target struct {
	Tag          string        // empty: a manifest or everything
	Digest       digest.Digest // empty, with an empty Tag: everything
	WithManifest bool          // of a tag: also its manifest, unless something else needs that
}

// Removal is what a removal takes, in the order in which the registry accepts it: an index before its platforms.
type Removal struct {
	Repository string                 `json:"repository"`
	Tags       []TaggedDigest         `json:"tags"`      // go, also those of Manifests
	Manifests  []storage.HeldManifest `json:"manifests"` // go with their tags
	Kept       []Kept                 `json:"kept"`
	Bytes      int64                  `json:"bytes"` // of what nothing needs any more

	sizes map[digest.Digest]int64 // of which Bytes is the sum
}

// TaggedDigest is a tag and what it names.
type TaggedDigest struct {
	Tag    string        `json:"tag"`
	Digest digest.Digest `json:"digest"`
}

// Kept is a manifest that stays, and what needs it.
type Kept struct {
	Digest digest.Digest   `json:"digest"`
	Tags   []string        `json:"tags,omitempty"`
	By     []digest.Digest `json:"by,omitempty"`    // indexes that it is part of
	Asked  bool            `json:"asked,omitempty"` // it was to be removed
}

// plan is a removal under way.
type plan struct {
	h        storage.Holdings
	at       map[digest.Digest]*storage.HeldManifest
	parents  map[digest.Digest][]digest.Digest // the manifests that refer to a content
	untagged map[string]bool                   // tags that go
	goes     map[digest.Digest]bool
}

// Plan returns what would be removed. found reports whether the repository has the target.
func Plan(h storage.Holdings, t Target) (r Removal, found bool) {
	p := plan{h: h, at: map[digest.Digest]*storage.HeldManifest{}, parents: map[digest.Digest][]digest.Digest{},
		untagged: map[string]bool{}, goes: map[digest.Digest]bool{}}
	for i := range h.Manifests {
		m := &h.Manifests[i]
		p.at[m.Digest] = m
		for _, ref := range m.Refs {
			p.parents[ref] = append(p.parents[ref], m.Digest)
		}
	}
	r = Removal{Repository: h.Repo, Tags: []TaggedDigest{}, Manifests: []storage.HeldManifest{}, Kept: []Kept{}}
	switch {
	case t.Tag != "":
		m := p.tagged(t.Tag)
		if m == nil {
			return r, false
		}
		p.untagged[t.Tag] = true
		r.Tags = append(r.Tags, TaggedDigest{t.Tag, m.Digest})
		kept, needed := p.needs(m)
		if t.WithManifest && !needed {
			p.goes[m.Digest] = true
		} else {
			r.Kept = append(r.Kept, kept)
		}
	case t.Digest != "":
		m := p.at[t.Digest]
		if m == nil {
			return r, false
		}
		if by := p.parents[m.Digest]; len(by) > 0 {
			r.Kept = append(r.Kept, Kept{Digest: m.Digest, By: by, Asked: true})
			return r, true
		}
		p.goes[m.Digest] = true
	default:
		for d := range p.at {
			p.goes[d] = true
		}
	}
	p.spread()
	p.finish(&r, t)
	return r, true
}

func (p *plan) tagged(tag string) *storage.HeldManifest {
	for i := range p.h.Manifests {
		m := &p.h.Manifests[i]
		if slices.ContainsFunc(m.Tags, func(t storage.HeldTag) bool { return t.Name == tag }) {
			return m
		}
	}
	return nil
}

// needs returns what needs a manifest beside the tags that go.
func (p *plan) needs(m *storage.HeldManifest) (k Kept, needed bool) {
	k.Digest = m.Digest
	for _, t := range m.Tags {
		if !p.untagged[t.Name] {
			k.Tags = append(k.Tags, t.Name)
		}
	}
	for _, by := range p.parents[m.Digest] {
		if !p.goes[by] {
			k.By = append(k.By, by)
		}
	}
	return k, len(k.Tags)+len(k.By) > 0
}

// spread adds the platforms and the referrers of what goes, where nothing else needs them: without it, no client would
// find them.
func (p *plan) spread() {
	for grown := true; grown; {
		grown = false
		for i := range p.h.Manifests {
			m := &p.h.Manifests[i]
			part := p.goes[m.Subject] ||
				slices.ContainsFunc(p.parents[m.Digest], func(d digest.Digest) bool { return p.goes[d] })
			if p.goes[m.Digest] || !part {
				continue
			}
			if _, needed := p.needs(m); !needed {
				p.goes[m.Digest], grown = true, true
			}
		}
	}
}

// finish fills in a removal from what goes.
func (p *plan) finish(r *Removal, t Target) {
	r.Manifests = p.ordered()
	for _, m := range r.Manifests {
		for _, tag := range m.Tags {
			if tag.Name != t.Tag {
				r.Tags = append(r.Tags, TaggedDigest{tag.Name, m.Digest})
			}
		}
	}
	r.sizes = map[digest.Digest]int64{}
	for _, m := range r.Manifests {
		r.sizes[m.Digest] = m.Size
	}
	everything := t.Tag == "" && t.Digest == ""
	for _, b := range p.h.Blobs {
		by := p.parents[b.Digest]
		if !slices.ContainsFunc(by, func(d digest.Digest) bool { return !p.goes[d] }) && (len(by) > 0 || everything) {
			r.sizes[b.Digest] = b.Size
		}
	}
	r.count()
}

// ordered returns the manifests that go, each before those that it refers to: a registry refuses to delete a part of
// what it holds.
func (p *plan) ordered() []storage.HeldManifest {
	all, done := []storage.HeldManifest{}, map[digest.Digest]bool{}
	var add func(m *storage.HeldManifest)
	add = func(m *storage.HeldManifest) {
		if done[m.Digest] {
			return
		}
		done[m.Digest] = true
		for _, by := range p.parents[m.Digest] {
			add(p.at[by])
		}
		all = append(all, *m)
	}
	for i := range p.h.Manifests {
		if m := &p.h.Manifests[i]; p.goes[m.Digest] {
			add(m)
		}
	}
	return all
}

// HeldBy takes out of what a removal frees what another repository holds.
func (r *Removal) HeldBy(h storage.Holdings) {
	if h.Repo == r.Repository {
		return
	}
	for _, m := range h.Manifests {
		delete(r.sizes, m.Digest)
	}
	for _, b := range h.Blobs {
		delete(r.sizes, b.Digest)
	}
	r.count()
}

func (r *Removal) count() {
	r.Bytes = 0
	for _, size := range r.sizes {
		r.Bytes += size
	}
}
