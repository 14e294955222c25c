package maintenance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"

	"trow/registry/maintenance"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// member is one of several that share a journal.
type member struct {
	maintenance.Turns
	index *storage.Index
	stop  context.CancelFunc
}

// cluster are replicas that take turns at a run.
type cluster struct {
	journal  *memory.Journal
	replicas []*member
	running  atomic.Int32
	stopped  bool // one that does not notice that its turn is over runs beside the next one

	mu   sync.Mutex // guards all below
	log  bytes.Buffer
	runs []string // by whom
}

// newCluster starts replicas, each of which does run every hour.
func newCluster(t *testing.T, run func(ctx context.Context, c *cluster, r *member)) *cluster {
	c := &cluster{journal: memory.NewJournal()}
	c.journal.Is = storage.Traits{Shared: true}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for i := range 3 {
		name := fmt.Sprint("replica-", i)
		r := &member{index: storagetest.OpenIndex(t, c.journal)}
		r.Turns = maintenance.NewTurns(c.journal, r.index, zerolog.New(c), name)
		ctx, stop := context.WithCancel(t.Context())
		r.stop = stop
		c.replicas = append(c.replicas, r)
		t.Cleanup(stop)
		wg.Go(func() {
			r.Repeat(ctx, time.Hour, func(ctx context.Context) {
				if n := c.running.Add(1); n > 1 && !c.stopped {
					t.Errorf("%d at once", n)
				}
				defer c.running.Add(-1)
				c.mu.Lock()
				c.runs = append(c.runs, name)
				c.mu.Unlock()
				run(ctx, c, r)
			})
		})
	}
	return c
}

// Write writes to the log.
func (c *cluster) Write(line []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.Write(line)
}

func (c *cluster) byWhom() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.runs...)
}

func (c *cluster) member(name string) *member { return c.replicas[name[len(name)-1]-'0'] }

func change(ctx context.Context, r *member, content string) error {
	return r.index.Update(ctx, "a", func(tx *storage.Tx) error { tx.Link(digest.FromString(content), 1); return nil })
}

// TestOneReplicaAtATimeDoesARun: there is one run in each interval over all replicas, not one of each.
func TestOneReplicaAtATimeDoesARun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, func(ctx context.Context, _ *cluster, r *member) {
			time.Sleep(10 * time.Minute)
			if err := change(ctx, r, "x"); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(24*time.Hour + 30*time.Minute)
		if n := len(c.byWhom()); n != 25 {
			t.Errorf("%d runs in a day, want one each hour: %v", n, c.byWhom())
		}
	})
}

// TestARunThatWasCutShortIsTakenOver within seconds: of a replica that stops, and of one that was stopped for a while
// and goes on, which then changes nothing any more.
func TestARunThatWasCutShortIsTakenOver(t *testing.T) {
	for name, cut := range map[string]func(c *cluster, by *member){
		"it ends":        func(_ *cluster, by *member) { by.stop() },
		"it was stopped": func(c *cluster, _ *member) { c.journal.Depose("collect") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				late := make(chan error, 10)
				c := newCluster(t, func(ctx context.Context, c *cluster, r *member) {
					if len(c.byWhom()) > 1 {
						return
					}
					<-ctx.Done()
					if name == "it was stopped" {
						time.Sleep(time.Minute) // it does not know, and the next one begins
						late <- change(context.WithoutCancel(ctx), r, "late")
					}
				})
				c.stopped = name == "it was stopped"
				time.Sleep(70 * time.Second)
				first := c.byWhom()
				if len(first) != 1 {
					t.Fatalf("the runs are %v", first)
				}
				cut(c, c.member(first[0]))
				time.Sleep(5 * time.Second)
				if all := c.byWhom(); len(all) != 2 || all[1] == all[0] {
					t.Errorf("after 5 s the runs are %v", all)
				}
				time.Sleep(30 * time.Minute)
				if all := c.byWhom(); len(all) != 2 {
					t.Errorf("then the runs are %v", all)
				}
				if name == "it was stopped" {
					if err := <-late; !errors.Is(err, storage.ErrNotLeader) {
						t.Errorf("a change that comes late: %v", err)
					}
				}
				c.mu.Lock()
				defer c.mu.Unlock()
				if !strings.Contains(c.log.String(), "taking over what another replica has not finished") {
					t.Errorf("the log: %s", &c.log)
				}
			})
		})
	}
}

