package storagetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"trow/storage"
)

// Journal tests an engine for facts. place makes an empty place and returns a function that opens the engine there.
func Journal(t *testing.T, place func(t *testing.T) (open func() storage.Journal)) {
	tests := []struct {
		name string
		test func(t *testing.T, open func() storage.Journal)
	}{
		{"a commit has one revision and Head shows it", testRevisions},
		{"a batch on another base than the last revision is refused", testConflict},
		{"a commit is made completely or not at all", testAtomic},
		{"a watcher gets the full state and then the commits", testWatch},
		{"watchers get the facts of a batch in its order", testOrder},
		{"a large state arrives completely", testLarge},
		{"a commit may have the size that the traits allow", testBounds},
		{"there is no gap between the full state and the commits", testNoGap},
		{"an error of apply ends only that watch", testApplyError},
		{"an error of apply in the full state ends the watch", testApplyErrorAtOnce},
		{"a watch ends with its context", testWatchContext},
		{"a repo ends with its last fact", testLastFact},
		{"deleting a fact that does not exist changes nothing", testDeleteNothing},
		{"names and values may be any bytes", testBytes},
		{"a commit without a batch changes nothing", testEmpty},
		{"a restart keeps everything", testJournalRestart},
		{"the history is kept apart from the full state", testHistory},
		{"the history of a tag ends as a whole", testHistoryEnds},
		{"of several commits on one base one succeeds", testRace},
		{"a condition holds or the commit is refused", testConditions},
		{"a detached batch is in no conflict", testDetached},
		{"a repo that ends while a detached batch adds to it has no revision", testEndsAround},
		{"a conflict names its repos", testConflictNames},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, place(t)) })
	}
}

// view is what a watcher knows. It checks the promises of Watch while it follows.
type view struct {
	t      *testing.T
	cancel context.CancelFunc
	ended  chan error

	busy     atomic.Bool
	mu       sync.Mutex // guards all below
	changed  chan struct{}
	synced   bool
	revision storage.Revision
	bases    map[string]storage.Revision
	facts    map[string]map[string]string // by repo, then kind and name
	commits  []storage.Update             // after the full state
}

// follow watches until the test ends or stop is called.
func follow(t *testing.T, j storage.Journal) *view {
	ctx, cancel := context.WithCancel(t.Context())
	v := &view{
		t: t, cancel: cancel, ended: make(chan error, 1), changed: make(chan struct{}),
		bases: map[string]storage.Revision{}, facts: map[string]map[string]string{},
	}
	go func() { v.ended <- j.Watch(ctx, v.apply) }()
	return v
}

func (v *view) stop() {
	v.cancel()
	if err := <-v.ended; !errors.Is(err, context.Canceled) && !v.t.Failed() {
		v.t.Errorf("Watch returned %v after its context ended", err)
	}
}

func (v *view) apply(u storage.Update) error {
	if !v.busy.CompareAndSwap(false, true) {
		v.t.Error("apply was called while it ran")
	}
	defer v.busy.Store(false)
	v.mu.Lock()
	defer v.mu.Unlock()
	defer func() { close(v.changed); v.changed = make(chan struct{}) }()
	if v.synced && (u.Synced || u.Revision <= v.revision) {
		v.t.Errorf("revision %d was followed by %d, synced %v", v.revision, u.Revision, u.Synced)
	}
	if v.synced {
		v.commits = append(v.commits, u)
	}
	for _, b := range u.Batches {
		if v.facts[b.Repo] == nil {
			v.facts[b.Repo] = map[string]string{}
		}
		for _, f := range b.Facts {
			k := string(rune(f.Kind)) + f.Name
			if f.Value == nil {
				delete(v.facts[b.Repo], k)
			} else {
				v.facts[b.Repo][k] = string(f.Value)
			}
		}
		switch {
		case !v.synced:
			v.bases[b.Repo] = b.Base
		case b.Ends && !b.Detached:
			v.bases[b.Repo] = 0
		case !b.Detached:
			v.bases[b.Repo] = u.Revision
		}
		if v.bases[b.Repo] == 0 {
			delete(v.bases, b.Repo)
		}
		if len(v.facts[b.Repo]) == 0 {
			delete(v.facts, b.Repo)
		}
	}
	v.synced = v.synced || u.Synced
	v.revision = max(v.revision, u.Revision)
	return nil
}

