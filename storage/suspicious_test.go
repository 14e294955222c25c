package storage_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// pushObjects pushes contents and links them in a repo.
func pushObjects(t *testing.T, x *storage.Index, service *memory.Service, name string, n int) {
	t.Helper()
	blobs := &memory.Objects{Service: service, Records: x}
	for i := range n {
		data := []byte(fmt.Sprint(name, i))
		d := digest.FromBytes(data)
		u, err := blobs.Create(t.Context(), "a", d.Algorithm())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Write(data); err != nil {
			t.Fatal(err)
		}
		release, err := x.Commit(t.Context(), u, d)
		if err != nil {
			t.Fatal(err)
		}
		storagetest.Update(t, x, "a", func(tx *storage.Tx) error { tx.Link(d, int64(len(data))); return nil })
		release()
	}
}

// TestObjectsThatAnotherJournalNamesStay: a journal that is new, or an old copy, deletes none of what it does not know,
// until somebody lets the collector go on. A few such objects are what crashes leave.
func TestObjectsThatAnotherJournalNamesStay(t *testing.T) {
	for _, row := range []struct {
		unnamed, named int
		stays          bool
	}{{150, 0, true}, {100, 0, false}, {110, 1200, false}, {110, 500, true}} {
		t.Run(fmt.Sprint(row.unnamed, " of ", row.unnamed+row.named), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := memory.NewService()
				open := func() *storage.Index {
					j := memory.NewJournal()
					j.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 1 << 20}
					x, err := storage.OpenIndex(t.Context(), j,
						storage.IndexOptions{Placed: true, Grace: 1000 * time.Hour})
					if err != nil {
						t.Fatal(err)
					}
					return x
				}
				before := open()
				pushObjects(t, before, service, "before", row.unnamed)
				before.Close()
				x := open()
				defer x.Close()
				pushObjects(t, x, service, "now", row.named)
				c := storage.Collector{Blobs: &memory.Objects{Service: service, Records: x}, Index: x,
					Grace: 1000 * time.Hour}
				var err error
				for range 4 {
					if _, err = c.RunWith(t.Context(), time.Hour, false, nil); err != nil {
						break
					}
					time.Sleep(1001 * time.Hour)
					pushObjects(t, x, service, "now", row.named) // or what is not referred to is unlinked
				}
				want := row.named
				if row.stays {
					want += row.unnamed
				}
				if errors.Is(err, storage.ErrSuspicious) != row.stays || service.Len() != want ||
					(c.Suspicion() != nil) != row.stays {
					t.Fatalf("%d objects, want %d: %v; %v", service.Len(), want, err, c.Suspicion())
				}
				if !row.stays {
					return
				}
				if text := fmt.Sprintf("the journal does not name %d of %d objects", row.unnamed,
					want); !strings.Contains(
					err.Error(), text) {
					t.Errorf("%v, want %s", err, text)
				}
				done, err := c.RunAll(t.Context(), 10_000*time.Hour, nil)
				if err != nil || done.Deleted != row.unnamed || service.Len() != row.named || c.Suspicion() != nil {
					t.Errorf("for all: %+v, %v, %d objects, %v", done, err, service.Len(), c.Suspicion())
				}
			})
		})
	}
}

// TestAScrubStopsWhenTooMuchIsDamaged: what it has found is quarantined, and no more until somebody has looked. What
// was known before does not count.
func TestAScrubStopsWhenTooMuchIsDamaged(t *testing.T) {
	service := memory.NewService()
	x := storagetest.OpenIndexWith(t, memory.NewJournal(), storage.IndexOptions{Placed: true})
	blobs := &memory.Objects{Service: service, Records: x}
	pushObjects(t, x, service, "content", 250)
	for _, place := range x.Places() {
		if err := blobs.Remove(t.Context(), place); err != nil {
			t.Fatal(err)
		}
	}
	s := &storage.Scrubber{Blobs: blobs, Index: x}
	found := 0
	count := func(storage.Finding) { found++ }
	for _, want := range []int{100, 200} {
		_, err := s.Run(t.Context(), 0, count, nil)
		if n := x.Stats().Quarantined; n != want || !errors.Is(err, storage.ErrSuspicious) {
			t.Errorf("%d are quarantined, want %d: %v", n, want, err)
		}
	}
	if done, err := s.Run(t.Context(), 0, count, nil); done.Damaged != 250 || err != nil {
		t.Errorf("the 50 that are left: %+v, %v", done, err)
	}
	// Bytes that may be those of another registry say nothing.
	y := storagetest.OpenIndexWith(t, memory.NewJournal(), storage.IndexOptions{Placed: true})
	pushObjects(t, y, service, "other", 3)
	for _, place := range y.Places() {
		_ = blobs.Remove(t.Context(), place)
	}
	distrust := errors.New("another bucket")
	s = &storage.Scrubber{Blobs: &memory.Objects{Service: service, Records: y}, Index: y,
		Trust: func(ctx context.Context) error { return distrust }}
	done, err := s.Run(t.Context(), 0, func(f storage.Finding) {
		if !errors.Is(f.Err, distrust) {
			t.Errorf("found %+v", f)
		}
	}, nil)
	if err != nil || done.Failed != 3 || y.Stats().Quarantined != 0 {
		t.Errorf("without trust: %+v, %v, %d quarantined", done, err, y.Stats().Quarantined)
	}
	distrust = nil
	if done, err := s.Run(t.Context(), 0, count, nil); err != nil || done.Damaged != 3 {
		t.Errorf("with trust: %+v, %v", done, err)
	}
}
