package mirror_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/mirror"
	"trow/storage"
)

// shelf is what a registry holds of upstreams.
type shelf struct {
	mu      sync.Mutex
	held    map[digest.Digest]mirror.CachedContent
	stays   map[digest.Digest]bool
	fails   error
	records map[string][]byte
	news    map[string][]func()
	during  func() // called by Evict
	writes  int
	evicted []string
}

func newShelf() *shelf {
	return &shelf{held: map[digest.Digest]mirror.CachedContent{}, stays: map[digest.Digest]bool{},
		records: map[string][]byte{}, news: map[string][]func(){}}
}

func contentOf(name string) digest.Digest { return digest.FromString(name) }

func (s *shelf) put(name string, size int64) digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := contentOf(name)
	s.held[d] = mirror.CachedContent{Digest: d, Size: size}
	return d
}

func (s *shelf) Cached(context.Context) iter.Seq[mirror.CachedContent] {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Values(maps.Clone(s.held))
}

func (s *shelf) Evict(_ context.Context, all []digest.Digest) (stay []digest.Digest, err error) {
	s.mu.Lock()
	during := s.during
	s.mu.Unlock()
	if during != nil {
		during()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails != nil {
		return nil, s.fails
	}
	for _, d := range all {
		if s.stays[d] {
			stay = append(stay, d)
			continue
		}
		delete(s.held, d)
		s.evicted = append(s.evicted, d.String())
	}
	return stay, nil
}

func (s *shelf) Records(prefix string) iter.Seq2[string, []byte] {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := maps.Clone(s.records)
	maps.DeleteFunc(all, func(name string, _ []byte) bool { return !strings.HasPrefix(name, prefix) })
	return maps.All(all)
}

func (s *shelf) SetRecord(_ context.Context, name string, old, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(s.records[name]) != string(old) {
		return storage.ErrConflict
	}
	s.writes++
	s.records[name] = value
	for prefix, changed := range s.news {
		if strings.HasPrefix(name, prefix) {
			for _, f := range changed {
				f()
			}
		}
	}
	return nil
}

func (s *shelf) Notify(prefix string, changed func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.news[prefix] = append(s.news[prefix], changed)
}

// record returns a record.
func (s *shelf) record(name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[name]
}

// took returns what was evicted since the last call.
func (s *shelf) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.evicted
	s.evicted = nil
	return all
}

func newCache(s *shelf, limit int64) *mirror.Cache {
	c := mirror.NewCache(limit)
	c.Attach(s)
	return c
}

func names(all ...string) (digests []string) {
	for _, name := range all {
		digests = append(digests, contentOf(name).String())
	}
	return digests
}

// TestTheOldestGoes, as much as is needed, and what is read or kept stays.
func TestTheOldestGoes(t *testing.T) {
	s := newShelf()
	c := newCache(s, 100)
	c.Look(t.Context())
	for _, name := range []string{"a", "b", "c", "d"} {
		release, ok := c.Reserve(20)
		if !ok {
			t.Fatal("no room")
		}
		c.Added(s.put(name, 20), 20)
		release()
	}
	c.Use(contentOf("a"))() // now b is the oldest
	reading := c.Use(contentOf("c"))
	release, ok := c.Reserve(30)
	if got := s.took(); !ok || !slices.Equal(got, names("b")) {
		t.Fatalf("%v, %v were evicted", ok, got)
	}
	if stats := c.Stats(); stats.Used != 60 || stats.Reserved != 30 || stats.Evicted != 20 || stats.Contents != 3 {
		t.Errorf("%+v", stats)
	}
	release()
	release() // once counts
	if _, ok := c.Reserve(101); ok {
		t.Error("there is room for more than the limit")
	}
	if _, ok := c.Reserve(100); ok || !slices.Equal(s.took(), names("d", "a")) {
		t.Error("what is read is evicted, or not all else")
	}
	reading()
	if _, ok := c.Reserve(100); !ok || !slices.Equal(s.took(), names("c")) {
		t.Error("what is not read any more stays")
	}
}

