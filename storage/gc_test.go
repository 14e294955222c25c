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

// store is blobs and an Index with a collector, and the plainest client.
type store struct {
	*testing.T
	blobs     storage.Blobs
	index     *storage.Index
	collector *storage.Collector
}

const grace = time.Hour

func newStore(t *testing.T, blobs storage.Blobs, j storage.Journal) *store {
	t.Helper()
	s := &store{T: t, blobs: blobs, index: storagetest.OpenIndex(t, j)}
	s.collector = &storage.Collector{Blobs: blobs, Index: s.index, Grace: grace}
	return s
}

func (s *store) push(repo string, content []byte) digest.Digest {
	s.Helper()
	d, err := s.tryPush(s.Context(), repo, content)
	if err != nil {
		s.Fatal(err)
	}
	return d
}

func (s *store) tryPush(ctx context.Context, repo string, content []byte) (digest.Digest, error) {
	d := digest.FromBytes(content)
	release, err := s.commit(ctx, repo, content)
	if err != nil {
		return d, err
	}
	defer release()
	return d, s.link(ctx, repo, d, int64(len(content)))
}

// link records a blob, as the registry does.
func (s *store) link(ctx context.Context, repo string, d digest.Digest, size int64) error {
	if err := s.index.Lease(ctx, repo, d); err != nil {
		return err
	}
	return s.index.Update(ctx, repo, func(tx *storage.Tx) error { tx.Link(d, size); return nil })
}

func (s *store) commit(ctx context.Context, repo string, content []byte) (release func(), err error) {
	u, err := s.blobs.Create(ctx, repo, digest.SHA256)
	if err != nil {
		return nil, err
	}
	if _, err := u.Write(content); err != nil {
		return nil, errors.Join(err, u.Cancel(ctx))
	}
	return s.index.Commit(ctx, u, digest.FromBytes(content))
}

// errMissing: a manifest refers to content that the repo does not hold.
var errMissing = errors.New("missing")

// manifest pushes a manifest that refers to refs, as the registry does.
func (s *store) manifest(ctx context.Context, repo, tag string, refs ...digest.Digest) (digest.Digest, error) {
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

func (s *store) collect() storage.Collected {
	s.Helper()
	done, err := s.collector.Run(s.Context(), false, nil)
	if err != nil {
		s.Fatal(err)
	}
	return done
}

func (s *store) has(d digest.Digest) bool {
	_, err := s.blobs.Stat(s.Context(), d)
	return err == nil
}

func (s *store) holds(repo string, d digest.Digest) bool {
	_, ok, err := s.index.Blob(s.Context(), repo, d)
	return ok && err == nil
}

// inBubble runs a test over memory with the fake clock of synctest.
func inBubble(t *testing.T, test func(t *testing.T, s *store)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t, newStore(t, memory.NewBlobs(), memory.NewJournal()))
	})
}

// TestWithoutAGraceNothingIsTooYoung: also what was pushed in the same second.
func TestWithoutAGraceNothingIsTooYoung(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		time.Sleep(300 * time.Millisecond)
		young := s.push("a", []byte("young"))
		done, err := s.collector.RunWith(t.Context(), 0, false, nil)
		if err != nil || done.Unlinked != 1 || done.Deleted != 1 || s.has(young) {
			t.Errorf("%+v, %v", done, err)
		}
	})
}

func TestTheCollectorRemovesWhatNothingNeeds(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		used, unused := s.push("a", []byte("used")), s.push("a", []byte("unused"))
		m, err := s.manifest(s.Context(), "a", "v", used)
		if err != nil {
			t.Fatal(err)
		}
		orphan := digest.FromString("orphan") // bytes of a push that was never recorded
		release, err := s.commit(s.Context(), "a", []byte("orphan"))
		if err != nil {
			t.Fatal(err)
		}
		if s.collect(); !s.has(orphan) {
			t.Error("pinned bytes were collected")
		}
		release()
		if done := s.collect(); s.has(orphan) || !done.Waiting || done.Unlinked != 0 || done.Freed != 6 {
			t.Errorf("after the start: %+v", done)
		}
		time.Sleep(grace + 2*time.Second)
		dry, err := s.collector.Run(t.Context(), true, nil)
		if err != nil || !s.has(unused) || !s.holds("a", unused) {
			t.Errorf("a dry run removes something: %v", err)
		}
		if done := s.collect(); done != dry || done.Unlinked != 1 || done.Deleted != 1 || done.Freed != 6 || s.has(unused) {
			t.Errorf("got %+v; the dry run said %+v", done, dry)
		}
		if !s.holds("a", used) || !s.has(used) || !s.has(m) {
			t.Error("a part of a manifest was collected")
		}
		storagetest.Update(t, s.index, "a", func(tx *storage.Tx) error { return tx.DeleteManifest(m) })
		if done := s.collect(); done.Deleted != 2 || s.has(used) || s.has(m) {
			t.Errorf("after the manifest was deleted: %+v", done)
		}
		if stats := s.index.Stats(); stats.Repos != 0 || stats.Contents != 0 {
			t.Errorf("left behind: %+v", stats)
		}
	})
}

