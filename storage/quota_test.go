package storage_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// modelQuotas overlap, and one matches nothing.
var modelQuotas = []storage.Quota{
	{Name: "all", Match: func(string) bool { return true }, Bytes: 1 << 40},
	{Name: "some", Match: func(repo string) bool { return repo == "repo/1" || repo == "repo/3" }, Bytes: 1 << 40},
	{Name: "none", Match: func(string) bool { return false }},
}

func team(bytes int64) []storage.Quota {
	match := func(repo string) bool { return strings.HasPrefix(repo, "team/") }
	return []storage.Quota{{Name: "team", Match: match, Bytes: bytes}}
}

var errOver = errors.New("over")

// link links a blob, unless a quota forbids it.
func link(i int, size int64) func(*storage.Tx) error {
	return func(tx *storage.Tx) error {
		if e, over := tx.Excess(digestOf("blob", i), size); over {
			return fmt.Errorf("%w: %s: %d used, %d added, of %d", errOver, e.Name, e.Used, e.Added, e.Bytes)
		}
		tx.Link(digestOf("blob", i), size)
		return nil
	}
}

func used(t *testing.T, x *storage.Index, want int64) {
	t.Helper()
	if got := x.Quotas()[0].Used; got != want {
		t.Errorf("%d used, want %d", got, want)
	}
}

func TestAQuotaIsSharedAndCountsEachContentOncePerRepo(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	x.SetQuotas(team(100))
	storagetest.Update(t, x, "team/a", link(1, 40))
	storagetest.Update(t, x, "team/a", link(1, 40)) // the same again
	used(t, x, 40)
	storagetest.Update(t, x, "team/b", link(1, 40)) // in another repository it counts once more
	used(t, x, 80)
	storagetest.Update(t, x, "other", link(2, 1000)) // the quota does not match it
	err := x.Update(t.Context(), "team/b", link(2, 21))
	if !errors.Is(err, errOver) || !strings.Contains(err.Error(), "team: 80 used, 21 added, of 100") {
		t.Errorf("one byte too many: %v", err)
	}
	storagetest.Update(t, x, "team/b", link(2, 20)) // up to the last byte
	used(t, x, 100)
	storagetest.Update(t, x, "team/b", func(tx *storage.Tx) error { return tx.Unlink(digestOf("blob", 1)) })
	used(t, x, 60)
	if err := x.Update(t.Context(), "team/c", func(tx *storage.Tx) error {
		err := errors.Join(tx.PutManifest(manifest(40)), put(40, "v")(tx))
		if _, over := tx.Excess(manifest(1).Digest, 1); over {
			return errOver
		}
		return err
	}); !errors.Is(err, errOver) {
		t.Errorf("a manifest too many: %v", err)
	}
	x.SetQuotas(team(50)) // less than is used: nothing more is accepted, and deletes still work
	used(t, x, 60)
	if err := x.Update(t.Context(), "team/a", link(3, 1)); !errors.Is(err, errOver) {
		t.Errorf("over a quota that was lowered: %v", err)
	}
	storagetest.Update(t, x, "team/a", link(1, 40)) // the repo holds it already
	storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error { return tx.Unlink(digestOf("blob", 1)) })
	used(t, x, 60) // the last repo that held it: it is on the disk until it is collected
	collect(t, x)
	used(t, x, 20)
	if x.SetQuotas(nil); len(x.Quotas()) != 0 {
		t.Error("removed quotas are listed")
	}
	storagetest.Update(t, x, "team/a", link(3, 1<<40))
}

func TestConcurrentPushesDoNotExceedAQuota(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	x.SetQuotas(team(1000))
	held := make(chan struct{})
	// It holds up the committer, so that the rest is one commit.
	go x.Update(context.Background(), "hold", func(*storage.Tx) error { <-held; return nil })
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if err := x.Update(t.Context(), fmt.Sprint("team/", i%7), link(i, 10)); err != nil &&
				!errors.Is(err, errOver) {
				t.Error(err)
			}
		})
	}
	close(held)
	wg.Wait()
	used(t, x, 1000)
}

func TestQuotasAreCountedAgainWithANewState(t *testing.T) {
	j := memory.NewJournal()
	x := storagetest.OpenIndex(t, j)
	storagetest.Update(t, x, "team/a", link(1, 40))
	storagetest.Update(t, x, "team/a", put(7, "v"))
	x.SetQuotas(team(100))
	used(t, x, 47)
	y := storagetest.OpenIndex(t, j)
	y.SetQuotas(team(100))
	used(t, y, 47)
	storagetest.Update(t, y, "team/a", func(tx *storage.Tx) error { return tx.DeleteManifest(manifest(7).Digest) })
	used(t, y, 47)
	collect(t, y)
	used(t, y, 40)
	if y.Bytes("team/a") != 40 || y.Bytes("nowhere") != 0 {
		t.Errorf("team/a holds %d bytes, a repository that does not exist %d", y.Bytes("team/a"), y.Bytes("nowhere"))
	}
}

// TestWhatCountsAlreadyExceedsNothing, however full the quota is; and what a change adds before counts with it.
func TestWhatCountsAlreadyExceedsNothing(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	x.SetQuotas(team(100))
	storagetest.Update(t, x, "team/a", link(1, 100))
	storagetest.Update(t, x, "team/a", unlink(1)) // it waits
	over := func(i int, size int64) (over bool) {
		storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error {
			_, over = tx.Excess(digestOf("blob", i), size)
			return nil
		})
		return over
	}
	if over(1, 100) || !over(2, 1) {
		t.Error("content that waits exceeds the quota, or other content does not")
	}
	x.SetQuotas(team(50)) // less than is used
	if over(2, 0) || over(2, -1) || !over(2, 1) {
		t.Error("nothing exceeds a quota, or a byte does not")
	}
	x.SetQuotas(team(1000))
	storagetest.Update(t, x, "team/b", func(tx *storage.Tx) error {
		tx.Link(digestOf("blob", 3), 100)
		for size, want := range map[int64]bool{1: false, 800: false, 801: true, math.MaxInt64: true} {
			if _, over := tx.Excess(digestOf("blob", 4), size); over != want {
				t.Errorf("%d bytes more: %v", size, over)
			}
		}
		return nil
	})
	if n := storage.QuotasByRepo(x); n != 2 { // team/b, and what waits of team/a
		t.Errorf("the quotas of %d repositories are remembered, want 2", n)
	}
}
