package engines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"trow/storage"
	"trow/storage/etcd"
)

func optionsOf(prefix string, endpoints ...string) etcd.Options {
	return etcd.Options{Endpoints: endpoints, Prefix: prefix}
}

// fill commits n facts with values of a size, as many as fit at a time.
func fill(t testing.TB, j storage.Journal, n, size int) {
	t.Helper()
	batch, bases := j.Traits().Operations-1, map[string]storage.Revision{}
	for i := 0; i < n; {
		b := storage.Batch{Repo: fmt.Sprint("repo", i/1000)}
		b.Base = bases[b.Repo]
		for ; len(b.Facts) < batch && i < n && b.Repo == fmt.Sprint("repo", i/1000); i++ {
			b.Facts = append(b.Facts, set(fmt.Sprintf("a-tag-of-common-length-%08d", i), strings.Repeat("v", size)))
		}
		rev, err := j.Commit(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		bases[b.Repo] = rev
	}
}

// TestALargeStateIsLoadedHoweverSlow: a page of it takes longer than other requests may.
func TestALargeStateIsLoadedHoweverSlow(t *testing.T) {
	t.Parallel()
	const n = 100_000
	c := startEtcd(t, 1)
	prefix := newPrefix()
	fill(t, c.open(t, prefix), n, 48)
	j := openWith(t, etcd.Options{Endpoints: c.endpoints(), Prefix: prefix, RequestTimeout: 25 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	loaded := 0
	err := j.Watch(ctx, func(u storage.Update) error {
		for _, b := range u.Batches {
			loaded += len(b.Facts)
		}
		if u.Synced {
			cancel()
		}
		return nil
	})
	if loaded != n {
		t.Errorf("%d facts were loaded, want %d: %v", loaded, n, err)
	}
}

// TestNoSpace fills etcd's quota: reading goes on, the error says what to do, and after that it goes on by itself.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	c := startEtcd(t, 1, "--quota-backend-bytes", fmt.Sprint(16<<20))
	prefix := newPrefix()
	j := c.open(t, prefix)
	v := newView(t, j)
	v.await(0)
	var last storage.Revision
	value := strings.Repeat("x", 1<<20)
	var err error
	for range 100 {
		rev, e := j.Commit(t.Context(), one("r", last, set("a", value)))
		if err = e; err != nil {
			break
		}
		last = rev
	}
	if !errors.Is(err, storage.ErrFull) || !strings.Contains(err.Error(), "etcdctl alarm disarm") ||
		!strings.Contains(err.Error(), "nothing was committed") {
		t.Fatalf("a commit in a full etcd: %v", err)
	}
	t.Log(err)
	for range 3 { // also with the alarm, and from a new process
		end := storage.Fact{Kind: storage.KindTag, Name: "a"}
		_, err = j.Commit(t.Context(), one("r", last, end))
		if !errors.Is(err, storage.ErrFull) {
			t.Errorf("a further commit: %v", err)
		}
	}
	other := c.open(t, prefix)
	if _, err := other.Head(t.Context()); err != nil {
		t.Errorf("a new process: %v", err)
	}
	if got := newView(t, j).await(last); len(got["r"]["a"]) != len(value) {
		t.Error("the state cannot be read")
	}
	if _, err := j.History(t.Context(), "r", ""); err != nil {
		t.Error(err)
	}
	c.compact()
	if _, err := c.admin.Defragment(t.Context(), c.members[0].addr); err != nil {
		t.Fatal(err)
	}
	if _, err := c.admin.AlarmDisarm(t.Context(), &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	last, err = j.Commit(t.Context(), one("r", last, set("b", "1")))
	if err != nil {
		t.Fatalf("a commit after there is space again: %v", err)
	}
	v.await(last)
	if v.loads.Load() != 1 {
		t.Errorf("the state was loaded %d times", v.loads.Load())
	}
}

// TestRestored puts an older state of etcd in the place of the present one, as a backup that is restored does.
func TestRestored(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		more  int  // commits after the restore, before the journal reaches etcd again
		fresh bool // another cluster instead
	}{
		"an older one":                           {},
		"an older one that has gone on":          {more: 10},
		"an older one that has gone on for less": {more: 3},
		"an empty one":                           {fresh: true},
		"an empty one that has gone on":          {more: 30, fresh: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startEtcd(t, 1)
			m, prefix := c.members[0], newPrefix()
			j := c.open(t, prefix)
			v := newView(t, j)
			v.await(0)
			second := newView(t, j) // as that of a migration beside the index
			second.await(0)
			commits := func(j storage.Journal, base storage.Revision, n int, value string) storage.Revision {
				for i := range n {
					var err error
					if base, err = j.Commit(t.Context(), one("r", base, set(fmt.Sprint(value, i), value))); err != nil {
						t.Fatal(err)
					}
				}
				return base
			}
			base := commits(j, 0, 3, "before")
			m.kill()
			if err := os.CopyFS(filepath.Join(m.dir, "backup"), os.DirFS(filepath.Join(m.dir, "data"))); err != nil {
				t.Fatal(err)
			}
			m.start()
			c.await()
			last := commits(j, base, 5, "lost")
			v.await(last)
			m.proxy.refuse(true)
			m.kill()
			if err := os.RemoveAll(filepath.Join(m.dir, "data")); err != nil {
				t.Fatal(err)
			}
			if tt.fresh {
				m.args = append(m.args, "--initial-cluster-token", "another")
				base = 0
			} else if err := os.Rename(filepath.Join(m.dir, "backup"), filepath.Join(m.dir, "data")); err != nil {
				t.Fatal(err)
			}
			m.start()
			c.await()
			direct := openWith(t, optionsOf(prefix, m.addr))
			base = commits(direct, base, tt.more, "after")
			m.proxy.refuse(false)
			// A commit that is based on what is gone must not be made, and no head returned that confirms it.
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			for ctx.Err() == nil && v.loads.Load() < 2 {
				if _, err := j.Commit(ctx, one("r", last, set("stale", "1"))); err == nil {
					t.Fatal("a commit on a state that is gone was made")
				}
				loads := v.loads.Load()
				if head, err := j.Head(ctx); err == nil && loads < 2 && v.loads.Load() < 2 {
					t.Fatalf("Head returned %d before the state was loaded again", head)
				}
			}
			want := newView(t, direct).await(base)
			if got := v.await(base); fmt.Sprint(got) != fmt.Sprint(want) || v.loads.Load() != 2 {
				t.Errorf("the watcher has %v after %d loads, want %v", got, v.loads.Load(), want)
			}
			second.await(base)
			for _, w := range []*view{v, second} {
				w.mu.Lock()
				if !errors.Is(w.err, storage.ErrRestored) || w.restored != 1 {
					t.Errorf("a watch has ended with %v, and the full state says %d", w.err, w.restored)
				}
				base = w.bases["r"]
				w.mu.Unlock()
			}
			v.await(commits(j, base, 1, "new"))
		})
	}
}

// TestRestoredBehindAQuietWatch: nobody asks and nobody commits, and still it is noticed.
func TestRestoredBehindAQuietWatch(t *testing.T) {
	t.Parallel()
	c := startEtcd(t, 1)
	m, prefix := c.members[0], newPrefix()
	j := c.open(t, prefix)
	v := newView(t, j)
	rev, err := j.Commit(t.Context(), one("r", 0, set("a", "1")))
	if err != nil {
		t.Fatal(err)
	}
	v.await(rev)
	m.kill()
	if err := os.RemoveAll(filepath.Join(m.dir, "data")); err != nil {
		t.Fatal(err)
	}
	m.start()
	c.await()
	for end := time.Now().Add(time.Minute); v.loads.Load() < 2; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the watch goes on after a minute")
		}
	}
	if got := v.await(0); len(got) != 0 {
		t.Errorf("the state is %v", got)
	}
}

