package mirror

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// CacheStore is the registry as the Cache needs it.
type CacheStore interface {
	// Cached lists what may be evicted, each content once.
	Cached(ctx context.Context) iter.Seq[CachedContent]
	// Evict makes all repositories of upstreams let go of contents, and deletes their bytes. It returns those that
	// stay.
	Evict(ctx context.Context, all []digest.Digest) (stay []digest.Digest, err error)
	// Records and SetRecord are those of a storage.Index.
	Records(prefix string) iter.Seq2[string, []byte]
	SetRecord(ctx context.Context, name string, old, value []byte) error
}

// CachedContent is a content that may be evicted.
type CachedContent struct {
	Digest digest.Digest
	Size   int64 // bytes
	Pushed bool  // another repository holds it as well, so that its bytes stay in any case
	Kept   bool  // it goes last
}

// Cache bounds how many bytes the content of upstreams takes, and decides what goes: what was used longest ago, what is
// to be kept last, and nothing that is being read. Content that was pushed as well does not count. It is safe for
// concurrent use.
//
// When a content was last used is in memory, and is written to the journal once an hour, many in one record.
type Cache struct {
	store CacheStore
	limit int64

	evicting sync.Mutex // held while room is made; taken before mu

	mu       sync.Mutex // guards all below
	items    map[digest.Digest]*list.Element
	order    list.List // of *item, the last used first
	used     int64     // bytes of items that count
	reserved int64     // bytes
	looked   bool
	written  map[string][]byte // the records of last uses, as they are in the journal
	evicted  int64             // bytes, since the start
}

// item is a cached content.
type item struct {
	digest  digest.Digest
	size    int64
	hour    uint32 // of the last use, since 1970
	readers int
	counts  bool // it was not pushed as well
	kept    bool
	seen    bool // by the look that is under way
}

// evictStep is how many contents are evicted at once, at most.
const evictStep = 32

// NewCache returns a Cache of at most limit bytes. It needs a store before it is used; see Attach.
func NewCache(limit int64) *Cache {
	return &Cache{limit: limit, items: map[digest.Digest]*list.Element{}, written: map[string][]byte{}}
}

// Attach gives the Cache its store. It is called once, before any other method.
func (c *Cache) Attach(store CacheStore) { c.store = store }

const (
	// lookInterval is the time between two looks.
	lookInterval = time.Minute
	// saveInterval is how often last uses are written.
	saveInterval = time.Hour
)

// Run looks, and writes last uses, until ctx is done. Then it writes them once more.
func (c *Cache) Run(ctx context.Context) error {
	look, save := time.NewTicker(lookInterval), time.NewTicker(saveInterval)
	defer look.Stop()
	defer save.Stop()
	c.Look(ctx)
	for {
		select {
		case <-look.C:
			c.Look(ctx)
		case <-save.C:
			_ = c.Save(ctx) // in an hour again; what is lost is an hour of last uses
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTime)
			defer cancel()
			_ = c.Save(last)
			return nil
		}
	}
}

// saveTime bounds the last write: the server ends.
const saveTime = 5 * time.Second

func hourOf(t time.Time) uint32 { return uint32(t.Unix() / 3600) }

// Look brings the Cache up to what the registry holds. It is called at the start, and now and then: other processes,
// imports and deletions change that too.
func (c *Cache) Look(ctx context.Context) {
	c.mu.Lock()
	first := !c.looked
	c.looked = true
	for e := c.order.Front(); e != nil; e = e.Next() {
		e.Value.(*item).seen = false
	}
	c.mu.Unlock()
	for content := range c.store.Cached(ctx) {
		c.mu.Lock()
		c.add(content.Digest, content.Size, !content.Pushed, !first).kept = content.Kept
		c.mu.Unlock()
	}
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	for e := c.order.Front(); e != nil; {
		next := e.Next()
		if i := e.Value.(*item); !i.seen && i.readers == 0 {
			c.remove(e)
		}
		e = next
	}
	c.mu.Unlock()
	if first {
		c.restore()
	}
}

// add notes that a content is cached. With recent it counts as used now. The caller holds mu.
func (c *Cache) add(d digest.Digest, size int64, counts, recent bool) *item {
	e := c.items[d]
	if e == nil {
		e = c.order.PushBack(&item{digest: d})
		c.items[d] = e
		if recent {
			c.touch(e)
		}
	}
	i := e.Value.(*item)
	if i.counts {
		c.used -= i.size
	}
	if i.size, i.counts, i.seen = size, counts, true; counts {
		c.used += size
	}
	return i
}

// remove forgets an item. The caller holds mu.
func (c *Cache) remove(e *list.Element) {
	i := e.Value.(*item)
	if i.counts {
		c.used -= i.size
	}
	c.order.Remove(e)
	delete(c.items, i.digest)
}

// touch makes an item the last used one. The caller holds mu.
func (c *Cache) touch(e *list.Element) {
	e.Value.(*item).hour = hourOf(time.Now())
	c.order.MoveToFront(e)
}

// Added notes a content that was stored. It counts as used now.
func (c *Cache) Added(d digest.Digest, size int64) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(d, size, true, true) // if it was pushed as well, the next look finds that out
}

// Use notes that a content is read, and keeps it from being evicted until release is called.
func (c *Cache) Use(d digest.Digest) (release func()) {
	if c == nil {
		return func() {}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.items[d]
	if e == nil {
		return func() {}
	}
	i := e.Value.(*item)
	i.readers++
	c.touch(e)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		i.readers--
	}
}

