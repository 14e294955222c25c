package engines

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"trow/storage"
)

// load is a number of clients that change a few repos while something goes wrong, and the answers they got. Each repo
// has a counter, n, which each change increments, and the name of the change that did. So a change that is lost, made
// twice or not delivered shows.
type load struct {
	t       *testing.T
	stop    chan struct{}
	clients sync.WaitGroup
	views   []*view
	ops     atomic.Int64
	slowest atomic.Int64 // the longest commit, in milliseconds
	longest atomic.Int64 // the longest time without an acknowledged change, in milliseconds
	last    atomic.Int64 // when one was acknowledged last, in Unix milliseconds

	mu      sync.Mutex          // guards all below
	acked   map[string]int      // changes that must be there, and n
	refused map[string]struct{} // changes that must not be there
	unknown map[string]error
}

// view is what one watcher knows.
type view struct {
	t     *testing.T
	j     storage.Journal
	loads atomic.Int64
	ends  func()
	done  sync.WaitGroup

	mu       sync.Mutex // guards all below
	changed  chan struct{}
	synced   bool
	restored int   // as the last full state says
	err      error // with which the last Watch has ended
	revision storage.Revision
	bases    map[string]storage.Revision
	facts    map[string]map[string]string
	made     map[string]map[int]string // by repo and n: the change
	once     map[string]int            // detached changes, and how often they were seen
}

func newView(t *testing.T, j storage.Journal) *view {
	ctx, cancel := context.WithCancel(context.Background())
	v := &view{t: t, j: j, ends: cancel, changed: make(chan struct{}), made: map[string]map[int]string{},
		once: map[string]int{}}
	v.done.Go(func() {
		for ctx.Err() == nil {
			v.mu.Lock()
			v.synced = false
			v.mu.Unlock()
			err := j.Watch(ctx, v.loader())
			if ctx.Err() == nil {
				v.mu.Lock()
				v.err = err
				v.mu.Unlock()
				t.Logf("the watch ended: %v", err)
				time.Sleep(50 * time.Millisecond)
			}
		}
	})
	t.Cleanup(v.close)
	return v
}

func (v *view) close() { v.ends(); v.done.Wait() }

func (v *view) loader() func(storage.Update) error {
	bases, facts := map[string]storage.Revision{}, map[string]map[string]string{}
	return func(u storage.Update) error {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.synced && u.Revision <= v.revision {
			v.t.Errorf("revision %d came after %d", u.Revision, v.revision)
		}
		for _, b := range u.Batches {
			v.batch(u, b, bases, facts)
		}
		if v.synced = v.synced || u.Synced; v.synced {
			if u.Synced {
				v.loads.Add(1)
				v.restored = u.Restored
			}
			v.bases, v.facts, v.revision = bases, facts, u.Revision
			close(v.changed)
			v.changed = make(chan struct{})
		}
		return nil
	}
}

func (v *view) batch(u storage.Update, b storage.Batch, bases map[string]storage.Revision,
	facts map[string]map[string]string,
) {
	switch {
	case !v.synced:
		bases[b.Repo] = b.Base
	case b.Ends:
		bases[b.Repo] = 0
	case !b.Detached:
		bases[b.Repo] = u.Revision
	}
	if facts[b.Repo] == nil {
		facts[b.Repo] = map[string]string{}
	}
	before, _ := strconv.Atoi(facts[b.Repo]["n"])
	for _, f := range b.Facts {
		if f.Value == nil {
			delete(facts[b.Repo], f.Name)
			continue
		}
		facts[b.Repo][f.Name] = string(f.Value)
		if v.synced && b.Detached {
			v.once[b.Repo+" "+f.Name]++
		}
	}
	n, _ := strconv.Atoi(facts[b.Repo]["n"])
	if n == 0 || b.Detached {
		return
	}
	if v.synced && n != before+1 {
		v.t.Errorf("%s went from %d to %d at revision %d", b.Repo, before, n, u.Revision)
	}
	if v.made[b.Repo] == nil {
		v.made[b.Repo] = map[int]string{}
	}
	op := facts[b.Repo]["op"]
	if other, known := v.made[b.Repo][n]; known && other != op {
		v.t.Errorf("%s: change %d is %s and %s", b.Repo, n, op, other)
	}
	v.made[b.Repo][n] = op
}

// await waits until the view shows a revision, and returns its facts.
func (v *view) await(rev storage.Revision) map[string]map[string]string {
	v.t.Helper()
	late := time.After(time.Minute)
	for {
		v.mu.Lock()
		ok, changed, at := v.synced && v.revision >= rev, v.changed, v.revision
		facts := map[string]map[string]string{}
		if ok {
			for repo, f := range v.facts {
				facts[repo] = maps.Clone(f)
			}
		}
		v.mu.Unlock()
		if ok {
			return facts
		}
		select {
		case <-changed:
		case <-late:
			v.t.Fatalf("a watcher is at revision %d after a minute, want %d", at, rev)
		}
	}
}

// at returns what a client of the view bases a change on.
func (v *view) at(repo string) (base storage.Revision, n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n, _ = strconv.Atoi(v.facts[repo]["n"])
	return v.bases[repo], n
}

