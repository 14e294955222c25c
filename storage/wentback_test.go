package storage_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"trow/storage"
	"trow/storage/memory"
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
