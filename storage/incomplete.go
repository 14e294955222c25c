package storage

import (
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
