package storage_test

import (
	"fmt"
	"slices"
	"strings"
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

// TestIncompleteChildLooksAtSoManyParts: at most 10,000, whichever of the manifests they are in.
func TestIncompleteChildLooksAtSoManyParts(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	put := func(name string, refs ...digest.Digest) storage.Descriptor {
		m := storage.Manifest{Digest: digest.FromString(name), MediaType: "application/a", Refs: refs}
		storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.PutManifest(m) })
		at, ok, err := x.Resolve(t.Context(), "r", m.Digest.String())
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
		return at
	}
	var blobs []digest.Digest
	for i := range 6000 {
		blobs = append(blobs, digestOf("blob", i))
	}
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
		for _, d := range blobs {
			tx.Link(d, 1)
		}
		return nil
	})
	put("a", blobs...)
	put("b", blobs...)
	put("broken", digest.FromString("gone"))
	a, b, broken := digest.FromString("a"), digest.FromString("b"), digest.FromString("broken")
	if !x.IncompleteChild("r", put("one", a, broken)) {
		t.Error("the last manifest of two is not looked at")
	}
	if x.IncompleteChild("r", put("two", a, b, broken)) {
		t.Error("more than 10,000 parts are looked at")
	}
}

// TestIncomplete: a part that is missing makes its manifest incomplete, and each index of it.
func TestIncomplete(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	blob, gone := digest.FromString("blob"), digest.FromString("gone")
	all := map[string]storage.Manifest{}
	for _, m := range []struct {
		name string
		alg  digest.Algorithm
		refs []digest.Digest
	}{
		{"empty", digest.SHA256, nil},
		{"whole", digest.SHA256, []digest.Digest{blob}},
		{"whole 512", digest.SHA512, []digest.Digest{blob}},
		{"broken", digest.SHA256, []digest.Digest{blob, gone}},
		{"broken 512", digest.SHA512, []digest.Digest{gone, blob}},
		{"index", digest.SHA256, []digest.Digest{digest.FromString("whole"), digest.FromString("empty")}},
		{"broken index", digest.SHA256, []digest.Digest{digest.FromString("whole"), digest.FromString("broken")}},
		{"broken index of nothing else", digest.SHA256, []digest.Digest{digest.FromString("whole"), gone}},
		{"index of an index", digest.SHA256, []digest.Digest{blob, digest.FromString("broken index")}},
	} {
		all[m.name] = storage.Manifest{Digest: m.alg.FromString(m.name), MediaType: "application/a", Refs: m.refs}
		storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
			tx.Link(blob, 1)
			return tx.PutManifest(all[m.name])
		})
	}
	for name, m := range all {
		at, ok, err := x.Resolve(t.Context(), "r", m.Digest.String())
		if !ok || err != nil {
			t.Fatal(name, ok, err)
		}
		broken := strings.HasPrefix(name, "broken") || name == "index of an index"
		if got := x.Incomplete("r", at); got != broken {
			t.Errorf("%s is incomplete: %v", name, got)
		}
		if got := x.IncompleteChild("r", at); got != (name == "broken index" || name == "index of an index") {
			t.Errorf("%s has an incomplete manifest: %v", name, got)
		}
		if x.Incomplete("elsewhere", at) || x.IncompleteChild("elsewhere", at) || x.Absent("elsewhere", at, 1) != nil {
			t.Errorf("%s is incomplete in a repository that does not hold it", name)
		}
		if got := x.Absent("r", at, 0); len(got) > 0 {
			t.Errorf("%s: at most no part: %v", name, got)
		}
		var want []digest.Digest // parts of its own
		if name == "broken" || name == "broken 512" || name == "broken index of nothing else" {
			want = []digest.Digest{gone}
		}
		if got := x.Absent("r", at, 2); !slices.Equal(got, want) {
			t.Errorf("%s lacks %v, want %v", name, got, want)
		}
	}
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

// TestWhole: unlike Incomplete, what was not looked at counts as missing, and what is damaged as well.
func TestWhole(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	blob, gone, bad := digest.FromString("blob"), digest.FromString("gone"), digest.FromString("bad")
	put := func(name string, refs ...digest.Digest) storage.Manifest {
		m := storage.Manifest{Digest: digest.FromString(name), MediaType: "application/a", Refs: refs}
		storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
			tx.Link(blob, 1)
			tx.Link(bad, 1)
			return tx.PutManifest(m)
		})
		return m
	}
	whole, broken := put("whole", blob), put("broken", blob, gone)
	damaged, empty := put("damaged", blob, bad), put("empty")
	if err := x.Quarantine(t.Context(), bad, "a test"); err != nil {
		t.Fatal(err)
	}
	ring := digest.FromString("ring")
	put("ring", blob, ring)
	absent := digest.FromString("absent")
	index := put("index", whole.Digest, broken.Digest, damaged.Digest, empty.Digest, absent, blob, ring)
	put("whole index", whole.Digest, empty.Digest)
	put("index of an index", index.Digest)
	at := func(name string) storage.Descriptor {
		m, ok := x.Lookup("r", digest.FromString(name).String())
		if !ok {
			t.Fatal(name)
		}
		return m
	}
	for name, want := range map[string]bool{"whole": true, "empty": true, "whole index": true, "broken": false,
		"damaged": false, "index": false, "index of an index": false, "ring": false} {
		if got := x.Whole("r", at(name)); got != want {
			t.Errorf("%s is whole: %v", name, got)
		}
	}
	all, ok := x.Children("r", at("index"), 7)
	want := []storage.Child{{whole.Digest, true}, {broken.Digest, false}, {damaged.Digest, false},
		{empty.Digest, true}, {absent, false}, {blob, false}, {ring, false}} // a blob is no manifest
	if !ok || !slices.Equal(all, want) {
		t.Errorf("children %v, %v; want %v", all, ok, want)
	}
	parts := []digest.Digest{index.Digest, whole.Digest, blob, broken.Digest, blob, damaged.Digest, blob, bad,
		empty.Digest, blob, ring, blob}
	if got := x.Consists("r", at("index")); len(got) < len(parts) || !slices.Equal(got[:len(parts)], parts) {
		t.Errorf("it consists of %v, want %v", got, parts) // and then the ring again and again
	}
	if got := x.Consists("elsewhere", at("index")); got != nil {
		t.Errorf("elsewhere it consists of %v", got)
	}
	if _, ok := x.Children("r", at("index"), 6); ok {
		t.Error("more children than were asked for")
	}
	if _, ok := x.Children("elsewhere", at("index"), 7); ok || x.Whole("elsewhere", at("whole")) {
		t.Error("a repository has what it does not hold")
	}
	if _, ok := x.Lookup("elsewhere", "v"); ok {
		t.Error("a tag of no repository is there")
	}
	x, m := holdParts(t, 10_000)
	if !x.Whole("r", m) {
		t.Error("10,000 parts are not whole")
	}
	x, m = holdParts(t, 10_001)
	if x.Whole("r", m) || x.Incomplete("r", m) {
		t.Error("what was not looked at counts as here")
	}
	if n := testing.AllocsPerRun(10, func() { x.Whole("r", m); x.Lookup("r", "v") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
