package storage_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// shelf is a store with a collector, and the plainest client.
type shelf struct {
	*testing.T
	blobs     storage.Blobs
	index     *storage.Index
	collector *storage.Collector
}

const grace = time.Hour

func newShelf(t *testing.T, blobs storage.Blobs, j storage.Journal) *shelf {
	t.Helper()
	s := &shelf{T: t, blobs: blobs, index: storagetest.OpenIndex(t, j)}
	s.collector = &storage.Collector{Blobs: blobs, Index: s.index, Grace: grace}
	return s
}

func (s *shelf) push(repo string, content []byte) digest.Digest {
	s.Helper()
	d, err := s.tryPush(s.Context(), repo, content)
	if err != nil {
		s.Fatal(err)
	}
	return d
}

func (s *shelf) tryPush(ctx context.Context, repo string, content []byte) (digest.Digest, error) {
	d := digest.FromBytes(content)
	release, err := s.commit(ctx, repo, content)
	if err != nil {
		return d, err
	}
	defer release()
	return d, s.link(ctx, repo, d, int64(len(content)))
}

// link records a blob, as the registry does.
func (s *shelf) link(ctx context.Context, repo string, d digest.Digest, size int64) error {
	s.index.Lease(repo, d)
	return s.index.Update(ctx, repo, func(tx *storage.Tx) error { tx.Link(d, size); return nil })
}

func (s *shelf) commit(ctx context.Context, repo string, content []byte) (release func(), err error) {
	u, err := s.blobs.Create(ctx, repo, digest.SHA256)
	if err != nil {
		return nil, err
	}
	if _, err := u.Write(content); err != nil {
		return nil, errors.Join(err, u.Cancel())
	}
	return s.index.Commit(ctx, u, digest.FromBytes(content))
}

// errMissing is a manifest's that consists of what the repo does not hold.
var errMissing = errors.New("missing")

// manifest pushes one that consists of refs, as the registry does.
func (s *shelf) manifest(ctx context.Context, repo, tag string, refs ...digest.Digest) (digest.Digest, error) {
	content := fmt.Appendf(nil, "manifest of %s", refs)
	d := digest.FromBytes(content)
	release, err := s.commit(ctx, repo, content)
	if err != nil {
		return d, err
	}
	defer release()
	return d, s.index.Update(ctx, repo, func(tx *storage.Tx) error {
		for _, ref := range refs {
			if !tx.Whole(ref) {
				return errMissing
			}
		}
		m := storage.Manifest{Digest: d, MediaType: "application/a", Size: int64(len(content)), Refs: refs}
		return errors.Join(tx.PutManifest(m), tx.SetTag(tag, d))
	})
}

func (s *shelf) collect() storage.Collected {
	s.Helper()
	done, err := s.collector.Run(s.Context(), false, nil)
	if err != nil {
		s.Fatal(err)
	}
	return done
}

func (s *shelf) has(d digest.Digest) bool {
	_, err := s.blobs.Stat(s.Context(), d)
	return err == nil
}

func (s *shelf) holds(repo string, d digest.Digest) bool {
	_, ok, err := s.index.Blob(s.Context(), repo, d)
	return ok && err == nil
}

// inBubble runs a test over memory, in which time passes when all wait.
func inBubble(t *testing.T, test func(t *testing.T, s *shelf)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t, newShelf(t, memory.NewBlobs(), memory.NewJournal()))
	})
}

