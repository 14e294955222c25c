package retention

import (
	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// removals builds the list of what a decision removes.
type removals struct {
	*decision
	list    []Removal
	parents map[digest.Digest][]*storage.HeldManifest // the manifests that refer to it as a part

	done, listed map[digest.Digest]bool // manifests; one that is done and not listed is being added by a caller
	depth        int                    // of nested calls of first
}

// maxBelongs bounds how many manifests first and waits follow: a client can push a chain of any length.
const maxBelongs = 1000

// removals returns what is removed: tags first, then manifests. A manifest comes after those of which it is a part,
// because the Index refuses to delete a manifest that another one needs. If possible, it also comes after its subject,
// and after the manifest that it accompanies: if that has changed since the decision, and so stays, it stays as well.
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

// add lists a manifest that is not kept, after the manifests that have to come before it.
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

// companions lists the tags of a manifest that accompany removed manifests.
func (l *removals) companions(m *storage.HeldManifest) {
	for _, t := range m.Tags {
		if at, ok := l.companionOf(t.Name); ok && !l.kept[at] {
			l.list = append(l.list, Removal{Repo: l.h.Repo, Tag: t.Name, Digest: m.Digest,
				Why: "the manifest that it accompanies is removed", of: l.of(at)})
		}
	}
}

// first lists a manifest to which the one that is being added belongs, unless it has to come later.
func (l *removals) first(at digest.Digest) {
	m := l.index[at]
	if m == nil || l.depth == maxBelongs || l.waits(m) {
		return
	}
	l.depth++
	l.add(m)
	l.depth--
}

// waits reports whether a manifest has to come after one that is being added, directly or not; it reports true if that
// takes more than maxBelongs manifests to find out.
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

// of returns at, to which a manifest that is about to be listed belongs, if it is listed already. Otherwise it returns
// the empty digest: there is no such manifest, or the two belong to each other, and neither could be removed first.
func (l *removals) of(at digest.Digest) digest.Digest {
	if l.listed[at] {
		return at
	}
	return ""
}
