package s3

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// The limits of S3's multipart uploads.
const (
	minPart  = 5 << 20 // bytes; every part but the last has as many
	maxParts = 10_000
)

// growEvery is how many parts have one size: parts grow by the first size after each such number. With parts of 8 MiB,
// blobs of up to 3.9 GiB have parts of one size, and 10,000 parts reach 781 GiB, where a part has 128 MiB. Growing by a
// factor instead would reach more, with parts that do not fit into memory.
const growEvery = 500

// sizes says how long parts are.
type sizes struct{ least, first, largest int64 }

// of returns the length of the part with a number, from 1.
func (s sizes) of(number int) int64 {
	return min(s.first*int64(1+(number-1)/growEvery), s.largest)
}

// most returns how many bytes the parts from number on can hold.
func (s sizes) most(number int) (n int64) {
	for ; number <= maxParts; number++ {
		n += s.of(number)
	}
	return n
}

// smallBuffer is what an upload may hold without asking for memory: most manifests and configs fit, and they must not
// wait for layers. As many of them as there are requests can exist.
const smallBuffer = 64 << 10

// memory is the room for parts. It is handed out for whole parts: an upload that had half a part and waited for the
// other half could wait for another one that waits for it.
type memory struct {
	room  *semaphore.Weighted
	all   int64
	first int64     // the length of most buffers
	pool  sync.Pool // of *[]byte with a capacity of first
}

func newMemory(bytes, first int64) *memory {
	return &memory{room: semaphore.NewWeighted(bytes), all: bytes, first: first}
}

// take waits for room, in the order of calls, and returns an empty buffer for n bytes. Error: that of ctx.
func (m *memory) take(ctx context.Context, n int64) ([]byte, error) {
	// One that is longer than all there is waits for all.
	if err := m.room.Acquire(ctx, min(n, m.all)); err != nil {
		return nil, context.Cause(ctx)
	}
	if n == m.first {
		if b, ok := m.pool.Get().(*[]byte); ok {
			return (*b)[:0], nil
		}
	}
	return make([]byte, 0, n), nil
}

// give returns a buffer of take. Others are left alone.
func (m *memory) give(b []byte) {
	n := int64(cap(b))
	if n <= smallBuffer {
		return
	}
	if n == m.first {
		m.pool.Put(&b)
	}
	m.room.Release(min(n, m.all))
}
