package storage_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestALongLookMakesWay for a change that comes while it goes on, and sees what the change does not touch.
func TestALongLookMakesWay(t *testing.T) {
	x := storagetest.OpenIndex(t, full{each: func(func(string, ...storage.Fact) error) error { return nil }})
	const n = 2500
	m := map[int]bool{}
	for i := range n {
		m[i] = true
	}
	seen, changed := map[int]int{}, 0 // when the change came
	var done sync.WaitGroup
	storage.Yielding(x, m, func(i int) {
		if seen[i]++; len(seen) == 10 {
			done.Go(func() {
				storage.Lock(x, func() {
					changed = len(seen)
					for i := range n { // half of them, and as many new ones
						if i%2 == 0 {
							delete(m, i)
							m[n+i] = true
						}
					}
				})
			})
			for !storage.Wanted(x) {
				runtime.Gosched()
			}
		}
	})
	done.Wait()
	if changed != storage.YieldEvery { // neither later nor, as a change of hands takes time, earlier
		t.Errorf("the change came after %d of %d", changed, n)
	}
	for i := range n {
		if seen[i] > 1 || seen[i] == 0 && i%2 == 1 {
			t.Errorf("%d was seen %d times", i, seen[i])
		}
	}
}

// manyNames has 20,000 repositories with a link each, one with 20,000 links, one with 20,000 manifests that refer to
// the same blob, and 20,000 contents that wait.
func manyNames(apply func(string, ...storage.Fact) error) error {
	var links []storage.Fact
	for i := range manyOfAll {
		links = append(links, storage.LinkFact(digestOf("blob", i), 1))
		if err := apply(fmt.Sprint("team/", i), storage.LinkFact(digestOf("base", 1), 1)); err != nil {
			return err
		}
	}
	if err := apply("big", links...); err != nil {
		return err
	}
	var manifests []storage.Fact
	for i := range manyOfAll {
		manifests = append(manifests, storage.ManifestFact(storage.Manifest{Digest: digestOf("manifest", i),
			MediaType: "application/a", Refs: []digest.Digest{digest.FromString("config")}}))
	}
	if err := apply("images", manifests...); err != nil {
		return err
	}
	for i := range links {
		links[i] = storage.LinkFact(digestOf("gone", i), 1)
	}
	return apply(storage.WaitingOf("big"), links...)
}

const manyOfAll = 20_000

// TestNoLookHoldsTheLockForLong: a collection and a mount look at all names, and pushes and verdicts wait for the lock.
func TestNoLookHoldsTheLockForLong(t *testing.T) {
	x := storagetest.OpenIndex(t, full{each: manyNames})
	for name, look := range storage.LongLooks(x, "big", digestOf("base", 1)) {
		t.Run(name, func(t *testing.T) {
			// Before and after a look the others have the lock a few times. One that lets go of it does so 20 times.
			var inside, stop atomic.Bool
			var between atomic.Int32
			var others sync.WaitGroup
			others.Go(func() {
				for !stop.Load() {
					storage.Lock(x, func() {
						if inside.Load() {
							between.Add(1)
						}
					})
				}
			})
			defer others.Wait()
			defer stop.Store(true)
			// Of one look that holds it, the scheduler may still make ten; of three in a row, it does not.
			found, row := 0, 0
			for began := time.Now(); row < 3 && time.Since(began) < 30*time.Second; {
				between.Store(0)
				inside.Store(true)
				found = look()
				inside.Store(false)
				if row++; between.Load() < 10 {
					row = 0
				}
			}
			if row < 3 || found != manyOfAll {
				t.Errorf("%d found, and the lock was free %d times meanwhile", found, between.Load())
			}
		})
	}
}

// TestAStepOfACollectionLooksOnlyAtWhatItDeletes, however much waits, and however many repositories there are.
func TestAStepOfACollectionLooksOnlyAtWhatItDeletes(t *testing.T) {
	x := storagetest.OpenIndex(t, full{each: manyNames})
	fastest := time.Hour
	for range 100 {
		began := time.Now()
		if n := storage.Waiters(x, digestOf("gone", 7), digestOf("blob", 7), digest.FromString("unknown")); n != 1 {
			t.Fatalf("%d, want 1", n)
		}
		fastest = min(fastest, time.Since(began))
	}
	if fastest > 100*time.Microsecond { // to look at all of them takes milliseconds
		t.Errorf("%v", fastest)
	}
}

// TestOneSearchForHoldersAtATime: a client that asks for many mounts without a source takes one CPU at most.
func TestOneSearchForHoldersAtATime(t *testing.T) {
	x := storagetest.OpenIndex(t, full{each: manyNames})
	found := make(chan int)
	storage.Lock(x, func() { // the first one waits for the lock
		for range 2 {
			go func() { found <- len(x.Holders(digestOf("blob", 1), 8)) }()
		}
		if n := <-found; n != 0 {
			t.Errorf("%d found beside another search", n)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := x.HoldersInTurn(ended, digestOf("blob", 1), 8); !errors.Is(err, context.Canceled) {
			t.Errorf("in turn beside another search: %v", err)
		}
		go func() {
			names, err := x.HoldersInTurn(t.Context(), digestOf("blob", 1), 8)
			if err != nil {
				t.Error(err)
			}
			found <- len(names)
		}()
	})
	if n := <-found; n != 1 {
		t.Errorf("%d found, want 1", n)
	}
	if n := <-found; n != 1 {
		t.Errorf("%d found, want 1", n)
	}
	if n := len(x.Holders(digestOf("base", 1), 8)); n != 8 {
		t.Errorf("%d found, want 8", n)
	}
}

// TestAHolderHasABlob: a repository that only refers to it, or has it as a manifest, cannot be the source of a mount.
func TestAHolderHasABlob(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	m := manifest(1)
	storagetest.Update(t, x, "as a manifest", put(1, "v"))
	storagetest.Update(t, x, "as a part", func(tx *storage.Tx) error {
		return tx.PutManifest(pushedManifest("n", m.Digest))
	})
	storagetest.Update(t, x, "neither", put(2, "v"))
	if found := x.Holders(m.Digest, 8); len(found) != 0 {
		t.Errorf("%q hold it", found)
	}
	storagetest.Update(t, x, "as a blob", func(tx *storage.Tx) error { tx.Link(m.Digest, 1); return nil })
	if found := x.Holders(m.Digest, 8); !slices.Equal(found, []string{"as a blob"}) {
		t.Errorf("%q hold it", found)
	}
}
