package storage

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// How the Collector deletes from an engine that keeps bytes under names of their own. A commit with conditions deletes
// the facts first, and then the objects are deleted: no later fact names them, so they can be deleted however late, and
// by any process.

// sweepPlaced deletes the bytes that are not present in any repo, and from time to time the objects that no fact names.
func (r *collection) sweepPlaced(ctx context.Context, blobs Placed) error {
	var free []key
	for _, k := range r.Index.placedContents() {
		r.done.Blobs++
		switch {
		case !r.dry && !r.Index.present(k):
			free = append(free, k)
		case r.dry && !r.Index.presentInMore(k, r.unlinked[k]):
			r.done.Deleted++
			r.done.Freed += r.Index.sizeOf(k)
		}
	}
	if r.dry {
		return nil
	}
	if err := r.condemnPlaced(ctx, blobs, free); err != nil {
		return err
	}
	return r.sweepUnnamed(ctx, blobs)
}

// condemnPlaced marks contents in the Journal, so that no fact can start to name them, and deletes them.
func (r *collection) condemnPlaced(ctx context.Context, blobs Placed, keys []key) error {
	for step := range slices.Chunk(keys, r.Index.step(sweepStep, 2, 3)) {
		if err := r.Index.Suspicion(); err != nil && !r.all { // it may have come since the run began
			return err
		}
		marks := map[key][]byte{}
		err := r.Index.Update(ctx, storeRepo, func(tx *Tx) error {
			for _, k := range step {
				marks[k] = condemnedValue(tx.now, r.id)
				tx.setStore(kindCondemned, string(k), marks[k], r.Index.mark(k))
			}
			return nil
		})
		if err == nil {
			// The marks are removed even if ctx has ended meanwhile: pushes wait for that.
			err = r.deletePlaced(context.WithoutCancel(ctx), blobs, marks)
		}
		if err != nil {
			return err
		}
		r.progress()
	}
	return nil
}