// TestAJobTakesItsTurn: asked of any replica, it runs there, after the run of another one, of which it reports; and
// the periodic runs go on as if there had been none.
func TestAJobTakesItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, func(context.Context, *cluster, *member) { time.Sleep(10 * time.Minute) })
		time.Sleep(2 * time.Minute)
		by, begin := c.byWhom()[0], time.Now()
		var asked *member
		for _, r := range c.replicas {
			if r != c.member(by) {
				asked = r
			}
		}
		var reported []any
		err := asked.Now(t.Context(), func(v any) { reported = append(reported, v) }, func(ctx context.Context) error {
			if n := c.running.Add(1); n > 1 {
				t.Errorf("%d at once", n)
			}
			defer c.running.Add(-1)
			time.Sleep(time.Minute)
			return change(ctx, asked, "by hand")
		})
		if err != nil || time.Since(begin) < 9*time.Minute || time.Since(begin) > 11*time.Minute {
			t.Errorf("it took %s: %v", time.Since(begin), err)
		}
		if want := (maintenance.Waits{For: by, Does: "collects"}); len(reported) != 1 || reported[0] != want {
			t.Errorf("reported %v, want %v", reported, want)
		}
		// One whose client has gone leaves nothing to take over.
		ctx, gone := context.WithCancel(t.Context())
		err = asked.Now(ctx, func(any) {}, func(ctx context.Context) error { gone(); return context.Cause(ctx) })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the client has gone: %v", err)
		}
		time.Sleep(time.Until(begin.Add(57 * time.Minute)))
		if n := len(c.byWhom()); n != 1 {
			t.Errorf("%d periodic runs in the first hour", n)
		}
		time.Sleep(5 * time.Minute)
		if n := len(c.byWhom()); n != 2 {
			t.Errorf("%d periodic runs after an hour", n)
		}
	})
}

// silentLeads is a journal that does not answer who leads, and that does not answer a candidate as long as that lasts.
type silentLeads struct {
	*memory.Journal
	lead func()
}

func (silentLeads) Leader(context.Context, string) (string, error) {
	return "", fmt.Errorf("etcd: %w", storage.ErrUnavailable)
}

func (j silentLeads) Lead(ctx context.Context, _, _ string) (storage.Fact, <-chan struct{}, error) {
	j.lead()
	<-ctx.Done()
	return storage.Fact{}, nil, context.Cause(ctx)
}

// TestAJobDoesNotWaitForAJournalThatDoesNotAnswer: its client would hear nothing for as long as that lasts.
func TestAJobDoesNotWaitForAJournalThatDoesNotAnswer(t *testing.T) {
	j := memory.NewJournal()
	j.Is = storage.Traits{Shared: true}
	waits := silentLeads{j, func() { t.Error("it waits") }}
	turns := maintenance.NewTurns(waits, storagetest.OpenIndex(t, j), zerolog.Nop(), "replica")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := turns.Now(ctx, func(any) {}, func(context.Context) error { t.Error("it ran"); return nil })
	if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(),
		"run it again when the journal answers") {
		t.Errorf("error %v", err)
	}
}

// refusingLeads is a journal that lets nobody lead.
type refusingLeads struct {
	*memory.Journal
	why *atomic.Value
}

func (j refusingLeads) Lead(context.Context, string, string) (storage.Fact, <-chan struct{}, error) {
	return storage.Fact{}, nil, errors.New(j.why.Load().(string))
}

