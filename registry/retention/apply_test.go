package retention_test

import (
	"errors"
	"fmt"
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