func TestCollectorTakesWhatNothingNeeds(t *testing.T) {
	inBubble(t, func(t *testing.T, s *shelf) {
		used, unused := s.push("a", []byte("used")), s.push("a", []byte("unused"))
		m, err := s.manifest(s.Context(), "a", "v", used)
		if err != nil {
			t.Fatal(err)
		}
		orphan := digest.FromString("orphan") // bytes of a push that never came to its fact
		release, err := s.commit(s.Context(), "a", []byte("orphan"))
		if err != nil {
			t.Fatal(err)
		}
		if s.collect(); !s.has(orphan) {
			t.Error("what is pinned was collected")
		}
		release()
		if done := s.collect(); s.has(orphan) || !done.Waiting || done.Unlinked != 0 || done.Freed != 6 {
			t.Errorf("after the start: %+v", done)
		}
		time.Sleep(grace + 2*time.Second)
		dry, err := s.collector.Run(t.Context(), true, nil)
		if err != nil || !s.has(unused) || !s.holds("a", unused) {
			t.Errorf("a dry run takes something away: %v", err)
		}
		if done := s.collect(); done != dry || done.Unlinked != 1 || done.Deleted != 1 || done.Freed != 6 || s.has(unused) {
			t.Errorf("got %+v; the dry run said %+v", done, dry)
		}
		if !s.holds("a", used) || !s.has(used) || !s.has(m) {
			t.Error("what a manifest consists of was collected")
		}
		storagetest.Update(t, s.index, "a", func(tx *storage.Tx) error { return tx.DeleteManifest(m) })
		if done := s.collect(); done.Deleted != 2 || s.has(used) || s.has(m) {
			t.Errorf("after the manifest went: %+v", done)
		}
		if stats := s.index.Stats(); stats.Repos != 0 || stats.Contents != 0 {
			t.Errorf("left behind: %+v", stats)
		}
	})
}

func TestBytesStayAsLongAsOneRepoHoldsThem(t *testing.T) {
	inBubble(t, func(t *testing.T, s *shelf) {
		d := s.push("a", []byte("layer"))
		s.push("b", []byte("layer"))
		if _, err := s.manifest(s.Context(), "b", "v", d); err != nil {
			t.Fatal(err)
		}
		time.Sleep(grace + 2*time.Second)
		if dry, err := s.collector.Run(t.Context(), true, nil); err != nil || dry.Unlinked != 1 || dry.Deleted != 0 {
			t.Errorf("a dry run: %+v, %v", dry, err)
		}
		if done := s.collect(); done.Unlinked != 1 || done.Deleted != 0 || s.holds("a", d) || !s.holds("b", d) || !s.has(d) {
			t.Errorf("got %+v", done)
		}
	})
}

func TestWhoeverWasToldThatABlobIsThereMayReferToIt(t *testing.T) {
	inBubble(t, func(t *testing.T, s *shelf) {
		d := s.push("a", []byte("layer"))
		for range 5 { // for ever, as long as somebody asks in time
			time.Sleep(grace - time.Second)
			s.index.Lease("a", d)
			if s.collect(); !s.holds("a", d) {
				t.Fatal("the lease was not honoured")
			}
		}
		s.push("a", []byte("layer")) // pushed again: as good as asked
		time.Sleep(grace - time.Second)
		if s.collect(); !s.holds("a", d) {
			t.Fatal("the second push was not honoured")
		}
		time.Sleep(3 * time.Second)
		if s.collect(); s.holds("a", d) {
			t.Error("the lease never ends")
		}
	})
}

// TestAManifestThatComesWhileItsLayerIsUnlinked is committed before the unlinking that was decided upon earlier.
func TestAManifestThatComesWhileItsLayerIsUnlinked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, memory.NewBlobs(), slowly{memory.NewJournal()})
		d := s.push("a", []byte("layer"))
		time.Sleep(2 * grace)
		var all sync.WaitGroup
		all.Go(func() { s.push("b", []byte("busy")) })
		time.Sleep(time.Second)
		all.Go(func() {
			if _, err := s.manifest(t.Context(), "a", "v", d); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Second)
		s.collect()
		all.Wait()
		if !s.holds("a", d) || !s.has(d) {
			t.Error("the layer of a manifest was collected")
		}
	})
}

// slowly takes a minute for a commit.
type slowly struct{ *memory.Journal }

func (j slowly) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	time.Sleep(time.Minute)
	return j.Journal.Commit(ctx, b...)
}

func TestNothingIsUnlinkedBeforeWeCanKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blobs, journal := memory.NewBlobs(), memory.NewJournal()
		d := newShelf(t, blobs, journal).push("a", []byte("layer"))
		time.Sleep(10 * grace)
		s := newShelf(t, blobs, journal) // a restart: somebody may have asked a moment before it
		if done := s.collect(); !done.Waiting || !s.holds("a", d) {
			t.Errorf("unlinked after a restart: %+v", done)
		}
		time.Sleep(grace + time.Second)
		if done := s.collect(); done.Waiting || s.holds("a", d) {
			t.Errorf("a grace later: %+v", done)
		}
	})
}

