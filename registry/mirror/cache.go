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
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
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

// usedRecord begins the names of the records of last uses. There is one for each first byte of the digests, so that a
// change rewrites only a part of them.
const usedRecord = "cache/used/"

// usedLength is the length of one last use in bytes: the first 8 bytes of the digest, and the hour in 4. Two digests
// with the same 8 bytes would share an hour, which does no harm.
const usedLength = 12

// usedOf returns the first bytes of a digest; ok is false if it is too short or not in hexadecimal.
func usedOf(d digest.Digest) (key [usedLength - 4]byte, ok bool) {
	encoded := d.Encoded()
	if len(encoded) < 2*len(key) {
		return key, false
	}
	_, err := hex.Decode(key[:], []byte(encoded[:2*len(key)]))
	return key, err == nil
}

// Save writes the records of last uses that have changed. If another replica has changed one of them, the uses of both
// are written. Errors: those of the journal; ErrConflict if others change them all the time.
func (c *Cache) Save(ctx context.Context) (err error) {
	const tries = 5
	for range tries {
		if err = c.save(ctx); !errors.Is(err, storage.ErrConflict) {
			return err
		}
		c.restore()
	}
	return err
}

func (c *Cache) save(ctx context.Context) error {
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
		shards[name] = nil // deleted, unless some of its contents are still cached
	}
	for name, all := range uses {
		slices.SortFunc(all, bytes.Compare) // in a fixed order, so that equal uses are an equal record
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
	return errors.Join(errs...)
}

// restore reads the last uses from the journal. Of two times of one content, the later one counts.
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
	for _, e := range all { // the latest first, so the latest stays in front
		c.order.MoveToBack(e)
	}
}
