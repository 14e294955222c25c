package slab

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestTableAgreesWithAMap(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var s Slab[int]
	tables := [2]Table[int]{NewTable(&s), NewTable(&s)} // two tables share a slab, as those of repositories do
	want := [2]map[int]ID{{}, {}}
	hash := func(n int) uint32 { return uint32(n / 3 * 2654435761) } // three numbers have the same hash
	for step := range 60000 {
		which, n := r.IntN(2), r.IntN(4000)
		table, known := &tables[which], want[which]
		grow := step/10000%2 == 0 // grow and shrink in turn
		switch i := table.Find(hash(n), func(i ID) bool { return *s.At(i) == n }); {
		case i != known[n]:
			t.Fatalf("step %d: %d is record %d, want %d", step, n, i, known[n])
		case i == 0 && (grow || r.IntN(4) == 0):
			known[n] = s.Add(n)
			table.Add(known[n], hash(n))
		case i != 0 && (!grow || r.IntN(4) == 0):
			table.Remove(i)
			s.Remove(i)
			delete(known, n)
		}
		if step%500 == 0 {
			wantTable(t, table, known)
		}
	}
	if records := int(s.Last()); records > 8000 || len(s.pages) > 8000/pageSize+1 {
		t.Errorf("%d records and %d pages for at most 8000 records", records, len(s.pages))
	}
}

func wantTable(t *testing.T, table *Table[int], want map[int]ID) {
	t.Helper()
	n := 0
	for i := range table.All() {
		if n++; want[*table.slab.At(i)] != i {
			t.Fatalf("record %d is %d, which is record %d", i, *table.slab.At(i), want[*table.slab.At(i)])
		}
	}
	if n != len(want) || table.Len() != n || len(table.heads) > 2*n+1 || cap(table.heads) > 8*n+8 {
		t.Fatalf("%d records, len %d, %d buckets (%d); want %d records", n, table.Len(), len(table.heads),
			cap(table.heads),
			len(want))
	}
}

// TestRemovedRecordsAreUsedAgain fills and empties a slab and a table: both stay as large as one filling.
func TestRemovedRecordsAreUsedAgain(t *testing.T) {
	var s Slab[string]
	table := NewTable(&s)
	const records = 3 * pageSize
	for round := range 5 {
		var ids []ID
		for i := range records {
			id := s.Add("x")
			table.Add(id, uint32(i))
			ids = append(ids, id)
		}
		if s.Last() != records || len(table.heads) > records {
			t.Fatalf("round %d: %d records, %d buckets; want %d", round, s.Last(), len(table.heads), records)
		}
		for _, id := range ids {
			table.Remove(id)
			s.Remove(id)
		}
		if table.Len() != 0 || cap(table.heads) > 8 || *s.At(1) != "" {
			t.Fatalf("round %d: %d records and %d buckets are left", round, table.Len(), cap(table.heads))
		}
	}
}

// TestAWalkGoesOnWhileTheTableChanges: what stays comes, unless the table has shrunk; what was removed does not come.
func TestAWalkGoesOnWhileTheTableChanges(t *testing.T) {
	var s Slab[int]
	table := NewTable(&s)
	hash := func(n int) uint32 { return uint32(n * 2654435761) }
	ids := map[int]ID{}
	add := func(n int) {
		ids[n] = s.Add(n)
		table.Add(ids[n], hash(n))
	}
	const n = 1000
	for i := range n {
		add(i)
	}
	seen, pauses := map[int]int{}, 0
	for i := range table.Walk(100, func() {
		pauses++
		for i := range 100 { // it grows to twice its size, and half of what it had goes
			add(n*pauses + i)
		}
		for i := range 50 {
			gone := (pauses-1)*100 + 2*i
			if id, held := ids[gone]; held && gone < n {
				table.Remove(id)
				s.Remove(id)
				delete(ids, gone)
			}
		}
	}) {
		record := *s.At(i)
		if seen[record]++; ids[record] != i {
			t.Fatalf("%d is no record of the table", record)
		}
	}
	for record := range ids {
		if record < n && seen[record] == 0 {
			t.Errorf("%d did not come", record)
		}
	}
	if pauses < 9 {
		t.Errorf("%d pauses", pauses)
	}
	for range table.Walk(1, func() { t.Fatal("a pause after the end") }) {
		break
	}
}
