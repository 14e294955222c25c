package storage_test

import (
	"context"
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
	if names, holders, s := x.Names(), x.Holders(digestOf("blob", 1), 9), x.Stats(); len(names)+len(holders) > 0 ||
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

// TestWhatWaitsWithinOneCommit: an update sees what earlier ones of its commit let go, and what they hold.
func TestWhatWaitsWithinOneCommit(t *testing.T) {
	update := func(repo string, fn func(*storage.Tx) error) func(*storage.Index) error {
		return func(x *storage.Index) error { return x.Update(context.Background(), repo, fn) }
	}
	asManifest := func(tx *storage.Tx) error {
		return tx.PutManifest(storage.Manifest{Digest: digestOf("blob", 1), MediaType: "m", Size: 40})
	}
	type updates = []func(*storage.Index) error
	each := func(fn func(*storage.Tx) error) func(repos ...string) updates {
		return func(repos ...string) (all updates) {
			for _, repo := range repos {
				all = append(all, update("team/"+repo, fn))
			}
			return all
		}
	}
	hold, letGo := each(link(1, 40)), each(unlink(1))
	for name, row := range map[string]struct {
		before, commit updates
		used, waiting  int64
	}{
		"all let go":                {hold("a", "b", "c"), letGo("a", "b", "c"), 40, 40},
		"one holds it":              {hold("a", "b", "c"), letGo("a", "b"), 40, 0},
		"and again":                 {hold("a"), slices.Concat(letGo("a"), hold("a")), 40, 0},
		"held and gone":             {nil, slices.Concat(hold("a"), letGo("a")), 40, 40},
		"another begins to hold it": {hold("a"), slices.Concat(hold("b"), letGo("a")), 40, 0},
		"another, as a manifest": {hold("a"), slices.Concat(updates{update("team/b", asManifest)}, letGo("a")), 40,
			0},
		"it waited for another repo": {slices.Concat(hold("a"), letGo("a")),
			updates{update("other", link(1, 40)), update("other", unlink(1))}, 40, 40},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := storagetest.OpenIndex(t, memory.NewJournal())
				x.SetQuotas(team(80)) // all of it is needed while two hold it
				if len(row.before) > 2 {
					x.SetQuotas(team(120))
				}
				for _, u := range row.before {
					if err := u(x); err != nil {
						t.Fatal(err)
					}
				}
				together(t, x, row.commit...)
				wantUsage(t, x, "committed", row.used, row.waiting)
			})
		})
	}
}

// TestWhatDoesNotWaitCostsNothing: neither facts in a commit, nor records.
func TestWhatDoesNotWaitCostsNothing(t *testing.T) {
	inner := memory.NewJournal()
	batches := 0
	x := storagetest.OpenIndex(t, hooked{inner, func(ctx context.Context,
		b ...storage.Batch) (storage.Revision, error) {
		batches += len(b)
		return inner.Commit(ctx, b...)
	}})
	x.SetQuotas(team(1000))
	storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error {
		return errors.Join(link(1, 40)(tx), unlink(1)(tx))
	})
	if n := storage.Leftovers(x); n != 0 || batches != 1 {
		t.Errorf("a blob that was never held: %d records in %d batches", n, batches)
	}
	storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error {
		return errors.Join(link(1, 40)(tx), put(7, "v")(tx))
	})
	if batches != 2 {
		t.Errorf("a push takes %d batches", batches-1)
	}
	storagetest.Update(t, x, "team/a", unlink(1)) // it waits: no look-up is idle from now on
	storagetest.Update(t, x, "other", link(2, 40))
	storagetest.Update(t, x, "other", unlink(2))
	if batches != 6 {
		t.Errorf("%d batches, want 6: no quota counts the last two", batches)
	}
}

// TestWhatIsHeldAgainWaitsNoMore, also if its quota was removed meanwhile, or if a repo without a quota holds it.
func TestWhatIsHeldAgainWaitsNoMore(t *testing.T) {
	s := newStore(t, memory.NewBlobs(), memory.NewJournal())
	x := s.index
	x.SetQuotas(team(100))
	storagetest.Update(t, x, "team/a", link(1, 40))
	storagetest.Update(t, x, "team/a", unlink(1))
	x.SetQuotas(nil)
	storagetest.Update(t, x, "team/a", link(1, 40))
	x.SetQuotas(team(100))
	wantUsage(t, x, "held again without a quota", 40, 0)
	d := s.push("team/b", []byte("layer"))
	storagetest.Update(t, x, "team/b", func(tx *storage.Tx) error { return tx.Unlink(d) })
	wantUsage(t, x, "let go", 45, 5)
	storagetest.Update(t, x, "other", func(tx *storage.Tx) error { tx.Link(d, 5); return nil })
	if s.collect(); !s.has(d) {
		t.Error("what a repository holds was collected")
	}
	wantUsage(t, x, "a repository without a quota holds it", 40, 0)
}

// TestWhatWaitsIsCollectedAlthoughNoListingShowsIt: its bytes came after the listing, and the end of waiting must not
// come before them.
func TestWhatWaitsIsCollectedAlthoughNoListingShowsIt(t *testing.T) {
	s := newStore(t, memory.NewBlobs(), memory.NewJournal())
	s.index.SetQuotas(team(1 << 20))
	const n = 300 // more than one commit deletes
	var all []digest.Digest
	for i := range n {
		d := s.push("team/a", fmt.Appendf(nil, "layer %03d", i))
		all = append(all, d)
		storagetest.Update(t, s.index, "team/a", func(tx *storage.Tx) error { return tx.Unlink(d) })
	}
	wantUsage(t, s.index, "let go", 9*n, 9*n)
	s.collector.Blobs = listing{Blobs: s.blobs}
	if done := s.collect(); done.Deleted != n || done.Freed != 9*n {
		t.Errorf("%+v", done)
	}
	for _, d := range all {
		if s.has(d) {
			t.Fatal("bytes stay that nothing counts")
		}
	}
	wantUsage(t, s.index, "collected", 0, 0)
}

// TestWhatIsCollectedTakesNoMemory: nothing remembers that it waited.
func TestWhatIsCollectedTakesNoMemory(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	x.SetQuotas(team(100))
	for i := range 2 {
		storagetest.Update(t, x, "team/a", link(i, 10))
		storagetest.Update(t, x, "team/a", unlink(i))
	}
	if n := storage.WaitingContents(x); n != 2 {
		t.Errorf("%d wait, want 2", n)
	}
	storagetest.Update(t, x, "team/a", link(1, 10)) // it is held again
	if n := storage.WaitingContents(x); n != 1 {
		t.Errorf("%d wait, want 1", n)
	}
	collect(t, x)
	if n := storage.WaitingContents(x); n != 0 {
		t.Errorf("%d wait after a collection", n)
	}
}

// TestADeletionWithManyTagsLetsGo of the manifest: tags, which are facts of the same change, do not wait.
func TestADeletionWithManyTagsLetsGo(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	x.SetQuotas(team(1000))
	for i := int64(1); i < 5; i++ { // the facts of a change are in no order
		m := storage.Manifest{Digest: digestOf("tagged", int(i)), MediaType: "m", Size: 10}
		storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error {
			err := tx.PutManifest(m)
			for n := range 30 {
				err = errors.Join(err, tx.SetTag(fmt.Sprint("v", n), m.Digest))
			}
			return err
		})
		storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error { return tx.DeleteManifest(m.Digest) })
		wantUsage(t, x, "deleted", i*10, i*10)
	}
}
