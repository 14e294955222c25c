// Package crowd says who gives way when all places are taken: the oldest of the holder of most, so that a client that
// takes more than the others loses its own, and a new one gets a place.
package crowd

import (
	"container/heap"
	"container/list"
	"iter"
)

// Crowd is a set of things that can give way to new ones. K is what they count for, an address for example, and V
// what they are. The zero value is empty. A Crowd is not safe for concurrent use.
type Crowd[K comparable, V any] struct {
	groups map[K]*Group[K, V]
	order  groupHeap[K, V]
	next   uint64 // number of the next member
	n      int    // members
}

// Group are the members of one key. It is not empty.
type Group[K comparable, V any] struct {
	Key     K
	members list.List // of *Member, the oldest first
	weight  int64     // of all members
	index   int       // in the heap
}

// Member is one of a Crowd.
type Member[K comparable, V any] struct {
	Value  V
	weight int64
	number uint64 // members have increasing numbers
	group  *Group[K, V]
	at     *list.Element
}

// Add adds a member that holds weight.
func (c *Crowd[K, V]) Add(key K, weight int64, value V) *Member[K, V] {
	if c.groups == nil {
		c.groups = map[K]*Group[K, V]{}
	}
	g := c.groups[key]
	if g == nil {
		g = &Group[K, V]{Key: key}
		c.groups[key] = g
		heap.Push(&c.order, g)
	}
	m := &Member[K, V]{Value: value, weight: weight, number: c.next, group: g}
	c.next++
	c.n++
	m.at = g.members.PushBack(m)
	g.weight += weight
	heap.Fix(&c.order, g.index)
	return m
}

// Remove removes a member, once.
func (c *Crowd[K, V]) Remove(m *Member[K, V]) {
	g := m.group
	c.n--
	g.members.Remove(m.at)
	g.weight -= m.weight
	if g.members.Len() > 0 {
		heap.Fix(&c.order, g.index)
		return
	}
	heap.Remove(&c.order, g.index)
	delete(c.groups, g.Key)
}

// First returns the oldest member of the key that holds most, or nil without members. Of keys that hold the same, it is
// the one with the oldest member.
func (c *Crowd[K, V]) First() *Member[K, V] {
	if len(c.order) == 0 {
		return nil
	}
	return c.order[0].oldest()
}

// FirstOf returns the oldest member of a key, or nil if the key has no member.
func (c *Crowd[K, V]) FirstOf(key K) *Member[K, V] {
	if g := c.groups[key]; g != nil {
		return g.oldest()
	}
	return nil
}

// Of returns what a key holds.
func (c *Crowd[K, V]) Of(key K) int64 {
	if g := c.groups[key]; g != nil {
		return g.weight
	}
	return 0
}

// Len returns the number of members.
func (c *Crowd[K, V]) Len() int { return c.n }

// Groups yields the key that holds most, and then the others, in no particular order.
func (c *Crowd[K, V]) Groups() iter.Seq[*Group[K, V]] {
	return func(yield func(*Group[K, V]) bool) {
		for _, g := range c.order {
			if !yield(g) {
				return
			}
		}
	}
}

// Group returns the members of the same key.
func (m *Member[K, V]) Group() *Group[K, V] { return m.group }

// Weight returns what the member holds.
func (m *Member[K, V]) Weight() int64 { return m.weight }

// Weight returns what all members hold.
func (g *Group[K, V]) Weight() int64 { return g.weight }

// Newest returns the member that was added last.
func (g *Group[K, V]) Newest() *Member[K, V] { return g.members.Back().Value.(*Member[K, V]) }

// Members yields the members, the oldest first.
func (g *Group[K, V]) Members() iter.Seq[*Member[K, V]] {
	return func(yield func(*Member[K, V]) bool) {
		for at := g.members.Front(); at != nil; at = at.Next() {
			if !yield(at.Value.(*Member[K, V])) {
				return
			}
		}
	}
}

func (g *Group[K, V]) oldest() *Member[K, V] { return g.members.Front().Value.(*Member[K, V]) }

// groupHeap has the group with the most weight first; of equal ones, that with the oldest member.
type groupHeap[K comparable, V any] []*Group[K, V]

func (h groupHeap[K, V]) Len() int { return len(h) }
func (h groupHeap[K, V]) Less(i, j int) bool {
	if h[i].weight != h[j].weight {
		return h[i].weight > h[j].weight
	}
	if h[i].members.Len() == 0 || h[j].members.Len() == 0 { // Add pushes a group before its first member
		return false
	}
	return h[i].oldest().number < h[j].oldest().number
}

func (h groupHeap[K, V]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *groupHeap[K, V]) Push(x any) {
	g := x.(*Group[K, V])
	g.index = len(*h)
	*h = append(*h, g)
}

func (h *groupHeap[K, V]) Pop() any {
	last := len(*h) - 1
	g := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return g
}