// TestWhatFailsAllTheTimeIsLoggedOnceAMinute, and at once if the reason is another one.
func TestWhatFailsAllTheTimeIsLoggedOnceAMinute(t *testing.T) {
	nothing := func(context.Context) {}
	for what, run := range map[string]func(context.Context, maintenance.Turns){
		"stay":   func(ctx context.Context, r maintenance.Turns) { r.Stay(ctx, "task", nothing) },
		"repeat": func(ctx context.Context, r maintenance.Turns) { r.Repeat(ctx, time.Hour, nothing) },
	} {
		synctest.Test(t, func(t *testing.T) {
			j := memory.NewJournal()
			j.Is = storage.Traits{Shared: true}
			var why atomic.Value
			why.Store("a wrong password")
			c := &cluster{}
			turns := maintenance.NewTurns(refusingLeads{j, &why}, storagetest.OpenIndex(t, j), zerolog.New(c), "r")
			ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
			defer cancel()
			time.AfterFunc(11*time.Minute+30*time.Second, func() { why.Store("another reason") })
			run(ctx, turns)
			c.mu.Lock()
			defer c.mu.Unlock()
			log := c.log.String()
			same, other := strings.Count(log, "a wrong password"), strings.Count(log, "another reason")
			if same < 10 || same > 12 || other != 1 {
				t.Errorf("%s: %d and %d lines in 12 minutes", what, same, other)
			}
		})
	}
}

// TestOneProcessTakesNoTurns: it pays nothing.
func TestOneProcessTakesNoTurns(t *testing.T) {
	j := memory.NewJournal()
	index := storagetest.OpenIndex(t, j)
	turns := maintenance.NewTurns(j, index, zerolog.Nop(), "a")
	before, _ := j.Head(t.Context())
	if err := turns.Now(t.Context(), nil, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if after, _ := j.Head(t.Context()); after != before {
		t.Errorf("a job has committed %d times besides its work", after-before)
	}
}

// TestAReplicaSaysThatItIsThere, until it ends.
func TestAReplicaSaysThatItIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, func(context.Context, *cluster, *member) {})
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { c.replicas[0].Beat(ctx) })
		record := func() string {
			value, err := c.replicas[1].index.Record(t.Context(), "replica/replica-0")
			if err != nil {
				t.Fatal(err)
			}
			return string(value)
		}
		time.Sleep(time.Second)
		first := record()
		time.Sleep(storage.BeatInterval)
		if second := record(); first == "" || second == first {
			t.Errorf("the record is %q, and after a minute %q", first, second)
		}
		stop()
		wg.Wait()
		if end := record(); end != "" {
			t.Errorf("after its end: %q", end)
		}
	})
}

// failing is a journal whose commits fail from the n-th on.
type failing struct {
	*memory.Journal
	left atomic.Int32
}

func (j *failing) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	if j.left.Add(-1) < 0 {
		return 0, errors.New("the network is down")
	}
	return j.Journal.Commit(ctx, b...)
}

// TestWhatACollectionHasLeftIsFinished by another replica: pushes of what is condemned wait for that.
func TestWhatACollectionHasLeftIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := memory.NewJournal()
		shared.Is = storage.Traits{Shared: true}
		service := memory.NewService()
		type one struct {
			index     *storage.Index
			collector *storage.Collector
		}
		start := func(j storage.Journal) one {
			x := storagetest.OpenIndexWith(t, j, storage.IndexOptions{Placed: true, Grace: time.Hour})
			return one{x, &storage.Collector{Blobs: &memory.Objects{Service: service, Records: x}, Index: x,
				Grace: time.Hour}}
		}
		first := &failing{Journal: shared}
		first.left.Store(1 << 30)
		a, b := start(first), start(shared)
		d := digest.FromString("content")
		u, err := a.collector.Blobs.Create(t.Context(), "a", d.Algorithm())
		if err != nil {
			t.Fatal(err)
		}
		_, werr := u.Write([]byte("content"))
		release, err := a.index.Commit(t.Context(), u, d)
		if err := errors.Join(werr, err); err != nil {
			t.Fatal(err)
		}
		release() // nothing names it, so the next collection deletes it
		first.left.Store(1)
		if _, err := a.collector.Run(t.Context(), false, nil); err == nil || !b.index.Condemned() {
			t.Fatalf("the collection leaves nothing: %v", err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		turns := maintenance.NewTurns(shared, b.index, zerolog.Nop(), "b")
		go turns.Finish(ctx, b.collector)
		time.Sleep(2 * time.Minute)
		if b.index.Condemned() || service.Len() != 0 {
			t.Errorf("still condemned; %d objects", service.Len())
		}
	})
}

