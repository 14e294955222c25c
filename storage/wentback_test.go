package storage_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// replaced is a journal in whose place another one can come, as when its service is restored from a backup.
type replaced struct {
	mu  sync.Mutex // guards all below
	now *memory.Journal
	end chan struct{} // closed when another one comes
	why error
}

func newReplaced(why error) *replaced {
	return &replaced{now: sharedMemory(), end: make(chan struct{}), why: why}
}

func sharedMemory() *memory.Journal {
	j := memory.NewJournal()
	j.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 1 << 20}
	return j
}

func (r *replaced) current() (*memory.Journal, chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now, r.end
}

// by puts a journal in the place.
func (r *replaced) by(j *memory.Journal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = j
	close(r.end)
	r.end = make(chan struct{})
}

func (r *replaced) Traits() storage.Traits {
	j, _ := r.current()
	return j.Traits()
}

func (r *replaced) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	j, _ := r.current()
	return j.Commit(ctx, b...)
}

func (r *replaced) Head(ctx context.Context) (storage.Revision, error) {
	j, _ := r.current()
	return j.Head(ctx)
}

func (r *replaced) History(ctx context.Context, repo, prefix string) ([]storage.Fact, error) {
	j, _ := r.current()
	return j.History(ctx, repo, prefix)
}

func (r *replaced) Watch(ctx context.Context, apply func(storage.Update) error) error {
	j, end := r.current()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-end:
			cancel(r.why)
		case <-ctx.Done():
		}
	}()
	return j.Watch(ctx, apply)
}

// TestNothingIsCollectedOfAJournalThatWentBack: neither what it names nor what it does not, by no process and not after
// a restart, until somebody lets it. What was condemned is pushed without waiting.
func TestNothingIsCollectedOfAJournalThatWentBack(t *testing.T) {
	for name, row := range map[string]struct {
		why     error
		commits int // in the older journal, so that its revision is higher
	}{
		"a lower revision":       {errors.New("the watch has ended"), 0},
		"the engine has noticed": {fmt.Errorf("etcd: %w", storage.ErrRestored), 200},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				place := newReplaced(row.why)
				service := memory.NewService()
				open := func() (*storage.Index, *storage.Collector) {
					x, err := storage.OpenIndex(t.Context(), place,
						storage.IndexOptions{Placed: true, Grace: time.Hour})
					if err != nil {
						t.Fatal(err)
					}
					return x, &storage.Collector{Blobs: &memory.Objects{Service: service, Records: x}, Index: x,
						Grace: time.Hour}
				}
				x, c := open()
				other, _ := open()
				pushObjects(t, x, service, "content", 50)
				if x.Suspicion() != nil {
					t.Fatal(x.Suspicion())
				}
				old := sharedMemory()
				filler, err := storage.OpenIndex(t.Context(), old, storage.IndexOptions{})
				if err != nil {
					t.Fatal(err)
				}
				for i := range row.commits {
					if err := filler.SetRecord(t.Context(), fmt.Sprint(i), nil, []byte("value")); err != nil {
						t.Fatal(err)
					}
				}
				filler.Close()
				place.by(old)
				time.Sleep(time.Minute) // for both to load it
				for _, x := range []*storage.Index{x, other} {
					if err := x.Suspicion(); !errors.Is(err, storage.ErrSuspicious) {
						t.Fatalf("not suspected: %v", err)
					}
				}
				other.Close()
				time.Sleep(100 * time.Hour)
				refused := func(c *storage.Collector) {
					t.Helper()
					for range 3 {
						time.Sleep(48 * time.Hour)
						done, err := c.Run(t.Context(), false, nil)
						if !errors.Is(err, storage.ErrSuspicious) || done.Deleted+done.Unlinked > 0 ||
							service.Len() != 50 {
							t.Fatalf("%+v, %v, %d objects", done, err, service.Len())
						}
					}
				}
				refused(c)
				x.Close()
				x, c = open() // a restart
				refused(c)
				if _, err := c.Run(t.Context(), true, nil); err != nil {
					t.Errorf("a dry run: %v", err)
				}
				refused(c)    // a dry run is no leave
				for range 3 { // generations
					if _, err := c.RunAll(t.Context(), time.Hour, nil); err != nil {
						t.Fatal(err)
					}
					time.Sleep(48 * time.Hour)
				}
				if service.Len() != 0 || x.Suspicion() != nil {
					t.Errorf("for all: %d objects, %v", service.Len(), x.Suspicion())
				}
				if _, err := c.Run(t.Context(), false, nil); err != nil {
					t.Errorf("after that: %v", err)
				}
				x.Close()
			})
		})
	}
}

// TestACopyKnowsThatTheJournalWentBack also if no process has run meanwhile.
func TestACopyKnowsThatTheJournalWentBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := sharedMemory()
		x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		if err := x.SetRecord(t.Context(), "a", nil, []byte("value")); err != nil {
			t.Fatal(err)
		}
		for _, row := range []struct {
			seen      storage.Revision
			suspected bool
		}{{x.Revision(), false}, {x.Revision() + 10, true}, {1, true}} {
			if err := x.Expect(t.Context(), row.seen); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if (x.Suspicion() != nil) != row.suspected {
				t.Errorf("expecting %d at %d: %v", row.seen, x.Revision(), x.Suspicion())
			}
		}
		if text := x.Suspicion().Error(); !strings.Contains(text, "went back to revision 1, and had been at 11") {
			t.Error(text)
		}
	})
}

