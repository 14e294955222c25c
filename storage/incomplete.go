package storage

import (
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/storage/internal/slab"
)

// maxParts bounds the parts that one call of Incomplete looks at, because the lock is held meanwhile: it takes less
// than a millisecond. Real images have a few dozen.
const maxParts = 10_000

// Incomplete reports whether a manifest that the repo holds consists of anything that the repo does not hold: a foreign
// layer, or a part of a manifest of an unknown type. Of an index that includes its children. It looks at maxParts parts
// at most, and allocates nothing. It does not ask whether bytes are damaged: Descriptor.Damaged does.
func (x *Index) Incomplete(repo string, m Descriptor) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	left := maxParts
	i := x.state.held(repo, m)
	return i != 0 && x.state.incomplete(i, &left)
}

// IncompleteChild reports whether one of the manifests that the repo holds of an index is incomplete. It looks at
// maxParts parts at most, and allocates nothing.
func (x *Index) IncompleteChild(repo string, m Descriptor) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	i := x.state.held(repo, m)
	if i == 0 {
		return false
	}
	left := maxParts
	refs, _ := x.state.follow(x.state.entries.At(i), &left)
	return slices.ContainsFunc(refs, func(ref slab.ID) bool {
		return left > 0 && x.state.entries.At(ref).manifest != 0 && x.state.incomplete(ref, &left)
	})
}

// Absent returns which parts of a manifest that the repo holds the repo does not hold, at most n, in the order of the
// manifest. It looks at maxParts parts at most, and not at the parts of its children.
func (x *Index) Absent(repo string, m Descriptor, n int) (parts []digest.Digest) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	i := x.state.held(repo, m)
	if i == 0 {
		return nil
	}
	refs := x.state.manifests.At(x.state.entries.At(i).manifest).refs
	for _, ref := range refs[:min(len(refs), maxParts)] {
		if e := x.state.entries.At(ref); !e.present() && len(parts) < n {
			parts = append(parts, x.state.digest(e.content))
		}
	}
	return parts
}

// Consists returns what a repo holds of a manifest: itself, its parts, and those of its children. A part of several
// manifests is there several times. It looks at maxParts parts at most.
func (x *Index) Consists(repo string, m Descriptor) (all []digest.Digest) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if i := x.state.held(repo, m); i != 0 {
		left := maxParts
		all = x.state.consists(all, i, &left)
	}
	return all
}

// Lookup is Resolve without the Journal: it returns what is in memory, which with a shared Journal may be some
// milliseconds old. It is for verdicts on content that is not judged by this registry's holdings alone, so that they
// need no network.
func (x *Index) Lookup(repo, ref string) (Descriptor, bool) { return x.manifest(repo, ref) }

// Whole reports whether a repo holds a manifest with everything that it consists of, undamaged. Of an index that
// includes all of its children. Unlike Incomplete it is false for what has more than maxParts parts: what was not
// looked at may be missing. It allocates nothing unless something is quarantined.
func (x *Index) Whole(repo string, m Descriptor) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	left := maxParts
	i := x.state.held(repo, m)
	return i != 0 && x.state.whole(i, &left)
}

// Child is a part of an index.
type Child struct {
	Digest digest.Digest
	Whole  bool // the repo holds it as a manifest, and as Index.Whole says
}

// Children returns the parts of a manifest that the repo holds, in the order of the manifest. ok is false if the repo
// does not hold it, or it has more than n parts. Together the children may have maxParts parts; those beyond that are
// not whole.
func (x *Index) Children(repo string, m Descriptor, n int) (all []Child, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	i := s.held(repo, m)
	if i == 0 {
		return nil, false
	}
	refs := s.manifests.At(s.entries.At(i).manifest).refs
	if len(refs) > n {
		return nil, false
	}
	left := maxParts
	all = make([]Child, len(refs))
	for at, ref := range refs {
		e := s.entries.At(ref)
		all[at] = Child{s.digest(e.content), e.manifest != 0 && s.whole(ref, &left)}
	}
	return all, true
}

// whole is Whole for an entry. left also ends a ring of manifests.
func (s *state) whole(i slab.ID, left *int) bool {
	e := s.entries.At(i)
	if !e.present() || len(s.quarantined) > 0 && s.isQuarantined(s.keyOf(e.content).key()) {
		return false
	}
	if e.manifest == 0 {
		return true
	}
	refs, ok := s.follow(e, left)
	if !ok {
		return false
	}
	for _, ref := range refs {
		if !s.whole(ref, left) {
			return false
		}
	}
	return true
}

// follow returns what a manifest refers to, entries, and takes their number from left. It reports false if fewer were
// left.
func (s *state) follow(e *entry, left *int) ([]slab.ID, bool) {
	refs := s.manifests.At(e.manifest).refs
	*left -= len(refs)
	return refs, *left >= 0
}

// consists is Consists for an entry. left also ends a ring of manifests.
func (s *state) consists(all []digest.Digest, i slab.ID, left *int) []digest.Digest {
	e := s.entries.At(i)
	if !e.present() {
		return all
	}
	all = append(all, s.digest(e.content))
	if e.manifest == 0 {
		return all
	}
	if refs, ok := s.follow(e, left); ok {
		for _, ref := range refs {
			all = s.consists(all, ref, left)
		}
	}
	return all
}

// held returns a repo's entry for a manifest, or 0.
func (s *state) held(repo string, m Descriptor) slab.ID {
	n := shortKey
	if m.sum[0] == algSHA512 {
		n = maxKey
	}
	r := s.repos[repo]
	if r == nil {
		return 0
	}
	return s.manifest(r, m.sum[:n])
}

// incomplete is Incomplete for an entry with a manifest. left also ends a ring of manifests.
func (s *state) incomplete(i slab.ID, left *int) bool {
	refs := s.manifests.At(s.entries.At(i).manifest).refs
	// All parts of this manifest come before those of its children, so that many children hide none of them.
	for _, ref := range refs[:min(len(refs), *left)] {
		if !s.entries.At(ref).present() {
			return true
		}
	}
	*left -= len(refs)
	for _, ref := range refs {
		if *left <= 0 {
			return false
		}
		if s.entries.At(ref).manifest != 0 && s.incomplete(ref, left) {
			return true
		}
	}
	return false
}
