package cache

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// chunk is by how much the bound may be exceeded: what is read from the origin at once.
const chunk = 128 << 10

// TestTheBoundHolds while five times as much is pulled at once. It is measured on the disk, and by the metrics.
func TestTheBoundHolds(t *testing.T) {
	bound := int64(size(64<<20, 1<<30))
	o := openOrigin(t)
	s := trow(t, fmt.Sprint(bound), o.entry("origin.example"))
	const images = 40
	each := int(5 * bound / images)
	push := make(chan uint64)
	var pushing sync.WaitGroup
	for range 4 {
		pushing.Go(func() {
			for n := range push {
				o.push(fmt.Sprintf("team/app%d", n), newImage(1000+n, each*2/3, each/3), "v1")
			}
		})
	}
	for n := range images {
		push <- uint64(n)
	}
	close(push)
	pushing.Wait()

	var most, counted atomic.Int64
	var watch sync.WaitGroup
	stop := make(chan struct{})
	watch.Go(func() {
		c := s.client("")
		for {
			most.Store(max(most.Load(), s.stored()))
			counted.Store(max(counted.Load(), int64(s.metric(c, "trow_cache_bytes"))))
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	var pulling sync.WaitGroup
	order := make(chan int)
	for range 12 {
		c := s.client("origin.example")
		pulling.Go(func() {
			for n := range order {
				if _, err := c.pull(t.Context(), fmt.Sprintf("team/app%d", n), "v1", true, nil); err != nil {
					t.Errorf("image %d: %v", n, err)
				}
			}
		})
	}
	for n := range images {
		order <- n
	}
	for n := range images { // of the last ones some are still here
		order <- images - 1 - n
	}
	close(order)
	pulling.Wait()
	close(stop)
	watch.Wait()
	c := s.client("")
	evicted := int64(s.metric(c, "trow_cache_evicted_bytes_total"))
	t.Logf("bound %d; at most %d bytes on the disk, and %d by the metrics; %d evicted; the origin sent %d", bound,
		most.Load(), counted.Load(), evicted, o.counted("GET .*").bytes)
	if most.Load() > bound+chunk || counted.Load() > bound {
		t.Errorf("the bound of %d is exceeded: %d on the disk, %d by the metrics", bound, most.Load(), counted.Load())
	}
	if most.Load() < bound/2 || evicted < bound {
		t.Errorf("the cache is not used: %d of %d bytes, %d evicted", most.Load(), bound, evicted)
	}
	s.whole()
}