// Reserve makes room for n bytes, and evicts for that. release gives them back; what was stored meanwhile counts by
// itself. It reports false if there is no room. A nil Cache has room for everything.
func (c *Cache) Reserve(n int64) (release func(), ok bool) {
	switch {
	case c == nil:
		return func() {}, true
	case n > c.limit:
		return nil, false
	case c.take(n):
		return c.releaseOf(n), true
	}
	c.evicting.Lock()
	defer c.evicting.Unlock()
	for !c.take(n) { // another one may have made room
		// A download in whose way others stand takes as long as they do: it must not wait for ever.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		freed, err := c.evict(ctx, n)
		cancel()
		if err != nil || !freed {
			return nil, false
		}
	}
	return c.releaseOf(n), true
}

func (c *Cache) take(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used+c.reserved+n > c.limit {
		return false
	}
	c.reserved += n
	return true
}

func (c *Cache) releaseOf(n int64) func() {
	var once sync.Once
	return func() {
		once.Do(func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.reserved -= n
		})
	}
}

// evict makes room for n bytes by one step. It reports false if nothing can go.
func (c *Cache) evict(ctx context.Context, n int64) (freed bool, err error) {
	all := c.oldest(n)
	if len(all) == 0 {
		return false, nil
	}
	stay, err := c.store.Evict(ctx, all)
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
		case err != nil: // what has happened is not known: the next look finds out
			c.touch(e)
		case stays[d]: // it was pushed, or a manifest that was pushed refers to it
			c.remove(e)
			freed = true
		default:
			c.evicted += e.Value.(*item).size
			c.remove(e)
			freed = true
		}
	}
	return freed, err
}

// oldest returns what goes next: enough for n bytes, at most evictStep.
func (c *Cache) oldest(n int64) (all []digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	want := c.used + c.reserved + n - c.limit
	for _, kept := range []bool{false, true} {
		for e := c.order.Back(); e != nil && want > 0 && len(all) < evictStep; e = e.Prev() {
			if i := e.Value.(*item); i.readers == 0 && i.counts && i.kept == kept {
				all = append(all, i.digest)
				want -= i.size
			}
		}
		if len(all) > 0 {
			break
		}
	}
	return all
}

// Stats are what a Cache has.
type Stats struct {
	Limit, Used, Reserved, Evicted int64 // bytes; evicted since the start
	Contents                       int
}

// Stats returns what the Cache has.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{c.limit, c.used, c.reserved, c.evicted, c.order.Len()}
}

// usedRecord begins the names of the records of last uses: one for each first byte of the digests, so that a change
// writes a part of them.
const usedRecord = "cache/used/"

// usedLength is the length of one last use: the first 8 bytes of the digest, and the hour.
const usedLength = 12

// usedOf returns the key of a last use; ok is false for a digest that has none.
func usedOf(d digest.Digest) (key [usedLength - 4]byte, ok bool) {
	encoded := d.Encoded()
	if len(encoded) < 2*len(key) {
		return key, false
	}
	_, err := hex.Decode(key[:], []byte(encoded[:2*len(key)]))
	return key, err == nil
}

// Save writes the last uses that have changed since they were written. Errors: those of the journal.
func (c *Cache) Save(ctx context.Context) error {
	uses := map[string][][]byte{}
	c.mu.Lock()
	for e := c.order.Front(); e != nil; e = e.Next() {
		if key, ok := usedOf(e.Value.(*item).digest); ok {
			name := usedRecord + hex.EncodeToString(key[:1])
			uses[name] = append(uses[name], binary.BigEndian.AppendUint32(key[:], e.Value.(*item).hour))
		}
	}
	old := maps.Clone(c.written)
	c.mu.Unlock()
	shards := map[string][]byte{}
	for name := range old {
		shards[name] = nil // unless something of it is left
	}
	for name, all := range uses {
		slices.SortFunc(all, bytes.Compare) // so that only what has changed makes a difference
		shards[name] = bytes.Join(all, nil)
	}
	var errs []error
	for name, value := range shards {
		if bytes.Equal(old[name], value) {
			continue
		}
		if err := c.store.SetRecord(ctx, name, old[name], value); err != nil {
			errs = append(errs, err)
			continue
		}
		c.mu.Lock()
		c.written[name] = value
		c.mu.Unlock()
	}
	if errors.Is(errors.Join(errs...), storage.ErrConflict) { // another replica has written its own
		c.restore()
		return nil
	}
	return errors.Join(errs...)
}

// restore takes the last uses from the journal, where they are later than what is known here.
func (c *Cache) restore() {
	hours := map[[usedLength - 4]byte]uint32{}
	written := map[string][]byte{}
	for name, value := range c.store.Records(usedRecord) {
		written[name] = value
		for ; len(value) >= usedLength; value = value[usedLength:] {
			hours[[usedLength - 4]byte(value)] = binary.BigEndian.Uint32(value[usedLength-4:])
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written = written
	var all []*list.Element
	for e := c.order.Front(); e != nil; e = e.Next() {
		if key, ok := usedOf(e.Value.(*item).digest); ok {
			e.Value.(*item).hour = max(e.Value.(*item).hour, hours[key])
		}
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b *list.Element) int {
		return cmp.Compare(b.Value.(*item).hour, a.Value.(*item).hour)
	})
	for _, e := range all {
		c.order.MoveToBack(e)
	}
}
