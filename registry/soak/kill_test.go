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

// TestKill kills the server at random moments while clients work. After the restart, acknowledged content must be
// there, bit for bit; other content must be there completely or not at all; and the server must start without help.
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
		unsure += w.resolveDoubt(t, &client{s.client, s.url})
		w.wantIntact(t, &client{s.client, s.url}, &s.log)
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, "uploads")); err != nil {
		t.Error(err)
	} else {
		t.Logf("%d uploads are open and can be continued", len(left))
	}
	t.Logf("%d kills, %d pushes, %d pulls, %d deletes, %d operations in doubt; 0 lost", settings.kills, w.pushes.Load(),
		w.pulls.Load(), w.deletes.Load(), unsure)
	if unsure == 0 || w.pushes.Load() == 0 {
		t.Error("no kill interrupted an operation")
	}
}

// resolveDoubt finds out what became of the operations without an answer: an image that was being pushed or deleted
// must be there completely or not at all. It returns how many such operations there were.
func (w *stock) resolveDoubt(t *testing.T, c *client) (unsure int) {
	t.Helper()
	for _, slot := range w.slots {
		if slot.doubt == nil {
			continue
		}
		unsure++
		w.wantAllOrNothing(t, c, slot)
		// Delete everything, so that the state of the slot is known again.
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

// wantAllOrNothing checks a slot in doubt: each image that it may have must be there completely or not at all, and
// its tag must name one of the images from before or after the operation.
func (w *stock) wantAllOrNothing(t *testing.T, c *client, slot *slot) {
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
				t.Error("only a part of the image is there: ", err)
			}
		}
	}
	if !known {
		w.complain("%s:%s names %v, which it never named", slot.repo, slot.tag, a)
	}
}
