package storage_test

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// holdParts returns an Index in which a repo holds a manifest with some blobs.
func holdParts(tb testing.TB, parts int) (*storage.Index, storage.Descriptor) {
	tb.Helper()
	x := storagetest.OpenIndex(tb, memory.NewJournal())
	m := storage.Manifest{Digest: digest.FromString("m"), MediaType: "application/a"}
	for i := range parts {
		m.Refs = append(m.Refs, digest.FromString(fmt.Sprint(i)))
	}
	err := x.Update(tb.Context(), "r", func(tx *storage.Tx) error {
		for _, d := range m.Refs {
			tx.Link(d, 1)
		}
		return tx.PutManifest(m)
	})
	if err != nil {
		tb.Fatal(err)
	}
	d, ok, err := x.Resolve(tb.Context(), "r", m.Digest.String())
	if err != nil || !ok {
		tb.Fatal(ok, err)
	}
	return x, d
}

// TestIncompleteEnds: manifests can refer to each other in a ring, which only a manifest of an unknown type can name.
func TestIncompleteEnds(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	a, b := digest.SHA512.FromString("a"), digest.FromString("b")
	err := x.Update(t.Context(), "r", func(tx *storage.Tx) error {
		m := storage.Manifest{Digest: a, MediaType: "application/a", Refs: []digest.Digest{b}}
		if err := tx.PutManifest(m); err != nil {
			return err
		}
		return tx.PutManifest(storage.Manifest{Digest: b, MediaType: "application/a", Refs: []digest.Digest{a}})
	})
	if err != nil {
		t.Fatal(err)
	}
	m, ok, err := x.Resolve(t.Context(), "r", a.String())
	if err != nil || !ok || x.Incomplete("r", m) {
		t.Errorf("incomplete, or %v, %v", ok, err)
	}
}

// BenchmarkIncomplete is what a verdict on an image with some layers costs more.
func BenchmarkIncomplete(b *testing.B) {
	for _, parts := range []int{10, 10_000} {
		b.Run(fmt.Sprint(parts), func(b *testing.B) {
			x, m := holdParts(b, parts)
			b.ReportAllocs()
			for b.Loop() {
				if x.Incomplete("r", m) {
					b.Fatal("incomplete")
				}
			}
		})
	}
}
