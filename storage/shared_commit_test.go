package storage_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// sharedJournal is a journal that other processes may write to.
func sharedJournal() *memory.Journal {
	j := memory.NewJournal()
	j.Is = storage.Traits{Shared: true}
	return j
}

// conflicts is a journal whose first commits are conflicts about these repos. It records the repos whose facts each
// commit changes.
func conflicts(inner storage.Journal, about ...[]string) (j storage.Journal, commits *[][]string) {
	commits = new([][]string)
	return hooked{inner, func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
		var repos []string
		for i := range b {
			if len(b[i].Facts) > 0 {
				repos = append(repos, b[i].Repo)
			}
		}
		slices.Sort(repos)
		if *commits = append(*commits, repos); len(*commits) <= len(about) {
			return 0, &storage.ConflictError{Repos: about[len(*commits)-1]}
		}
		return inner.Commit(ctx, b...)
	}}, commits
}

// TestAConflictHoldsUpOnlyWhatItConcerns: the other changes of the commit do not wait for it.
func TestAConflictHoldsUpOnlyWhatItConcerns(t *testing.T) {
	for name, row := range map[string]struct {
		about string
		want  [][]string
	}{
		"a repo":                         {"a", [][]string{{"a", "b"}, {"b"}, {"a"}}},
		"what waits of a repo":           {"_/a", [][]string{{"a", "b"}, {"b"}, {"a"}}},
		"content":                        {"_", [][]string{{"a", "b"}, {"b"}, {"a"}}}, // b has no condition about it
		"what no change is about itself": {"other", [][]string{{"a", "b"}, {"a", "b"}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inner := sharedJournal()
				storagetest.Update(t, storagetest.OpenIndex(t, inner), "b", put(1, "v"))
				j, commits := conflicts(inner, []string{row.about})
				x := storagetest.OpenIndex(t, j)
				together(t, x, func(x *storage.Index) error { return x.Update(t.Context(), "a", put(1, "v")) },
					func(x *storage.Index) error {
						return x.Update(t.Context(), "b", func(tx *storage.Tx) error { return tx.DeleteTag("v") })
					})
				if !slices.EqualFunc(*commits, row.want, slices.Equal) {
					t.Errorf("commits of %v, want %v", *commits, row.want)
				}
				wantTags(t, x, "a", "v")
				wantTags(t, x, "b")
			})
		})
	}
}

// TestConflictsWithNobodyEnd: a journal that one process writes to has no conflicts, so that one that does not end is a
// fault.
func TestConflictsWithNobodyEnd(t *testing.T) {
	calls := 0
	x := storagetest.OpenIndex(t, hooked{memory.NewJournal(),
		func(context.Context, ...storage.Batch) (storage.Revision, error) {
			calls++
			return 0, &storage.ConflictError{Repos: []string{"r"}}
		}})
	if err := x.Update(t.Context(), "r", put(1, "v")); !errors.Is(err, storage.ErrConflict) || calls != 16 {
		t.Errorf("after %d commits: %v", calls, err)
	}
}

// TestConflictsPauseAfterAWhile, so that one of several writers comes first; the first tries are made at once.
func TestConflictsPauseAfterAWhile(t *testing.T) {
	for n, pauses := range map[int]bool{2: false, 3: true, 20: true} {
		synctest.Test(t, func(t *testing.T) {
			j, _ := conflicts(sharedJournal(), slices.Repeat([][]string{{"r"}}, n)...)
			x := storagetest.OpenIndex(t, j)
			begin := time.Now()
			storagetest.Update(t, x, "r", put(1, "v"))
			if paused := time.Since(begin); (paused > 0) != pauses || paused > time.Duration(n)*64*time.Millisecond {
				t.Errorf("%d conflicts take %s", n, paused)
			}
		})
	}
}

// TestAfterAConflictTheStateIsAwaited: a function that runs again on the state of before would be in conflict again.
func TestAfterAConflictTheStateIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := sharedJournal()
		far := delayed{inner, make(chan struct{})}
		j, commits := conflicts(far)
		x := storagetest.OpenIndex(t, j)
		storagetest.Update(t, storagetest.OpenIndex(t, inner), "r", count)
		go func() {
			time.Sleep(time.Second)
			close(far.pass)
		}()
		storagetest.Update(t, x, "r", count)
		if len(*commits) != 2 || counted(t, x, "r") != 2 {
			t.Errorf("%d commits, counted %d", len(*commits), counted(t, x, "r"))
		}
	})
}