func TestLead(t *testing.T) {
	t.Parallel()
	c := startEtcd(t, 3)
	prefix := newPrefix()
	// The first one has a way of its own to etcd.
	way := newProxy(t, c.members[0].addr)
	first, second := openWith(t, optionsOf(prefix, way.addr())), c.open(t, prefix)
	ctx, resign := context.WithCancel(t.Context())
	fence, lost, err := first.Lead(ctx, "collect", "one")
	if err != nil {
		t.Fatal(err)
	}
	fenced := func(j storage.Journal, fence storage.Fact, name string) error {
		_, err := j.Commit(t.Context(), storage.Batch{Repo: "r", Detached: true, If: []storage.Fact{fence},
			Facts: []storage.Fact{set(name, "1")}})
		return err
	}
	if err := fenced(first, fence, "a"); err != nil {
		t.Fatal(err)
	}
	type term struct {
		fence storage.Fact
		lost  <-chan struct{}
		at    time.Time
	}
	next := make(chan term, 1)
	lead := func(j *etcd.Journal, name string) {
		fence, lost, err := j.Lead(t.Context(), "collect", name)
		if err != nil {
			t.Error(err)
		}
		next <- term{fence, lost, time.Now()}
	}
	go lead(second, "two")
	if name, err := second.Leader(t.Context(), "collect"); name != "one" || err != nil {
		t.Errorf("the leader is %q, %v", name, err)
	}
	begin := time.Now()
	way.hold(true, true)
	two := <-next
	<-lost
	t.Logf("taken over %v after the first was cut off", two.at.Sub(begin))
	if took := two.at.Sub(begin); took > 15*time.Second {
		t.Errorf("it took %v to take over", took)
	}
	if err := fenced(second, two.fence, "b"); err != nil {
		t.Error(err)
	}
	way.hold(false, false)
	if err := fenced(first, fence, "c"); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("a commit of the one before: %v", err)
	}
	// One that ends is followed at once, also by itself.
	resign()
	go lead(first, "three")
	begin = time.Now()
	second.Close()
	three := <-next
	if took := three.at.Sub(begin); took > 4*time.Second {
		t.Errorf("it took %v to follow one that ended", took)
	}
	<-two.lost
	if err := fenced(first, three.fence, "d"); err != nil {
		t.Error(err)
	}
}
