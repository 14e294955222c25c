package mirror

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// This file has what others use of a Cache: when a content was last used, that it will be, and the eviction of chosen
// contents.

// Used returns the hour in which a cached content was used last; the zero time if that is not known, or the content is
// not cached.
func (c *Cache) Used(d digest.Digest) time.Time {
	if c == nil {
		return time.Time{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.items[d]; e != nil && e.Value.(*item).hour > 0 {
		return time.Unix(int64(e.Value.(*item).hour)*3600, 0)
	}
	return time.Time{}
}

// Touch notes that contents will be read soon: they count as used now, so that they are evicted after all others.
// Unlike Use it waits for nothing, and leaves out what is not cached or is being evicted.
func (c *Cache) Touch(all []digest.Digest) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range all {
		if e := c.items[d]; e != nil {
			c.touch(e)
		}
	}
}

// Reading reports whether any of these contents is being read.
func (c *Cache) Reading(all []digest.Digest) bool {
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(all, func(d digest.Digest) bool {
		e := c.items[d]
		return e != nil && e.Value.(*item).readers > 0
	})
}

// EvictChosen evicts contents by calling evict with some of them at a time, and returns those that it has spared
// because they are being read. evict returns which of them no repository below f/ holds any more. Only contents that a
// Look has found since they were stored are protected while they are read, so the caller calls Look first. Errors:
// those of evict, after which some contents may have been evicted.
func (c *Cache) EvictChosen(ctx context.Context, all []digest.Digest,
	evict func(context.Context, []digest.Digest) (gone []digest.Digest, err error)) (spared []digest.Digest,
	err error) {
	if c == nil {
		_, err := evict(ctx, all)
		return nil, err
	}
	for step := range slices.Chunk(all, evictStep) {
		if err := ctx.Err(); err != nil {
			return spared, err
		}
		some, err := c.evictSome(ctx, step, evict)
		if spared = append(spared, some...); err != nil {
			return spared, err
		}
	}
	return spared, nil
}

// evictSome is EvictChosen for one call of evict. Downloads that need room wait for it, and so do reads of what it
// evicts.
func (c *Cache) evictSome(ctx context.Context, all []digest.Digest,
	evict func(context.Context, []digest.Digest) ([]digest.Digest, error)) (spared []digest.Digest, err error) {
	c.evicting.Lock()
	defer c.evicting.Unlock()
	var going []digest.Digest
	c.mu.Lock()
	for _, d := range all {
		e := c.items[d]
		switch {
		case e != nil && e.Value.(*item).readers > 0:
			spared = append(spared, d)
			continue
		case e != nil:
			e.Value.(*item).going = true // see Use
		}
		going = append(going, d)
	}
	c.mu.Unlock()
	// A client that disconnects does not interrupt a step: the bytes of removed facts would stay until a collection.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), evictTime)
	defer cancel()
	gone, err := evict(ctx, going)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range going {
		if e := c.items[d]; e != nil {
			e.Value.(*item).going = false
		}
	}
	for _, d := range gone {
		if e := c.items[d]; e != nil {
			c.goes(e)
		}
	}
	return spared, err
}
