package storage_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// move sets a tag to the i-th manifest, as somebody.
func move(i int, tag, by string) func(*storage.Tx) error {
	return func(tx *storage.Tx) error {
		tx.As(by)
		return put(i, tag)(tx)
	}
}

func historyOf(t *testing.T, x *storage.Index, tag string) (all []string) {
	t.Helper()
	targets, err := x.History(t.Context(), "r", tag)
	if err != nil {
		t.Fatal(err)
	}
	for i, target := range targets {
		if i > 0 && !targets[i-1].Since.After(target.Since) {
			t.Errorf("the history of %s is not in order: %v", tag, targets)
		}
		if age := time.Since(target.Since); age < 0 || age > time.Hour {
			t.Errorf("%s names %s since %v", tag, target.Digest, target.Since)
		}
		for n := range 100 {
			if manifest(n).Digest == target.Digest {
				all = append(all, fmt.Sprint(n, " by ", target.By))
			}
		}
	}
	return all
}

func TestHistory(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	if _, err := x.History(t.Context(), "r", "v"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the history of a tag that does not exist: %v", err)
	}
	storagetest.Update(t, x, "r", move(1, "v", "ann"))
	storagetest.Update(t, x, "r", move(1, "v", "bob")) // no move
	storagetest.Update(t, x, "r", move(2, "v", ""))
	storagetest.Update(t, x, "r", move(1, "v", "bob"))
	storagetest.Update(t, x, "r", move(3, "vv", "eve"))
	if got, want := historyOf(t, x, "v"), []string{"1 by bob", "2 by ", "1 by ann"}; !slices.Equal(got, want) {
		t.Errorf("the history is %q, want %q", got, want)
	}
	// Another tag of the same name starts anew, also in the same change.
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
		return errors.Join(tx.DeleteTag("v"), move(2, "v", "cat")(tx))
	})
	if got, want := historyOf(t, x, "v"), []string{"2 by cat"}; !slices.Equal(got, want) {
		t.Errorf("after a deletion the history is %q, want %q", got, want)
	}
}

// TestAMoveWithinOneCommitIsInTheHistory too.
func TestAMoveWithinOneCommitIsInTheHistory(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
		return errors.Join(move(1, "v", "ann")(tx), move(2, "v", "bob")(tx))
	})
	if got, want := historyOf(t, x, "v"), []string{"2 by bob", "1 by ann"}; !slices.Equal(got, want) {
		t.Errorf("the history is %q, want %q", got, want)
	}
}

// TestOnlyTagsHaveAHistory: a digest names a manifest for ever.
func TestOnlyTagsHaveAHistory(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	storagetest.Update(t, x, "r", put(1, "v"))
	if got, err := x.History(t.Context(), "r", manifest(1).Digest.String()); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the history of a digest: %v, %v", got, err)
	}
}

// TestTheFormOfAHistory is part of the data format. An entry that cannot be read hides no other.
func TestTheFormOfAHistory(t *testing.T) {
	j := memory.NewJournal()
	x := storagetest.OpenIndex(t, j)
	storagetest.Update(t, x, "r", move(1, "v", "ann"))
	storagetest.Update(t, x, "r", move(2, "v", "bob"))
	facts, err := j.History(t.Context(), "r", "v\x00")
	if err != nil || len(facts) != 2 || facts[0].Name != "v\x000" || facts[1].Name != "v\x001" {
		t.Errorf("the journal has %q, %v", facts, err)
	}
	for kind, want := range map[storage.Kind]int{storage.KindHistory: 2, storage.KindTag: 1, storage.KindManifest: 1,
		storage.KindLink: 1} {
		if got := kind.Format(); got != want {
			t.Errorf("kind %q needs format %d, want %d", kind, got, want)
		}
	}
	head, _ := j.Head(t.Context())
	bad := storage.Fact{Kind: storage.KindHistory, Name: "v\x00a", Value: []byte{200}}
	if _, err := j.Commit(t.Context(), storage.Batch{Repo: "r", Base: head, Facts: []storage.Fact{bad}}); err != nil {
		t.Fatal(err)
	}
	targets, err := x.History(t.Context(), "r", "v")
	if err != nil || len(targets) != 2 {
		t.Errorf("with a damaged entry the history is %v, %v", targets, err)
	}
}

func TestTheHistoryIsBounded(t *testing.T) {
	j := memory.NewJournal()
	x := storagetest.OpenIndex(t, j)
	const moves = storage.HistoryLength + 7
	for i := range moves {
		storagetest.Update(t, x, "r", move(i%2, "v", fmt.Sprint("u", i)))
	}
	x = storagetest.OpenIndex(t, j)
	got := historyOf(t, x, "v")
	first, last := fmt.Sprintf("%d by u%d", (moves-1)%2, moves-1), fmt.Sprintf("1 by u%d", 7)
	if len(got) != storage.HistoryLength || got[0] != first || got[len(got)-1] != last {
		t.Errorf("after %d moves the history is %q", moves, got)
	}
	d := manifest(0).Digest
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.DeleteManifest(d) })
	if left, err := j.History(t.Context(), "r", ""); len(left) != 0 || err != nil {
		t.Errorf("the deleted tag has left %q, %v", left, err)
	}
}

// TestAHistoryBeginsBeforeTheUpgrade: a tag that an earlier version has set has no history. Its target then is the
// first entry.
func TestAHistoryBeginsBeforeTheUpgrade(t *testing.T) {
	j := memory.NewJournal()
	x := storagetest.OpenIndex(t, j)
	d := manifest(1).Digest
	tag := storage.Fact{Kind: storage.KindTag, Name: "v", Value: storage.TagValue(d, time.Now().Unix()-60, 0)}
	old := storage.Batch{Repo: "r", Facts: []storage.Fact{storage.ManifestFact(manifest(1)), tag}}
	if _, err := j.Commit(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if got, want := historyOf(t, x, "v"), []string{"1 by "}; !slices.Equal(got, want) {
		t.Errorf("the history is %q, want %q", got, want)
	}
	storagetest.Update(t, x, "r", move(2, "v", "ann"))
	if got, want := historyOf(t, x, "v"), []string{"2 by ann", "1 by "}; !slices.Equal(got, want) {
		t.Errorf("after a move the history is %q, want %q", got, want)
	}
}

// TestALongNameIsCutBetweenCharacters: what the journal keeps of a name is bounded, and can be shown.
func TestALongNameIsCutBetweenCharacters(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	storagetest.Update(t, x, "r", move(1, "v", "a"+strings.Repeat("ü", 300)))
	if got, want := historyOf(t, x, "v"), []string{"1 by a" + strings.Repeat("ü", 255)}; !slices.Equal(got, want) {
		t.Errorf("the history is %q, want %q", got, want)
	}
}
