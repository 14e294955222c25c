package registry

import (
	"container/list"
	"sync"

	"github.com/opencontainers/go-digest"
)

// cache keeps what was made of content, by digest, so that it is never stale. It is bounded by bytes: what was
// not asked for the longest goes first.
type cache[V any] struct {
	limit int

	mu    sync.Mutex // guards all below
	used  int
	order list.List // of *cached[V], the freshest in front
	items map[digest.Digest]*list.Element
}

type cached[V any] struct {
	key   digest.Digest
	value V
	size  int
}

func newCache[V any](limit int) *cache[V] {
	return &cache[V]{limit: limit, items: map[digest.Digest]*list.Element{}}
}

func (c *cache[V]) get(d digest.Digest) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[d]
	if !ok {
		return v, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached[V]).value, true
}

// put keeps a value of size bytes, unless it is so large that it would displace too many others.
func (c *cache[V]) put(d digest.Digest, v V, size int) {
	const overhead = 256 // of an entry: key, list element, map slot
	size += overhead
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.items[d]; ok || size > c.limit/8 {
		return
	}
	c.items[d] = c.order.PushFront(&cached[V]{d, v, size})
	for c.used += size; c.used > c.limit; {
		c.drop(c.order.Back())
	}
}

// remove forgets a value.
func (c *cache[V]) remove(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.items[d]; ok {
		c.drop(e)
	}
}

func (c *cache[V]) drop(e *list.Element) {
	item := c.order.Remove(e).(*cached[V])
	delete(c.items, item.key)
	c.used -= item.size
}