// olderList is a shelf whose list of contents is of before something happens.
type olderList struct {
	*shelf
	happens func()
}

func (s *olderList) Cached(ctx context.Context) iter.Seq[mirror.CachedContent] {
	all := slices.Collect(s.shelf.Cached(ctx))
	s.happens()
	return slices.Values(all)
}

// TestWhatIsEvictedDuringALookIsGone: the list of the Look may still have it. If it counted, too much would be evicted.
func TestWhatIsEvictedDuringALookIsGone(t *testing.T) {
	s := &olderList{newShelf(), func() {}}
	c := mirror.NewCache(100)
	c.Attach(s)
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		c.Added(s.put(name, 20), 20)
	}
	c.Look(t.Context())
	s.happens = func() {
		release, ok := c.Reserve(40)
		if got := s.took(); !ok || !slices.Equal(got, names("a", "b")) {
			t.Fatalf("%v, %v were evicted", ok, got)
		}
		c.Added(s.put("b", 20), 20) // it comes again
		release()
	}
	c.Look(t.Context())
	if got := c.Stats(); got.Used != 80 || got.Contents != 4 {
		t.Errorf("%+v; want 80 bytes of 4 contents", got)
	}
}

// TestALowerLimit is kept after the start, by one process and by the leader of several, and nothing that is read goes.
func TestALowerLimit(t *testing.T) {
	for _, n := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			s := newShelf()
			for i := range 100 {
				s.put(fmt.Sprint(i), 10)
			}
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			var all []*mirror.Cache
			for i := range n {
				c := mirror.NewCache(300)
				if n > 1 {
					c.Share(fmt.Sprint("replica", i))
				}
				c.Attach(s)
				all = append(all, c)
			}
			all[0].Look(ctx)
			release := all[0].Use(contentOf("7"))
			for _, c := range all {
				running.Go(func() { _ = c.Run(ctx) })
			}
			if n > 1 {
				running.Go(func() { all[0].Lead(ctx) })
			}
			time.Sleep(3 * time.Minute)
			s.mu.Lock()
			_, held := s.held[contentOf("7")]
			s.mu.Unlock()
			if s.size() != 300 || !held {
				t.Errorf("%d of %d: %d bytes are held; what is read: %t", n, 300, s.size(), held)
			}
			for _, c := range all { // and one that is set later; what is read is let go
				c.SetLimit(200)
			}
			release()
			time.Sleep(3 * time.Minute)
			if s.size() != 200 {
				t.Errorf("%d of 200 bytes are held", s.size())
			}
			for _, c := range all {
				c.SetLimit(400)
			}
			if all[0].Stats().Limit != 400 {
				t.Error("a higher limit does not count")
			}
			stop()
			running.Wait()
		})
	}
}

// TestWhatIsKeptGoesLast, what was pushed as well does not count, and what stays is not asked about again.
func TestWhatIsKeptGoesLast(t *testing.T) {
	s := newShelf()
	for _, name := range []string{"kept", "pushed", "stays", "z"} {
		d := s.put(name, 10)
		content := s.held[d]
		content.Kept, content.Pushed = name == "kept", name == "pushed"
		s.held[d] = content
		s.stays[d] = name == "stays"
	}
	c := newCache(s, 40)
	c.Look(t.Context())
	if got := c.Stats(); got.Used != 30 || got.Contents != 4 {
		t.Fatalf("%+v", got)
	}
	if _, ok := c.Reserve(30); !ok {
		t.Fatal("no room")
	}
	if got := s.took(); !slices.Equal(got, names("z")) {
		t.Errorf("%v were evicted", got)
	}
	if _, ok := c.Reserve(10); !ok || !slices.Equal(s.took(), names("kept")) {
		t.Error("what is kept does not go where nothing else can")
	}
	if _, ok := c.Reserve(1); ok {
		t.Error("there is room")
	}
}

