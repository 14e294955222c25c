package retention

import (
	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// removals is the list of what a decision removes, which is being made.
type removals struct {
	*decision
	list    []Removal
	parents map[digest.Digest][]*storage.HeldManifest // that consist of it

	done, listed map[digest.Digest]bool // manifests: done, and not listed, are those that are about to be
	depth        int                    // how many calls of first are under way
}

// maxBelongs bounds how far it is looked at what belongs to what, in manifests: a client can push a chain of any
// length.
const maxBelongs = 1000

// removals returns what is removed: tags, then manifests, each after the manifests that consist of it, because the
// Index refuses to delete a manifest that another one needs, and if possible after those that it refers to or
// accompanies, because it stays if one of these has changed and stays.
func (d *decision) removals() []Removal {
	l := &removals{decision: d, parents: map[digest.Digest][]*storage.HeldManifest{},
		done: map[digest.Digest]bool{}, listed: map[digest.Digest]bool{}}
	for i := range d.h.Manifests {
		m := &d.h.Manifests[i]
		for _, t := range m.Tags {
			if why := d.whyTag[t.Name]; why != "" {
				l.list = append(l.list, Removal{Repo: d.h.Repo, Tag: t.Name, Digest: m.Digest, Why: why})
			}
		}
		for _, ref := range m.Refs {
			l.parents[ref] = append(l.parents[ref], m)
		}
	}
	for i := range d.h.Manifests {
		l.add(&d.h.Manifests[i])
	}
	for i := range d.h.Manifests {
		if m := &d.h.Manifests[i]; d.kept[m.Digest] {
			l.companions(m)
		}
	}
	return l.list
}

// add lists a manifest, after what it has to come after.
func (l *removals) add(m *storage.HeldManifest) {
	if l.done[m.Digest] || l.kept[m.Digest] {
		return
	}
	l.done[m.Digest] = true
	for _, parent := range l.parents[m.Digest] {
		l.add(parent)
	}
	l.first(m.Subject)
	for _, t := range m.Tags {
		if at, ok := l.companionOf(t.Name); ok {
			l.first(at)
		}
	}
	l.companions(m)
	l.list = append(l.list, Removal{Repo: l.h.Repo, Digest: m.Digest, Why: l.whyManifest(m), of: l.of(m.Subject)})
	l.listed[m.Digest] = true
}

// companions lists the tags of a manifest that accompany what is removed.
func (l *removals) companions(m *storage.HeldManifest) {
	for _, t := range m.Tags {
		if at, ok := l.companionOf(t.Name); ok && !l.kept[at] {
			l.list = append(l.list, Removal{Repo: l.h.Repo, Tag: t.Name, Digest: m.Digest,
				Why: "the manifest that it accompanies is removed", of: l.of(at)})
		}
	}
}

// first adds what a manifest belongs to, unless that has to come later.
func (l *removals) first(at digest.Digest) {
	m := l.index[at]
	if m == nil || l.depth == maxBelongs || l.waits(m) {
		return
	}
	l.depth++
	l.add(m)
	l.depth--
}

// waits reports whether a manifest comes after one that is about to be listed, at any depth, or may do so.
func (l *removals) waits(m *storage.HeldManifest) bool {
	seen := map[digest.Digest]bool{}
	for todo := []*storage.HeldManifest{m}; len(todo) > 0; {
		m, todo = todo[len(todo)-1], todo[:len(todo)-1]
		switch {
		case l.listed[m.Digest], seen[m.Digest]:
		case l.done[m.Digest], len(seen) == maxBelongs:
			return true
		default:
			seen[m.Digest] = true
			todo = append(todo, l.parents[m.Digest]...)
		}
	}
	return false
}

// of returns a manifest to which another one belongs that is about to be listed; empty if it is not listed before that:
// there is none, or each belongs to the other, and both would wait for each other for ever.
func (l *removals) of(at digest.Digest) digest.Digest {
	if l.listed[at] {
		return at
	}
	return ""
}
