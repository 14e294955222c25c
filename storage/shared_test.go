package storage_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// watched is a shared journal that shows each commit before it is made; an error refuses it.
func watched(inner storage.Journal, look func(b []storage.Batch) error) storage.Journal {
	return hooked{inner, func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
		if err := look(b); err != nil {
			return 0, err
		}
		return inner.Commit(ctx, b...)
	}}
}

// wholeSecond waits for one: moments are whole seconds.
func wholeSecond() { time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) }

// counting is a Placed engine whose calls the test sees; an error makes Remove fail.
type counting struct {
	*memory.Objects
	listed int
	fails  error
}

func (b *counting) Remove(ctx context.Context, places ...string) error {
	if b.fails != nil {
		return b.fails
	}
	return b.Objects.Remove(ctx, places...)
}

type listed struct{ *counting }

func (b listed) Objects(ctx context.Context) iter.Seq2[storage.Object, error] {
	b.listed++
	return b.counting.Objects.Objects(ctx)
}

// placed is a store over a shared journal and a Placed engine.
func placed(t *testing.T, j storage.Journal) (*store, *memory.Service, *counting) {
	x := storagetest.OpenIndexWith(t, j, storage.IndexOptions{Placed: true, Grace: grace})
	service := memory.NewService()
	b := &counting{Objects: &memory.Objects{Service: service, Records: x}}
	s := &store{T: t, blobs: listed{b}, index: x}
	s.collector = &storage.Collector{Blobs: s.blobs, Index: x, Grace: grace}
	return s, service, b
}

func (s *store) unlink(repo string, d digest.Digest) {
	s.Helper()
	storagetest.Update(s.T, s.index, repo, func(tx *storage.Tx) error { return tx.Unlink(d) })
}

// TestWhatACollectionOfObjectsReports is what it has done, or, of a dry run, would do; and one run deletes everything,
// in as many commits as it takes.
func TestWhatACollectionOfObjectsReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := sharedJournal()
		j.Is.Operations = 128
		marks := 0
		s, service, _ := placed(t, watched(j, func(b []storage.Batch) error {
			for i := range b {
				for _, f := range b[i].Facts {
					if b[i].Repo == storage.StoreRepo && f.Kind == 'c' && f.Value != nil {
						marks++
					}
				}
			}
			return nil
		}))
		const n = 150 // more than two commits can mark
		for i := range n {
			s.push("r", fmt.Appendf(nil, "%03d", i))
		}
		dry := func(want storage.Collected) {
			t.Helper()
			time.Sleep(time.Second)
			if done, err := s.collector.RunWith(t.Context(), 0, true, nil); err != nil || done != want {
				t.Errorf("dry: %+v, %v; want %+v", done, err, want)
			}
		}
		if done := s.collect(); done != (storage.Collected{Repos: 1, Blobs: n}) || marks != 0 {
			t.Errorf("nothing is to be collected: %+v, %d marks", done, marks)
		}
		dry(storage.Collected{Repos: 1, Unlinked: n, Blobs: n, Deleted: n, Freed: 3 * n})
		s.push("s", []byte("000"))
		if _, err := s.manifest(t.Context(), "s", "v", digest.FromString("000")); err != nil {
			t.Fatal(err)
		}
		dry(storage.Collected{Repos: 2, Unlinked: n, Blobs: n + 1, Deleted: n - 1, Freed: 3 * (n - 1)})
		for i := range n {
			s.unlink("r", digest.FromBytes(fmt.Appendf(nil, "%03d", i)))
		}
		if done := s.collect(); done != (storage.Collected{Repos: 1, Blobs: n + 1, Deleted: n - 1,
			Freed: 3 * (n - 1)}) ||
			marks != n-1 || service.Len() != 2 {
			t.Errorf("%+v, %d marks, %d objects left", done, marks, service.Len())
		}
	})
}

// TestACollectionOfObjectsReportsErrors of each step, and the next run does what is left.
func TestACollectionOfObjectsReportsErrors(t *testing.T) {
	broken := errors.New("broken")
	synctest.Test(t, func(t *testing.T) {
		fails := ""
		s, service, b := placed(t, watched(sharedJournal(), func(batches []storage.Batch) error {
			for i := range batches {
				for _, f := range batches[i].Facts {
					set := map[bool]string{true: "+", false: "-"}[f.Value != nil]
					if fails != "" && fails == set+string(f.Kind) {
						return broken
					}
				}
			}
			return nil
		}))
		for _, fault := range []string{"+c", "-c", "remove", "-d", "+r"} {
			d := s.push("r", []byte(fault))
			m, err := s.manifest(t.Context(), "r", "v", d)
			if err != nil {
				t.Fatal(err)
			}
			storagetest.Update(t, s.index, "r", func(tx *storage.Tx) error { return tx.DeleteManifest(m) })
			time.Sleep(25 * time.Hour)
			if fails = fault; fault == "remove" {
				b.fails = broken
			}
			if _, err := s.collector.Run(t.Context(), false, nil); !errors.Is(err, broken) {
				t.Errorf("%s: %v", fault, err)
			}
			fails, b.fails = "", nil
			s.collect()
			if s.holds("r", d) || storage.Departed(s.index, "r") != 0 {
				t.Errorf("%s: the next run has left something", fault)
			}
			if fault != "remove" && service.Len() > 2 { // those of the fault remove are swept as unnamed
				t.Errorf("%s: %d objects", fault, service.Len())
			}
		}
	})
}