// await waits until the view has the full state and the revision.
func (v *view) await(rev storage.Revision) {
	v.t.Helper()
	for {
		v.mu.Lock()
		ok, changed := v.synced && v.revision >= rev, v.changed
		v.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case err := <-v.ended:
			v.ended <- err // stop needs it too
			v.t.Fatalf("Watch ended: %v", err)
		}
	}
}

// at returns the facts and the repos' revisions at a revision.
func (v *view) at(rev storage.Revision) (map[string]map[string]string, map[string]storage.Revision) {
	v.t.Helper()
	v.await(rev)
	v.mu.Lock()
	defer v.mu.Unlock()
	facts := map[string]map[string]string{}
	for name, f := range v.facts {
		facts[name] = maps.Clone(f)
	}
	return facts, maps.Clone(v.bases)
}

// state returns what a new watch delivers.
func state(t *testing.T, j storage.Journal) (map[string]map[string]string, map[string]storage.Revision) {
	t.Helper()
	v := follow(t, j)
	defer v.stop()
	return v.at(0)
}

func set(name, value string) storage.Fact {
	return storage.Fact{Kind: storage.KindTag, Name: name, Value: []byte(value)}
}

func unset(name string) storage.Fact { return storage.Fact{Kind: storage.KindTag, Name: name} }

func batch(repo string, base storage.Revision, facts ...storage.Fact) storage.Batch {
	return storage.Batch{Repo: repo, Base: base, Facts: facts}
}

// ending is a batch after which a repo has no fact.
func ending(b storage.Batch) storage.Batch { b.Ends = true; return b }

// detached is a batch with conditions alone.
func detached(repo string, conditions []storage.Fact, facts ...storage.Fact) storage.Batch {
	return storage.Batch{Repo: repo, Detached: true, If: conditions, Facts: facts}
}

func commit(t *testing.T, j storage.Journal, b ...storage.Batch) storage.Revision {
	t.Helper()
	return must(j.Commit(t.Context(), b...))(t)
}

type facts = map[string]map[string]string

func wantState(t *testing.T, j storage.Journal, want facts) {
	t.Helper()
	if got, _ := state(t, j); !reflect.DeepEqual(got, want) {
		t.Errorf("the state is %v, want %v", got, want)
	}
}

func wantHead(t *testing.T, j storage.Journal, want storage.Revision) {
	t.Helper()
	if got, err := j.Head(t.Context()); got != want || err != nil {
		t.Errorf("Head: %d, %v; want %d", got, err, want)
	}
}

func testRevisions(t *testing.T, open func() storage.Journal) {
	j := open()
	last := must(j.Head(t.Context()))(t)
	a := commit(t, j, batch("a", 0, set("x", "1"), set("y", "1")), batch("b", 0, set("x", "1")))
	if a <= last {
		t.Errorf("the first commit has revision %d after %d", a, last)
	}
	wantHead(t, j, a)
	if _, bases := state(t, j); !maps.Equal(bases, map[string]storage.Revision{"a": a, "b": a}) {
		t.Errorf("revisions are %v, want %d for both", bases, a)
	}
	b := commit(t, j, batch("b", a, set("x", "2")))
	if b <= a {
		t.Errorf("revision %d came after %d", b, a)
	}
	wantHead(t, j, b)
	if _, bases := state(t, j); !maps.Equal(bases, map[string]storage.Revision{"a": a, "b": b}) {
		t.Errorf("revisions are %v, want a at %d and b at %d", bases, a, b)
	}
}

func testConflict(t *testing.T, open func() storage.Journal) {
	j := open()
	_, err := j.Commit(t.Context(), batch("a", 7, set("x", "1")))
	wantErr(t, "a base for a repo that does not exist", err, storage.ErrConflict)
	first := commit(t, j, batch("a", 0, set("x", "1")))
	second := commit(t, j, batch("a", first, set("x", "2")))
	for _, base := range []storage.Revision{0, first, second + 1} {
		_, err := j.Commit(t.Context(), batch("a", base, set("x", "3")))
		wantErr(t, fmt.Sprintf("base %d at %d", base, second), err, storage.ErrConflict)
	}
	wantHead(t, j, second)
	wantState(t, j, facts{"a": {"tx": "2"}})
	commit(t, j, batch("a", second, set("x", "4"))) // a conflict does not stop the journal
	wantState(t, j, facts{"a": {"tx": "4"}})
}

