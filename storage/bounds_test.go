package storage_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestInSteps: as many at a time as fit, each once, in order; what does not fit alone is an error.
func TestInSteps(t *testing.T) {
	var items, done []int
	for i := range 500 {
		items = append(items, i)
	}
	calls := 0
	update := func(step []int) error {
		calls++
		if len(step) > 70 || slices.Contains(step, 450) {
			return fmt.Errorf("%d: %w", len(step), storage.ErrTooLarge)
		}
		done = append(done, step...)
		return nil
	}
	if err := storage.InSteps(items, update); !errors.Is(err, storage.ErrTooLarge) {
		t.Errorf("one does not fit: %v", err)
	}
	if !slices.Equal(done, items[:450]) || calls > 25 {
		t.Errorf("%d calls have done %v", calls, done)
	}
	other := errors.New("other")
	calls = 0
	err := storage.InSteps(items, func([]int) error { calls++; return other })
	if !errors.Is(err, other) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if err := storage.InSteps(nil, func([]int) error { return other }); err != nil {
		t.Error(err)
	}
}

// TestTheCollectorKeepsToTheBounds, also where quotas count what it unlinks, which then waits to be deleted.
func TestTheCollectorKeepsToTheBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := memory.NewJournal()
		j.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 3 << 19}
		x := storagetest.OpenIndexWith(t, j, storage.IndexOptions{Placed: true, Grace: sharedGrace})
		all := func(string) bool { return true }
		x.SetQuotas([]storage.Quota{{Name: "one", Match: all, Bytes: 1 << 30},
			{Name: "two", Match: all, Bytes: 1 << 30}})
		service := memory.NewService()
		blobs := &memory.Objects{Service: service, Records: x}
		const n = 700
		for i := range n {
			content := fmt.Append(nil, i)
			u, err := blobs.Create(t.Context(), "a", digest.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			_, werr := u.Write(content)
			release, err := x.Commit(t.Context(), u, digest.FromBytes(content))
			if err := errors.Join(werr, err, hold(t.Context(), x, "a", string(content))); err != nil {
				t.Fatal(err)
			}
			release()
		}
		time.Sleep(2 * sharedGrace)
		c := &storage.Collector{Blobs: blobs, Index: x, Grace: sharedGrace}
		done, err := c.Run(t.Context(), false, nil)
		if err != nil || done.Unlinked != n || done.Deleted != n || service.Len() != 0 {
			t.Errorf("%+v, %v; %d objects are left", done, err, service.Len())
		}
		if held := x.Quotas()[0]; held.Used != 0 {
			t.Errorf("%+v is used", held)
		}
	})
}