// generation returns that of new objects.
func generation(x *storage.Index) string {
	g, _, _ := strings.Cut(x.NewPlace(), "/")
	return strings.TrimLeft(g, "0")
}

// TestUnnamedObjectsAreSweptByGeneration: once a day the generation is raised, and what no fact names and is two behind
// is deleted; what is named or younger stays. In between nothing is listed. A run that is for all raises it after
// Grace.
func TestUnnamedObjectsAreSweptByGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wholeSecond()
		s, service, b := placed(t, sharedJournal())
		upload := func(n int) {
			for i := range n {
				if _, err := storagetest.Push(t.Context(), b.Objects, fmt.Appendf(nil, "unnamed %03d", i)); err != nil {
					t.Fatal(err)
				}
			}
		}
		named := func(n int, text string) {
			for i := range n {
				d := s.push("r", fmt.Appendf(nil, text, i))
				if _, err := s.manifest(t.Context(), "r", fmt.Sprint(text[:3], i), d); err != nil {
					t.Fatal(err)
				}
			}
		}
		upload(100)
		named(20, "old %d")
		run := func(at time.Duration, wantGeneration string, objects, deleted, lists int) {
			t.Helper()
			time.Sleep(at)
			b.listed = 0
			done := s.collect()
			if g := generation(s.index); g != wantGeneration || service.Len() != objects || done.Deleted != deleted ||
				done.Freed != int64(deleted*len("unnamed 000")) || b.listed != lists {
				t.Errorf("generation %q, %d objects, %+v, listed %d times; want %q, %d, %d deleted, listed %d times", g,
					service.Len(), done, b.listed, wantGeneration, objects, deleted, lists)
			}
		}
		run(0, "1", 140, 0, 0)
		upload(30)
		named(10, "new %d")
		run(24*time.Hour-time.Second, "1", 190, 0, 0)
		run(time.Second, "2", 90, 100, 1)
		run(time.Hour, "2", 90, 0, 0)
		s.collector.Grace = 48 * time.Hour
		run(46*time.Hour, "2", 90, 0, 0)
		run(time.Hour, "3", 60, 30, 1)

		s.collector.Grace = time.Hour
		upload(1)
		for _, want := range []struct {
			generation string
			objects    int
		}{{"4", 61}, {"5", 60}} {
			time.Sleep(time.Hour)
			if _, err := s.collector.RunAll(t.Context(), time.Hour, nil); err != nil {
				t.Fatal(err)
			}
			if g := generation(s.index); g != want.generation || service.Len() != want.objects {
				t.Errorf("generation %q, %d objects, want %+v", g, service.Len(), want)
			}
		}
	})
}

// TestAGenerationThatIsNotCommittedDeletesNothing: objects may be named until the Journal says that they may not.
func TestAGenerationThatIsNotCommittedDeletesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken, fails := errors.New("broken"), false
		s, service, b := placed(t, watched(sharedJournal(), func([]storage.Batch) error {
			if fails {
				return broken
			}
			return nil
		}))
		if _, err := storagetest.Push(t.Context(), b.Objects, []byte("unnamed")); err != nil {
			t.Fatal(err)
		}
		s.collect()
		time.Sleep(25 * time.Hour)
		fails = true
		if _, err := s.collector.Run(t.Context(), false, nil); !errors.Is(err, broken) || service.Len() != 1 {
			t.Errorf("%v, %d objects", err, service.Len())
		}
		fails = false
		if s.collect(); service.Len() != 0 {
			t.Errorf("%d objects are left", service.Len())
		}
	})
}

