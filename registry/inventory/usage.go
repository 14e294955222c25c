package inventory

import (
	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// Usage is what a repository takes. Bytes are of blobs and manifests together.
type Usage struct {
	Repository string `json:"repository"`
	Tags       int    `json:"tags"`
	Manifests  int    `json:"manifests"`
	Blobs      int    `json:"blobs"`
	Bytes      int64  `json:"bytes"`  // of all that it holds
	Own        int64  `json:"own"`    // of what no other repository holds: these become free with it
	Unused     int64  `json:"unused"` // of blobs that none of its manifests refers to: the collector frees them
	Updated    int64  `json:"updated,omitempty"`
}

// Total is what all repositories take together.
type Total struct {
	Repositories int   `json:"repositories"`
	Bytes        int64 `json:"bytes"`  // with shared content counted once
	Shared       int64 `json:"shared"` // of content that several repositories hold, counted once
}

// Sum adds up holdings. Its memory grows with the number of contents. The zero value is ready.
type Sum struct {
	usages   []Usage
	contents map[digest.Digest]content
}

// content is what several repositories may hold.
type content struct {
	size  int64
	owner int32 // index of the usage of the only repository that holds it; -1: several do
}

// Add adds the holdings of a repository. Each repository may be added once.
func (s *Sum) Add(h storage.Holdings) {
	if s.contents == nil {
		s.contents = map[digest.Digest]content{}
	}
	u := Usage{Repository: h.Repo, Manifests: len(h.Manifests), Blobs: len(h.Blobs)}
	at := int32(len(s.usages))
	seen := make(map[digest.Digest]bool, len(h.Manifests)+len(h.Blobs))
	add := func(d digest.Digest, size int64) {
		if seen[d] { // the same bytes may be a manifest and a blob
			return
		}
		seen[d] = true
		u.Bytes += size
		if _, held := s.contents[d]; held {
			at := s.contents[d]
			at.owner = -1
			s.contents[d] = at
			return
		}
		s.contents[d] = content{size, at}
	}
	used := map[digest.Digest]bool{}
	for _, m := range h.Manifests {
		u.Tags += len(m.Tags)
		u.Updated = max(u.Updated, m.Time)
		for _, t := range m.Tags {
			u.Updated = max(u.Updated, t.Time)
		}
		for _, d := range m.Refs {
			used[d] = true
		}
		add(m.Digest, m.Size)
	}
	for _, b := range h.Blobs {
		if !used[b.Digest] {
			u.Unused += b.Size
		}
		add(b.Digest, b.Size)
	}
	s.usages = append(s.usages, u)
}

// Result returns the usages in the order in which they were added, and their total.
func (s *Sum) Result() ([]Usage, Total) {
	all := append([]Usage{}, s.usages...)
	total := Total{Repositories: len(all)}
	for _, c := range s.contents {
		total.Bytes += c.size
		if c.owner < 0 {
			total.Shared += c.size
		} else {
			all[c.owner].Own += c.size
		}
	}
	return all, total
}

// Sizes returns a function that returns the bytes of a manifest with all that it consists of, each content once.
func Sizes(h storage.Holdings) func(digest.Digest) int64 {
	blobs, manifests := map[digest.Digest]int64{}, map[digest.Digest]*storage.HeldManifest{}
	for _, b := range h.Blobs {
		blobs[b.Digest] = b.Size
	}
	for i := range h.Manifests {
		manifests[h.Manifests[i].Digest] = &h.Manifests[i]
	}
	return func(d digest.Digest) int64 {
		seen := map[digest.Digest]bool{}
		var add func(d digest.Digest) int64
		add = func(d digest.Digest) (n int64) {
			if seen[d] {
				return 0
			}
			seen[d] = true
			m := manifests[d]
			if m == nil {
				return blobs[d]
			}
			n = m.Size
			for _, ref := range m.Refs {
				n += add(ref)
			}
			return n
		}
		return add(d)
	}
}
