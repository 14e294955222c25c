package registry

import (
	"container/list"
	"sync"
)

// cache keeps values that were derived from content, under a key that identifies that content, so that no value is ever
// stale. It is bounded by bytes and evicts the least recently used value first.
type cache[K comparable, V any] struct {
	limit int

	mu    sync.Mutex // guards all below
	used  int
	order list.List // of *cached[K, V], the most recently used in front
	items map[K]*list.Element
}

type cached[K comparable, V any] struct {
	key   K
	value V
	size  int
}

func newCache[K comparable, V any](limit int) *cache[K, V] {
	return &cache[K, V]{limit: limit, items: map[K]*list.Element{}}
}

func (c *cache[K, V]) get(k K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[k]
	if !ok {
		return v, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached[K, V]).value, true
}

// put keeps a value of size bytes, unless it is so large that it would evict too many others.
func (c *cache[K, V]) put(k K, v V, size int) {
	const overhead = 256 // of an entry: key, list element, map slot
	size += overhead
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.items[k]; ok || size > c.limit/8 {
		return
	}
	c.items[k] = c.order.PushFront(&cached[K, V]{k, v, size})
	for c.used += size; c.used > c.limit; {
		c.evict(c.order.Back())
	}
}

// remove deletes a value, if there is one.
func (c *cache[K, V]) remove(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.items[k]; ok {
		c.evict(e)
	}
}

// evict deletes an element. The caller holds mu.
func (c *cache[K, V]) evict(e *list.Element) {
	item := c.order.Remove(e).(*cached[K, V])
	delete(c.items, item.key)
	c.used -= item.size
}
