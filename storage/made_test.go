package storage_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
)

// raise raises the generation of new objects.
func (s *store) raise(to string) {
	s.Helper()
	time.Sleep(25 * time.Hour)
	if s.collect(); generation(s.index) != to {
		s.Errorf("generation %q, want %q", generation(s.index), to)
	}
}

func (s *store) linkNow(repo string, d digest.Digest) error {
	return s.index.Update(s.Context(), repo, func(tx *storage.Tx) error { tx.Link(d, 1); return nil })
}

func (s *store) made(content string) (release func()) {
	s.Helper()
	release, err := s.commit(s.Context(), "r", []byte(content))
	if err != nil {
		s.Fatal(err)
	}
	return release
}

// TestAnObjectIsNamedOnceAlone: once a commit has named it, or may have, it may be deleted at any moment, and only a
// new object has the bytes again.
func TestAnObjectIsNamedOnceAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, service, _ := placed(t, sharedJournal())
		d := digest.FromString("x")
		if err := s.linkNow("r", d); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("without bytes: %v", err)
		}
		release := s.made("x")
		second := s.made("x") // as another client may push it at the same time
		if err := s.linkNow("r", d); err != nil {
			t.Fatal(err)
		}
		s.unlink("r", d)
		if s.collect(); service.Len() != 1 { // that of the second
			t.Errorf("%d objects", service.Len())
		}
		if err := s.linkNow("r", d); err != nil {
			t.Errorf("the second object: %v", err)
		}
		if place, err := s.index.Place(t.Context(), d); err != nil || !service.Has(place, d) {
			t.Errorf("a fact names %s, which is not there: %v", place, err)
		}
		s.unlink("r", d)
		s.collect()
		if err := s.linkNow("r", d); !errors.Is(err, storage.ErrExpired) || service.Len() != 0 {
			t.Errorf("both were named before: %v, %d objects", err, service.Len())
		}
		release()
		second()
		if s.collect(); service.Len() != 0 {
			t.Errorf("%d objects in the end", service.Len())
		}
		if err := s.linkNow("r", d); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("after the uploads: %v", err)
		}
	})
}

// TestAnObjectIsNamedOnceAmongOtherFacts of the same commit, which come in any order.
func TestAnObjectIsNamedOnceAmongOtherFacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := placed(t, sharedJournal())
		var updates []func(*storage.Index) error
		const n = 10
		for i := range n {
			text := fmt.Sprint(i)
			defer s.made(text)()
			updates = append(updates, func(*storage.Index) error { return s.linkNow("r", digest.FromString(text)) },
				func(x *storage.Index) error { return x.SetRecord(t.Context(), text, nil, []byte("v")) })
		}
		together(t, s.index, updates...)
		for i := range n {
			s.unlink("r", digest.FromString(fmt.Sprint(i)))
		}
		s.collect()
		for i := range n {
			if err := s.linkNow("r", digest.FromString(fmt.Sprint(i))); !errors.Is(err, storage.ErrExpired) {
				t.Errorf("%d is named again: %v", i, err)
			}
		}
	})
}

// TestAnObjectIsNamedWithinTwoGenerations, because after that the Collector may delete it; of several the newest one.
func TestAnObjectIsNamedWithinTwoGenerations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := placed(t, sharedJournal())
		s.raise("1")
		defer s.made("old")()
		defer s.made("both")()
		defer s.made("next")()
		s.raise("2")
		defer s.made("both")()
		if err := s.linkNow("r", digest.FromString("next")); err != nil {
			t.Errorf("one generation later: %v", err)
		}
		s.raise("3")
		if err := s.linkNow("r", digest.FromString("old")); !errors.Is(err, storage.ErrExpired) {
			t.Errorf("two generations later: %v", err)
		}
		if err := s.linkNow("r", digest.FromString("both")); err != nil {
			t.Errorf("the newer one of two: %v", err)
		}
		if place, _ := s.index.Place(t.Context(), digest.FromString("both")); !strings.HasPrefix(place, "00000002/") {
			t.Errorf("named %s", place)
		}
	})
}

