package mirror

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Reserve reserves n bytes, and evicts content if there is no room for them. The caller calls release when the bytes
// are stored, which Added counts, or will not be. ok is false if n exceeds the limit, or nothing more can be evicted,
// or an eviction failed. A nil Cache has no limit.
func (c *Cache) Reserve(n int64) (release func(), ok bool) {
	switch {
	case c == nil:
		return func() {}, true
	case n > c.limit.Load():
		return nil, false
	case c.take(n):
		return c.releaseOf(n), true
	}
	c.evicting.Lock()
	defer c.evicting.Unlock()
	if c.shared != nil {
		if !c.reserveShared(n) {
			return nil, false
		}
		return c.releaseOf(n), true
	}
	if time.Since(c.failed) < retryEviction { // those who have waited for one that failed need not fail one by one
		return nil, false
	}
	for !c.take(n) { // first: the eviction for which this call has waited may have left room
		// Not a client's context: the room serves the next download as well. The bound is for a journal or storage that
		// does not answer: all other downloads without room wait for evicting.
		ctx, cancel := context.WithTimeout(context.Background(), evictTime)
		c.mu.Lock()
		want := c.used + c.reserved + n - c.limit.Load()
		c.mu.Unlock()
		freed, err := c.evict(ctx, want)
		cancel()
		if err != nil {
			c.failed = time.Now()
		}
		if err != nil || !freed {
			return nil, false
		}
	}
	return c.releaseOf(n), true
}

// take reserves n bytes if they are free. The comparison and the reservation are one step, so that downloads at the
// same time do not exceed the limit together.
func (c *Cache) take(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shared == nil && c.used+c.reserved+n > c.limit.Load() ||
		c.shared != nil && c.reserved+c.shared.spent+n > c.shared.bytes {
		return false
	}
	c.reserved += n
	return true
}

// releaseOf returns the function that gives back n reserved bytes, once.
func (c *Cache) releaseOf(n int64) func() {
	var once sync.Once
	return func() {
		once.Do(func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.reserved -= n; c.shared != nil { // see sharing.spent
				c.shared.spent += n
			}
		})
	}
}

// evict evicts one step of contents, of about so many bytes. freed is false if nothing can be evicted. The caller holds
// evicting. Errors: those of the store.
func (c *Cache) evict(ctx context.Context, bytes int64) (freed bool, err error) {
	all, bytes := c.oldest(bytes)
	if len(all) == 0 {
		return false, nil
	}
	free, err := c.depart(ctx, all, bytes)
	defer c.arrive()
	var stay []digest.Digest
	if err == nil {
		stay, err = c.store.Evict(ctx, free)
	}
	reads := map[digest.Digest]bool{} // by another replica
	for _, d := range all {
		reads[d] = err == nil && !slices.Contains(free, d)
	}
	stays := map[digest.Digest]bool{}
	for _, d := range stay {
		stays[d] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range all {
		e := c.items[d]
		switch {
		case e == nil:
		case reads[d]:
			e.Value.(*item).going = false
			c.touch(e)
			freed = true // another step chooses others
		case err != nil: // how much was evicted is not known; the next Look finds out, and others are tried first
			e.Value.(*item).going = false
			c.touch(e)
		case stays[d]: // it cannot be evicted, so it must not be chosen again before the next Look has counted it
			c.remove(e)
			freed = true
		default:
			c.goes(e)
			freed = true
		}
	}
	return freed, err
}

// oldest returns the contents to evict next, with at least so many bytes, but at most evictStep contents; and their
// bytes. Those that are kept are chosen only if there is no other.
func (c *Cache) oldest(want int64) (all []digest.Digest, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, kept := range []bool{false, true} {
		for e := c.order.Back(); e != nil && want > 0 && len(all) < evictStep; e = e.Prev() {
			if i := e.Value.(*item); i.readers == 0 && i.counts && i.kept == kept {
				all = append(all, i.digest)
				i.going = true
				want -= i.size
				bytes += i.size
			}
		}
		if len(all) > 0 {
			break
		}
	}
	return all, bytes
}
