package storage

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestTableAgreesWithAMap(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var s slab[int]
	tables := [2]table[int]{{slab: &s}, {slab: &s}} // two that share a slab, as repos do
	want := [2]map[int]id{{}, {}}
	hash := func(n int) uint32 { return uint32(n / 3 * 2654435761) } // three have the same
	find := func(t *table[int], n int) id {
		i := t.first(hash(n))
		for i != 0 && *s.at(i) != n {
			i = t.next(i, hash(n))
		}
		return i
	}
	for step := range 60000 {
		which, n := r.IntN(2), r.IntN(4000)
		table, known := &tables[which], want[which]
		grow := step/10000%2 == 0 // and shrink, in turn
		switch i := find(table, n); {
		case i != known[n]:
			t.Fatalf("step %d: %d is record %d, want %d", step, n, i, known[n])
		case i == 0 && (grow || r.IntN(4) == 0):
			known[n] = s.add(n)
			table.add(known[n], hash(n))
		case i != 0 && (!grow || r.IntN(4) == 0):
			table.remove(i)
			s.remove(i)
			delete(known, n)
		}
		if step%500 == 0 {
			wantTable(t, table, known)
		}
	}
	if records := int(s.used); records > 8000 || len(s.pages) > 8000/slabPage+1 {
		t.Errorf("%d records and %d pages for 8000 at the most", records, len(s.pages))
	}
}

func wantTable(t *testing.T, table *table[int], want map[int]id) {
	t.Helper()
	n := 0
	for i := range table.all() {
		if n++; want[*table.slab.at(i)] != i {
			t.Fatalf("record %d is %d, which is record %d", i, *table.slab.at(i), want[*table.slab.at(i)])
		}
	}
	if n != len(want) || table.len != n || len(table.heads) > 2*n+1 || cap(table.heads) > 8*n+8 {
		t.Fatalf("%d records, len %d, %d buckets (%d); want %d records", n, table.len, len(table.heads), cap(table.heads), len(want))
	}
}

// TestWhatIsDeletedIsUsedAgain: however often a registry is filled and emptied, its state is as large as one filling.
func TestWhatIsDeletedIsUsedAgain(t *testing.T) {
	j := new(MemoryJournal)
	x, err := OpenIndex(t.Context(), j, IndexOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	var first [4]int
	for round := range 12 {
		churn(t, x, round, (*Tx).add)
		s := x.state
		size := [4]int{int(s.contents.used), int(s.holds.used), int(s.manifests.used), int(s.tags.used)}
		if round == 0 {
			first = size
		}
		if size != first || len(s.byDigest.heads) > size[0] {
			t.Fatalf("round %d: %v records and %d buckets, after the first filling %v", round, size, len(s.byDigest.heads), first)
		}
		churn(t, x, round, (*Tx).drop)
		if got := x.Stats(); got != (Stats{}) || len(s.repos)+len(s.tails)+s.byDigest.len+s.catalog.len != 0 || cap(s.byDigest.heads) > 8 {
			t.Fatalf("round %d: emptied, there is left %+v, %d buckets", round, got, cap(s.byDigest.heads))
		}
		free := 0
		for i := s.holds.free; i != 0; i = s.holds.slot(i).next {
			free++
		}
		if free != first[1] {
			t.Fatalf("round %d: %d of %d holds are free", round, free, first[1])
		}
	}
}

// churn does something to each image of a round, of which there are 300 in 20 repos.
func churn(t *testing.T, x *Index, round int, do func(tx *Tx, m Manifest, tag string) error) {
	t.Helper()
	for r := range 20 {
		err := x.Update(t.Context(), fmt.Sprint("repo", round, "-", r), func(tx *Tx) (err error) {
			for i := range 15 {
				alg := digest.SHA256
				if i%5 == 0 {
					alg = digest.SHA512
				}
				m := Manifest{Digest: alg.FromString(fmt.Sprint("m", round, r, i)), MediaType: "a", Size: 1, Subject: digest.FromString(fmt.Sprint("m", round, r, i/4))}
				for k := range 5 {
					m.Refs = append(m.Refs, alg.FromString(fmt.Sprint("b", round, r, i, k)))
				}
				m.Refs = append(m.Refs, digest.FromString(fmt.Sprint("shared", round)))
				err = errors.Join(err, do(tx, m, fmt.Sprint("v", i)))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (tx *Tx) add(m Manifest, tag string) error {
	for _, d := range m.Refs {
		tx.Link(d, 1)
	}
	return errors.Join(tx.PutManifest(m), tx.SetTag(tag, m.Digest))
}

func (tx *Tx) drop(m Manifest, _ string) error {
	err := tx.DeleteManifest(m.Digest)
	for _, d := range m.Refs {
		if tx.Linked(d) {
			err = errors.Join(err, tx.Unlink(d))
		}
	}
	return err
}