// deletePlaced deletes condemned contents and removes the marks. It spares those that were named before the mark was
// set.
func (r *collection) deletePlaced(ctx context.Context, blobs Placed, marks map[key][]byte) error {
	type object struct {
		place place
		size  int64
	}
	gone := map[key]object{}
	// Before the marks are removed: while a content is marked, it cannot be pushed again and wait anew.
	var free []key
	for k := range marks {
		if !r.Index.present(k) {
			free = append(free, k)
		}
	}
	if err := r.Index.collected(ctx, free); err != nil {
		return err
	}
	err := r.Index.Update(ctx, storeRepo, func(tx *Tx) error {
		clear(gone)
		for k, mark := range marks {
			if !same(r.Index.mark(k), mark) {
				continue // another run has marked it anew, and decides about it
			}
			// The Index shows the mark, and so all facts from before it; while it is there, no fact can start to name
			// the content. The mark and the place are conditions of the commit.
			if p, ok := r.Index.placeOf(k); ok && !r.Index.present(k) {
				tx.setStore(kindPlace, string(k), nil, p.value())
				gone[k] = object{p, r.Index.sizeOf(k)}
			}
			tx.setStore(kindCondemned, string(k), nil, mark)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var places []string
	for _, o := range gone {
		places = append(places, o.place.String())
		r.done.Deleted++
		r.done.Freed += o.size
	}
	if err := blobs.Remove(ctx, places...); err != nil {
		return fmt.Errorf("delete objects: %w", err) // they are swept as unnamed
	}
	return nil
}

// unnamedEvery is how often the objects that no fact names are looked for, at most: listing all objects is expensive.
// An upload that takes longer than this may have to be sent again.
const unnamedEvery = 24 * time.Hour

// A run deletes unnamed objects up to the greater of maxUnnamed and a tenth of all objects. Crashes and failed
// deletions leave fewer. More means that the Journal is not the one that these objects were made with: it is new, or an
// old copy.
const (
	maxUnnamed      = 100
	maxUnnamedShare = 10 // one in so many
)

// sweepUnnamed deletes objects that no fact names and that none can start to name; see place. Error: ErrSuspicious if
// there are too many, unless the run is for all; then none of them is deleted.
func (r *collection) sweepUnnamed(ctx context.Context, blobs Placed) error {
	raised := false
	var generation uint32
	err := r.Index.Update(ctx, storeRepo, func(tx *Tx) error {
		old, at := parseGeneration(tx.record(generationRecord))
		every := max(r.Grace, unnamedEvery)
		if r.all { // an administrator asks for it
			every = r.Grace
		}
		if raised = tx.now-at >= int64(every.Seconds()); raised {
			generation = old + 1
			tx.setRecord(generationRecord, generationValue(generation, tx.now))
			return nil
		}
		generation = old
		return nil
	})
	if err != nil || !raised && !r.all || generation < 2 {
		return err
	}
	// The Index shows the generation, and so all facts that named an object of two generations before; see place.
	named := r.Index.namedBefore(generation - 1)
	var free []Object
	objects := 0
	for object, err := range blobs.Objects(ctx) {
		if err != nil {
			return err
		}
		objects++
		p, ok := parsePlace(object.Place)
		if !ok || p.generation >= generation-1 {
			continue // not ours, or still young
		}
		if _, found := slices.BinarySearchFunc(named, p, place.compare); found {
			continue
		}
		free = append(free, object)
	}
	if len(free) > max(maxUnnamed, objects/maxUnnamedShare) && !r.all {
		err := fmt.Errorf("%w: the journal does not name %d of %d objects, which would be deleted; was it "+
			"replaced, or restored from an old copy?", ErrSuspicious, len(free), objects)
		r.suspicion.Store(&err)
		return err
	}
	for step := range slices.Chunk(free, sweepStep) {
		if err := r.Index.Suspicion(); err != nil && !r.all { // it may have come since the run began
			return err
		}
		places := make([]string, len(step))
		for i, object := range step {
			places[i] = object.Place
			r.done.Freed += object.Size
		}
		r.done.Deleted += len(step)
		if err := blobs.Remove(ctx, places...); err != nil {
			return err
		}
		r.progress()
	}
	r.suspicion.Store(nil)
	return nil
}

// forgetDeparted deletes the facts of KindDeparted of manifests that were deleted before a time.
func (r *collection) forgetDeparted(ctx context.Context, name string, since time.Time) error {
	if r.dry {
		return nil
	}
	for step := range slices.Chunk(r.Index.departedBefore(name, since), r.Index.step(unlinkStep, 1, 0)) {
		if err := r.Index.Update(ctx, name, func(tx *Tx) error {
			for _, k := range step {
				// Checked again inside the commit: the manifest may have been pushed and deleted again, in this commit
				// or before.
				_, changed := tx.fact(KindDeparted, string(k))
				if !changed && r.Index.isDepartedBefore(name, k, since) {
					tx.set(KindDeparted, string(k), nil)
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(p.generation, q.generation), slices.Compare(p.random[:], q.random[:]))
}

// namedBefore returns the places of contents whose generation is below this one, in order.
func (x *Index) namedBefore(generation uint32) (places []place) {
	x.mu.RLock()
	for _, p := range yielding(x, x.state.places) {
		if p.generation < generation {
			places = append(places, p)
		}
	}
	x.mu.RUnlock()
	slices.SortFunc(places, place.compare)
	return places
}

// placedContents lists the contents that have a place.
func (x *Index) placedContents() []key {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	keys := make([]key, 0, len(s.places))
	for c := range yielding(x, s.places) {
		keys = append(keys, s.keyOf(c).key())
	}
	return keys
}

// sizeOf returns the size of a content, as far as it is known.
func (x *Index) sizeOf(k key) int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if c := x.state.lookup([]byte(k)); c != 0 {
		return x.state.contents.At(c).size
	}
	return 0
}

// mark returns the value of the mark of a content that is condemned.
func (x *Index) mark(k key) []byte {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if v, ok := x.state.condemned[k]; ok {
		return []byte(v)
	}
	return nil
}
