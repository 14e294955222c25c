package storage_test

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"trow/storage"
	"trow/storage/storagetest"
)

// waitsIn reports whether a goroutine waits for a lock in a function. It uses buf for their stacks.
func waitsIn(function string, buf []byte) bool {
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		state, frames, _ := strings.Cut(stack, "\n")
		if strings.Contains(state, "[sync.") && strings.Contains(frames, function) {
			return true
		}
	}
	return false
}

// TestHoldingsAreOfOneMoment, although the lock is let go of meanwhile: what comes then is seen as a whole or not at
// all. After some looks the lock is kept, so that changes without end do not keep it from an answer.
func TestHoldingsAreOfOneMoment(t *testing.T) {
	const n = 2000
	blobs := func(size int64) (facts []storage.Fact) {
		for i := range n {
			facts = append(facts, storage.LinkFact(digestOf("blob", int(size)*n+i), size))
		}
		return facts
	}
	x := storagetest.OpenIndex(t, full{each: func(apply func(string, ...storage.Fact) error) error {
		return apply("r", blobs(0)...)
	}})
	now, most := int64(0), 0 // the size of the blobs; the changes that one call of Holdings has met
	change := func() {
		var facts []storage.Fact
		for _, f := range blobs(now) {
			f.Value = nil
			facts = append(facts, f)
		}
		now++
		if err := storage.Apply(x, storage.Batch{Repo: "r", Facts: append(facts, blobs(now)...)}); err != nil {
			t.Error(err)
		}
	}
	stacks := make([]byte, 1<<20)
	for began := time.Now(); most < storage.Looks; {
		// On a busy machine few changes may come in time.
		if takes := time.Since(began); takes > 20*time.Second || takes > 4*time.Second && most > 0 {
			break
		}
		answer := make(chan storage.Holdings)
		go func() {
			h, _, err := x.Holdings(t.Context(), "r")
			if err != nil {
				t.Error(err)
			}
			answer <- h
		}()
		changes := 0
		var h storage.Holdings
		for done := false; !done; {
			select {
			case h = <-answer:
				done = true
			default:
				storage.Lock(x, func() {
					if waitsIn("(*Index).yield(", stacks) {
						changes++
						change()
					}
				})
			}
		}
		if len(h.Blobs) != n {
			t.Fatalf("%d blobs, want %d", len(h.Blobs), n)
		}
		for _, b := range h.Blobs {
			if b.Size != now {
				t.Fatalf("after %d changes it has blobs of %d and %d", changes, b.Size, now)
			}
		}
		most = max(most, changes)
	}
	if most == 0 || most > storage.Looks {
		t.Errorf("%d changes came while it looked, want 1 to %d", most, storage.Looks)
	}
}
