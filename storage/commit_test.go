package storage_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestASuccessAfterAFailedCommitIsDurable: the state may show a change whose commit failed, and a client that tries
// again needs no commit of its own. Its success must wait until the journal has made durable what the state shows.
func TestASuccessAfterAFailedCommitIsDurable(t *testing.T) {
	for _, tt := range []struct {
		name   string
		cause  error
		effect bool  // whether the commit that fails takes effect
		want   []int // the batches of each commit
	}{
		{"unknown outcome, with effect", storagetest.ErrFault, true, []int{1, 0}},
		{"unknown outcome, without effect", storagetest.ErrFault, false, []int{1, 0, 1}},
		{"no space", storage.ErrFull, false, []int{1, 1}}, // it has left nothing to make durable
	} {
		t.Run(tt.name, func(t *testing.T) {
			inner := memory.NewJournal()
			var commits []int
			x := storagetest.OpenIndex(t, hooked{inner,
				func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
					commits = append(commits, len(b))
					if len(commits) > 1 {
						return inner.Commit(ctx, b...)
					}
					if tt.effect {
						if _, err := inner.Commit(ctx, b...); err != nil {
							return 0, err
						}
					}
					return 0, tt.cause
				}})
			if err := x.Update(t.Context(), "r", put(1, "v")); !errors.Is(err, tt.cause) {
				t.Errorf("a failed commit: %v", err)
			}
			for range 2 { // once it is durable, nothing is committed again
				storagetest.Update(t, x, "r", put(1, "v"))
				if !slices.Equal(commits, tt.want) {
					t.Errorf("commits with %v batches, want %v", commits, tt.want)
				}
			}
		})
	}
}

// TestWhileDurabilityIsInDoubtNothingSucceeds: as long as the journal cannot make durable what the state shows.
func TestWhileDurabilityIsInDoubtNothingSucceeds(t *testing.T) {
	inner, fails := memory.NewJournal(), true
	x := storagetest.OpenIndex(t, hooked{inner, func(ctx context.Context,
		b ...storage.Batch) (storage.Revision, error) {
		if len(b) > 0 {
			if _, err := inner.Commit(ctx, b...); err != nil {
				return 0, err
			}
		}
		if fails {
			return 0, storagetest.ErrFault
		}
		return inner.Commit(ctx)
	}})
	for range 3 {
		if err := x.Update(t.Context(), "r", put(1, "v")); !errors.Is(err, storagetest.ErrFault) {
			t.Errorf("what may not be durable was acknowledged: %v", err)
		}
		wantTags(t, x, "r", "v")
	}
	fails = false
	storagetest.Update(t, x, "r", put(1, "v"))
}

// together makes updates of one commit: it holds up the committer until all wait in the queue, in their order.
func together(t *testing.T, x *storage.Index, updates ...func(x *storage.Index) error) {
	t.Helper()
	held := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := x.Update(t.Context(), "hold", func(*storage.Tx) error { <-held; return nil }); err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
	for i, update := range updates {
		wg.Go(func() {
			if err := update(x); err != nil {
				t.Errorf("update %d: %v", i, err)
			}
		})
		synctest.Wait()
	}
	close(held)
	wg.Wait()
}

// TestACommitHasNoBatchForARepoThatDoesNotChange: an empty batch would conflict with other writers for nothing.
func TestACommitHasNoBatchForARepoThatDoesNotChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := memory.NewJournal()
		var got []string
		x := storagetest.OpenIndex(t, hooked{inner,
			func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
				for i := range b {
					got = append(got, fmt.Sprint(b[i].Repo, len(b[i].Facts)))
				}
				return inner.Commit(ctx, b...)
			}})
		together(t, x,
			func(x *storage.Index) error {
				return x.Update(t.Context(), "same", func(*storage.Tx) error { return nil })
			},
			func(x *storage.Index) error {
				return x.Update(t.Context(), "changed", func(tx *storage.Tx) error {
					return tx.PutManifest(manifest(1))
				})
			})
		if !slices.Equal(got, []string{"changed1"}) {
			t.Errorf("committed %v", got)
		}
	})
}

// TestACommitIsBounded: no more than MaxGroup functions run before one.
func TestACommitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner, ran, most := memory.NewJournal(), 0, 0 // only the committer uses them
		j := hooked{inner, func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
			most, ran = max(most, ran), 0
			return inner.Commit(ctx, b...)
		}}
		x := storagetest.OpenIndex(t, j)
		together(t, x, slices.Repeat([]func(*storage.Index) error{func(x *storage.Index) error {
			return x.Update(t.Context(), "r", func(tx *storage.Tx) error { ran++; return count(tx) })
		}}, 3*storage.MaxGroup)...)
		if most != storage.MaxGroup {
			t.Errorf("%d updates in one commit, want %d", most, storage.MaxGroup)
		}
	})
}

// TestBytesOfAnUploadCountOnceWithinACommit: they count as an open upload while the rest of the commit is decided.
func TestBytesOfAnUploadCountOnceWithinACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := storage.NewUploads()
		x := storagetest.OpenIndexWith(t, memory.NewJournal(), storage.IndexOptions{Uploads: u})
		x.SetQuotas(team(100))
		u.Begin("team/a", 60).Commit(digestOf("blob", 1))
		together(t, x,
			func(x *storage.Index) error { return x.Update(t.Context(), "team/a", link(1, 60)) },
			func(x *storage.Index) error { return x.Update(t.Context(), "team/b", link(2, 40)) },
			func(x *storage.Index) error {
				if err := x.Update(t.Context(), "team/c", link(3, 1)); !errors.Is(err, errOver) {
					return fmt.Errorf("a byte too many: %w", err)
				}
				return nil
			})
		wantUsage(t, x, "all", 100, 0)
	})
}