func TestBytesStayWhileOneRepoHoldsThem(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
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

func TestAClientMayReferToABlobThatWasReportedToIt(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		d := s.push("a", []byte("layer"))
		for range 5 { // without end, as long as a client asks in time
			time.Sleep(grace - time.Second)
			if err := s.index.Lease(t.Context(), "a", d); err != nil {
				t.Error(err)
			}
			if s.collect(); !s.holds("a", d) {
				t.Fatal("the lease was not honoured")
			}
		}
		s.push("a", []byte("layer")) // pushed again: counts as asked
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

// TestAManifestIsPushedWhileItsLayerIsUnlinked: the manifest is committed before the unlinking that was decided
// earlier.
func TestAManifestIsPushedWhileItsLayerIsUnlinked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, memory.NewBlobs(), slowly{memory.NewJournal()})
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

// slowly is a journal whose commits take a minute.
type slowly struct{ *memory.Journal }

func (j slowly) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	time.Sleep(time.Minute)
	return j.Journal.Commit(ctx, b...)
}

func TestNothingIsUnlinkedDuringTheFirstGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blobs, journal := memory.NewBlobs(), memory.NewJournal()
		d := newStore(t, blobs, journal).push("a", []byte("layer"))
		time.Sleep(10 * grace)
		s := newStore(t, blobs, journal) // a restart: a client may have asked just before it
		if done := s.collect(); !done.Waiting || !s.holds("a", d) {
			t.Errorf("unlinked after a restart: %+v", done)
		}
		time.Sleep(grace + time.Second)
		if done := s.collect(); done.Waiting || s.holds("a", d) {
			t.Errorf("a grace later: %+v", done)
		}
	})
}

// TestACrashBetweenMarkAndDelete leaves bytes condemned: a push of them waits for Finish, and then continues.
func TestACrashBetweenMarkAndDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for n := 1; ; n++ {
			memory, journal := memory.NewBlobs(), memory.NewJournal()
			fault := &storagetest.Fault{Method: "Commit", N: n}
			s := newStore(t, memory, storagetest.FailJournal{Journal: journal, Fault: fault})
			d := digest.FromString("orphan")
			if release, err := s.commit(t.Context(), "a", []byte("orphan")); err == nil {
				release()
			}
			_, err := s.collector.Run(t.Context(), false, nil)
			if !fault.Fired() {
				break
			}
			if err == nil {
				t.Errorf("commit %d failed, and the run returned no error", n)
			}
			s = newStore(t, memory, journal)
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

func TestBytesThatAreBeingDeletedCannotBeNamed(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
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
// without pause. No request fails that must not, and in the end exactly the bytes exist that facts name.
func TestCollectorAmongClients(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) { testCollectorAmongClients(t, seed) })
	}
}

func testCollectorAmongClients(t *testing.T, seed uint64) {
	pauses := &pauses{r: rand.New(rand.NewPCG(seed, 1))}
	s := newStore(t, unhurried{memory.NewBlobs(), pauses}, unhurriedJournal{memory.NewJournal(), pauses})
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
		t.Errorf("seed %d: nothing was collected meanwhile, so the test proves nothing", seed)
	}
}

// client is what one client does: it pushes an image of one layer, or deletes one.
func (s *store) client(r *rand.Rand) {
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
		s.Errorf("%s: %s is gone, and %s refers to it", repo, d, m)
	}
}

// ask does what HEAD does.
func (s *store) ask(repo string, d digest.Digest) bool {
	if !s.holds(repo, d) {
		return false
	}
	if err := s.index.Lease(s.Context(), repo, d); err != nil {
		s.Error(err)
	}
	return s.holds(repo, d)
}

func (s *store) mount(r *rand.Rand, repo string, d digest.Digest) bool {
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

// wantExactly checks that exactly the bytes exist that facts name.
func (s *store) wantExactly() {
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
			s.Errorf("%s exists, and no fact names it", info.Digest)
		}
		delete(want, info.Digest)
	}
	for d := range want {
		s.Errorf("a fact names %s, and its bytes are gone", d)
	}
}

// pauses are random, so that other calls come in between.
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

// unhurried takes its time to change bytes.
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

// unhurriedJournal takes its time to commit.
type unhurriedJournal struct {
	*memory.Journal
	pauses *pauses
}

func (j unhurriedJournal) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	j.pauses.wait()
	return j.Journal.Commit(ctx, b...)
}