// TestWhatBecomesOfAnObjectThatIsNotNeeded: nothing may delete it that a commit may yet name.
func TestWhatBecomesOfAnObjectThatIsNotNeeded(t *testing.T) {
	want := func(t *testing.T, what string, service *memory.Service, n int) {
		t.Helper()
		if service.Len() != n {
			t.Errorf("%s: %d objects, want %d", what, service.Len(), n)
		}
	}
	t.Run("nothing names it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, service, _ := placed(t, sharedJournal())
			s.made("x")()
			want(t, "released", service, 1)
			if _, err := s.index.Place(t.Context(), digest.FromString("x")); err != nil {
				t.Errorf("a fact has to name it, so that it is collected: %v", err)
			}
			s.collect()
			want(t, "collected", service, 0)
		})
	})
	t.Run("another one has the bytes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, service, _ := placed(t, sharedJournal())
			s.push("r", []byte("x"))
			release := s.made("x")
			want(t, "made", service, 2)
			release()
			want(t, "released", service, 1)
		})
	})
	t.Run("a commit may have named it, and another one has the bytes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			inner := sharedJournal()
			var during func()
			s, service, _ := placed(t, watched(inner, func([]storage.Batch) error {
				if f := during; f != nil {
					during = nil
					f()
				}
				return nil
			}))
			other, _, b := placed(t, inner)
			b.Objects.Service = service
			release := s.made("x")
			during = func() { other.push("r", []byte("x")) } // before the commit of s, which then is a conflict
			if err := s.linkNow("r", digest.FromString("x")); err != nil {
				t.Error(err)
			}
			release()
			want(t, "released", service, 2)
			s.raise("1")
			s.raise("2")
			want(t, "swept as unnamed", service, 0) // nor does anything refer to the link
		})
	})
}

// TestAConflictAboutObjectsConcernsWhatNamesThem, and holds up nothing else.
func TestAConflictAboutObjectsConcernsWhatNamesThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := sharedJournal()
		other, _, _ := placed(t, inner)
		if _, err := other.manifest(t.Context(), "b", "v"); err != nil {
			t.Fatal(err)
		}
		j, commits := conflicts(inner, []string{storage.StoreRepo})
		s, _, _ := placed(t, j)
		defer s.made("x")()
		together(t, s.index, func(*storage.Index) error { return s.linkNow("a", digest.FromString("x")) },
			func(x *storage.Index) error {
				return x.Update(t.Context(), "b", func(tx *storage.Tx) error { return tx.DeleteTag("v") })
			})
		want := [][]string{{"_", "a", "b"}, {"b"}, {"_", "a"}}
		if !slices.EqualFunc(*commits, want, slices.Equal) {
			t.Errorf("commits of %v, want %v", *commits, want)
		}
	})
}

// TestBytesThatGoInTheSameCommitCannotBeNamed: the Collector takes mark and place away in one commit.
func TestBytesThatGoInTheSameCommitCannotBeNamed(t *testing.T) {
	for range 10 { // it is not certain that it becomes the same commit
		synctest.Test(t, testBytesThatGoInTheSameCommit)
	}
}

func testBytesThatGoInTheSameCommit(t *testing.T) {
	held := make(chan struct{})
	var s *store
	marked := false
	s, service, _ := placed(t, watched(sharedJournal(), func(b []storage.Batch) error {
		for i := range b {
			if b[i].Repo == storage.StoreRepo && slices.ContainsFunc(b[i].Facts, func(f storage.Fact) bool {
				return f.Kind == 'c' && f.Value != nil
			}) {
				marked = true // what comes next is one commit
				go s.index.Update(context.Background(), "hold", func(*storage.Tx) error { <-held; return nil })
				time.Sleep(time.Millisecond) // until it waits for the committer
			}
		}
		return nil
	}))
	s.push("r", []byte("x"))
	s.unlink("r", digest.FromString("x"))
	collected, linked := make(chan struct{}), make(chan error, 1)
	go func() { s.collect(); close(collected) }()
	time.Sleep(time.Second) // the mark is set, and the next change waits
	go func() { linked <- s.linkNow("q", digest.FromString("x")) }()
	synctest.Wait()
	close(held)
	<-collected
	if err := <-linked; !errors.Is(err, storage.ErrNotFound) || !marked || service.Len() != 0 {
		t.Errorf("the link: %v, %d objects", err, service.Len())
	}
}

// TestChangesThatDoNotContradictAreNoConflicts, although another process makes one at the same moment.
func TestChangesThatDoNotContradictAreNoConflicts(t *testing.T) {
	record := func(s *store, name string) error {
		return s.index.SetRecord(s.Context(), name, nil, []byte("v"))
	}
	for name, do := range map[string]func(s *store, i string) error{
		"records": record,
		"links":   func(s *store, i string) error { return s.linkNow("r", digest.FromString(i)) },
		"links and a record": func(s *store, i string) error {
			return errors.Join(s.linkNow("r", digest.FromString(i)), record(s, i))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inner, commits := sharedJournal(), 0
				var during func()
				s, _, _ := placed(t, watched(inner, func([]storage.Batch) error {
					commits++
					if f := during; f != nil {
						during = nil
						f()
					}
					return nil
				}))
				other, _, _ := placed(t, inner)
				for _, x := range []*store{s, other} {
					defer x.made("mine")()
					defer x.made("theirs")()
				}
				commits = 0
				during = func() {
					if err := do(other, "theirs"); err != nil {
						t.Error(err)
					}
				}
				if err := do(s, "mine"); err != nil {
					t.Error(err)
				}
				if want := 1 + strings.Count(name, "and"); commits != want {
					t.Errorf("%d commits, want %d", commits, want)
				}
			})
		})
	}
}

