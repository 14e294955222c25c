package storage_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// A shared journal may end its Watch because another one has taken its place, and is asked and written to meanwhile.

// TestNothingIsDecidedWhileTheJournalIsNotFollowed: between the end of a Watch and the next full state, an Index has
// the state of another journal, whose revisions mean nothing.
func TestNothingIsDecidedWhileTheJournalIsNotFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		place := newReplaced(errors.New("the watch has ended"))
		x := storagetest.OpenIndex(t, place)
		set := func(x *storage.Index, name string) {
			t.Helper()
			if err := x.SetRecord(t.Context(), name, nil, []byte("v")); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"a", "b", "c"} {
			set(x, name)
		}
		other := sharedMemory()
		filler := storagetest.OpenIndex(t, other)
		set(filler, "new")
		place.by(other)
		synctest.Wait() // the Watch has ended, and the next one follows after a second
		if value, err := x.Record(t.Context(), "new"); value == nil || err != nil {
			t.Errorf("a miss was confirmed by another journal than that of the state: %v", err)
		}
		set(x, "d")
		place.by(sharedMemory())
		synctest.Wait()
		err := x.Update(t.Context(), "r", func(tx *storage.Tx) error {
			if tx.Record("d") == nil {
				return storage.ErrNotFound
			}
			return nil
		})
		if !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("a change was decided on the state of another journal: %v", err)
		}
	})
}

// says is a journal that delivers with its full state how often it was replaced.
type says struct {
	storage.Journal
	restored *atomic.Int64
	end      <-chan struct{} // ends the first Watch
}

func (j says) Watch(ctx context.Context, apply func(storage.Update) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-j.end:
			if j.restored.Add(1) == 1 {
				cancel(errors.New("the watch has ended"))
			}
		case <-ctx.Done():
		}
	}()
	return j.Journal.Watch(ctx, func(u storage.Update) error {
		if u.Synced {
			u.Restored = int(j.restored.Load())
		}
		return apply(u)
	})
}

// TestEachWatcherLearnsThatTheJournalWasReplaced with its full state, and not only the one that got the error.
func TestEachWatcherLearnsThatTheJournalWasReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		x := storagetest.OpenIndex(t, says{sharedMemory(), new(atomic.Int64), end})
		if x.Suspicion() != nil {
			t.Fatal(x.Suspicion())
		}
		close(end)
		time.Sleep(10 * time.Second)
		if err := x.Suspicion(); !errors.Is(err, storage.ErrSuspicious) {
			t.Errorf("not suspected: %v", err)
		}
	})
}

// TestASealedJournalThatIsSuspectedDoesNotOpen, and OpenIndex returns: the goroutine that would record the suspicion
// ends.
func TestASealedJournalThatIsSuspectedDoesNotOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := sharedMemory()
		x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{Migration: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Seal(t.Context(), storage.Migration{ID: "m", From: "source"}); err != nil {
			t.Fatal(err)
		}
		x.Close()
		restored := new(atomic.Int64)
		restored.Store(1)
		_, err = storage.OpenIndex(t.Context(), says{j, restored, nil}, storage.IndexOptions{})
		if !errors.As(err, new(*storage.SealedError)) {
			t.Errorf("opened: %v", err)
		}
	})
}

// TestConfirmedIsWhenTheJournalWasAsked, not when it has answered: meanwhile another process may have changed it.
func TestConfirmedIsWhenTheJournalWasAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := memory.NewJournal()
		shared.Is = storage.Traits{Shared: true}
		begun := time.Now()
		x := storagetest.OpenIndex(t, tardy{Journal: shared, watch: time.Second, head: time.Second / 2})
		if at := x.Confirmed(); at.After(begun) {
			t.Errorf("after a load: %s later", at.Sub(begun))
		}
		time.Sleep(time.Minute)
		asked := time.Now()
		if _, err := x.Record(t.Context(), "r"); err != nil {
			t.Fatal(err)
		}
		if at := x.Confirmed(); !at.Equal(asked) {
			t.Errorf("after a question: %s later", at.Sub(asked))
		}
	})
}

// TestWhatWasBelievedIsNotSuspectedByAProcessThatIsLate: a process sees that the journal went back, but only after a
// rebuild has ended, or an administrator has said that the journal is to be believed.
func TestWhatWasBelievedIsNotSuspectedByAProcessThatIsLate(t *testing.T) {
	for name, row := range map[string]struct {
		believe   func(ctx context.Context, x *storage.Index) error
		identity  string // that the late process knows
		suspected bool
	}{
		"rebuilt": {func(ctx context.Context, x *storage.Index) error {
			return x.EndRebuild(ctx, "ID")
		}, "ID", false},
		"believed": {func(ctx context.Context, x *storage.Index) error {
			err := x.SetRecord(ctx, storage.IdentityRecord, nil, []byte("ID"))
			return errors.Join(err, x.Trust(ctx))
		}, "ID", false},
		"neither": {func(ctx context.Context, x *storage.Index) error {
			return x.SetRecord(ctx, storage.IdentityRecord, nil, []byte("ID"))
		}, "ID", true},
		"another one": {func(ctx context.Context, x *storage.Index) error {
			return x.EndRebuild(ctx, "ID")
		}, "OTHER", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				place := newReplaced(storage.ErrRestored)
				late := storagetest.OpenIndex(t, place)
				err := late.SetRecord(t.Context(), storage.IdentityRecord, nil, []byte(row.identity))
				if err = errors.Join(err, late.Trust(t.Context())); err != nil { // it was believed before as well
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
				empty := sharedMemory()
				admin := storagetest.OpenIndex(t, empty)
				place.by(empty)
				synctest.Wait() // it is noticed, and cannot be recorded before the full state is loaded
				if late.Suspicion() == nil {
					t.Error("it is not noticed")
				}
				if err := row.believe(t.Context(), admin); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				for who, x := range map[string]*storage.Index{"the late one": late, "another one": admin} {
					if err := x.Suspicion(); (err != nil) != row.suspected {
						t.Errorf("%s: %v", who, err)
					}
				}
			})
		})
	}
}