func testAtomic(t *testing.T, open func() storage.Journal) {
	j := open()
	v := follow(t, j)
	defer v.stop()
	v.await(0)
	a := commit(t, j, batch("b", 0, set("x", "1")))
	_, err := j.Commit(t.Context(),
		batch("a", 0, set("x", "1")), batch("b", 0, set("x", "2")), batch("c", 0, set("x", "1")))
	wantErr(t, "Commit", err, storage.ErrConflict)
	wantHead(t, j, a)
	wantState(t, j, facts{"b": {"tx": "1"}})
	b := commit(t, j, batch("d", 0, set("x", "1")))
	v.await(b)
	if len(v.commits) != 2 {
		t.Errorf("the watcher saw %d commits, want 2", len(v.commits))
	}
}

func testWatch(t *testing.T, open func() storage.Journal) {
	j := open()
	early := follow(t, j)
	defer early.stop()
	early.await(0)
	a := commit(t, j, batch("a", 0, set("x", "1"), set("y", "1")))
	b := commit(t, j, batch("b", 0, set("x", "1")))
	late := follow(t, j)
	defer late.stop()
	late.await(0)
	c := commit(t, j, batch("a", a, set("x", "2"), unset("y")), batch("b", b, set("z", "2")))
	for name, v := range map[string]*view{"early": early, "late": late} {
		got, bases := v.at(c)
		if want := (facts{"a": {"tx": "2"}, "b": {"tx": "1", "tz": "2"}}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		if !maps.Equal(bases, map[string]storage.Revision{"a": c, "b": c}) {
			t.Errorf("%s: revisions %v, want %d", name, bases, c)
		}
	}
	if len(early.commits) != 3 || len(late.commits) != 1 {
		t.Errorf("the watchers saw %d and %d commits, want 3 and 1", len(early.commits), len(late.commits))
	}
}

func testOrder(t *testing.T, open func() storage.Journal) {
	j := open()
	v := follow(t, j)
	defer v.stop()
	v.await(0)
	order := []storage.Fact{
		set("z", "1"),
		{Kind: storage.KindManifest, Name: "m", Value: []byte("1")},
		set("a", "1"),
		{Kind: storage.KindLink, Name: "b", Value: []byte("1")},
		set("k", "1"),
	}
	v.await(commit(t, j, batch("r", 0, order...)))
	if got := v.commits[0].Batches[0].Facts; !reflect.DeepEqual(got, order) {
		t.Errorf("facts arrived as %v, want %v", got, order)
	}
}

func testLarge(t *testing.T, open func() storage.Journal) {
	j, want := open(), facts{}
	for _, size := range []int{1, 3, 9000, 2} {
		b := batch(fmt.Sprintf("repo%d", size), 0)
		want[b.Repo] = map[string]string{}
		for i := range size {
			f := set(fmt.Sprintf("tag%d", i), fmt.Sprint(i))
			b.Facts = append(b.Facts, f)
			want[b.Repo]["t"+f.Name] = string(f.Value)
		}
		facts := b.Facts
		for part := range slices.Chunk(facts, cmp.Or(j.Traits().Operations, size+1)-1) {
			b.Facts = part
			b.Base = commit(t, j, b)
		}
	}
	for range 2 {
		got, bases := state(t, j)
		if !reflect.DeepEqual(got, want) || len(bases) != len(want) {
			t.Errorf("the state has %d repos, want %d; or other facts", len(got), len(want))
		}
		j = open()
	}
}

func testBounds(t *testing.T, open func() storage.Journal) {
	j := open()
	is := j.Traits()
	compares, operations := cmp.Or(is.Compares, 1000), cmp.Or(is.Operations, 1000)
	left := cmp.Or(is.Bytes, 1<<20)
	b := batch(strings.Repeat("r", 255), 0)
	left -= len(b.Repo)
	for i := range compares - 1 {
		b.If = append(b.If, unset(fmt.Sprintf("%0128d", i)))
		left -= 128
	}
	left -= 128 * (operations - 1)
	want := map[string]string{}
	for i := range operations - 1 {
		f := set(fmt.Sprintf("%0127d-", i), "")
		f.Value = make([]byte, left/(operations-1-i))
		left -= len(f.Value)
		b.Facts = append(b.Facts, f)
		want["t"+f.Name] = string(f.Value)
	}
	early := follow(t, j)
	defer early.stop()
	early.await(0)
	rev := commit(t, j, b)
	got, _ := early.at(rev)
	if !maps.Equal(got[b.Repo], want) || len(early.commits) != 1 {
		t.Errorf("the watcher has %d facts in %d commits, want %d in one", len(got[b.Repo]),
			len(early.commits), len(want))
	}
	// The conditions are part of what is bounded when they do not hold, too.
	b.Base = rev
	b.If[0] = set(b.If[0].Name, "1")
	_, err := j.Commit(t.Context(), b)
	wantErr(t, "a condition of many that does not hold", err, storage.ErrConflict)
}

func testNoGap(t *testing.T, open func() storage.Journal) {
	const writers, commits = 4, 40
	j := open()
	var views []*view
	var last atomic.Uint64
	var wg sync.WaitGroup
	committed := make(chan struct{}, writers*commits)
	for w := range writers {
		wg.Go(func() {
			var base storage.Revision
			for i := range commits {
				rev, err := j.Commit(t.Context(), batch(fmt.Sprint("repo", w), base,
					set(fmt.Sprint("tag", i%7), fmt.Sprint(i))))
				if err != nil {
					t.Error(err)
					return
				}
				base = rev
				for old := last.Load(); uint64(rev) > old && !last.CompareAndSwap(old, uint64(rev)); old = last.Load() {
				}
				committed <- struct{}{}
			}
		})
	}
	for range writers * commits / 8 { // watchers start at any time meanwhile
		for range 8 {
			<-committed
		}
		views = append(views, follow(t, j))
		if t.Failed() {
			return
		}
	}
	wg.Wait()
	want, bases := state(t, j)
	for i, v := range views {
		got, gotBases := v.at(storage.Revision(last.Load()))
		if !reflect.DeepEqual(got, want) || !maps.Equal(gotBases, bases) {
			t.Errorf("view %d is %v at %v, want %v at %v", i, got, gotBases, want, bases)
		}
		v.stop()
	}
}

func testApplyError(t *testing.T, open func() storage.Journal) {
	j := open()
	other := follow(t, j)
	defer other.stop()
	other.await(0)
	boom, synced, ended := errors.New("boom"), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- j.Watch(t.Context(), func(u storage.Update) error {
			if u.Synced {
				close(synced)
				return nil
			}
			return boom
		})
	}()
	<-synced
	a := commit(t, j, batch("a", 0, set("x", "1"))) // apply fails, the commit does not
	if err := <-ended; !errors.Is(err, boom) {
		t.Errorf("Watch returned %v, want apply's error", err)
	}
	b := commit(t, j, batch("a", a, set("x", "2")))
	if got, _ := other.at(b); got["a"]["tx"] != "2" {
		t.Errorf("the other watch has %v", got)
	}
}