// TestWhatAPlaceTakesOfMemoryIsGivenBack when its content is deleted.
func TestWhatAPlaceTakesOfMemoryIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := placed(t, sharedJournal())
		s.collect() // it makes the record of the generation
		before := storage.MemoryOfFacts(s.index)
		s.push("r", []byte("x"))
		s.unlink("r", digest.FromString("x"))
		if with := storage.MemoryOfFacts(s.index); with <= before {
			t.Errorf("%d bytes with a place, %d without", with, before)
		}
		s.collect()
		if after := storage.MemoryOfFacts(s.index); after != before {
			t.Errorf("%d bytes in the end, %d at the beginning", after, before)
		}
	})
}

// TestANewObjectReplacesADamagedOne, unless it came too late: then the content stays damaged.
func TestANewObjectReplacesADamagedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, service, _ := placed(t, sharedJournal())
		d := s.push("r", []byte("x"))
		old, err := s.index.Place(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		s.raise("1")
		late, err := s.blobs.Create(t.Context(), "r", digest.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := late.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = s.blobs.(storage.Placed).Remove(t.Context(), old) // its bytes are lost
		s.raise("2")
		s.raise("3")
		scrub := func() (damaged int) {
			if _, err := (&storage.Scrubber{Blobs: s.blobs, Index: s.index}).Run(t.Context(), 0,
				func(storage.Finding) {}, nil); err != nil {
				t.Error(err)
			}
			return s.index.Stats().Quarantined
		}
		if _, err := s.manifest(t.Context(), "q", "v", s.push("q", []byte("kept"))); err != nil || scrub() != 0 {
			t.Fatalf("%v, %d damaged", err, scrub())
		}
		s.push("r", []byte("x")) // it was collected: nothing referred to it
		if old, err = s.index.Place(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		_ = s.blobs.(storage.Placed).Remove(t.Context(), old)
		if scrub() != 1 || s.holds("r", d) {
			t.Fatalf("lost bytes: %d damaged", scrub())
		}
		if _, err := s.index.Commit(t.Context(), late, d); !errors.Is(err, storage.ErrExpired) ||
			s.index.Stats().Quarantined != 1 {
			t.Errorf("an object that came too late: %v, %d damaged", err, s.index.Stats().Quarantined)
		}
		s.push("r", []byte("x"))
		place, err := s.index.Place(t.Context(), d)
		if err != nil || place == old || !service.Has(place, d) || s.index.Stats().
			Quarantined != 0 || !s.holds("r", d) {
			t.Errorf("pushed again: %q for %q, %v", place, old, err)
		}
	})
}

// TestAPlaceThatAnotherProcessHasNamed is found: a miss is confirmed with the Journal.
func TestAPlaceThatAnotherProcessHasNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := sharedJournal()
		far := delayed{inner, make(chan struct{})}
		j := &mute{Journal: far}
		s, _, _ := placed(t, j)
		other, _, _ := placed(t, inner)
		d := other.push("r", []byte("x"))
		want, err := other.index.Place(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Millisecond)
			close(far.pass)
		}()
		if got, err := s.index.Place(t.Context(), d); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
		got, err := s.index.Place(t.Context(), digest.FromString("none"))
		if got != "" || !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("none: %q, %v", got, err)
		}
		j.silent.Store(true)
		if _, err := s.index.Place(t.Context(), digest.FromString("none")); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a miss that cannot be confirmed: %v", err)
		}
	})
}

// TestAPushBesideADeletionOfItsContent in one commit names its own object, as it would a moment later.
func TestAPushBesideADeletionOfItsContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s *store
		held := make(chan struct{})
		marked := false
		s, service, _ := placed(t, watched(sharedJournal(), func(b []storage.Batch) error {
			for i := range b {
				for _, f := range b[i].Facts {
					if f.Kind != 'c' || f.Value == nil || marked {
						continue
					}
					marked = true
					// From the mark on the committer is busy, until the deletion and the push wait together.
					go func() {
						_ = s.index.Update(t.Context(), "hold", func(*storage.Tx) error { <-held; return nil })
					}()
					time.Sleep(time.Millisecond) // of the bubble's clock: when all else waits
				}
			}
			return nil
		}))
		d := digest.FromString("x")
		s.made("x")() // a fact names the object, and no repo holds it
		release := s.made("x")
		defer release()
		collected, pushed := make(chan struct{}), make(chan error, 1)
		go func() { s.collect(); close(collected) }()
		time.Sleep(time.Second)
		go func() { pushed <- s.linkNow("r", d) }()
		synctest.Wait()
		close(held)
		<-collected
		if err := <-pushed; err != nil || !marked {
			t.Errorf("the push: %v; marked: %v", err, marked)
		}
		place, err := s.index.Place(t.Context(), d)
		if err != nil || !service.Has(place, d) || service.Len() != 1 {
			t.Errorf("a fact names %s of %d objects: %v", place, service.Len(), err)
		}
	})
}