// TestWhatIsPinnedWaitsForTheEndOfAMark: a pin and a mark may come at the same time. The change is made once the
// Collector has seen the pin; until then it has not happened, and says so to a caller that gives up.
func TestWhatIsPinnedWaitsForTheEndOfAMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := memory.NewJournal()
		blobs := &atDelete{Blobs: memory.NewBlobs()}
		var s *store
		var release func()
		pinned, other := digest.FromString("pinned"), digest.FromString("other")
		s = newStore(t, blobs, hooked{inner, func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
			if release == nil && len(b) > 0 && b[0].Repo == storage.StoreRepo { // the mark is about to be set
				var err error
				if release, err = s.index.Pin(ctx, pinned); err != nil {
					t.Error(err)
				}
			}
			return inner.Commit(ctx, b...)
		}})
		for _, text := range []string{"pinned", "other"} {
			if _, err := storagetest.Push(t.Context(), blobs, []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		linked, gaveUp := make(chan error, 1), make(chan error, 1)
		update := func(ctx context.Context, repo string) error {
			return s.index.Update(ctx, repo, func(tx *storage.Tx) error { tx.Link(pinned, 6); return nil })
		}
		blobs.hook = func() { // of the other one: the mark of the pinned one is set
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() { linked <- update(t.Context(), "r") }()
			go func() { gaveUp <- update(ctx, "s") }()
			synctest.Wait()
			cancel(errMissing)
			synctest.Wait()
		}
		s.collect()
		if err := <-linked; err != nil || !s.holds("r", pinned) || !s.has(pinned) {
			t.Errorf("the link: %v, held %v", err, s.holds("r", pinned))
		}
		if err := <-gaveUp; !errors.Is(err, errMissing) || s.holds("s", pinned) {
			t.Errorf("of a caller that gave up: %v", err)
		}
		if s.has(other) {
			t.Error("what is not pinned is still there")
		}
		release()
	})
}

// mute is a shared journal that may not answer.
type mute struct {
	storage.Journal
	silent atomic.Bool
	heads  atomic.Int32
}

func (j *mute) Head(ctx context.Context) (storage.Revision, error) {
	j.heads.Add(1)
	if j.silent.Load() {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return j.Journal.Head(ctx)
}

// TestCatchUpSaysHowOldTheIndexMayBe: it waits for a journal that does not answer once, and not again for a second.
func TestCatchUpSaysHowOldTheIndexMayBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &mute{Journal: sharedJournal()}
		x := storagetest.OpenIndex(t, j)
		catchUp := func(ctx context.Context, what string, wantAge, wantTime time.Duration) {
			t.Helper()
			begin := time.Now()
			age, err := x.CatchUp(ctx, 200*time.Millisecond)
			if took := time.Since(begin); err != nil || age != wantAge || took != wantTime {
				t.Errorf("%s: %s old, %v, after %s; want %s after %s", what, age, err, took, wantAge, wantTime)
			}
		}
		catchUp(t.Context(), "it answers", 0, 0)
		j.silent.Store(true)
		time.Sleep(time.Minute)
		catchUp(t.Context(), "it does not answer", time.Minute+200*time.Millisecond, 200*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		n := j.heads.Load()
		catchUp(t.Context(), "soon after", time.Minute+300*time.Millisecond, 0)
		if j.heads.Load() != n {
			t.Error("it is asked again within a second")
		}
		time.Sleep(time.Second)
		catchUp(t.Context(), "after a second", time.Minute+1500*time.Millisecond, 200*time.Millisecond)
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errMissing)
		time.Sleep(2 * time.Second)
		if age, err := x.CatchUp(ctx, time.Hour); !errors.Is(err, errMissing) || age != 0 {
			t.Errorf("a caller that has gone: %s, %v", age, err)
		}
		j.silent.Store(false)
		time.Sleep(2 * time.Second)
		catchUp(t.Context(), "it answers again", 0, 0)
		if got := x.Confirmed(); !got.Equal(time.Now()) {
			t.Errorf("confirmed %s", got)
		}
	})
}