func testApplyErrorAtOnce(t *testing.T, open func() storage.Journal) {
	j := open()
	commit(t, j, batch("a", 0, set("x", "1")))
	boom := errors.New("boom")
	calls := 0
	err := j.Watch(t.Context(), func(storage.Update) error { calls++; return boom })
	wantErr(t, "Watch", err, boom)
	commit(t, j, batch("b", 0, set("x", "1")))
	if calls != 1 {
		t.Errorf("apply was called %d times after its error", calls-1)
	}
}

func testWatchContext(t *testing.T, open func() storage.Journal) {
	j := open()
	v := follow(t, j)
	v.await(0)
	v.stop()
	commit(t, j, batch("a", 0, set("x", "1")))
	if len(v.commits) != 0 {
		t.Error("apply was called after Watch had returned")
	}
}

func testLastFact(t *testing.T, open func() storage.Journal) {
	j := open()
	a := commit(t, j, batch("a", 0, set("x", "1"), set("y", "1")), batch("ab", 0, set("x", "1")))
	b := commit(t, j, batch("a", a, unset("x")))
	wantState(t, j, facts{"a": {"ty": "1"}, "ab": {"tx": "1"}})
	c := commit(t, j, ending(batch("a", b, unset("y"))))
	wantHead(t, j, c)
	wantState(t, j, facts{"ab": {"tx": "1"}})
	for _, base := range []storage.Revision{a, b, c} {
		_, err := j.Commit(t.Context(), batch("a", base, set("x", "2")))
		wantErr(t, "a base from before the repo ended", err, storage.ErrConflict)
	}
	d := commit(t, j, batch("a", 0, set("x", "2")))
	if d <= c {
		t.Errorf("revision %d came after %d", d, c)
	}
	j = open()
	wantState(t, j, facts{"a": {"tx": "2"}, "ab": {"tx": "1"}})
}

func testDeleteNothing(t *testing.T, open func() storage.Journal) {
	j := open()
	commit(t, j, ending(batch("a", 0, unset("x"))))
	wantState(t, j, facts{})
	commit(t, j, batch("a", 0, set("y", "1"), unset("x")))
	wantState(t, j, facts{"a": {"ty": "1"}})
}

