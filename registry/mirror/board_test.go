package mirror_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"trow/registry/mirror"
)

// replicas returns caches of replicas that share a bound, and run until the test ends; the first one leads.
func replicas(t *testing.T, s *shelf, n int, limit int64) (all []*mirror.Cache, stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for i := range n {
		c := mirror.NewCache(limit)
		c.Share(fmt.Sprint("replica", i))
		c.Attach(s)
		all = append(all, c)
		running.Go(func() { _ = c.Run(ctx) })
	}
	running.Go(func() { all[0].Lead(ctx) })
	synctest.Wait()
	return all, func() { cancel(); running.Wait() }
}

// size returns the bytes of what is held.
func (s *shelf) size() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.held {
		n += c.Size
	}
	return n
}

// TestReplicasShareOneBound: whatever they store at the same time, it is never more than the bound together, to the
// byte; and all of them can store.
func TestReplicasShareOneBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, most = 10_000, 700
		s := newShelf()
		all, stop := replicas(t, s, 3, limit)
		var mu sync.Mutex
		var reserved int64
		stored, refused := make([]int, len(all)), 0
		var clients sync.WaitGroup
		for i := range 12 {
			r := rand.New(rand.NewPCG(uint64(i), 0))
			clients.Go(func() {
				for n := range 60 {
					size := r.Int64N(most) + 1
					name, c := fmt.Sprint(i, "/", n), all[i%len(all)]
					release, ok := c.Reserve(size)
					mu.Lock()
					if ok {
						if reserved += size; reserved+s.size() > limit {
							t.Errorf("%d bytes are reserved, and %d stored", reserved, s.size())
						}
						stored[i%len(all)]++
					} else {
						refused++
					}
					mu.Unlock()
					time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
					if !ok {
						continue
					}
					mu.Lock()
					reserved -= size
					c.Added(s.put(name, size), size)
					mu.Unlock()
					release()
				}
			})
		}
		clients.Wait()
		time.Sleep(time.Minute)
		if slices.Min(stored) < 30 || s.size() < limit/2 {
			t.Errorf("stored %v times, %d were refused; %d bytes in the end", stored, refused, s.size())
		}
		t.Logf("stored %v, refused %d", stored, refused)
		stop()
	})
}

// TestTheLeaderMakesRoom for what another replica wants, which passes it through until then; and a seat that is given
// up leaves room at once.
func TestTheLeaderMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		for i := range 10 {
			s.put(fmt.Sprint(i), 10)
		}
		all, stop := replicas(t, s, 2, 100)
		if _, ok := all[1].Reserve(25); ok {
			t.Fatal("there is room beside what is stored")
		}
		if _, ok := all[1].Reserve(25); ok || len(s.took()) > 0 {
			t.Error("a replica that does not lead evicts")
		}
		time.Sleep(5 * time.Second)
		release, ok := all[1].Reserve(25)
		if !ok || s.size() > 75 {
			t.Errorf("there is no room: %v, %d bytes", ok, s.size())
		}
		if _, ok := all[0].Reserve(95); ok {
			t.Error("what another replica has reserved was given twice")
		}
		release()
		time.Sleep(5 * time.Minute)
		if _, ok := all[0].Reserve(95); !ok {
			t.Error("a seat that is not used keeps its room")
		}
		stop()
	})
}

// TestNothingIsEvictedThatAnotherReplicaReads, and a read that begins during an eviction waits for its end.
func TestNothingIsEvictedThatAnotherReplicaReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		for _, name := range []string{"read", "b", "c"} {
			s.put(name, 30)
		}
		all, stop := replicas(t, s, 2, 100)
		late := s.put("late", 10) // no Look has found it
		released := []func(){all[1].Use(contentOf("read")), all[1].Use(late)}
		if release, ok := all[0].Reserve(60); !ok {
			t.Error("no room")
		} else {
			release()
		}
		want := names("b", "c")
		slices.Sort(want)
		if got := s.took(); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
			t.Errorf("%v were evicted", got)
		}
		for _, release := range released {
			release()
		}
		time.Sleep(5 * time.Minute)
		s.mu.Lock()
		s.during = func() {
			done := make(chan struct{})
			go func() { all[1].Use(contentOf("read"))(); close(done) }()
			time.Sleep(time.Second)
			select {
			case <-done:
				t.Error("a read has begun of what is being evicted")
			default:
			}
		}
		s.mu.Unlock()
		if _, ok := all[0].Reserve(95); !ok || s.size() > 0 {
			t.Errorf("room: %v, %d bytes", ok, s.size())
		}
		stop()
	})
}

// TestASuspendedReplicaStoresNothing: others have taken its room when it goes on.
func TestASuspendedReplicaStoresNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		suspended := mirror.NewCache(100) // it does not run, so it renews nothing
		suspended.Share("suspended")
		suspended.Attach(s)
		if _, ok := suspended.Reserve(90); !ok || !suspended.Covers(s.record(mirror.BoardRecord)) {
			t.Fatal("there is room, and nothing may be stored in it")
		}
		all, stop := replicas(t, s, 1, 100)
		if _, ok := all[0].Reserve(90); ok {
			t.Error("the room was given twice")
		}
		time.Sleep(time.Hour)
		if _, ok := all[0].Reserve(90); !ok {
			t.Error("the room of a replica that has ended is never free")
		}
		if suspended.Covers(s.record(mirror.BoardRecord)) {
			t.Error("a replica stores in the room of others")
		}
		stop()
	})
}

// TestLastUsesOfAllReplicasAreKept, although each writes the records of all.
func TestLastUsesOfAllReplicasAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		for _, name := range []string{"a", "b"} {
			s.put(name, 10)
		}
		all, stop := replicas(t, s, 2, 100)
		time.Sleep(100 * time.Hour)
		for range 5 {
			time.Sleep(time.Hour)
			all[0].Use(contentOf("a"))()
			time.Sleep(time.Hour)
			all[1].Use(contentOf("b"))()
		}
		time.Sleep(2 * time.Hour) // all have written
		stop()
		third := newCache(s, 100)
		third.Look(t.Context())
		s.put("c", 10)
		third.Look(t.Context()) // a new one counts as used now
		if _, ok := third.Reserve(75); !ok || !slices.Equal(s.took(), names("a")) {
			t.Error("the last uses are not those of both")
		}
	})
}

// TestALeaderThatEndsDuringAnEviction keeps no client from reading for long, also when the board changes.
func TestALeaderThatEndsDuringAnEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		d := s.put("content", 10)
		all, stop := replicas(t, s, 2, 100)
		// The seat of a replica that has ended just after it has written it.
		now := time.Now()
		value := fmt.Sprintf(`{"gone":{"time":%d,"turn":%d,"going":[%q],"leaves":10}}`, now.Unix(), now.UnixNano(), d)
		err := s.SetRecord(t.Context(), mirror.BoardRecord, s.record(mirror.BoardRecord), []byte(value))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for i, most := range []time.Duration{time.Minute, 0} {
			begun := time.Now()
			all[1].Use(d)()
			if took := time.Since(begun); took > most {
				t.Errorf("read %d waited for %s", i, took)
			}
			if release, ok := all[1].Reserve(1); ok { // the board changes
				release()
			}
			time.Sleep(5 * time.Second)
		}
		stop()
	})
}
