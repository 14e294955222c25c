package retention_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/retention"
	"trow/registry/settings"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

func open(t *testing.T) *storage.Index {
	t.Helper()
	return storagetest.OpenIndex(t, memory.NewJournal())
}

func put(t *testing.T, x *storage.Index, name, tag string, refs ...digest.Digest) {
	t.Helper()
	err := x.Update(t.Context(), "a", func(tx *storage.Tx) error {
		err := tx.PutManifest(storage.Manifest{Digest: d(name), MediaType: "application/a", Refs: refs})
		if tag != "" {
			err = errors.Join(err, tx.SetTag(tag, d(name)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func apply(t *testing.T, p *retention.Policy, x *storage.Index, dry bool, report func(retention.Removal)) (n int) {
	t.Helper()
	err := p.Apply(t.Context(), x, dry, nil, func(r retention.Removal) {
		n++
		if report != nil {
			report(r)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestApplyRemovesWhatThePlanSays(t *testing.T) {
	x := open(t)
	for i := range 250 {
		put(t, x, fmt.Sprint("child", i), "")
		put(t, x, fmt.Sprint("index", i), fmt.Sprintf("t%03d", i), d(fmt.Sprint("child", i)))
	}
	p := policy(t, []retention.Rule{{Repositories: []string{"a"}, KeepTags: []string{"t00?"}}})
	dry := apply(t, p, x, true, nil)
	if tags, _, err := x.Tags(t.Context(), "a", "", -1); err != nil || len(tags) != 250 {
		t.Fatalf("a dry run removes: %d tags, %v", len(tags), err)
	}
	if n := apply(t, p, x, false, nil); n != dry || n != 3*240 {
		t.Errorf("%d removals, the dry run said %d", n, dry)
	}
	if s := x.Stats(); s.Tags != 10 || s.Manifests != 20 {
		t.Errorf("left: %+v", s)
	}
	if n := apply(t, p, x, false, nil); n != 0 {
		t.Errorf("a second run removes %d", n)
	}
}

// TestWhatChangesAfterThePlanStays: the changes come between two steps of the same run.
func TestWhatChangesAfterThePlanStays(t *testing.T) {
	x := open(t)
	for i := range 100 { // the first step
		put(t, x, fmt.Sprintf("m%03d", i), fmt.Sprintf("t%03d", i))
	}
	p := policy(t, []retention.Rule{{Repositories: []string{"a"}, KeepYounger: settings.Duration(time.Nanosecond)}})
	time.Sleep(time.Second) // times in facts are whole seconds
	first := true
	apply(t, p, x, false, func(r retention.Removal) {
		if !first { // reports come after their step: what follows are the manifests
			return
		}
		first = false
		put(t, x, "m000", "again")
		put(t, x, "index", "new", d("m001"))
	})
	for _, name := range []string{"m000", "m001", "index"} {
		if _, ok, err := x.Resolve(t.Context(), "a", d(name).String()); !ok || err != nil {
			t.Errorf("%s was tagged or needed again, and was removed: %v", name, err)
		}
	}
	if s := x.Stats(); s.Tags != 2 || s.Manifests != 3 {
		t.Errorf("left: %+v", s)
	}
}

// TestATagThatMovedAfterThePlanStays: the tag moves between the first step and its own.
func TestATagThatMovedAfterThePlanStays(t *testing.T) {
	x := open(t)
	for i := range 101 {
		put(t, x, fmt.Sprintf("m%03d", i), fmt.Sprintf("t%03d", i))
	}
	p := policy(t, []retention.Rule{{Repositories: []string{"a"}, KeepTags: []string{"none"}}})
	moved := ""
	apply(t, p, x, false, func(r retention.Removal) {
		if moved != "" {
			return
		}
		tags, _, err := x.Tags(t.Context(), "a", "", -1)
		if err != nil || len(tags) != 1 {
			t.Fatalf("after the first step: %v, %v", tags, err)
		}
		moved = tags[0]
		put(t, x, "other", moved)
	})
	if at, ok, err := x.Resolve(t.Context(), "a", moved); !ok || err != nil || at.Digest() != d("other") {
		t.Errorf("tag %s was moved and then removed: %v", moved, err)
	}
}

// TestApplyKeepsToTheBoundsOfTheJournal: a tag whose history is long takes as many operations.
func TestApplyKeepsToTheBoundsOfTheJournal(t *testing.T) {
	j := memory.NewJournal()
	j.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 3 << 19}
	x := storagetest.OpenIndex(t, j)
	put(t, x, "one", "kept")
	put(t, x, "two", "kept")
	for i := range 20 {
		tag := fmt.Sprint("old", i)
		storagetest.Update(t, x, "a", func(tx *storage.Tx) error {
			var errs []error
			for range 20 {
				errs = append(errs, tx.SetTag(tag, d("one")), tx.SetTag(tag, d("two")))
			}
			return errors.Join(errs...)
		})
	}
	p := policy(t, []retention.Rule{{Repositories: []string{"a"}, KeepTags: []string{"kept"}}})
	if n := apply(t, p, x, false, nil); n != 20 {
		t.Errorf("%d removals", n)
	}
	storagetest.WantTags(t, x, "a", "kept")
}

// TestASignatureStaysIfItsManifestIsTaggedAfterThePlan: it was removed, because the plan was to remove both.
func TestASignatureStaysIfItsManifestIsTaggedAfterThePlan(t *testing.T) {
	for _, again := range []bool{true, false} {
		x := open(t)
		put(t, x, "image", "v1")
		companion := strings.Replace(d("image").String(), ":", "-", 1)
		put(t, x, "signature", companion+".sig")
		put(t, x, "of signature", strings.Replace(d("signature").String(), ":", "-", 1)+".sig")
		storagetest.Update(t, x, "a", func(tx *storage.Tx) error {
			err := tx.PutManifest(storage.Manifest{Digest: d("sbom"), MediaType: "application/a", Subject: d("image")})
			return errors.Join(err, tx.PutManifest(storage.Manifest{Digest: d("of sbom"), MediaType: "application/a",
				Subject: d("sbom")}))
		})
		for i := range 101 { // the first step, and a part of the second
			put(t, x, fmt.Sprintf("m%03d", i), fmt.Sprintf("t%03d", i))
		}
		p := policy(t, []retention.Rule{{Repositories: []string{"a"}, KeepTags: []string{"kept"}}})
		apply(t, p, x, false, func(r retention.Removal) {
			if again {
				put(t, x, "image", "again")
			}
		})
		want := 0
		if again {
			want = 5
		}
		if s := x.Stats(); s.Manifests != want {
			t.Errorf("tagged again %v: %d manifests are left, want %d", again, s.Manifests, want)
		}
	}
}

// TestTwoThatAccompanyEachOtherAreRemoved.
func TestTwoThatAccompanyEachOtherAreRemoved(t *testing.T) {
	x := open(t)
	put(t, x, "one", strings.Replace(d("two").String(), ":", "-", 1)+".sig")
	put(t, x, "one", "v1")
	put(t, x, "two", strings.Replace(d("one").String(), ":", "-", 1)+".sig")
	put(t, x, "self", strings.Replace(d("self").String(), ":", "-", 1))
	put(t, x, "self", "v2")
	p := policy(t, []retention.Rule{{Repositories: []string{"a"}, KeepTags: []string{"kept"}}})
	apply(t, p, x, false, nil)
	if s := x.Stats(); s.Manifests != 0 || s.Tags != 0 {
		t.Errorf("left: %+v", s)
	}
}

// TestAChainOfReferrersIsRemoved, of any length.
func TestAChainOfReferrersIsRemoved(t *testing.T) {
	x := open(t)
	const length = 3500
	storagetest.Update(t, x, "a", func(tx *storage.Tx) (err error) {
		for i := range length {
			m := storage.Manifest{Digest: d(fmt.Sprint("m", i)), MediaType: "application/a"}
			if i > 0 {
				m.Subject = d(fmt.Sprint("m", i-1))
			}
			err = errors.Join(err, tx.PutManifest(m))
		}
		return errors.Join(err, tx.SetTag("v1", d("m0")))
	})
	p := policy(t, []retention.Rule{{Repositories: []string{"a"}, KeepTags: []string{"kept"}}})
	if n := apply(t, p, x, false, nil); n != length+1 || x.Stats().Manifests != 0 {
		t.Errorf("%d removals, left: %+v", n, x.Stats())
	}
}
