package storage

import (
	"iter"
	"math/bits"
	"slices"
)

// id names a record of a slab; 0 is none. It is valid under the lock of the state only: the record of a removed one
// is given out again.
type id uint32

// slabPage is how many records a slab takes from the heap at once: some dozen KiB, which an empty registry does not
// feel, and a million records are a thousand pieces for the garbage collector.
const slabPage = 1024

// slab keeps records of one type. Half the size of a pointer suffices to refer to one; those without pointers cost the
// garbage collector nothing, and growing moves none. What is removed is reused, not given back to the heap.
type slab[T any] struct {
	pages []*[slabPage]slot[T]
	used  id // the highest id that was ever given out
	free  id // the first of those that are free again
}

type slot[T any] struct {
	record T
	next   id     // in the chain of a table's bucket, or of the free ones
	hash   uint32 // by which a table finds it
}

func (s *slab[T]) slot(i id) *slot[T] { return &s.pages[i/slabPage][i%slabPage] }

func (s *slab[T]) at(i id) *T { return &s.slot(i).record }

// add keeps a record. Memory ends before the ids do.
func (s *slab[T]) add(v T) id {
	i := s.free
	if i != 0 {
		s.free = s.slot(i).next
	} else {
		s.used++
		if i = s.used; int(i/slabPage) == len(s.pages) {
			s.pages = append(s.pages, new([slabPage]slot[T]))
		}
	}
	*s.slot(i) = slot[T]{record: v}
	return i
}

// remove frees a record, which is in no table any more.
func (s *slab[T]) remove(i id) {
	*s.slot(i) = slot[T]{next: s.free}
	s.free = i
}

// table finds records of a slab by a hash; a record is in one table at most. It hashes linearly (Litwin): there is
// about a bucket for each record, and they are split and joined one by one, so that no change takes long, however many
// there are.
type table[T any] struct {
	slab  *slab[T]
	heads []id // of the chains, one for each bucket
	len   int
}

// bucket tells where a hash belongs: by as many of its bits as number all buckets, or one less for those that are not
// split yet.
func (t *table[T]) bucket(hash uint32) int {
	n := len(t.heads)
	mask := 1<<bits.Len(uint(n-1)) - 1
	b := int(hash) & mask
	if b >= n {
		b &= mask >> 1
	}
	return b
}

// first returns a record with a hash, and next the others after it. Others than the one that is wanted are rare.
func (t *table[T]) first(hash uint32) id {
	if len(t.heads) == 0 {
		return 0
	}
	return t.match(t.heads[t.bucket(hash)], hash)
}

func (t *table[T]) next(i id, hash uint32) id { return t.match(t.slab.slot(i).next, hash) }

func (t *table[T]) match(i id, hash uint32) id {
	for i != 0 {
		s := t.slab.slot(i)
		if s.hash == hash {
			break
		}
		i = s.next
	}
	return i
}

func (t *table[T]) add(i id, hash uint32) {
	if t.len == len(t.heads) {
		t.split()
	}
	t.len++
	t.slab.slot(i).hash = hash
	t.push(i)
}

// split adds a bucket, with what belongs into it now of the one that had both before.
func (t *table[T]) split() {
	n := len(t.heads)
	if n == 0 {
		t.heads = make([]id, 1, 8) // what one image takes
		return
	}
	t.heads = append(t.heads, 0)
	old := &t.heads[n&^(1<<(bits.Len(uint(n))-1))]
	chain := *old
	*old = 0
	t.spread(chain)
}

func (t *table[T]) push(i id) {
	s := t.slab.slot(i)
	head := &t.heads[t.bucket(s.hash)]
	s.next, *head = *head, i
}

// spread puts the records of a chain where they belong now.
func (t *table[T]) spread(i id) {
	for i != 0 {
		next := t.slab.slot(i).next
		t.push(i)
		i = next
	}
}

// remove takes a record out, which must be in.
func (t *table[T]) remove(i id) {
	at := &t.heads[t.bucket(t.slab.slot(i).hash)]
	for *at != i {
		at = &t.slab.slot(*at).next
	}
	*at = t.slab.slot(i).next
	t.len--
	for t.len < len(t.heads)/2 { // twice at the most
		t.join()
	}
}

// join undoes split.
func (t *table[T]) join() {
	last := len(t.heads) - 1
	chain := t.heads[last]
	t.heads = t.heads[:last]
	t.spread(chain)
	if cap(t.heads) > 4*last {
		t.heads = slices.Clone(t.heads)
	}
}

// all lists the records, in no order. The table must not change meanwhile.
func (t *table[T]) all() iter.Seq[id] {
	return func(yield func(id) bool) {
		for _, i := range t.heads {
			for ; i != 0; i = t.slab.slot(i).next {
				if !yield(i) {
					return
				}
			}
		}
	}
}
