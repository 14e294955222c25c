package storage

import (
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/storage/internal/slab"
)

// Why a scrub of a Placed engine reads no content by itself: all of it would have to travel, as often as there is a
// scrub, from a service that verifies what it stores. What is lost, or was cut short, shows in its list.

// listed is a content and the object that has its bytes.
type listed struct {
	place place
	size  int64
	id    slab.ID
	whole bool // the engine lists the object, with this size
}

// list compares the objects that the engine lists with those that facts name. What differs, and what is quarantined, is
// read. Errors: as Run.
func (r *scrub) list(ctx context.Context, blobs Placed) error {
	r.done.Listed = true
	// The facts come first. An object is complete before a fact names it, so the list that is made after them has it.
	named, doubtful := r.Index.named()
	for o, err := range blobs.Objects(ctx) {
		if err != nil {
			return fmt.Errorf("scrub: %w", err)
		}
		p, ok := parsePlace(o.Place)
		if !ok {
			continue // not ours
		}
		if i, found := slices.BinarySearchFunc(named, p, func(l listed, p place) int {
			return l.place.compare(p)
		}); found && !named[i].whole && named[i].size == o.Size {
			named[i].whole = true
			r.done.Blobs++
			r.progress()
		}
	}
	for step := range slices.Chunk(named, yieldEvery) {
		doubtful = append(doubtful, r.Index.doubtful(step)...)
	}
	for _, d := range doubtful {
		if err := r.check(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// named returns the contents that are present and not quarantined, with their objects, in the order of these; and all
// others that are present.
func (x *Index) named() (named []listed, others []digest.Digest) {
	for d := range x.Contents() {
		k := keyOf(d)
		x.mu.RLock()
		s := x.state
		id := s.lookup([]byte(k))
		if p, ok := s.places[id]; ok && !s.isQuarantined(k) {
			named = append(named, listed{place: p, size: s.contents.At(id).size, id: id})
		} else {
			others = append(others, d)
		}
		x.mu.RUnlock()
	}
	slices.SortFunc(named, func(a, b listed) int { return a.place.compare(b.place) })
	return named, others
}

// doubtful returns the contents of those objects that were not listed as the facts say. A content that has gone since,
// or that another object has the bytes of, is not among them: no place is used twice, so one that is as it was belongs
// to the same content.
func (x *Index) doubtful(all []listed) (contents []digest.Digest) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	for _, l := range all {
		if p, ok := s.places[l.id]; !l.whole && ok && p == l.place {
			contents = append(contents, s.keyOf(l.id).key().digest())
		}
	}
	return contents
}