// TestALeaseOfAFreshLinkIsNoCommit: with a shared journal the age of a link says who relies on it, and is recorded anew
// when half of the grace has passed; with one of its own a process remembers it.
func TestALeaseOfAFreshLinkIsNoCommit(t *testing.T) {
	for name, row := range map[string]struct {
		journal *memory.Journal
		want    []int // commits after the link, at each time
	}{"shared": {sharedJournal(), []int{0, 0, 0, 1, 1}},
		"of one process": {memory.NewJournal(), []int{0, 0, 0, 0, 0}}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // links have whole seconds
				j, commits := conflicts(row.journal)
				x := storagetest.OpenIndexWith(t, j, storage.IndexOptions{Grace: time.Hour})
				d := digestOf("blob", 1)
				storagetest.Update(t, x, "r", link(1, 5))
				*commits = nil
				for i, at := range []time.Duration{0, time.Minute, 29 * time.Minute, time.Second, time.Minute} {
					time.Sleep(at)
					for range 2 {
						if err := x.Lease(t.Context(), "r", d); err != nil {
							t.Fatal(err)
						}
						storagetest.Update(t, x, "r", link(1, 5)) // a push of what is held is the same
					}
					if len(*commits) != row.want[i] {
						t.Errorf("step %d: commits of %v, want %d", i, *commits, row.want[i])
					}
				}
			})
		})
	}
}

// TestAfterAnUnknownOutcomeNothingIsCommittedUntilTheStateIsConfirmed: functions would run on what may be old.
func TestAfterAnUnknownOutcomeNothingIsCommittedUntilTheStateIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner, commits := sharedJournal(), 0
		j := &mute{Journal: hooked{inner, func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
			if commits++; commits == 1 {
				return 0, errMissing
			}
			return inner.Commit(ctx, b...)
		}}}
		x := storagetest.OpenIndex(t, j)
		if err := x.Update(t.Context(), "r", put(1, "v")); !errors.Is(err, errMissing) {
			t.Errorf("the outcome is not known: %v", err)
		}
		j.silent.Store(true)
		if err := x.Update(t.Context(), "r", put(1, "v")); !errors.Is(err, storage.ErrUnavailable) || commits != 1 {
			t.Errorf("the state cannot be confirmed: %v, %d commits", err, commits)
		}
		j.silent.Store(false)
		storagetest.Update(t, x, "r", put(1, "v"))
		wantTags(t, x, "r", "v")
	})
}

// TestAFailureThatDependsOnTheCommitWaitsForIt: what a function saw of an earlier change of the same commit is not
// certain before that is committed.
func TestAFailureThatDependsOnTheCommitWaitsForIt(t *testing.T) {
	seen := errors.New("what is not committed was seen")
	for name, first := range map[string]func(tx *storage.Tx) error{
		"about content itself": func(tx *storage.Tx) error {
			tx.Link(digestOf("blob", 1), 1)
			return storage.PutRecord(tx, "a", []byte("v"))
		},
		"of a quota": func(tx *storage.Tx) error { tx.Link(digestOf("blob", 1), 60); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j, _ := conflicts(sharedJournal(), []string{"first"})
				x := storagetest.OpenIndex(t, j)
				x.SetQuotas([]storage.Quota{{Name: "all", Match: func(string) bool { return true }, Bytes: 100}})
				calls := 0
				together(t, x, func(x *storage.Index) error {
					return x.Update(t.Context(), "first", func(tx *storage.Tx) error {
						if calls++; calls > 1 { // it has nothing to do any more
							return nil
						}
						return first(tx)
					})
				}, func(x *storage.Index) error {
					return x.Update(t.Context(), "second", func(tx *storage.Tx) error {
						if tx.Record("a") != nil {
							return seen
						}
						if _, over := tx.Excess(digestOf("blob", 2), 60); over {
							return seen
						}
						tx.Link(digestOf("blob", 2), 60)
						return nil
					})
				})
			})
		})
	}
}