// TestACrashBetweenMarkAndDelete leaves bytes condemned: a push of them waits for Finish, and then goes on.
func TestACrashBetweenMarkAndDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for n := 1; ; n++ {
			memory, journal := memory.NewBlobs(), memory.NewJournal()
			fault := &storagetest.Fault{Method: "Commit", N: n}
			s := newShelf(t, memory, storagetest.FailJournal{Journal: journal, Fault: fault})
			d := digest.FromString("orphan")
			if release, err := s.commit(t.Context(), "a", []byte("orphan")); err == nil {
				release()
			}
			_, err := s.collector.Run(t.Context(), false, nil)
			if !fault.Fired() {
				break
			}
			if err == nil {
				t.Errorf("commit %d failed, and nobody was told", n)
			}
			s = newShelf(t, memory, journal)
			pushed := make(chan error, 1)
			go func() {
				_, err := s.tryPush(t.Context(), "a", []byte("orphan"))
				pushed <- err
			}()
			synctest.Wait()
			if err := s.collector.Finish(t.Context()); err != nil {
				t.Error(err)
			}
			if err := <-pushed; err != nil || !s.has(d) || !s.holds("a", d) {
				t.Errorf("commit %d: a push after the crash: %v", n, err)
			}
		}
	})
}

func TestWhatIsBeingDeletedCannotBeNamed(t *testing.T) {
	inBubble(t, func(t *testing.T, s *shelf) {
		release, err := s.commit(t.Context(), "a", []byte("orphan"))
		if err != nil {
			t.Fatal(err)
		}
		release()
		d := digest.FromString("orphan")
		hooked := &atDelete{Blobs: s.blobs, hook: func() {
			err := s.index.Update(t.Context(), "a", func(tx *storage.Tx) error { tx.Link(d, 6); return nil })
			if !errors.Is(err, storage.ErrBusy) {
				t.Errorf("a link without a pin: %v", err)
			}
			err = s.index.Update(t.Context(), "a", func(tx *storage.Tx) error {
				return tx.PutManifest(storage.Manifest{Digest: d, MediaType: "application/a"})
			})
			if !errors.Is(err, storage.ErrBusy) {
				t.Errorf("a manifest without a pin: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := s.index.Pin(ctx, d); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a pin while it is deleted: %v", err)
			}
		}}
		s.collector.Blobs = hooked
		if done := s.collect(); done.Deleted != 1 || hooked.calls != 1 {
			t.Errorf("got %+v", done)
		}
		s.push("a", []byte("orphan"))
	})
}

type atDelete struct {
	storage.Blobs
	hook  func()
	calls int
}

func (b *atDelete) Delete(ctx context.Context, d digest.Digest) error {
	b.calls++
	b.hook()
	return b.Blobs.Delete(ctx, d)
}

// TestCollectorAmongClients lets random clients push, ask, mount, refer, retag and delete while the collector runs
// without pause. Nobody is refused who may not be, and in the end exactly what records name is there.
func TestCollectorAmongClients(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) { testCollectorAmongClients(t, seed) })
	}
}

func testCollectorAmongClients(t *testing.T, seed uint64) {
	pauses := &pauses{r: rand.New(rand.NewPCG(seed, 1))}
	s := newShelf(t, unhurried{memory.NewBlobs(), pauses}, unhurriedJournal{memory.NewJournal(), pauses})
	stop := make(chan struct{})
	var clients, collecting sync.WaitGroup
	collected := 0
	collecting.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				collected += s.collect().Deleted
				time.Sleep(time.Minute)
			}
		}
	})
	for i := range 4 {
		clients.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i+2)))
			for range 120 {
				s.client(r)
				time.Sleep(time.Duration(r.IntN(int(20 * time.Minute))))
			}
		})
	}
	clients.Wait()
	time.Sleep(2 * grace)
	close(stop)
	collecting.Wait()
	s.collect()
	s.wantExactly()
	if collected == 0 {
		t.Errorf("seed %d: nothing was collected meanwhile: the test says nothing", seed)
	}
}

