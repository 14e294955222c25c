// Package slab keeps millions of small records in little memory, and finds them by a hash.
//
// # Words
//
//   - record: a value of any type, kept by a [Slab] and named by an [ID].
//   - chain: the records in one bucket of a [Table], linked through their slots.
//
// Why not maps and pointers: an ID is half the size of a pointer, records without pointers cost the garbage collector
// nothing, and a table has no entries of its own. The state of a registry takes half the memory that way.
//
// # Invariants
//
//  1. A record is in at most one table.
//  2. A record never moves: a pointer that [Slab.At] returned stays valid until [Slab.Remove].
//  3. A table has about one bucket per record, and no single change takes long: buckets are split and joined one by
//     one.
//
// # What it does not do
//
// It does not lock, and it never gives memory back: what is removed is used again.
package slab

import (
	"iter"
	"math/bits"
	"slices"
)

// ID names a record of a slab; 0 names none. The ID of a removed record is given out again.
type ID uint32

// pageSize is how many records a slab takes from the heap at once: a few dozen KiB, so an empty registry stays small,
// and a million records are only a thousand pieces for the garbage collector.
const pageSize = 1024

// Slab keeps records of one type. The zero value is empty. It is not safe for concurrent use.
type Slab[T any] struct {
	pages []*[pageSize]slot[T]
	used  ID // the highest ID that was ever given out
	free  ID // the first of the chain of free slots
}

type slot[T any] struct {
	record T
	next   ID     // the next in the chain of a table's bucket, or of free slots
	hash   uint32 // by which a table finds it
}

func (s *Slab[T]) slot(i ID) *slot[T] { return &s.pages[i/pageSize][i%pageSize] }

// At returns the record i, which must exist.
func (s *Slab[T]) At(i ID) *T { return &s.slot(i).record }

// Add keeps a record and returns its ID. Memory runs out before IDs do.
func (s *Slab[T]) Add(v T) ID {
	i := s.free
	if i != 0 {
		s.free = s.slot(i).next
	} else {
		s.used++
		if i = s.used; int(i/pageSize) == len(s.pages) {
			s.pages = append(s.pages, new([pageSize]slot[T]))
		}
	}
	*s.slot(i) = slot[T]{record: v}
	return i
}

// Remove frees a record, which must not be in a table any more.
func (s *Slab[T]) Remove(i ID) {
	// The whole slot is cleared, so that the record's strings and slices can be collected.
	*s.slot(i) = slot[T]{next: s.free}
	s.free = i
}

// Last returns the highest ID that was ever given out. Records below it may be free; a free record is a zero value.
func (s *Slab[T]) Last() ID { return s.used }

// Table finds records of a slab by a hash that the caller computes. It hashes linearly (Litwin 1980). It is not safe
// for concurrent use.
type Table[T any] struct {
	slab  *Slab[T]
	heads []ID // of the chains, one for each bucket
	len   int
}

// NewTable returns an empty table of records of s.
func NewTable[T any](s *Slab[T]) Table[T] { return Table[T]{slab: s} }

// Len returns the number of records in the table.
func (t *Table[T]) Len() int { return t.len }

// bucket returns the bucket of a hash.
func (t *Table[T]) bucket(hash uint32) int {
	n := len(t.heads)
	// As many bits as number all buckets; one bit less for a bucket that is not split yet.
	mask := 1<<bits.Len(uint(n-1)) - 1
	b := int(hash) & mask
	if b >= n {
		b &= mask >> 1
	}
	return b
}

// Find returns the record with this hash that match accepts, or 0. It allocates nothing.
func (t *Table[T]) Find(hash uint32, match func(ID) bool) ID {
	if len(t.heads) == 0 {
		return 0
	}
	for i := t.heads[t.bucket(hash)]; i != 0; {
		s := t.slab.slot(i)
		if s.hash == hash && match(i) {
			return i
		}
		i = s.next
	}
	return 0
}

// Add puts a record in.
func (t *Table[T]) Add(i ID, hash uint32) {
	if t.len == len(t.heads) {
		t.split()
	}
	t.len++
	t.slab.slot(i).hash = hash
	t.push(i)
}

// split adds one bucket. It gets its part of the one bucket that had both until now.
func (t *Table[T]) split() {
	n := len(t.heads)
	if n == 0 {
		t.heads = make([]ID, 1, 8) // enough for one image
		return
	}
	t.heads = append(t.heads, 0)
	old := &t.heads[n&^(1<<(bits.Len(uint(n))-1))]
	chain := *old
	*old = 0
	t.spread(chain)
}

func (t *Table[T]) push(i ID) {
	s := t.slab.slot(i)
	head := &t.heads[t.bucket(s.hash)]
	s.next, *head = *head, i
}

// spread puts each record of a chain into the bucket where it belongs now.
func (t *Table[T]) spread(i ID) {
	for i != 0 {
		next := t.slab.slot(i).next
		t.push(i)
		i = next
	}
}

// Remove takes a record out, which must be in the table.
func (t *Table[T]) Remove(i ID) {
	at := &t.heads[t.bucket(t.slab.slot(i).hash)]
	for *at != i {
		at = &t.slab.slot(*at).next
	}
	*at = t.slab.slot(i).next
	t.len--
	for t.len < len(t.heads)/2 { // at most two rounds
		t.join()
	}
}

// join undoes split.
func (t *Table[T]) join() {
	last := len(t.heads) - 1
	chain := t.heads[last]
	t.heads = t.heads[:last]
	t.spread(chain)
	if cap(t.heads) > 4*last { // an emptied repository must not keep a large array
		t.heads = slices.Clone(t.heads)
	}
}

// All returns the records of the table, in no order. The table must not change meanwhile.
func (t *Table[T]) All() iter.Seq[ID] {
	return func(yield func(ID) bool) {
		for _, i := range t.heads {
			for ; i != 0; i = t.slab.slot(i).next {
				if !yield(i) {
					return
				}
			}
		}
	}
}

// Walk is All for a table that changes, but only while pause runs: Walk calls it between two buckets, once it has
// returned so many records, or a few more, since the last call. It may return records that pause adds or removes, or
// not. Of the others, a split can make it return some twice, and a join can make it skip some.
func (t *Table[T]) Walk(every int, pause func()) iter.Seq[ID] {
	return func(yield func(ID) bool) {
		n := 0
		for b := 0; b < len(t.heads); b++ {
			for i := t.heads[b]; i != 0; i = t.slab.slot(i).next {
				if n++; !yield(i) {
					return
				}
			}
			if n >= every {
				n = 0
				pause()
			}
		}
	}
}
