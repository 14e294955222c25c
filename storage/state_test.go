package storage_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestRemovedRecordsAreUsedAgain: however often a registry is filled and emptied, its state is as large as after one
// filling.
func TestRemovedRecordsAreUsedAgain(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	var first storage.Sizes
	for round := range 12 {
		churn(t, x, round, addImage)
		size := storage.SizesOf(x)
		if round == 0 {
			first = size
		}
		if size != first {
			t.Fatalf("round %d: %+v, after the first filling %+v", round, size, first)
		}
		churn(t, x, round, dropImage)
		if got, left := x.Stats(), storage.Leftovers(x); got != (storage.Stats{}) || left != 0 {
			t.Fatalf("round %d: emptied, %+v and %d records are left", round, got, left)
		}
	}
}

// churn calls do for each image of a round: 300 in 20 repos.
func churn(t *testing.T, x *storage.Index, round int, do func(tx *storage.Tx, m storage.Manifest, tag string) error) {
	t.Helper()
	for r := range 20 {
		err := x.Update(t.Context(), fmt.Sprint("repo", round, "-", r), func(tx *storage.Tx) (err error) {
			for i := range 15 {
				alg := digest.SHA256
				if i%5 == 0 {
					alg = digest.SHA512
				}
				m := storage.Manifest{Digest: alg.FromString(fmt.Sprint("m", round, r, i)), MediaType: "a", Size: 1,
					Subject: digest.FromString(fmt.Sprint("m", round, r, i/4))}
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

func addImage(tx *storage.Tx, m storage.Manifest, tag string) error {
	for _, d := range m.Refs {
		tx.Link(d, 1)
	}
	return errors.Join(tx.PutManifest(m), tx.SetTag(tag, m.Digest))
}

func dropImage(tx *storage.Tx, m storage.Manifest, _ string) error {
	err := tx.DeleteManifest(m.Digest)
	for _, d := range m.Refs {
		if tx.Linked(d) {
			err = errors.Join(err, tx.Unlink(d))
		}
	}
	return err
}
