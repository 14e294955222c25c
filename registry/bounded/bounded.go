// Package bounded is a map of a bounded number of entries, for what is remembered of clients: entries in use stay.
// Where no entry is ever in use, golang-lru alone is enough.
package bounded

import (
	"math"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Map holds at most max entries beside those in use; the one that was used least recently is removed first. Make it
// with [New]. Not safe for concurrent use.
type Map[K comparable, V any] struct {
	all   *simplelru.LRU[K, V]
	max   int
	inUse func(V) bool
}

// New returns an empty Map. Entries for which inUse returns true are not removed, even if there are more than max of
// them: the caller bounds their number by other means.
func New[K comparable, V any](max int, inUse func(V) bool) *Map[K, V] {
	all, err := simplelru.NewLRU[K, V](math.MaxInt, nil) // Add bounds it: simplelru would remove entries in use
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &Map[K, V]{all, max, inUse}
}

// Get returns the value of a key, and marks the entry as used.
func (m *Map[K, V]) Get(key K) (V, bool) { return m.all.Get(key) }

// Len returns the number of entries.
func (m *Map[K, V]) Len() int { return m.all.Len() }

// Add sets the value of a key, marks the entry as used, and removes others if there are too many.
func (m *Map[K, V]) Add(key K, v V) {
	m.all.Add(key, v)
	// Each step removes one entry or moves one to the front, so that Len steps look at each entry once.
	for n := m.all.Len(); n > 0 && m.all.Len() > m.max; n-- {
		oldest, v, _ := m.all.GetOldest()
		if m.inUse(v) {
			m.all.Get(oldest) // moves it to the front
			continue
		}
		m.all.Remove(oldest)
	}
}
