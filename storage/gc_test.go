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

// TestWithoutAGraceADeletedManifestKeepsNothing: also where its record is of the same second.
func TestWithoutAGraceADeletedManifestKeepsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wholeSecond()
		time.Sleep(300 * time.Millisecond)
		s := newStore(t, memory.NewBlobs(), sharedJournal())
		layer := s.push("a", []byte("layer"))
		m, err := s.manifest(t.Context(), "a", "v", layer)
		if err != nil {
			t.Fatal(err)
		}
		storagetest.Update(t, s.index, "a", func(tx *storage.Tx) error { return tx.DeleteManifest(m) })
		done, err := s.collector.RunWith(t.Context(), 0, false, nil)
		if err != nil || done.Unlinked != 1 || done.Deleted != 2 || s.has(layer) ||
			storage.Departed(s.index, "a") != 0 {
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
		if done := s.collect(); done != dry || done.Unlinked != 1 || done.Deleted != 1 || done.Freed != 6 ||
			s.has(unused) {
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
		if done := s.collect(); done.Unlinked != 1 || done.Deleted != 0 || s.holds("a", d) || !s.holds("b", d) ||
			!s.has(d) {
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

// TestWhatACollectionExamines is counted, and all of it is looked at: each repo, link and blob.
func TestWhatACollectionExamines(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		for _, repo := range []string{"a", "b", "c"} {
			s.push(repo, []byte("unused 1 of "+repo))
			s.push(repo, []byte("unused 2 of "+repo))
			if _, err := s.manifest(t.Context(), repo, "v", s.push(repo, []byte("used"))); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(grace + 2*time.Second)
		want := storage.Collected{Repos: 3, Unlinked: 6, Blobs: 8, Deleted: 6, Freed: 6 * int64(len("unused 1 of a"))}
		if dry, err := s.collector.Run(t.Context(), true, nil); err != nil || dry != want {
			t.Errorf("a dry run: %+v, %v; want %+v", dry, err, want)
		}
		if done := s.collect(); done != want {
			t.Errorf("got %+v, want %+v", done, want)
		}
		if done := s.collect(); done != (storage.Collected{Repos: 3, Blobs: 2}) {
			t.Errorf("a second run: %+v", done)
		}
	})
}

// commitsOf is a journal that counts commits.
type commitsOf struct {
	storage.Journal
	n int
}

func (j *commitsOf) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	j.n++
	return j.Journal.Commit(ctx, b...)
}

// TestACollectionOfNothingCommitsNothing, and many blobs share a commit: a mark makes pushes of the content wait.
func TestACollectionOfNothingCommitsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &commitsOf{Journal: memory.NewJournal()}
		s := newStore(t, memory.NewBlobs(), j)
		if _, err := s.manifest(t.Context(), "a", "v", s.push("a", []byte("used"))); err != nil {
			t.Fatal(err)
		}
		release, err := s.index.Pin(t.Context(), digest.FromString("orphan 0"))
		if err != nil {
			t.Fatal(err)
		}
		const orphans = 300
		for i := range orphans {
			release, err := s.commit(t.Context(), "a", fmt.Appendf(nil, "orphan %d", i))
			if err != nil {
				t.Fatal(err)
			}
			release()
		}
		j.n = 0
		if done := s.collect(); done.Deleted != orphans-1 || j.n != 4 { // two steps, each with a mark and its end
			t.Errorf("%+v in %d commits", done, j.n)
		}
		if done := s.collect(); done.Deleted != 0 || j.n != 4 {
			t.Errorf("a second run: %+v in %d commits", done, j.n-4)
		}
		release()
	})
}

// TestALinkYoungerThanTheGraceStays: its moment is recorded in whole seconds, and no lease protects it, because another
// process has made it.
func TestALinkYoungerThanTheGraceStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blobs, journal := memory.NewBlobs(), memory.NewJournal()
		s, other := newStore(t, blobs, journal), newStore(t, blobs, journal)
		time.Sleep(900 * time.Millisecond)
		d := other.push("a", []byte("layer"))
		time.Sleep(grace - 400*time.Millisecond)
		if s.collect(); !s.holds("a", d) {
			t.Error("a link was removed before its grace was over")
		}
		time.Sleep(2 * time.Second)
		if s.collect(); s.holds("a", d) {
			t.Error("a link stays after its grace")
		}
	})
}