// TestTheBoundHolds whatever comes at once, also if evictions fail.
func TestTheBoundHolds(t *testing.T) {
	const limit = 1000
	s := newShelf()
	c := newCache(s, limit)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for n := range 200 {
				size := int64(1 + (worker*7+n*13)%90)
				release, ok := c.Reserve(size)
				if stats := c.Stats(); stats.Used+stats.Reserved > limit+90*8 {
					t.Errorf("%+v", stats)
				}
				if !ok {
					continue
				}
				c.Added(s.put(fmt.Sprint(worker, " ", n), size), size)
				release()
				c.Use(contentOf(fmt.Sprint(worker, " ", n/2)))()
			}
		})
	}
	wg.Wait()
	var held int64
	for _, content := range s.held {
		held += content.Size
	}
	if stats := c.Stats(); stats.Used > limit || stats.Used != held || stats.Reserved != 0 {
		t.Errorf("%+v, and %d bytes are held", stats, held)
	}
	s.fails = errors.New("the journal does not answer")
	if _, ok := c.Reserve(limit); ok {
		t.Error("there is room although nothing was evicted")
	}
}

// TestLastUsesSurviveARestart, are written only if they have changed, and by the hour.
func TestLastUsesSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		c := newCache(s, 100)
		c.Look(t.Context())
		save := func(want int) {
			t.Helper()
			before := s.writes
			if err := c.Save(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := s.writes - before; got != want {
				t.Errorf("%d records were written, want %d", got, want)
			}
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			c.Added(s.put(name, 25), 25)
			time.Sleep(2 * time.Hour)
		}
		save(4)
		c.Use(contentOf("a"))()
		save(1)
		c.Use(contentOf("a"))()
		save(0)
		c = newCache(s, 100)
		c.Look(t.Context())
		save(0)
		if _, ok := c.Reserve(50); !ok || !slices.Equal(s.took(), names("b", "c")) {
			t.Error("after a restart other contents are evicted")
		}
		c.Look(t.Context())
		save(2) // of what has gone
	})
}

// TestALookFindsWhatOthersHaveDone: what has come, and what has gone.
func TestALookFindsWhatOthersHaveDone(t *testing.T) {
	s := newShelf()
	c := newCache(s, 100)
	c.Look(t.Context())
	c.Added(s.put("a", 10), 10)
	s.put("b", 20)
	delete(s.held, contentOf("a"))
	c.Look(t.Context())
	if got := c.Stats(); got.Used != 20 || got.Contents != 1 {
		t.Errorf("%+v", got)
	}
	// What has come is the last that goes.
	c.Added(s.put("c", 70), 70)
	s.put("d", 10)
	c.Look(t.Context())
	if _, ok := c.Reserve(20); !ok || !slices.Equal(s.took(), names("b")) {
		t.Error("what was seen last goes first")
	}
}

// slowShelf evicts when it may.
type slowShelf struct {
	*shelf
	begun, may chan struct{}
}

func (s slowShelf) Evict(ctx context.Context, all []digest.Digest) ([]digest.Digest, error) {
	close(s.begun)
	<-s.may
	return s.shelf.Evict(ctx, all)
}

// TestAReadWaitsForAnEviction of what it reads, so that it does not find what is about to be deleted.
func TestAReadWaitsForAnEviction(t *testing.T) {
	s := slowShelf{newShelf(), make(chan struct{}), make(chan struct{})}
	c := mirror.NewCache(10)
	c.Attach(s)
	c.Look(t.Context())
	c.Added(s.put("a", 10), 10)
	reserved := make(chan bool)
	go func() {
		_, ok := c.Reserve(10)
		reserved <- ok
	}()
	<-s.begun
	read := make(chan struct{})
	go func() {
		c.Use(contentOf("a"))()
		close(read)
	}()
	select {
	case <-read:
		t.Error("it does not wait")
	case <-time.After(20 * time.Millisecond):
	}
	close(s.may)
	<-read
	if !<-reserved {
		t.Error("no room")
	}
	if stats := c.Stats(); stats.Contents != 0 {
		t.Errorf("%+v", stats)
	}
}
