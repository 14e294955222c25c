package storage_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestASuccessAfterAFailedCommitIsDurable: the state may show a change whose commit failed, and a client that tries again
// needs no commit of its own. Its success must wait until the journal has made durable what the state shows.
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
			x := storagetest.OpenIndex(t, hooked{inner, func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
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
	x := storagetest.OpenIndex(t, hooked{inner, func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
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
		x := storagetest.OpenIndex(t, hooked{inner, func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
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
				return x.Update(t.Context(), "changed", func(tx *storage.Tx) error { return tx.PutManifest(manifest(1)) })
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
	b, x := countedBy(t, t.TempDir(), memory.NewJournal(), 100)
	content := strings.Repeat("a", 60)
	u, err := b.Create(t.Context(), "team/a", digest.SHA256)
	if err == nil {
		_, err = u.Write([]byte(content))
	}
	if err != nil {
		t.Fatal(err)
	}
	release, err := x.Commit(t.Context(), u, digest.FromString(content))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	// One function makes both changes of the commit follow each other: the second update waits behind the first.
	held, second := make(chan struct{}), make(chan error, 2)
	go x.Update(t.Context(), "hold", func(*storage.Tx) error { <-held; return nil })
	go func() {
		second <- x.Update(t.Context(), "team/a", func(tx *storage.Tx) error {
			tx.Link(digest.FromString(content), 60)
			return nil
		})
	}()
	go func() { second <- x.Update(t.Context(), "team/b", link(1, 40)) }()
	close(held)
	for range 2 {
		if err := <-second; err != nil {
			t.Error(err)
		}
	}
	wantUsage(t, x, "both", 100, 0)
}