// TestALeaseOfExactlyTheGraceHolds, and does not keep other links of the repo.
func TestALeaseOfExactlyTheGraceHolds(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		var all []digest.Digest
		for i := range 9 {
			all = append(all, s.push("a", fmt.Appendf(nil, "layer %d", i)))
		}
		time.Sleep(10 * time.Second)
		leased := all[4]
		if err := s.index.Lease(t.Context(), "a", leased); err != nil {
			t.Error(err)
		}
		time.Sleep(grace)
		if done := s.collect(); done.Unlinked != len(all)-1 || !s.holds("a", leased) {
			t.Errorf("%+v; the leased one is held: %v", done, s.holds("a", leased))
		}
		time.Sleep(time.Nanosecond)
		if done := s.collect(); done.Unlinked != 1 {
			t.Errorf("after the lease: %+v", done)
		}
	})
}

// TestADryRunWithAManifestThatIsLinkedToo: its link goes, and its bytes stay.
func TestADryRunWithAManifestThatIsLinkedToo(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		m, err := s.manifest(t.Context(), "a", "v")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.link(t.Context(), "a", m, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(grace + 2*time.Second)
		want := storage.Collected{Repos: 1, Unlinked: 1, Blobs: 1}
		if dry, err := s.collector.Run(t.Context(), true, nil); err != nil || dry != want {
			t.Errorf("a dry run: %+v, %v; want %+v", dry, err, want)
		}
		if done := s.collect(); done != want || !s.has(m) {
			t.Errorf("got %+v, want %+v", done, want)
		}
	})
}

// TestFinishSparesWhatIsPushedAgain, and deletes everything else that a crash has left condemned.
func TestFinishSparesWhatIsPushedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory, journal := memory.NewBlobs(), memory.NewJournal()
		// The second commit, which ends the marks, fails as well as each deletion: as if the process had ended before.
		s := newStore(t, memory, storagetest.FailJournal{Journal: journal,
			Fault: &storagetest.Fault{Method: "Commit", N: 2}})
		s.collector.Blobs = undeletable{memory}
		var all []digest.Digest
		for i := range 9 {
			content := fmt.Appendf(nil, "orphan %d", i)
			release, err := s.commit(t.Context(), "a", content)
			if err != nil {
				t.Fatal(err)
			}
			release()
			all = append(all, digest.FromBytes(content))
		}
		if _, err := s.collector.Run(t.Context(), false, nil); !errors.Is(err, errUndeletable) {
			t.Errorf("a run that deletes nothing: %v", err)
		}
		s = newStore(t, memory, journal)
		const pins = 4 // several, so that some come before others, in whichever order Finish looks at them
		pinned := make(chan func(), pins)
		for _, d := range all[:pins] {
			go func() {
				release, err := s.index.Pin(t.Context(), d)
				if err != nil {
					t.Error(err)
				}
				pinned <- release
			}()
		}
		synctest.Wait()
		if len(pinned) > 0 {
			t.Fatal("a pin of what is condemned does not wait")
		}
		if err := s.collector.Finish(t.Context()); err != nil {
			t.Error(err)
		}
		release := <-pinned
		for i, d := range all {
			if s.has(d) != (i < pins) {
				t.Errorf("orphan %d is there: %v", i, s.has(d))
			}
		}
		release()
		if done := s.collect(); done.Deleted != 1 {
			t.Errorf("after the pin: %+v", done)
		}
	})
}

var errUndeletable = errors.New("undeletable")

// undeletable blobs cannot be deleted.
type undeletable struct{ storage.Blobs }

func (undeletable) Delete(context.Context, digest.Digest) error { return errUndeletable }

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
		s.collector.Blobs = s.blobs
		time.Sleep(grace + 2*time.Second)
		if s.collect(); s.has(d) { // the pin that failed keeps nothing
			t.Error("bytes that nothing needs stay for ever")
		}
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
	for seed := range uint64(8) {
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