// TestWhatADeletedManifestLeaves keeps the links of what it consisted of for the grace, and not a second longer; then
// nothing of it is left, in facts or in memory.
func TestWhatADeletedManifestLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wholeSecond()
		s := newStore(t, memory.NewBlobs(), sharedJournal())
		empty := storage.MemoryOfFacts(s.index)
		d := s.push("r", []byte("layer"))
		m, err := s.manifest(t.Context(), "r", "v", d)
		if err != nil {
			t.Fatal(err)
		}
		e, err := s.manifest(t.Context(), "r", "e") // without references it leaves nothing
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Hour)
		before := storage.MemoryOfFacts(s.index)
		storagetest.Update(t, s.index, "r", func(tx *storage.Tx) error {
			return errors.Join(tx.DeleteManifest(m), tx.DeleteManifest(e))
		})
		if n := storage.Departed(s.index, "r"); n != 1 {
			t.Errorf("%d records", n)
		}
		if kept := storage.MemoryOfFacts(s.index); kept <= empty || kept >= before {
			t.Errorf("%d bytes with the record, %d with the manifests, %d without either", kept, before, empty)
		}
		time.Sleep(grace + time.Second)
		if s.collect(); !s.holds("r", d) || storage.Departed(s.index, "r") != 1 {
			t.Error("the link is gone within the grace")
		}
		time.Sleep(time.Second)
		if s.collect(); s.holds("r", d) || s.has(d) || storage.Departed(s.index, "r") != 0 {
			t.Error("the link is still there after the grace")
		}
		if n := storage.Leftovers(s.index); n != 0 || storage.MemoryOfFacts(s.index) != empty {
			t.Errorf("%d records are left, and %d bytes of %d", n, storage.MemoryOfFacts(s.index), empty)
		}
	})
}

// TestARecordThatWasMadeAnewStays: a manifest that came back and was deleted again while the Collector was about to
// forget the first time, in the same commit or in the one before.
func TestARecordThatWasMadeAnewStays(t *testing.T) {
	for _, same := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			inner := sharedJournal()
			var during func()
			s := newStore(t, memory.NewBlobs(), watched(inner, func([]storage.Batch) error {
				if f := during; f != nil {
					during = nil
					f()
				}
				return nil
			}))
			d := s.push("r", []byte("layer"))
			m := storage.Manifest{Digest: digestOf("m", 1), MediaType: "application/a", Size: 1,
				Refs: []digest.Digest{d}}
			remake := func(tx *storage.Tx) error { return errors.Join(tx.PutManifest(m), tx.DeleteManifest(m.Digest)) }
			storagetest.Update(t, s.index, "r", remake)
			time.Sleep(10 * grace)
			collected := make(chan struct{})
			collect := func() {
				s.collect()
				close(collected)
			}
			if same {
				together(t, s.index, func(x *storage.Index) error { return x.Update(t.Context(), "r", remake) },
					func(*storage.Index) error { collect(); return nil })
			} else {
				during = func() {
					go collect()
					synctest.Wait()
				}
				storagetest.Update(t, s.index, "r", remake)
			}
			<-collected
			if s.collect(); storage.Departed(s.index, "r") != 1 || !s.holds("r", d) {
				t.Errorf("in the same commit %v: the record is gone, the link held: %v", same, s.holds("r", d))
			}
		})
	}
}

// TestALinkThatManifestsReferToIsNotRecordedAnew: they keep it. What a deleted one has left does not count, because it
// may be forgotten at any moment.
func TestALinkThatManifestsReferToIsNotRecordedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, commits := conflicts(sharedJournal())
		x := storagetest.OpenIndexWith(t, j, storage.IndexOptions{Grace: time.Hour})
		s := &store{T: t, blobs: memory.NewBlobs(), index: x}
		d := s.push("r", []byte("layer"))
		m, err := s.manifest(t.Context(), "r", "v", d)
		if err != nil {
			t.Fatal(err)
		}
		lease := func(what string, want int) {
			t.Helper()
			*commits = nil
			if err := x.Lease(t.Context(), "r", d); err != nil || len(*commits) != want {
				t.Errorf("%s: commits of %v, want %d; %v", what, *commits, want, err)
			}
		}
		time.Sleep(time.Hour)
		lease("a manifest refers to it", 0)
		storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.DeleteManifest(m) })
		lease("none does any more", 1)
		lease("it was recorded anew", 0)
		lease("in another repository", 0)
		if err := x.Lease(t.Context(), "nowhere", d); err != nil || len(*commits) != 0 {
			t.Errorf("a repository that does not exist: %v, %v", *commits, err)
		}
	})
}

