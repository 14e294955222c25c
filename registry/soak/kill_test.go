package soak

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestKill: the server is killed at any moment of what its clients do. What was acknowledged is there afterwards, bit for
// bit; what was not is there as a whole or not at all; and it starts without anybody's help.
func TestKill(t *testing.T) {
	s := start(t, "--gc-interval=1s", "--gc-grace=1m", "--scrub-interval=0")
	w, r := newStock(random(0)), random(1)
	unsure := 0
	for n := range settings.kills {
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for i := range clients {
			c := &client{s.newClient(), s.url}
			all.Go(func() { w.work(ctx, c, random(1000+n*clients+i)) })
		}
		time.Sleep(time.Duration(r.Int64N(int64(150 * time.Millisecond))))
		s.stop(syscall.SIGKILL)
		cancel()
		all.Wait()
		s.run()
		unsure += w.settle(t, s)
		w.wantWell(t, s)
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, "uploads")); err != nil {
		t.Error(err)
	} else {
		t.Logf("%d uploads are open, to be taken up again", len(left))
	}
	t.Logf("%d kills, %d pushes, %d pulls, %d deletes, %d operations in doubt; 0 lost", settings.kills, w.pushes.Load(), w.pulls.Load(), w.deletes.Load(), unsure)
	if unsure == 0 || w.pushes.Load() == 0 {
		t.Error("the kills have met nothing")
	}
}

// settle finds out what has become of the operations without an answer: of an image that may have come, or gone,
// either nothing is there or all of it.
func (w *stock) settle(t *testing.T, s *server) (unsure int) {
	t.Helper()
	c := &client{s.client, s.url}
	for _, slot := range w.slots {
		if slot.doubt == nil {
			continue
		}
		unsure++
		w.wantWhole(t, c, slot)
		// What is known next is that there is nothing.
		for _, i := range append(slot.doubt, slot.all()...) {
			if err := w.remove(t.Context(), c, slot.repo, i); err != nil {
				t.Error(err)
			}
		}
		slot.image, slot.referrers, slot.tagged = nil, nil, false
		slot.end()
	}
	return unsure
}

// wantWhole wants what a slot in doubt may have to be there as a whole or not at all, and its tag to name what was there
// before, or what was to come.
func (w *stock) wantWhole(t *testing.T, c *client, slot *slot) {
	t.Helper()
	a, err := c.do(t.Context(), "GET", "/v2/"+slot.repo+"/manifests/"+slot.tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	known := a.status == 404 && !slot.stays
	for _, i := range append(slot.all(), slot.doubt...) {
		known = known || string(a.body) == string(i.body)
		a, err := c.do(t.Context(), "HEAD", "/v2/"+slot.repo+"/manifests/"+i.digest().String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if a.status == 200 {
			if err := w.pullImage(t.Context(), c, slot.repo, i.digest().String(), i); err != nil {
				t.Error("half of it is there: ", err)
			}
		}
	}
	if !known {
		w.complain("%s:%s names %v, which it never should have", slot.repo, slot.tag, a)
	}
}
