package retention_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"trow/registry/retention"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestKeepLastKeepsTheTagsThatWereSetLast: retention removed the newest tags, because those of one second were ordered
// by their names.
func TestKeepLastKeepsTheTagsThatWereSetLast(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 0))
		j := memory.NewJournal()
		x := openOn(t, j)
		var names []string
		for range 4 + r.IntN(6) { // commits within one second, each with several tags
			var now []string
			for range 1 + r.IntN(4) {
				now = append(now, fmt.Sprintf("t%03d", r.IntN(1000)))
			}
			err := x.Update(t.Context(), "a", func(tx *storage.Tx) (err error) {
				for i, name := range now {
					m := d(fmt.Sprint(name, seed, len(names), i))
					err = errors.Join(err, tx.PutManifest(storage.Manifest{Digest: m, MediaType: "application/a"}),
						tx.SetTag(name, m))
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range now {
				names = append(slices.DeleteFunc(names, func(n string) bool { return n == name }), name)
			}
		}
		if seed%2 == 0 {
			x.Close()
			x = openOn(t, j)
		}
		n := 1 + r.IntN(len(names))
		apply(t, policy(t, []retention.Rule{{Repositories: []string{"a"}, KeepLast: n}}), x, false, nil)
		want := slices.Sorted(slices.Values(names[len(names)-n:]))
		if got, _, err := x.Tags(t.Context(), "a", "", -1); err != nil || !slices.Equal(got, want) {
			t.Fatalf("seed %d: keep-last %d of %v keeps %v, %v", seed, n, names, got, err)
		}
	}
}

func openOn(t *testing.T, j storage.Journal) *storage.Index {
	t.Helper()
	return storagetest.OpenIndex(t, j)
}

// TestTagsOfUnknownOrderAreKeptOrRemovedTogether: data of earlier versions has only whole seconds.
func TestTagsOfUnknownOrderAreKeptOrRemovedTogether(t *testing.T) {
	all := []storage.HeldManifest{held("a", 3, "", "1"), held("b", 2, "", "2=2", "3=2", "4=2"), held("c", 1, "", "5")}
	for keep, want := range map[int]int{1: 4, 2: 1, 3: 1, 4: 1, 5: 0} {
		removed := 0
		rule := retention.Rule{Repositories: []string{"**"}, KeepLast: keep}
		for _, r := range policy(t, []retention.Rule{rule}).Plan(now, storage.Holdings{Repo: "x", Manifests: all}) {
			if r.Tag != "" {
				removed++
			}
		}
		if removed != want {
			t.Errorf("keep-last %d removes %d tags, want %d", keep, removed, want)
		}
	}
}
