package engines

import (
	"context"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"trow/storage"
)

// underLoad runs a fault under load on three members, and checks that nothing was lost. The watchers must get along
// without loading the full state again.
func underLoad(t *testing.T, fault func(*cluster, *load)) {
	t.Parallel()
	c := startEtcd(t, 3)
	prefix := newPrefix()
	l := startLoad(t, c.open(t, prefix), c.open(t, prefix), c.open(t, prefix))
	l.run(50)
	fault(c, l)
	l.run(50)
	l.finish(c.open(t, prefix))
	l.wantLoads(1)
}

func TestLeaderKilled(t *testing.T) {
	underLoad(t, func(c *cluster, l *load) {
		for range 3 {
			m := c.leader()
			m.kill()
			l.run(50)
			m.start()
			l.run(20)
		}
	})
}

func TestLeaderMoves(t *testing.T) {
	underLoad(t, func(c *cluster, l *load) {
		for i := range 6 {
			leader := c.leader()
			to := c.members[i%3]
			if to == leader {
				to = c.members[(i+1)%3]
			}
			s, err := c.admin.Status(t.Context(), to.addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := adminOf(t, leader.addr).MoveLeader(t.Context(), s.Header.MemberId); err != nil {
				t.Logf("move: %v", err) // it has moved by itself
			}
			l.run(20)
		}
	})
}

// TestMemberStops stops each member for a time: for the others it is as if it was cut off, and for the clients as if it
// was slow. It may lead when it stops, and believes that it still does when it goes on.
func TestMemberStops(t *testing.T) {
	underLoad(t, func(c *cluster, l *load) {
		for range 3 {
			m := c.leader()
			m.signal(syscall.SIGSTOP)
			l.run(30)
			m.signal(syscall.SIGCONT)
			l.run(20)
		}
	})
}

func TestQuorumIsLost(t *testing.T) {
	underLoad(t, func(c *cluster, l *load) {
		for _, m := range c.members[1:] {
			m.signal(syscall.SIGSTOP)
		}
		time.Sleep(12 * time.Second) // longer than a commit waits
		for _, m := range c.members[1:] {
			m.signal(syscall.SIGCONT)
		}
	})
}

// TestPartition holds back what clients exchange with a member, in one direction or both, and then lets it go or cuts
// it off.
func TestPartition(t *testing.T) {
	underLoad(t, func(c *cluster, l *load) {
		for i, held := range []struct{ requests, answers bool }{{true, true}, {false, true}, {true, false}} {
			p := c.members[i].proxy
			p.hold(held.requests, held.answers)
			l.run(30)
			p.hold(false, false)
			l.run(10)
			p.hold(held.requests, held.answers)
			l.run(10)
			p.cut()
			p.hold(false, false)
		}
	})
}

// TestLostAnswers loses the answers, and the requests, of a cluster with one way to it: so a commit cannot be settled
// before the way is there again.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	c := startEtcd(t, 1)
	prefix := newPrefix()
	l := startLoad(t, c.open(t, prefix), c.open(t, prefix))
	p := c.members[0].proxy
	for i := range 20 {
		l.run(5)
		p.hold(i%2 == 0, i%2 == 1)
		if time.Sleep(20 * time.Millisecond); i%10 > 7 {
			time.Sleep(10 * time.Second) // until Commit gives up
		}
		if i%4 < 2 {
			p.cut()
		}
		p.hold(false, false)
	}
	l.finish(c.open(t, prefix))
	l.wantLoads(1)
	if len(l.unknown) == 0 {
		t.Error("no commit had an unknown outcome, so this test shows nothing")
	}
}

// TestLateRequest lets a commit reach etcd after it was settled: it must not be made then.
func TestLateRequest(t *testing.T) {
	t.Parallel()
	c := startEtcd(t, 3)
	prefix := newPrefix()
	j := c.open(t, prefix)
	first, err := j.Commit(t.Context(), one("r", 0, set("n", "1")))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		held := c.members[i%3].proxy
		held.hold(true, false)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		rev, err := j.Commit(ctx, one("r", first, set("n", "2")))
		cancel()
		if err != nil {
			t.Fatalf("a commit with one member that does not answer: %v", err)
		}
		held.hold(false, false)
		// What was held back arrives while the next commits are made.
		if first, err = j.Commit(t.Context(), one("r", rev, set("n", "1"))); err != nil {
			t.Fatalf("the next commit: %v", err)
		}
	}
}

// TestCompactedUnderTheWatch: what a watch has missed because of a compaction is loaded; if there was nothing of this
// place, nothing is loaded.
func TestCompactedUnderTheWatch(t *testing.T) {
	t.Parallel()
	c := startEtcd(t, 1)
	for name, ours := range map[string]bool{"changes of this place": true, "changes of others alone": false} {
		prefix := newPrefix()
		behind := c.open(t, prefix)
		v := newView(t, behind)
		v.await(0)
		c.members[0].proxy.hold(true, true)
		direct := openWith(t, optionsOf(prefix, c.members[0].addr))
		var last storage.Revision
		for range 10 {
			if _, err := c.admin.Put(t.Context(), "other", "x"); err != nil {
				t.Fatal(err)
			}
			if !ours {
				continue
			}
			var err error
			if last, err = direct.Commit(t.Context(), one("r", last, set("a", "1"))); err != nil {
				t.Fatal(err)
			}
		}
		c.compact()
		c.members[0].proxy.cut()
		c.members[0].proxy.hold(false, false)
		v.await(last)
		last, err := direct.Commit(t.Context(), one("r", last, set("b", "1")))
		if err != nil {
			t.Fatal(err)
		}
		v.await(last)
		if loads := v.loads.Load(); loads != 1 && !ours || loads != 2 && ours {
			t.Errorf("%s: the state was loaded %d times", name, loads)
		}
	}
}

// compact removes all revisions but the last.
func (c *cluster) compact() {
	c.t.Helper()
	r, err := c.admin.Get(c.t.Context(), "any")
	if err == nil {
		_, err = c.admin.Compact(c.t.Context(), r.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func TestCompactedDuringTheSnapshot(t *testing.T) {
	t.Parallel()
	c := startEtcd(t, 1)
	prefix := newPrefix()
	j := c.open(t, prefix)
	fill(t, j, 60_000, 1000)
	parts := 0
	err := j.Watch(t.Context(), func(storage.Update) error {
		if parts++; parts == 1 {
			if _, err := j.Commit(t.Context(), one("r", 0, set("a", "1"))); err != nil {
				t.Error(err)
			}
			c.compact()
		}
		return nil
	})
	if err == nil {
		t.Fatalf("the watch ended with %v after %d parts", err, parts)
	}
	t.Log(err)
	head, err := j.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := newView(t, j)
	facts := v.await(head)
	n := 0
	for _, f := range facts {
		n += len(f)
	}
	if n != 60_001 {
		t.Errorf("the state has %d facts", n)
	}
}