// startLoad starts clients on journals, each of which stands for a process.
func startLoad(t *testing.T, journals ...storage.Journal) *load {
	l := &load{t: t, stop: make(chan struct{}), acked: map[string]int{}, refused: map[string]struct{}{},
		unknown: map[string]error{}}
	l.last.Store(time.Now().UnixMilli())
	for i, j := range journals {
		v := newView(t, j)
		v.await(0)
		l.views = append(l.views, v)
		for c := range 2 {
			l.clients.Go(func() { l.client(v, fmt.Sprint("repo", (i+c)%3)) })
		}
	}
	return l
}

func (l *load) client(v *view, repo string) {
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		op := fmt.Sprint("op", l.ops.Add(1))
		base, n := v.at(repo)
		b := []storage.Batch{{Repo: repo, Base: base, Facts: []storage.Fact{set("n", fmt.Sprint(n+1)), set("op", op)}}}
		if n%3 == 0 {
			b = append(b, storage.Batch{Repo: "detached", Detached: true,
				If: []storage.Fact{{Kind: storage.KindTag, Name: op}}, Facts: []storage.Fact{set(op, "1")}})
		}
		begin := time.Now()
		_, err := v.j.Commit(context.Background(), b...)
		l.slowest.Store(max(l.slowest.Load(), time.Since(begin).Milliseconds()))
		l.mu.Lock()
		switch {
		case err == nil:
			l.acked[op] = n + 1
			now := time.Now().UnixMilli()
			l.longest.Store(max(l.longest.Load(), now-l.last.Swap(now)))
		case isUnknown(err):
			l.unknown[op] = err
		default:
			l.refused[op] = struct{}{}
		}
		l.mu.Unlock()
		if err != nil {
			if !errors.Is(err, storage.ErrConflict) {
				l.t.Logf("%s: %v", op, err)
			}
			l.catchUp(v)
		}
	}
}

// catchUp waits until the view shows the head, as the Index does after a conflict, if there is an answer.
func (l *load) catchUp(v *view) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	head, err := v.j.Head(ctx)
	for err == nil && ctx.Err() == nil {
		v.mu.Lock()
		ok, changed := v.synced && v.revision >= head, v.changed
		v.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	time.Sleep(20 * time.Millisecond)
}

// run lets the load run until it has made so many more changes.
func (l *load) run(changes int) {
	l.t.Helper()
	want := l.count() + changes
	for end := time.Now().Add(time.Minute); l.count() < want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("the load does not go on")
		}
	}
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// finish ends the load and compares the answers with what is there, by a fresh look.
func (l *load) finish(fresh storage.Journal) {
	l.t.Helper()
	close(l.stop)
	l.clients.Wait()
	// What is still on its way is decided by the next commit of the same journal.
	for i, v := range l.views {
		if _, err := v.j.Commit(context.Background(), storage.Batch{Repo: fmt.Sprint("last", i), Detached: true,
			Facts: []storage.Fact{set("x", "1")}}); err != nil {
			l.t.Errorf("the last commit: %v", err)
		}
	}
	head, err := fresh.Head(context.Background())
	if err != nil {
		l.t.Fatal(err)
	}
	v := newView(l.t, fresh)
	want := v.await(head)
	made := map[string]map[int]string{}
	for i, other := range append(l.views, v) {
		if got := other.await(head); fmt.Sprint(got) != fmt.Sprint(want) {
			l.t.Errorf("watcher %d has another state than a fresh look", i)
		}
		for op, times := range other.once {
			if times > 1 {
				l.t.Errorf("%s was made %d times", op, times)
			}
		}
		for repo := range other.made {
			if made[repo] == nil {
				made[repo] = map[int]string{}
			}
			maps.Copy(made[repo], other.made[repo])
		}
	}
	l.compare(made, want["detached"])
}

func (l *load) compare(made map[string]map[int]string, detached map[string]string) {
	all := map[string]int{}
	for repo, changes := range made {
		for n := 1; n <= len(changes); n++ {
			if changes[n] == "" {
				l.t.Errorf("%s: nobody saw change %d of %d", repo, n, len(changes))
			}
			all[changes[n]]++
		}
	}
	for op := range l.acked {
		if all[op] != 1 {
			l.t.Errorf("%s was acknowledged, and made %d times", op, all[op])
		}
	}
	landed := 0
	for op := range l.unknown {
		landed += all[op]
	}
	for op := range l.refused {
		if all[op] != 0 || detached[op] != "" {
			l.t.Errorf("%s was refused, and made", op)
		}
	}
	loads := int64(0)
	for _, v := range l.views {
		loads += v.loads.Load()
	}
	l.t.Logf("%d acknowledged, %d refused, %d unknown (%d of them made), %d full loads by %d watchers; the longest "+
		"commit took %d ms, the longest gap was %d ms", len(l.acked), len(l.refused), len(l.unknown), landed, loads,
		len(l.views), l.slowest.Load(), l.longest.Load())
}

// wantLoads fails unless each watcher has loaded the full state so many times.
func (l *load) wantLoads(n int64) {
	l.t.Helper()
	for i, v := range l.views {
		if got := v.loads.Load(); got != n {
			l.t.Errorf("watcher %d has loaded the full state %d times, want %d", i, got, n)
		}
	}
}
