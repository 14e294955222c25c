package storagetest

import (
	"runtime"
	"runtime/metrics"
	"time"
)

// WatchHeap watches how much of the heap is in use, as the collector finds it, beyond what is in use now. The function
// that it returns ends that and returns the most, in bytes. Garbage does not count: how much there is depends on all
// that runs in the process, and a memory limit bounds it.
func WatchHeap() (most func() uint64) {
	runtime.GC()
	before := liveHeap()
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() {
		highest := before
		for {
			select {
			case <-stop:
				peak <- highest - before
				return
			case <-time.After(10 * time.Millisecond):
				highest = max(highest, liveHeap())
			}
		}
	}()
	return func() uint64 {
		close(stop)
		return <-peak
	}
}

// liveHeap returns the bytes that the last collection found in use.
func liveHeap() uint64 {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	return live[0].Value.Uint64()
}
