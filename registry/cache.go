package registry

import (
	"container/list"
	"sync"
)

// cache keeps what was made of content, by what names that, so that it is never stale. It is bounded by bytes: what was
// not asked for the longest goes first.
type cache[K comparable, V any] struct {
	limit int

	mu    sync.Mutex // guards all below
	used  int
	order list.List // of *cached[K, V], the freshest in front
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

// put keeps a value of size bytes, unless it is so large that it would displace too many others.
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
		c.drop(c.order.Back())
	}
}

// remove forgets a value.
func (c *cache[K, V]) remove(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.items[k]; ok {
		c.drop(e)
	}
}

func (c *cache[K, V]) drop(e *list.Element) {
	item := c.order.Remove(e).(*cached[K, V])
	delete(c.items, item.key)
	c.used -= item.size
}
