package storagetest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"trow/storage"
)

func testConditions(t *testing.T, open func() storage.Journal) {
	j := open()
	a := commit(t, j, batch("a", 0, set("x", "1")), batch("b", 0, set("y", "1")))
	for name, tt := range map[string]struct {
		condition storage.Fact
		holds     bool
	}{
		"the value that it has":     {set("x", "1"), true},
		"another value":             {set("x", "2"), false},
		"a longer value":            {set("x", "11"), false},
		"an empty value":            {set("x", ""), false},
		"absent, and it is there":   {unset("x"), false},
		"absent, and it is not":     {unset("y"), true},
		"a value, and it is not":    {set("y", "1"), false},
		"of another kind":           {storage.Fact{Kind: storage.KindLink, Name: "x", Value: []byte("1")}, false},
		"a name with a longer one":  {unset("xx"), true},
		"of the history, absent":    {old("x\x000", ""), true},
		"of the history, a value":   {old("x\x000", "1"), false},
		"of another repo, a value":  {set("z", "1"), false},
		"empty, and it is not here": {set("none", ""), false},
	} {
		before := must(j.Head(t.Context()))(t)
		_, err := j.Commit(t.Context(), detached("a", []storage.Fact{tt.condition}, set("tried", name)))
		if tt.holds {
			wantNil(t, name, err)
			commit(t, j, detached("a", []storage.Fact{set("tried", name)}, unset("tried")))
		} else {
			wantErr(t, name, err, storage.ErrConflict)
			wantHead(t, j, before)
		}
	}
	// A condition of one batch decides on all of the commit, and a batch may have conditions alone.
	_, err := j.Commit(t.Context(), batch("a", a, set("x", "2")), detached("b", []storage.Fact{unset("y")}))
	wantErr(t, "a commit whose other batch has a condition that does not hold", err, storage.ErrConflict)
	commit(t, j, batch("a", a, set("x", "2")), detached("b", []storage.Fact{set("y", "1")}))
	wantState(t, j, facts{"a": {"tx": "2"}, "b": {"ty": "1"}})
	// An empty value is a value.
	commit(t, j, detached("c", nil, set("x", "")))
	_, err = j.Commit(t.Context(), detached("c", []storage.Fact{unset("x")}, set("y", "1")))
	wantErr(t, "absent, and it is there with an empty value", err, storage.ErrConflict)
	commit(t, j, detached("c", []storage.Fact{{Kind: storage.KindTag, Name: "x", Value: []byte{}}}, unset("x")))
	wantState(t, open(), facts{"a": {"tx": "2"}, "b": {"ty": "1"}})
}

func testDetached(t *testing.T, open func() storage.Journal) {
	j := open()
	v := follow(t, j)
	v.await(0)
	first := commit(t, j, detached("a", nil, set("x", "1"))) // a repo may have facts and no revision
	a := commit(t, j, batch("a", 0, set("y", "1")))
	rev := commit(t, j, detached("a", nil, set("z", "1"), unset("x")))
	if first >= a || a >= rev {
		t.Errorf("the revisions are %d, %d and %d", first, a, rev)
	}
	_, bases := v.at(rev)
	if want := map[string]storage.Revision{"a": a}; !maps.Equal(bases, want) {
		t.Errorf("revisions are %v, want %v", bases, want)
	}
	if got := v.commits[2].Batches; len(got) != 1 || !got[0].Detached || v.commits[1].Batches[0].Detached {
		t.Errorf("the watcher got %+v", got)
	}
	b := commit(t, j, batch("a", a, set("y", "2")))
	v.stop()
	j = open()
	got, bases := state(t, j)
	if want := (facts{"a": {"ty": "2", "tz": "1"}}); !maps.Equal(got["a"], want["a"]) || bases["a"] != b {
		t.Errorf("the state is %v at %v", got, bases)
	}
}

func testEndsAround(t *testing.T, open func() storage.Journal) {
	j := open()
	v := follow(t, j)
	a := commit(t, j, batch("a", 0, set("x", "1")))
	commit(t, j, detached("a", nil, set("y", "1")))
	rev := commit(t, j, ending(batch("a", a, unset("x"))))
	for name, bases := range map[string]map[string]storage.Revision{
		"the watcher": second(v.at(rev)), "a new one": second(state(t, j)),
	} {
		if len(bases) != 0 {
			t.Errorf("%s has the revisions %v", name, bases)
		}
	}
	v.stop()
	j = open()
	wantState(t, j, facts{"a": {"ty": "1"}})
	_, err := j.Commit(t.Context(), batch("a", a, set("x", "2")))
	wantErr(t, "a base from before the end", err, storage.ErrConflict)
	commit(t, j, batch("a", 0, set("x", "2")))
}

func second[A, B any](_ A, b B) B { return b }

func testConflictNames(t *testing.T, open func() storage.Journal) {
	j := open()
	a := commit(t, j, batch("a", 0, set("x", "1")), batch("b", 0, set("x", "1")), batch("c", 0, set("x", "1")))
	_, err := j.Commit(t.Context(), batch("a", a, set("x", "2")), batch("b", a+1, set("x", "2")),
		detached("c", []storage.Fact{set("x", "2"), unset("x")}, set("y", "1")), batch("d", 0, set("x", "1")))
	var conflict *storage.ConflictError
	if !errors.As(err, &conflict) || !errors.Is(err, storage.ErrConflict) {
		t.Fatalf("Commit: %v; want a ConflictError", err)
	}
	slices.Sort(conflict.Repos)
	if want := []string{"b", "c"}; !slices.Equal(conflict.Repos, want) {
		t.Errorf("the conflict is about %q, want %q", conflict.Repos, want)
	}
}

func testHistoryEnds(t *testing.T, open func() storage.Journal) {
	j := open()
	v := follow(t, j)
	b := batch("r", 0, set("a", "1"))
	for i := range storage.HistoryLength {
		b.Facts = append(b.Facts, old(fmt.Sprintf("a\x00%c", '0'+i), "x"))
	}
	b.Facts = append(b.Facts, old("aa\x000", "y"), old("a", "z"))
	rev := commit(t, j, b, batch("s", 0, set("a", "1"), old("a\x000", "x")))
	rev = commit(t, j, batch("r", rev, set("b", "1"), unset("a"), old("a\x00", ""), old("none\x00", "")))
	got, _ := v.at(rev)
	// A watcher may get histories of commits, and may not rely on it.
	maps.DeleteFunc(got["r"], func(k, _ string) bool { return k[0] == byte(storage.KindHistory) })
	if want := map[string]string{"tb": "1"}; !maps.Equal(got["r"], want) {
		t.Errorf("a watcher has %v, want %v", got["r"], want)
	}
	v.stop()
	j = open()
	wantHistory(t, j, "r", "", old("a", "z"), old("aa\x000", "y"))
	wantHistory(t, j, "s", "", old("a\x000", "x"))
}