// client is one client's doing: an image of one layer, or the end of one.
func (s *shelf) client(r *rand.Rand) {
	ctx, repo, tag := s.Context(), fmt.Sprint("r", r.IntN(2)), fmt.Sprint("t", r.IntN(2))
	content := fmt.Appendf(nil, "layer %d", r.IntN(4))
	d := digest.FromBytes(content)
	if r.IntN(3) == 0 {
		_ = s.index.Update(ctx, repo, func(tx *storage.Tx) error {
			at, ok := tx.Tag(tag)
			if !ok {
				return nil
			}
			return tx.DeleteManifest(at.Digest())
		})
		return
	}
	if !s.ask(repo, d) && !s.mount(r, repo, d) {
		s.push(repo, content)
	}
	time.Sleep(time.Duration(r.Int64N(int64(grace - 15*time.Minute)))) // other layers
	m, err := s.manifest(ctx, repo, tag, d)
	if err != nil {
		s.Errorf("a push was broken: %v", err)
		return
	}
	if !s.has(d) || !s.holds(repo, d) {
		s.Errorf("%s: %s is gone, and %s consists of it", repo, d, m)
	}
}

// ask is HEAD.
func (s *shelf) ask(repo string, d digest.Digest) bool {
	if !s.holds(repo, d) {
		return false
	}
	s.index.Lease(repo, d)
	return s.holds(repo, d)
}

func (s *shelf) mount(r *rand.Rand, repo string, d digest.Digest) bool {
	if r.IntN(2) == 0 {
		return false
	}
	release, err := s.index.Pin(s.Context(), d)
	if err != nil {
		s.Error(err)
		return false
	}
	defer release()
	for _, from := range []string{"r0", "r1"} {
		if size, ok, err := s.index.Blob(s.Context(), from, d); ok && err == nil {
			if err := s.link(s.Context(), repo, d, size); err != nil {
				s.Error(err)
			}
			return true
		}
	}
	return false
}

// wantExactly checks that the bytes are those that facts name.
func (s *shelf) wantExactly() {
	s.Helper()
	want := map[digest.Digest]bool{}
	for _, repo := range []string{"r0", "r1"} {
		h, _, err := s.index.Holdings(s.Context(), repo)
		if err != nil {
			s.Fatal(err)
		}
		for _, m := range h.Manifests {
			want[m.Digest] = true
		}
		for _, b := range h.Blobs {
			want[b.Digest] = true
		}
	}
	for info, err := range s.blobs.All(s.Context()) {
		if err != nil {
			s.Fatal(err)
		}
		if !want[info.Digest] {
			s.Errorf("%s is left, and nothing names it", info.Digest)
		}
		delete(want, info.Digest)
	}
	for d := range want {
		s.Errorf("%s is named, and its bytes are gone", d)
	}
}

// pauses are random, so that others come between.
type pauses struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (p *pauses) wait() {
	p.mu.Lock()
	d := time.Duration(p.r.Int64N(int64(time.Minute)))
	p.mu.Unlock()
	time.Sleep(d)
}

// unhurried takes its time for what changes bytes.
type unhurried struct {
	*memory.Blobs
	pauses *pauses
}

func (b unhurried) Delete(ctx context.Context, d digest.Digest) error {
	b.pauses.wait()
	defer b.pauses.wait()
	return b.Blobs.Delete(ctx, d)
}

func (b unhurried) Create(ctx context.Context, repo string, alg digest.Algorithm) (storage.Upload, error) {
	u, err := b.Blobs.Create(ctx, repo, alg)
	return unhurriedUpload{u, b.pauses}, err
}

type unhurriedUpload struct {
	storage.Upload
	pauses *pauses
}

func (u unhurriedUpload) Commit(ctx context.Context, d digest.Digest) error {
	u.pauses.wait()
	defer u.pauses.wait()
	return u.Upload.Commit(ctx, d)
}

// unhurriedJournal takes its time for a commit.
type unhurriedJournal struct {
	*memory.Journal
	pauses *pauses
}

func (j unhurriedJournal) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	j.pauses.wait()
	return j.Journal.Commit(ctx, b...)
}
