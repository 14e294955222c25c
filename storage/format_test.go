package storage_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// version is a process of a version of the program.
type version struct {
	*storage.Index
	name string
	end  context.CancelFunc
	done sync.WaitGroup
}

// startVersion starts a process that knows a format, says so each minute, and changes a repo all the time.
func startVersion(t *testing.T, j storage.Journal, name string, format int) *version {
	t.Helper()
	v := &version{Index: storagetest.OpenIndexWith(t, j, storage.IndexOptions{Format: format}), name: name}
	if err := v.Beat(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	v.end = end
	t.Cleanup(func() { end(); v.done.Wait() })
	v.done.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(storage.BeatInterval):
			}
			if err := errors.Join(v.Beat(ctx, name), hold(ctx, v.Index, "a", fmt.Sprint(name, n))); err != nil &&
				ctx.Err() == nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	return v
}

// stop ends the process, cleanly or not.
func (v *version) stop(t *testing.T, cleanly bool) {
	v.end()
	v.done.Wait()
	if cleanly {
		if err := v.Leave(t.Context(), v.name); err != nil {
			t.Error(err)
		}
	}
	v.Close()
}

// TestTwoFormatsSideBySide: a version with a next format runs beside this one. What this one does not understand is
// written only when it is left nowhere; until then the newer one can be taken back.
func TestTwoFormatsSideBySide(t *testing.T) {
	for _, cleanly := range []bool{true, false} {
		t.Run(fmt.Sprint("the old one ends cleanly: ", cleanly), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := memory.NewJournal()
				j.Is = storage.Traits{Shared: true}
				may := func(v *version, k storage.Kind, want bool) {
					t.Helper()
					got, err := storage.SetFact(t.Context(), v.Index, "a", k, "name", []byte(v.name))
					if err != nil || got != want {
						t.Errorf("%s may set facts of kind %q: %v, want %v; %v", v.name, k, got, want, err)
					}
				}
				old := startVersion(t, j, "old", storage.Format)
				for _, name := range []string{"new", "newer"} { // it comes, goes back, and comes again
					next := startVersion(t, j, name, storage.Format+1)
					time.Sleep(10 * storage.BeatInterval)
					may(next, storage.NextKind, false)
					if err := storage.Force(t.Context(), next.Index, "a", storage.NextKind, "name"); err == nil {
						t.Error("a version that does not ask writes what another one does not understand")
					}
					may(next, storage.OptionalKind, true)
					if err := hold(t.Context(), old.Index, "a", "beside "+name); err != nil ||
						!holds(t, next.Index, "a", "beside "+name) {
						t.Errorf("side by side: %v", err)
					}
					next.stop(t, cleanly)
				}
				again := startVersion(t, j, "old again", storage.Format) // it loads what the newer one has left
				next := startVersion(t, j, "newest", storage.Format+1)
				old.stop(t, cleanly)
				time.Sleep(10 * storage.BeatInterval)
				may(next, storage.NextKind, false)
				again.stop(t, cleanly)
				time.Sleep(10 * storage.BeatInterval)
				may(next, storage.NextKind, true)
				if !holds(t, next.Index, "a", "beside new") {
					t.Error("a fact is lost")
				}
				_, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{})
				if !errors.Is(err, storage.ErrFormat) || errors.Is(err, storage.ErrDamaged) {
					t.Errorf("an earlier version after that: %v", err)
				}
			})
		})
	}
}

// TestAnEarlierVersionThatJoinsWhileTheFormatIsRaised: one of the two happens.
func TestAnEarlierVersionThatJoinsWhileTheFormatIsRaised(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			j := memory.NewJournal()
			j.Is = storage.Traits{Shared: true}
			lag := func() time.Duration { return time.Millisecond }
			open := func(format int) *storage.Index {
				return storagetest.OpenIndexWith(t, laggard{j, lag}, storage.IndexOptions{Format: format})
			}
			next, old := open(storage.Format+1), open(storage.Format)
			if err := next.Beat(t.Context(), "next"); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			var raised, joined error
			wg.Go(func() { raised = next.Beat(t.Context(), "next") })
			wg.Go(func() { joined = old.Beat(t.Context(), "old") })
			wg.Wait()
			may, err := storage.SetFact(t.Context(), next, "a", storage.NextKind, "name", nil)
			if raised != nil || err != nil || may != errors.Is(joined, storage.ErrFormat) || !may && joined != nil {
				t.Errorf("raised: %v, %v, %v; joined: %v", may, raised, err, joined)
			}
		})
	}
}

// TestWhichKindsAreOptional: the upper-case letters.
func TestWhichKindsAreOptional(t *testing.T) {
	for k, want := range map[storage.Kind]bool{'A': true, 'M': true, 'Z': true, '@': false, '[': false, 'a': false} {
		if got := storage.IsOptional(k); got != want {
			t.Errorf("%q: %v", k, got)
		}
	}
}

// TestADeletionNeedsNoFormat: who does not understand a fact need not understand that it goes.
func TestADeletionNeedsNoFormat(t *testing.T) {
	j := memory.NewJournal()
	j.Is = storage.Traits{Shared: true}
	x := storagetest.OpenIndexWith(t, j, storage.IndexOptions{Format: storage.Format + 1})
	if err := storage.Unset(t.Context(), x, "a", storage.NextKind, "name"); err != nil {
		t.Error(err)
	}
}

// TestABeatWritesTheFormatOnce: a process that joins at any later time is not in conflict with it.
func TestABeatWritesTheFormatOnce(t *testing.T) {
	j := memory.NewJournal()
	j.Is = storage.Traits{Shared: true}
	x := storagetest.OpenIndex(t, j)
	var before []byte
	for i := range 4 {
		if err := x.Beat(t.Context(), "me"); err != nil {
			t.Fatal(err)
		}
		now, err := x.Record(t.Context(), "format")
		if err != nil || now == nil {
			t.Fatalf("the format is %q, %v", now, err)
		}
		if i > 1 && string(now) != string(before) {
			t.Errorf("beat %d has written the format again", i)
		}
		before = now
	}
}

// TestForHowLongASilentReplicaHoldsTheFormatBack: for five beats, and not a moment longer.
func TestForHowLongASilentReplicaHoldsTheFormatBack(t *testing.T) {
	for silent, want := range map[time.Duration]bool{5 * storage.BeatInterval: false,
		5*storage.BeatInterval + 1: true} {
		synctest.Test(t, func(t *testing.T) {
			j := memory.NewJournal()
			j.Is = storage.Traits{Shared: true}
			next := storagetest.OpenIndexWith(t, j, storage.IndexOptions{Format: storage.Format + 1})
			if err := errors.Join(next.Beat(t.Context(), "next"),
				storage.BeatOf(t.Context(), next, "old", time.Now())); err != nil {
				t.Fatal(err)
			}
			time.Sleep(silent)
			err := next.Beat(t.Context(), "next")
			may, ferr := storage.SetFact(t.Context(), next, "a", storage.NextKind, "name", nil)
			if err := errors.Join(err, ferr); err != nil || may != want {
				t.Errorf("after %s: %v, want %v; %v", silent, may, want, err)
			}
		})
	}
}
