package storage_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// collect collects with no bytes at all: what waits is gone.
func collect(t *testing.T, x *storage.Index) {
	t.Helper()
	// With a grace, links that nothing refers to stay.
	c := &storage.Collector{Blobs: memory.NewBlobs(), Index: x, Grace: time.Hour}
	if _, err := c.Run(t.Context(), false, nil); err != nil {
		t.Fatal(err)
	}
}

// wantUsage fails unless the first quota has this usage.
func wantUsage(t *testing.T, x *storage.Index, when string, used, waiting int64) {
	t.Helper()
	if q := x.Quotas()[0]; q.Used != used || q.Waiting != waiting {
		t.Errorf("%s: %d used, %d waiting; want %d, %d", when, q.Used, q.Waiting, used, waiting)
	}
}

func unlink(i int) func(*storage.Tx) error {
	return func(tx *storage.Tx) error { return tx.Unlink(digestOf("blob", i)) }
}

// TestWhatWaitsCounts until it is collected, for the repo that was the last one to hold it, also after a restart.
func TestWhatWaitsCounts(t *testing.T) {
	j := memory.NewJournal()
	x := storagetest.OpenIndex(t, j)
	x.SetQuotas(team(100))
	storagetest.Update(t, x, "team/a", link(1, 40))
	storagetest.Update(t, x, "team/a", unlink(1))
	wantUsage(t, x, "deleted", 40, 40)
	x = storagetest.OpenIndex(t, j)
	x.SetQuotas(team(100))
	wantUsage(t, x, "after a restart", 40, 40)
	if names, holders, s := x.Names(), x.Holders(digestOf("blob", 1)), x.Stats(); len(names)+len(holders) > 0 ||
		s.Repos != 0 || s.Links != 0 || x.Present(digestOf("blob", 1)) {
		t.Errorf("what waits is visible: %v, %v, %+v", names, holders, s)
	}
	storagetest.Update(t, x, "team/a", link(1, 40))
	wantUsage(t, x, "pushed again", 40, 0)
	storagetest.Update(t, x, "team/b", link(1, 40))
	storagetest.Update(t, x, "team/a", unlink(1))
	wantUsage(t, x, "another repo of the quota holds it", 40, 0)
	storagetest.Update(t, x, "other", link(1, 40))
	storagetest.Update(t, x, "team/b", unlink(1))
	wantUsage(t, x, "a repo without a quota holds it", 0, 0)
	storagetest.Update(t, x, "other", unlink(1))
	wantUsage(t, x, "the last one that held it has no quota", 0, 0)
	storagetest.Update(t, x, "team/a", put(7, "v"))
	storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error { return tx.DeleteManifest(manifest(7).Digest) })
	wantUsage(t, x, "a manifest", 7, 7)
	collect(t, x)
	wantUsage(t, x, "collected", 0, 0)
}

// TestReposThatLetGoTogether in one commit: neither must take the other for a holder that stays.
func TestReposThatLetGoTogether(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	x.SetQuotas(team(1000))
	repos := []string{"team/a", "team/b", "team/c"}
	for _, repo := range repos {
		storagetest.Update(t, x, repo, link(1, 40))
	}
	held := make(chan struct{})
	var outcomes []chan error
	run := func(repo string, fn func(*storage.Tx) error) {
		c := make(chan error, 1)
		outcomes = append(outcomes, c)
		go func() { c <- x.Update(t.Context(), repo, fn) }()
	}
	// It holds up the committer, so that most of the rest is one commit.
	run("hold", func(*storage.Tx) error { <-held; return nil })
	for _, repo := range repos {
		run(repo, unlink(1))
	}
	close(held)
	for _, c := range outcomes {
		if err := <-c; err != nil {
			t.Error(err)
		}
	}
	wantUsage(t, x, "all have let go", 40, 40)
}

// TestPushAndDeleteInALoop never makes the bytes on the disk exceed the quota, and after a collection exactly what is
// linked counts.
func TestPushAndDeleteInALoop(t *testing.T) {
	const size, quota = 100, 1000
	blobs, j := memory.NewBlobs(), memory.NewJournal()
	s := newStore(t, blobs, j)
	s.index.SetQuotas(team(quota))
	stored := func() (all int64) {
		for info, err := range blobs.All(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			all += info.Size
		}
		return all
	}
	content := func(i int) []byte { return slices.Repeat([]byte(fmt.Sprintf("%04d", i)), size/4) }
	pushed := 0
	for i := range 60 {
		repo := fmt.Sprintf("team/%d", i%3)
		d := digest.FromBytes(content(i))
		over := false
		if err := s.index.View(repo, func(tx *storage.Tx) error {
			_, over = tx.Excess(d, size)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !over {
			s.push(repo, content(i))
			storagetest.Update(t, s.index, repo, func(tx *storage.Tx) error { return tx.Unlink(d) })
			pushed++
		}
		if n := stored(); n > quota {
			t.Fatalf("%d bytes are stored", n)
		}
		switch i {
		case 20: // a restart
			s = newStore(t, blobs, j)
			s.index.SetQuotas(team(quota))
		case 40:
			s.push("team/1", []byte("ignores the quota"))
			if _, err := s.collector.Run(t.Context(), false, nil); err != nil {
				t.Fatal(err)
			}
			wantUsage(t, s.index, "after a collection", int64(len("ignores the quota")), 0)
		}
	}
	if pushed != quota/size+9 { // until the quota was full, and after the collection again
		t.Errorf("%d pushes", pushed)
	}
}
