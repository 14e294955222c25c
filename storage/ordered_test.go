package storage

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestOrderedAgreesWithASortedSlice(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	// per cent of the operations
	for name, remove := range map[string]int{"growing": 10, "steady": 50, "shrinking": 60} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			var o ordered
			var want []string
			insert := func(s string) {
				o.insert(s)
				if at, found := slices.BinarySearch(want, s); !found {
					want = slices.Insert(want, at, s)
				}
			}
			if name != "growing" {
				for i := range 3000 { // in order, as while loading
					insert(fmt.Sprintf("%05d", i))
				}
			}
			for i := range 12000 {
				s := fmt.Sprintf("%05d", r.IntN(6000))
				if r.IntN(100) >= remove {
					insert(s)
				} else {
					o.remove(s)
					if at, found := slices.BinarySearch(want, s); found {
						want = slices.Delete(want, at, at+1)
					}
				}
				if i%50 == 0 {
					compareOrdered(t, &o, want, r)
				}
			}
			for _, s := range slices.Clone(want) {
				o.remove(s)
			}
			compareOrdered(t, &o, nil, r)
		})
	}
}

func compareOrdered(t *testing.T, o *ordered, want []string, r *rand.Rand) {
	t.Helper()
	if got := o.after("", -1); !slices.Equal(got, want) || o.len != len(want) {
		t.Fatalf("%d strings, len %d; want %d", len(got), o.len, len(want))
	}
	for _, c := range o.chunks {
		if len(c) == 0 || len(c) > chunkMax {
			t.Fatalf("a chunk of %d", len(c))
		}
	}
	last, n := fmt.Sprintf("%05d", r.IntN(6000)), r.IntN(1500)
	at, found := slices.BinarySearch(want, last)
	if found {
		at++
	}
	if got := o.after(last, n); !slices.Equal(got, want[at:min(at+n, len(want))]) {
		t.Fatalf("%d strings after %s, want %d", len(got), last, min(n, len(want)-at))
	}
}

// TestStringsThatComeInOrderFillTheirChunks, as while loading: half of the memory would be free otherwise.
func TestStringsThatComeInOrderFillTheirChunks(t *testing.T) {
	var o ordered
	for i := range 5*chunkMax + 1 {
		o.insert(fmt.Sprintf("%06d", i))
	}
	if len(o.chunks) != 6 {
		t.Fatalf("%d chunks", len(o.chunks))
	}
	for i, c := range o.chunks[:5] {
		if len(c) != chunkMax {
			t.Errorf("chunk %d has %d strings, want %d", i, len(c), chunkMax)
		}
	}
	o.insert("000000x") // into a full one
	if len(o.chunks) != 7 || len(o.chunks[0])+len(o.chunks[1]) != chunkMax+1 {
		t.Errorf("a full chunk was not divided: %d chunks", len(o.chunks))
	}
}
