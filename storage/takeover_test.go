package storage_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// marksIn returns how many contents a commit marks as condemned.
func marksIn(batches []storage.Batch) (n int) {
	for _, b := range batches {
		for _, f := range b.Facts {
			if b.Repo == storage.StoreRepo && f.Kind == 'c' && f.Value != nil {
				n++
			}
		}
	}
	return n
}

// withBounds is a journal that says that it has bounds.
type withBounds struct {
	storage.Journal
	operations int
}

func (j withBounds) Traits() storage.Traits {
	t := j.Journal.Traits()
	t.Operations = j.operations
	return t
}

// TestALinkThatIsRecordedAnewMeanwhileStays: the Collector has found it old, and before it takes it away a client of
// another process learns that it is here.
func TestALinkThatIsRecordedAnewMeanwhileStays(t *testing.T) {
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
		other := storagetest.OpenIndexWith(t, inner, storage.IndexOptions{Grace: grace})
		renewed, old := s.push("r", []byte("renewed")), s.push("r", []byte("old"))
		time.Sleep(10 * grace)
		collected := make(chan struct{})
		during = func() {
			go func() { s.collect(); close(collected) }()
			synctest.Wait() // it has listed both
			if err := other.Lease(t.Context(), "r", renewed); err != nil {
				t.Error(err)
			}
		}
		storagetest.Update(t, s.index, "q", put(1, "v"))
		<-collected
		if !s.holds("r", renewed) || s.holds("r", old) {
			t.Errorf("the one that was recorded anew: %v, the old one: %v", s.holds("r", renewed), s.holds("r", old))
		}
	})
}

// TestObjectsWaitUntilTheyAreDeleted, and not only until others are: they count for quotas.
func TestObjectsWaitUntilTheyAreDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 150
		left := n
		var s *store
		s, _, _ = placed(t, watched(withBounds{sharedJournal(), 128}, func(b []storage.Batch) error {
			if marks := marksIn(b); marks > 0 {
				wantUsage(t, s.index, fmt.Sprint("before the last ", left), int64(left), int64(left))
				left -= marks
			}
			return nil
		}))
		s.index.SetQuotas(team(1000))
		for i := range n {
			s.push("team/a", []byte{byte(i)})
		}
		for i := range n {
			s.unlink("team/a", digest.FromBytes([]byte{byte(i)}))
		}
		s.collect()
		wantUsage(t, s.index, "collected", 0, 0)
	})
}

// TestMarksThatAnotherRunHasTakenOver are left to it, and only these.
func TestMarksThatAnotherRunHasTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 150
		broken := errors.New("broken")
		inner := sharedJournal()
		taken := 0
		other, _, otherBlobs := placed(t, watched(withBounds{inner, 128}, func(b []storage.Batch) error {
			if marksIn(b) == 0 { // it ends before it deletes anything
				return broken
			}
			taken += marksIn(b)
			return nil
		}))
		s, service, _ := placed(t, hooked{inner, func(ctx context.Context,
			b ...storage.Batch) (storage.Revision, error) {
			rev, err := inner.Commit(ctx, b...)
			if marksIn(b) == n {
				if err := other.collector.Finish(ctx); !errors.Is(err, broken) {
					t.Errorf("the other run: %v", err)
				}
			}
			return rev, err
		}})
		otherBlobs.Objects.Service = service
		for i := range n {
			s.push("r", fmt.Append(nil, i))
		}
		for i := range n {
			s.unlink("r", digest.FromBytes(fmt.Append(nil, i)))
		}
		done := s.collect()
		if taken == 0 || taken == n || done.Deleted != n-taken || service.Len() != taken {
			t.Errorf("%d of %d taken over, %d deleted, %d objects", taken, n, done.Deleted, service.Len())
		}
		if s.collect(); service.Len() != 0 {
			t.Errorf("%d objects in the end", service.Len())
		}
	})
}