func testBytes(t *testing.T, open func() storage.Journal) {
	j := open()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	want := facts{"a": {}, "a-b": {"tx": "1"}, "a/b": {"tx": "2"}, "a0": {"tx": "3"}}
	b := batch("a", 0)
	for _, name := range []string{"\x00", "\x00\x00", "\xff", "x\x00y", string(all)} {
		b.Facts = append(b.Facts, set(name, string(all)))
		want["a"]["t"+name] = string(all)
	}
	commit(t, j, b, batch("a-b", 0, set("x", "1")), batch("a/b", 0, set("x", "2")), batch("a0", 0, set("x", "3")))
	wantState(t, j, want)
	wantState(t, open(), want)
}

func testEmpty(t *testing.T, open func() storage.Journal) {
	j := open()
	first := commit(t, j, batch("r", 0, set("a", "1")))
	if rev := commit(t, j); rev < first {
		t.Errorf("revision %d came after %d", rev, first)
	}
	commit(t, j, batch("r", first, set("b", "2")))
	wantState(t, j, facts{"r": {"ta": "1", "tb": "2"}})
}

func testJournalRestart(t *testing.T, open func() storage.Journal) {
	j := open()
	wantState(t, j, facts{})
	want := facts{}
	var last storage.Revision
	for i := range 10 {
		name := fmt.Sprint("repo", i)
		last = commit(t, j, batch(name, 0, set("x", fmt.Sprint(i))))
		want[name] = map[string]string{"tx": fmt.Sprint(i)}
		j = open()
		wantHead(t, j, last)
		wantState(t, j, want)
	}
	_, bases := state(t, j)
	_, err := j.Commit(t.Context(), batch("repo0", last, set("x", "9")))
	wantErr(t, "a wrong base after the restart", err, storage.ErrConflict)
	if rev := commit(t, j, ending(batch("repo0", bases["repo0"], unset("x")))); rev <= last {
		t.Errorf("revision %d came after %d", rev, last)
	}
}

func testRace(t *testing.T, open func() storage.Journal) {
	const writers = 8
	j := open()
	var base storage.Revision
	for range 5 {
		var won atomic.Int32
		var next atomic.Uint64
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				rev, err := j.Commit(t.Context(), batch("a", base, set("x", fmt.Sprint(w))))
				if err == nil {
					won.Add(1)
					next.Store(uint64(rev))
				} else if !errors.Is(err, storage.ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d of %d commits on one base succeeded", won.Load(), writers)
		}
		base = storage.Revision(next.Load())
	}
}

// old returns a fact of a history, and its end if value is empty.
func old(name, value string) storage.Fact {
	f := storage.Fact{Kind: storage.KindHistory, Name: name}
	if value != "" {
		f.Value = []byte(value)
	}
	return f
}

func testHistory(t *testing.T, open func() storage.Journal) {
	j := open()
	wantHistory(t, j, "r", "a\x00")
	rev := commit(t, j,
		batch("r", 0, set("a", "1"), old("a\x001", "x"), old("a\x000", "y"), old("aa\x000", "z")),
		batch("rr", 0, set("a", "1"), old("a\x000", "other")))
	j = open()
	wantHistory(t, j, "r", "a\x00", old("a\x000", "y"), old("a\x001", "x"))
	wantHistory(t, j, "r", "b\x00")
	wantHistory(t, j, "s", "a\x00")
	wantHistory(t, j, "rr", "a\x00", old("a\x000", "other"))
	wantState(t, j, facts{"r": {"ta": "1"}, "rr": {"ta": "1"}})
	rev = commit(t, j, batch("r", rev, old("a\x000", ""), old("a\x001", "new"), old("none", "")))
	wantHistory(t, j, "r", "a\x00", old("a\x001", "new"))
	// A repo ends with its last fact that is part of the state.
	commit(t, j, ending(batch("r", rev, unset("a"), old("a\x001", ""), old("aa\x000", ""))))
	j = open()
	wantHistory(t, j, "r", "")
	wantState(t, j, facts{"rr": {"ta": "1"}})
}

func wantHistory(t *testing.T, j storage.Journal, repo, prefix string, want ...storage.Fact) {
	t.Helper()
	got, err := j.History(t.Context(), repo, prefix)
	if err != nil || len(got)+len(want) > 0 && !reflect.DeepEqual(got, want) {
		t.Errorf("the history of %q in %s is %q, %v; want %q", prefix, repo, got, err, want)
	}
}
