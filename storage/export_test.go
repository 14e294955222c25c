package storage

import "github.com/opencontainers/go-digest"

// Sizes are how many records the state of an Index has, free ones included.
type Sizes struct{ Contents, Entries, Manifests, Tags int }

// SizesOf returns the sizes of an Index's state.
func SizesOf(x *Index) Sizes {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	return Sizes{int(s.contents.Last()), int(s.entries.Last()), int(s.manifests.Last()), int(s.tags.Last())}
}

// Leftovers returns how many records of an Index that holds nothing are still in use.
func Leftovers(x *Index) int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	return len(s.repos) + len(s.tails) + s.byDigest.Len() + s.catalog.len
}

// TagValue and ParseTag are the values of facts about tags.
func TagValue(d digest.Digest, unix, order int64) []byte { return tagValue(keyOf(d), unix, order) }

func ParseTag(v []byte) (d digest.Digest, unix, order int64, err error) {
	k, unix, order, err := parseTag(v)
	return key(k).digest(), unix, order, err
}
