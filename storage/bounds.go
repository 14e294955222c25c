package storage

import "errors"

// A journal may bound a commit, see [Traits]. A request of a client must fit into one commit, or be done in steps each
// of which leaves the repo consistent. So the bounds of a commit bound requests.

// InSteps calls update with all items at once; if that is more than one commit of the Journal can take, with as many at
// a time as fit. update is called again with fewer items after it has returned ErrTooLarge. Errors: update's; what
// earlier calls have done stays.
func InSteps[T any](items []T, update func([]T) error) error {
	for n := len(items); len(items) > 0; {
		n = min(n, len(items))
		err := update(items[:n])
		switch {
		case err == nil:
			items = items[n:]
		case n > 1 && errors.Is(err, ErrTooLarge):
			n = (n + 1) / 2
		default:
			return err
		}
	}
	return nil
}

// What a push takes of the bounds at most.
const (
	// spareOperations are for all but the tags: the revisions of the repo and of its waiting repo, the manifest, its
	// place, what waits to be collected, and one for each quota of the repo.
	spareOperations = 16
	// tagOperations: the tag, its target, and the first target of a tag that an earlier version has set.
	tagOperations = 3
	// tagBytes: of these three, with names of 255 and 128 bytes for the repo and the tag, and maxBy.
	tagBytes = 2 << 10
	// refBytes: the longest digest, in binary form, and its length.
	refBytes = maxKey + 1
)

// MaxTags returns how many tags a push may set, so that it fits into one commit of the Journal; 0: any number.
func (x *Index) MaxTags() (n int) {
	if most := x.traits.Operations; most > 0 {
		n = max((most-spareOperations)/tagOperations, 1)
	}
	if most := x.traits.Bytes; most > 0 {
		n = least(n, max(most/4/tagBytes, 1)) // the manifest has the rest
	}
	return n
}

// MaxReferences returns how many references a manifest may have, so that it can be recorded, and what it leaves when it
// is deleted, each in one commit of the Journal, whatever the algorithm of the digests is; 0: any number.
func (x *Index) MaxReferences() int {
	if most := x.traits.Bytes; most > 0 {
		return max(most*3/4/refBytes, 1)
	}
	return 0
}

// least returns the smaller one of two limits; 0 means that there is no limit.
func least(a, b int) int {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}