// headed is a journal whose head is what the test says, or whose head cannot be read.
type headed struct {
	storage.Journal
	head func() (storage.Revision, error)
}

func (j headed) Head(context.Context) (storage.Revision, error) { return j.head() }

// TestWhatIsExpectedOfAJournal is known without asking it if the Index shows as much, or if it is suspected already.
func TestWhatIsExpectedOfAJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := errors.New("the journal does not answer")
		var head storage.Revision
		var err error
		x := storagetest.OpenIndex(t, headed{sharedMemory(), func() (storage.Revision, error) { return head, err }})
		if err := x.SetRecord(t.Context(), "a", nil, []byte("value")); err != nil {
			t.Fatal(err)
		}
		shown := x.Revision()
		for _, row := range []struct {
			name       string
			seen, head storage.Revision
			err        error
			suspected  bool
		}{
			{"what it shows", shown, 0, failed, false},
			{"less", shown - 1, 0, failed, false},
			{"more, and the journal does not answer", shown + 1, 0, failed, false},
			{"more, and the process is behind", shown + 5, shown + 5, nil, false},
			{"more, and the process is further behind", shown + 5, shown + 6, nil, false},
			{"more than there is", shown + 5, shown + 4, nil, true},
			{"more, and it is suspected", shown + 9, 0, failed, true},
		} {
			head, err = row.head, row.err
			got := x.Expect(t.Context(), row.seen)
			synctest.Wait()
			if want := row.err != nil && row.seen > shown && !row.suspected; errors.Is(got, failed) != want ||
				(x.Suspicion() != nil) != row.suspected {
				t.Errorf("%s: %v; suspected: %v", row.name, got, x.Suspicion())
			}
		}
	})
}

// TestTheFirstSuspicionStays: it knows best how far the journal was. And one without a revision does not claim any.
func TestTheFirstSuspicionStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := storagetest.OpenIndex(t, sharedMemory())
		x.Doubt(errors.New("the connection broke"))
		if x.Suspicion() != nil {
			t.Error(x.Suspicion())
		}
		x.Doubt(storage.ErrRestored)
		for range 2 { // before it is recorded, and after that
			if text := fmt.Sprint(x.Suspicion()); !strings.Contains(text, "is an older or another one") {
				t.Error(text)
			}
			synctest.Wait()
		}
		if err := x.Trust(t.Context()); err != nil || x.Suspicion() != nil {
			t.Fatal(err, x.Suspicion())
		}
		if err := x.Expect(t.Context(), 100); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		x.Doubt(storage.ErrRestored)
		synctest.Wait()
		if text := fmt.Sprint(x.Suspicion()); !strings.Contains(text, "had been at 100") {
			t.Error(text)
		}
	})
}

// TestASuspicionIsRecordedWhenTheJournalLetsIt: it is tried again after longer and longer waits.
func TestASuspicionIsRecordedWhenTheJournalLetsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := sharedMemory()
		began, tries := time.Now(), new(atomic.Int32)
		x := storagetest.OpenIndex(t, hooked{inner,
			func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
				if time.Since(began) < time.Minute {
					if tries.Add(1) > 1000 {
						time.Sleep(time.Hour)
					}
					return 0, errMissing
				}
				return inner.Commit(ctx, b...)
			}})
		x.Doubt(storage.ErrRestored)
		time.Sleep(2 * time.Minute)
		if n := tries.Load(); n < 60 || n > 70 { // 7 in the first second
			t.Errorf("%d tries in a minute", n)
		}
		if y := storagetest.OpenIndex(t, inner); y.Suspicion() == nil {
			t.Error("another process does not know of it")
		}
	})
}

// TestASuspicionThatIsRemovedMeanwhile is not recorded after that, also if the clock has not gone on since the last one
// was removed; and it stays as long as the journal does not let it be removed.
func TestASuspicionThatIsRemovedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner, broken := sharedMemory(), new(atomic.Bool)
		x := storagetest.OpenIndex(t, hooked{inner,
			func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
				if broken.Load() {
					return 0, errMissing
				}
				return inner.Commit(ctx, b...)
			}})
		if err := x.Trust(t.Context()); err != nil {
			t.Fatal(err)
		}
		broken.Store(true)
		x.Doubt(storage.ErrRestored)
		synctest.Wait() // it has been tried once
		if err := x.Trust(t.Context()); !errors.Is(err, errMissing) || x.Suspicion() == nil {
			t.Errorf("the journal fails: %v; suspected: %v", err, x.Suspicion())
		}
		broken.Store(false)
		if err := x.Trust(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 2 { // at once, and when it would have been recorded
			if err := x.Suspicion(); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Minute)
		}
	})
}
