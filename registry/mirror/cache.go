package mirror

import (
	"container/list"
	"context"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// CacheStore is the registry as the Cache needs it.
type CacheStore interface {
	// Cached lists what may be evicted, each content once.
	Cached(ctx context.Context) iter.Seq[CachedContent]
	// Evict removes contents from all repositories below f/, and deletes the bytes that no repository holds any more.
	// It returns the contents that a repository below f/ keeps: those that were pushed there, and those to which a
	// pushed manifest refers. Errors: those of the engines; how much was done is not known then.
	Evict(ctx context.Context, all []digest.Digest) (stay []digest.Digest, err error)
	// Records and SetRecord are those of a storage.Index.
	Records(prefix string) iter.Seq2[string, []byte]
	// Notify makes the store call changed after records with a prefix have changed; changed calls nothing of the store.
	Notify(prefix string, changed func())
	SetRecord(ctx context.Context, name string, old, value []byte) error
}

// CachedContent is a content that may be evicted.
type CachedContent struct {
	Digest digest.Digest
	Size   int64 // bytes
	Pushed bool  // a repository that does not let it go holds it as well, so evicting it would free nothing
	Kept   bool  // keep: of an upstream names it; it is evicted last
}

// Cache bounds the bytes that the content of upstreams takes, and chooses what to evict: the least recently used
// content first, content that settings keep (keep:) only if there is no other, and nothing that this process is
// reading. Content that was pushed as well does not count. It is safe for concurrent use.
//
// With several replicas there is one bound for all; see board.go.
//
// The times of last use are kept in memory, and written to the journal once an hour, in up to 256 records. A crash
// loses at most an hour of them, which affects only the order of eviction.
type Cache struct {
	store  CacheStore
	limit  atomic.Int64
	lower  chan struct{} // has an element after the limit was lowered
	shared *sharing      // nil: no other process stores

	looking  sync.Mutex // held during Look, which marks what it has seen; taken after evicting, and before mu
	evicting sync.Mutex // held during evictions, so that two do not choose the same contents; taken before mu
	failed   time.Time  // when an eviction last failed; guarded by evicting

	mu       sync.Mutex // guards all below; not held while the store is called
	items    map[digest.Digest]*list.Element
	order    list.List              // of *item, the most recently used first
	used     int64                  // bytes of items that count
	reserved int64                  // bytes of downloads under way
	looked   bool                   // the first Look has begun
	gone     map[digest.Digest]bool // what was evicted since the Look that is under way has begun; nil: there is none
	written  map[string][]byte      // the records of last uses, as they are in the journal
	evicted  int64                  // bytes, since the start
}

// item is a cached content.
type item struct {
	digest  digest.Digest
	size    int64
	hour    uint32    // of the last use, in hours since 1970
	readers int       // reads under way; with any, it is not evicted
	counts  bool      // its bytes count: it was not pushed as well
	kept    bool      // evicted last
	seen    bool      // the Look that is under way has found it, or it was added since
	going   bool      // an eviction of it is under way
	away    time.Time // until when at most another replica is evicting it
}

// evictStep bounds the contents of one call of CacheStore.Evict: a download waits for it, and needs no more room than
// its own bytes.
const evictStep = 32

const (
	// evictTime bounds one step: downloads wait for it, and so does the end of the server.
	evictTime = 10 * time.Second
	// retryEviction is for how long after a step that has failed there is no room.
	retryEviction = 2 * time.Second
)

// NewCache returns a Cache of at most limit bytes. It needs a store before it is used; see Attach.
func NewCache(limit int64) *Cache {
	c := &Cache{items: map[digest.Digest]*list.Element{}, written: map[string][]byte{}, lower: make(chan struct{}, 1)}
	c.limit.Store(limit)
	return c
}

// SetLimit changes the limit. What is beyond a lower one is evicted at once by Run or, with several replicas, within a
// minute by Lead.
func (c *Cache) SetLimit(limit int64) {
	if limit < c.limit.Swap(limit) {
		select {
		case c.lower <- struct{}{}:
		default: // it is known already
		}
	}
}

// Attach gives the Cache its store. It is called once, before any other method.
func (c *Cache) Attach(store CacheStore) {
	if c.store = store; c.shared != nil {
		store.Notify(BoardRecord, c.shared.news.send)
	}
}

const (
	// lookInterval is the time between two calls of Look.
	lookInterval = time.Minute
	// saveInterval is the time between two calls of Save.
	saveInterval = time.Hour
)

// Run calls Look each minute, and evicts what is beyond the limit; it calls Save each hour until ctx is done, and then
// once more. It returns nil.
func (c *Cache) Run(ctx context.Context) error {
	if c.Shared() {
		var following sync.WaitGroup
		defer following.Wait()
		following.Go(func() { c.follow(ctx) })
	}
	look, save := time.NewTicker(lookInterval), time.NewTicker(saveInterval)
	defer look.Stop()
	defer save.Stop()
	for {
		c.Look(ctx)
		if !c.Shared() { // otherwise the leader does
			c.trim(ctx)
		}
		select {
		case <-look.C:
		case <-c.lower:
		case <-save.C:
			_ = c.Save(ctx) // tried again in an hour; a failure affects only the order of eviction
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTime)
			defer cancel()
			_ = c.Save(last)
			return nil
		}
	}
}

