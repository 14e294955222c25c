package cache

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const clients = 50

// hangs is after which time without any byte a test says that something hangs.
const hangs = 2 * time.Minute

// untilHung returns a context that ends when moved was not called for so long. A transfer of many gigabytes may take
// longer than that as a whole.
func untilHung(t *testing.T) (ctx context.Context, moved func()) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	timer := time.AfterFunc(hangs, func() { cancel(fmt.Errorf("nothing has arrived for %v", hangs)) })
	t.Cleanup(func() {
		timer.Stop()
		cancel(nil)
	})
	return ctx, func() { timer.Reset(hangs) }
}

// layers returns the sizes of the layers of a large image.
func layers() []int {
	n := size(8<<20, 125<<20)
	return []int{n, n, n, n}
}

// TestFiftyClientsAskForAColdImage at once: each content is downloaded once. The origin holds half of each layer back
// until each of the clients has its first byte.
func TestFiftyClientsAskForAColdImage(t *testing.T) {
	for name, start := range origins {
		t.Run(name, func(t *testing.T) {
			o := start(t)
			s := trow(t, "4Gi", o.entry("origin.example"))
			i := newImage(1, layers()...)
			o.push("team/app", i, "v1")
			waiting := map[string]*atomic.Int32{}
			opens := map[string]func(){}
			for _, b := range i.blobs[1:] {
				waiting[sha(b)] = &atomic.Int32{}
				waiting[sha(b)].Store(clients)
				opens[sha(b)] = o.hold(sha(b), int64(len(b)/2))
			}
			begin := time.Now()
			wrong := many(t, func() *client { return s.client("origin.example") }, "v1", i.digest(), func(d string) {
				if w := waiting[d]; w != nil && w.Add(-1) == 0 {
					opens[d]()
				}
			})
			took := time.Since(begin)
			if wrong > 0 {
				t.Errorf("%d of %d pulls failed", wrong, clients)
			}
			for _, b := range i.blobs {
				c := o.counted("GET blobs " + sha(b))
				if c.requests != 1 || c.bytes != int64(len(b)) {
					t.Errorf("%d requests and %d bytes for a blob of %d", c.requests, c.bytes, len(b))
				}
			}
			if c := o.counted("GET manifests .*"); c.requests != 1 {
				t.Errorf("%d requests for the manifest", c.requests)
			}
			all2 := o.counted("GET .*")
			t.Logf("%d clients got %d MB each within %v; the origin sent %d MB", clients, i.size/1e6,
				took.Round(time.Millisecond), all2.bytes/1e6)
			s.whole()
		})
	}
}

// TestKill kills the server at several points of a download. No client hangs, nothing wrong is kept, and the next pull
// passes.
func TestKill(t *testing.T) {
	o := openOrigin(t)
	for name, at := range map[string]float64{"before the first byte": 0, "at a tenth": 0.1, "in the middle": 0.5,
		"before the last byte": 1} {
		t.Run(name, func(t *testing.T) {
			s := trow(t, "4Gi", o.entry("origin.example"))
			i := newImage(uint64(100+1000*at), layers()[0], layers()[0]/2)
			o.push("team/app", i, "v1")
			d := i.largest.Digest
			o.reset()
			o.hold(d, max(1, min(int64(at*float64(i.largest.Size)), i.largest.Size-1))) // it is never opened
			ctx, moved := untilHung(t)
			var all sync.WaitGroup
			for range 10 {
				c := s.client("origin.example")
				c.moved = moved
				all.Go(func() {
					if _, err := c.pull(ctx, "team/app", "v1", true, nil); err == nil {
						t.Error("a pull of what the origin has not sent passes")
					} else if ctx.Err() != nil {
						t.Errorf("a client hangs: %v", err)
					}
				})
			}
			// Until the origin has sent what it sends, and the server has stored it.
			for o.counted("GET blobs "+d).bytes < int64(at*float64(i.largest.Size))-1 || o.counted("GET blobs .*").
				requests < len(i.blobs) {
				if ctx.Err() != nil {
					t.Fatal("the download does not come so far")
				}
				time.Sleep(10 * time.Millisecond)
			}
			// What the origin has sent may be in the buffers of the connection for a moment.
			stored := s.stored()
			for before := int64(-1); stored != before && ctx.Err() == nil; stored = s.stored() {
				before = stored
				time.Sleep(200 * time.Millisecond)
			}
			s.end(syscall.SIGKILL)
			killed := time.Now()
			all.Wait()
			if took := time.Since(killed); took > 10*time.Second {
				t.Errorf("clients noticed the end after %v", took)
			}
			o.release(d)
			o.reset()
			s.start()
			n := s.whole()
			p := s.client("origin.example").pulls("team/app", "v1", true)
			if sha(p.manifest) != i.digest() {
				t.Error("another manifest")
			}
			c := o.counted("GET blobs " + d)
			t.Logf("%d MB were on the disk (%d whole contents); then %d of %d bytes of the largest layer were asked "+
				"for, with Range %q", stored/1e6, n, c.bytes, i.largest.Size, c.ranges)
			if c.bytes > i.largest.Size {
				t.Errorf("the origin sent %d bytes for %d", c.bytes, i.largest.Size)
			}
			// The last megabyte may not have been stored yet when the server was killed.
			if want := int64((1-at)*float64(i.largest.Size)) + 1<<20; c.bytes > want {
				t.Errorf("the origin sent %d bytes after the restart, want at most %d", c.bytes, want)
			}
			if n := s.whole(); n < len(i.blobs)+1 {
				t.Errorf("%d contents are stored", n)
			}
		})
	}
}

// TestAnOriginThatBreaksOff is asked for the rest, by Range, and its clients notice nothing.
func TestAnOriginThatBreaksOff(t *testing.T) {
	o := openOrigin(t)
	s := trow(t, "4Gi", o.entry("origin.example"))
	i := newImage(200, layers()[0])
	o.push("team/app", i, "v1")
	d := i.largest.Digest
	o.hold(d, i.largest.Size/2)
	done := make(chan error)
	go func() {
		_, err := s.client("origin.example").pull(t.Context(), "team/app", "v1", true, nil)
		done <- err
	}()
	for o.counted("GET blobs "+d).bytes < i.largest.Size/2 {
		time.Sleep(5 * time.Millisecond)
	}
	o.stop() // the connection breaks
	o.release(d)
	o.start()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("the client of an interrupted download: %v", err)
		}
	case <-time.After(hangs):
		t.Fatal("the client hangs")
	}
	c := o.counted("GET blobs " + d)
	if c.bytes > i.largest.Size+1<<20 || len(c.ranges) == 0 {
		t.Errorf("%d bytes for %d, with Range %q", c.bytes, i.largest.Size, c.ranges)
	}
	if resp, _ := s.client("origin.example").ask(http.MethodHead, "team/app/blobs/"+d, nil); resp.StatusCode != 200 {
		t.Errorf("afterwards: %s", resp.Status)
	}
	s.whole()
}