// TestAReplicaOfAnEarlierVersionDoesNotJoin once the others write what it does not know.
func TestAReplicaOfAnEarlierVersionDoesNotJoin(t *testing.T) {
	j := memory.NewJournal()
	j.Is = storage.Traits{Shared: true}
	next := storagetest.OpenIndexWith(t, j, storage.IndexOptions{Format: storage.Format + 1})
	turns := maintenance.NewTurns(j, storagetest.OpenIndex(t, j), zerolog.Nop(), "old")
	for range 2 { // the second one raises the format
		if err := next.Beat(t.Context(), "next"); err != nil {
			t.Fatal(err)
		}
	}
	if err := turns.Join(t.Context()); !errors.Is(err, storage.ErrFormat) ||
		!strings.Contains(err.Error(), "use the newer version") {
		t.Errorf("%v", err)
	}
}

// TestALeaderStaysTheLeader until it ends, or another replica may have taken over: from then on it changes nothing.
func TestALeaderStaysTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, func(context.Context, *cluster, *member) {})
		var leading, begun atomic.Int32
		lost := make(chan error, 10)
		stops := map[string]context.CancelFunc{}
		var leader atomic.Value
		var running sync.WaitGroup
		for i, r := range c.replicas {
			name := fmt.Sprint(i)
			ctx, stop := context.WithCancel(t.Context())
			stops[name] = stop
			running.Go(func() {
				r.Stay(ctx, maintenance.TaskCache, func(ctx context.Context) {
					leading.Add(1) // the one before may not have noticed yet that it does not lead
					begun.Add(1)
					leader.Store(name)
					<-ctx.Done()
					leading.Add(-1)
					lost <- change(context.WithoutCancel(ctx), r, "x")
				})
			})
		}
		time.Sleep(time.Hour)
		if begun.Load() != 1 || leading.Load() != 1 {
			t.Errorf("%d began to lead, and %d do", begun.Load(), leading.Load())
		}
		c.journal.Depose(maintenance.TaskCache)
		if err := <-lost; !errors.Is(err, storage.ErrNotLeader) {
			t.Errorf("a change of a replica that does not lead: %v", err)
		}
		time.Sleep(time.Minute)
		before := leader.Load().(string)
		stops[before]()
		time.Sleep(time.Minute)
		if leading.Load() != 1 || leader.Load() == before {
			t.Errorf("%d lead, and %s follows %s", leading.Load(), leader.Load(), before)
		}
		for _, stop := range stops {
			stop()
		}
		running.Wait()
		done := false
		maintenance.Turns{}.Stay(t.Context(), maintenance.TaskCache, func(context.Context) { done = true })
		if !done {
			t.Error("a process that is alone does not lead")
		}
	})
}

// TestWhatOneReplicaDoes for as long as it is there, another one does after it, at once where a lead is lost; and that
// writes nothing.
func TestWhatOneReplicaDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		journal := memory.NewJournal()
		journal.Is = storage.Traits{Shared: true}
		index := storagetest.OpenIndex(t, journal)
		before := index.Stats()
		var running, begun atomic.Int32
		var wg sync.WaitGroup
		stops := make(chan context.CancelFunc, 3)
		for i := range 3 {
			turns := maintenance.NewTurns(journal, index, zerolog.Nop(), fmt.Sprint("replica-", i))
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			wg.Go(func() {
				err := turns.Alone(ctx, "poll", func(ctx context.Context) error {
					if n := running.Add(1); n > 1 {
						t.Errorf("%d at once", n)
					}
					defer running.Add(-1)
					begun.Add(1)
					stops <- stop
					<-ctx.Done()
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		for n := range int32(3) {
			stop := <-stops
			time.Sleep(time.Hour)
			if running.Load() != 1 || begun.Load() != n+1 {
				t.Errorf("%d run, %d have begun; want 1, %d", running.Load(), begun.Load(), n+1)
			}
			stop()
		}
		wg.Wait()
		if after := index.Stats(); after != before {
			t.Errorf("%+v, and before %+v", after, before)
		}
		// Without others there is no leader.
		alone := maintenance.NewTurns(memory.NewJournal(), index, zerolog.Nop(), "")
		err := alone.Alone(t.Context(), "poll", func(context.Context) error { return errors.New("mine") })
		if err == nil {
			t.Error("no error of do")
		}
	})
}