// trim evicts what is beyond the limit, such as after a start with a lower one, or after what was pushed as well was
// deleted there.
func (c *Cache) trim(ctx context.Context) {
	for freed := true; freed && c.beyond() > 0 && ctx.Err() == nil; {
		freed = c.trimStep(ctx)
	}
}

// beyond returns by how many bytes what is stored exceeds the limit.
func (c *Cache) beyond() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used - c.limit.Load()
}

// trimStep evicts one step of what is beyond the limit. Between two of them, downloads get their turn to evict. It
// reports false if nothing was evicted.
func (c *Cache) trimStep(ctx context.Context) (freed bool) {
	c.evicting.Lock()
	defer c.evicting.Unlock()
	beyond := c.beyond()
	if beyond <= 0 { // another eviction was faster
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, evictTime)
	defer cancel()
	freed, err := c.evict(ctx, beyond)
	return freed && err == nil // tried again in a minute
}

// saveTime bounds the last Save, for which the end of the process waits.
const saveTime = 5 * time.Second

func hourOf(t time.Time) uint32 { return uint32(t.Unix() / 3600) }

// Look updates the Cache to what the registry holds, which other processes, imports and deletions change as well. The
// first call reads the times of last use from the journal.
func (c *Cache) Look(ctx context.Context) {
	c.looking.Lock()
	defer c.looking.Unlock()
	c.mu.Lock()
	first := !c.looked
	c.looked, c.gone = true, map[digest.Digest]bool{}
	for e := c.order.Front(); e != nil; e = e.Next() {
		e.Value.(*item).seen = false
	}
	c.mu.Unlock()
	for content := range c.store.Cached(ctx) { // with mu held only for each content: reads need it
		c.mu.Lock()
		// The list may be older than an eviction: with what that has removed, too much would count, and go.
		if !c.gone[content.Digest] {
			c.add(content.Digest, content.Size, !content.Pushed, !first).kept = content.Kept
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
	c.gone = nil
	// If ctx is done, the list may be incomplete, so nothing is taken for deleted.
	for e := c.order.Front(); e != nil && ctx.Err() == nil; {
		next := e.Next()
		if i := e.Value.(*item); !i.seen && i.readers == 0 {
			c.remove(e)
		}
		e = next
	}
	c.mu.Unlock()
	if ctx.Err() == nil && (first || c.shared != nil) { // what other replicas have used
		c.restore()
	}
}

// add notes that a content is cached. If recent is set, one that is new to the Cache counts as used now; otherwise as
// the least recently used. The caller holds mu.
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

// goes is remove for an item that was evicted.
func (c *Cache) goes(e *list.Element) {
	i := e.Value.(*item)
	if c.gone != nil {
		c.gone[i.digest] = true
	}
	if i.counts {
		c.evicted += i.size
	}
	c.remove(e)
}

// touch makes an item the most recently used one. The caller holds mu.
func (c *Cache) touch(e *list.Element) {
	e.Value.(*item).hour = hourOf(time.Now())
	c.order.MoveToFront(e)
}

// Added notes a content that was stored. One that is new to the Cache counts as used now.
func (c *Cache) Added(d digest.Digest, size int64) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.gone, d)
	c.add(d, size, true, true) // whether it was pushed as well is found by the next Look
}

// Use notes that a content is read, and keeps it from being evicted until the caller calls release. It waits for an
// eviction of it that is under way: the caller looks for the content afterwards, and must not find what is about to be
// deleted. A content that the Cache does not know is not protected: it is not chosen before a Look has found it.
func (c *Cache) Use(d digest.Digest) (release func()) { return c.hold(d, true) }

// Hold is Use without counting as a use: it is for reads that no client has asked for.
func (c *Cache) Hold(d digest.Digest) (release func()) { return c.hold(d, false) }

func (c *Cache) hold(d digest.Digest, used bool) (release func()) {
	if c == nil {
		return func() {}
	}
	c.mu.Lock()
	if c.shared != nil && c.items[d] == nil { // another replica may have stored it since the last Look, and evicts it
		c.add(d, 0, false, true)
	}
	for e := c.items[d]; e != nil; e = c.items[d] {
		i := e.Value.(*item)
		if time.Now().Before(i.away) {
			c.awaitBack(i.away)
			continue
		}
		if i.going {
			c.mu.Unlock()
			c.evicting.Lock() // in this order, see evicting
			c.mu.Lock()
			c.evicting.Unlock()
			continue
		}
		i.readers++
		if used {
			c.touch(e)
		}
		c.mu.Unlock()
		return func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			// One that was made here, and that no Look has found, is forgotten.
			if i.readers--; i.readers == 0 && i.size == 0 && !i.counts && c.items[d] == e {
				c.remove(e)
			}
		}
	}
	c.mu.Unlock()
	return func() {}
}

// Stats are the figures of a Cache.
type Stats struct {
	Limit, Used, Reserved, Evicted int64 // bytes; evicted since the start
	Contents                       int
}

// Stats returns the figures of now.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{c.limit.Load(), c.used, c.reserved, c.evicted, c.order.Len()}
}
