package storage_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestStepsOfACopyKeepToTheBounds of the journal: half its bytes, at most 1 MiB, and at least one fact.
func TestStepsOfACopyKeepToTheBounds(t *testing.T) {
	facts := func(n, name, value int) (all []storage.Fact) {
		for range n {
			all = append(all, storage.RecordFact(strings.Repeat("n", name), make([]byte, value)))
		}
		return all
	}
	repo := strings.Repeat("r", 100)
	for name, row := range map[string]struct {
		traits storage.Traits
		facts  []storage.Fact
		want   int
	}{
		"all":                         {storage.Traits{}, facts(9, 50, 100), 9},
		"512":                         {storage.Traits{}, facts(1000, 5, 10), 512},
		"1 MiB":                       {storage.Traits{}, facts(9, 50, 1<<18-150), 4},
		"1 MiB and a byte":            {storage.Traits{}, facts(9, 50, 1<<18-149), 3},
		"half the bytes":              {storage.Traits{Bytes: 2000}, facts(99, 50, 100), 4},
		"less than half the bytes":    {storage.Traits{Bytes: 1998}, facts(99, 50, 100), 3},
		"1 MiB of many bytes":         {storage.Traits{Bytes: 1 << 30}, facts(9, 50, 1<<18-150), 4},
		"one that is larger":          {storage.Traits{Bytes: 100}, facts(9, 50, 1000), 1},
		"one that is larger at first": {storage.Traits{Bytes: 2000}, append(facts(1, 50, 2000), facts(9, 1, 1)...), 1},
		"operations":                  {storage.Traits{Operations: 28}, facts(99, 5, 10), 20},
	} {
		if got := storage.CopyStep(row.traits, repo, row.facts); got != row.want {
			t.Errorf("%s: %d facts at once, want %d", name, got, row.want)
		}
	}
}

// TestACopyInStepsIsWhole however little fits into a commit.
func TestACopyInStepsIsWhole(t *testing.T) {
	j := memory.NewJournal()
	j.Is = storage.Traits{Shared: true, Compares: 64, Operations: 64, Bytes: 4096}
	largest, commits := 0, 0
	x := storagetest.OpenIndex(t, hooked{j, func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
		bytes := 0
		for _, batch := range b {
			for _, f := range batch.Facts {
				bytes += len(batch.Repo) + len(f.Name) + len(f.Value)
			}
		}
		largest = max(largest, bytes)
		commits++
		return j.Commit(ctx, b...)
	}})
	var facts []storage.Fact
	want := map[string]string{}
	for i := range 100 {
		name, value := fmt.Sprint("auth/robot/", i), strings.Repeat("x", i*10)
		facts = append(facts, storage.RecordFact(name, []byte(value)))
		want[fmt.Sprintf("%s r %q", storage.StoreRepo, name)] = value
	}
	if err := x.CopyFacts(t.Context(), storage.StoreRepo, slices.Clone(facts)); err != nil {
		t.Fatal(err)
	}
	if got := factsOf(t, j); !maps.Equal(got, want) {
		t.Errorf("%d facts of %d", len(got), len(want))
	}
	if largest > 2048 || commits < 25 || commits > 60 {
		t.Errorf("%d commits of at most %d bytes", commits, largest)
	}
}