// TestARevisionEndsWhenTheRepoWasEmptyForADay, or for the grace if that is longer; from its last change on.
func TestARevisionEndsWhenTheRepoWasEmptyForADay(t *testing.T) {
	for _, grace := range []time.Duration{time.Hour, 48 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			s := newStore(t, memory.NewBlobs(), sharedJournal())
			s.collector.Grace = grace
			wait := max(24*time.Hour, grace)
			passing := func(repo string) {
				storagetest.Update(t, s.index, repo, put(1, "v"))
				storagetest.Update(t, s.index, repo, func(tx *storage.Tx) error {
					return tx.DeleteManifest(manifest(1).Digest)
				})
			}
			run := func(what string, at time.Duration, want int) {
				t.Helper()
				time.Sleep(at)
				if s.collect(); len(storage.EndedRevisions(s.index)) != want {
					t.Errorf("grace %s, %s: %v", grace, what, storage.EndedRevisions(s.index))
				}
			}
			const n = 10
			for i := range n {
				passing(fmt.Sprint("a", i))
			}
			storagetest.Update(t, s.index, "held", put(1, "v"))
			run("just emptied", 0, n)
			run("almost a day", wait-time.Second, n)
			for i := range n {
				passing(fmt.Sprint("b", i))
			}
			passing("a0") // another revision: from now on
			run("a day", time.Second, n+1)
			run("almost a day after the others", wait-time.Second, n+1)
			run("a day after the others", time.Second, 0)
			wantTags(t, s.index, "held", "v")
		})
	}
}

// TestTheRevisionOfARepoThatComesBackStays: a push that the Collector has not seen, in the same commit or in the one
// before.
func TestTheRevisionOfARepoThatComesBackStays(t *testing.T) {
	for _, same := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var during func()
			ends := 0
			s := newStore(t, memory.NewBlobs(), watched(sharedJournal(), func(b []storage.Batch) error {
				for i := range b {
					if b[i].Ends {
						ends++
					}
				}
				if f := during; f != nil {
					during = nil
					f()
				}
				return nil
			}))
			storagetest.Update(t, s.index, "r", put(1, "v"))
			storagetest.Update(t, s.index, "r", func(tx *storage.Tx) error {
				return tx.DeleteManifest(manifest(1).Digest)
			})
			s.collect()
			time.Sleep(48 * time.Hour)
			push := func(x *storage.Index) error { return x.Update(t.Context(), "r", put(2, "w")) }
			if same {
				together(t, s.index, push, func(*storage.Index) error { s.collect(); return nil })
			} else {
				collected := make(chan struct{})
				during = func() {
					go func() { s.collect(); close(collected) }()
					synctest.Wait()
				}
				if err := push(s.index); err != nil {
					t.Error(err)
				}
				<-collected
			}
			if wantTags(t, s.index, "r", "w"); ends != 0 {
				t.Errorf("in the same commit %v: the revision has ended", same)
			}
		})
	}
}

// TestStepsFitIntoACommit of a journal with bounds, and are never empty.
func TestStepsFitIntoACommit(t *testing.T) {
	bounds := func(operations, compares int) storage.Traits {
		return storage.Traits{Operations: operations, Compares: compares}
	}
	for _, row := range []struct {
		traits                        storage.Traits
		n, operations, compares, want int
	}{
		{bounds(0, 0), 512, 1, 1, 512}, {bounds(0, 0), 256, 2, 3, 256}, {bounds(128, 0), 512, 1, 0, 120},
		{bounds(128, 0), 256, 2, 3, 60}, {bounds(0, 128), 256, 2, 3, 40}, {bounds(128, 128), 256, 2, 3, 40},
		{bounds(128, 16), 256, 2, 0, 60}, {bounds(4096, 128), 10, 2, 3, 10}, {bounds(8, 8), 256, 2, 3, 1},
		{bounds(1, 1), 256, 2, 3, 1},
	} {
		if got := storage.Step(row.traits, row.n, row.operations, row.compares); got != row.want {
			t.Errorf("%+v: %d", row, got)
		}
	}
}

// TestRecordsOfDeletedManifestsAreRead, and a malformed one is damage.
func TestRecordsOfDeletedManifestsAreRead(t *testing.T) {
	whole := storage.DepartedFact(digestOf("m", 1), 1_800_000_000, digestOf("blob", 1))
	for name, row := range map[string]struct {
		value string
		ok    bool
	}{
		"whole":            {string(whole.Value), true},
		"nothing in it":    {string(storage.DepartedFact(digestOf("m", 1), 1_800_000_000).Value), true},
		"empty":            {"", false},
		"no number":        {"\xff", false},
		"more than it has": {string(whole.Value[:len(whole.Value)-1]), false},
		"far too many":     {"\x02\xff\xff\xff\xff\x0f", false},
	} {
		j := sharedJournal()
		facts := []storage.Fact{{Kind: whole.Kind, Name: whole.Name, Value: []byte(row.value)},
			storage.LinkFact(digestOf("blob", 2), 1)}
		if _, err := j.Commit(t.Context(), storage.Batch{Repo: "r", Facts: facts}); err != nil {
			t.Fatal(err)
		}
		x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{})
		if (err == nil) != row.ok || err != nil && !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			x.Close()
		}
	}
}
