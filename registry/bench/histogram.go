package bench

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets. A bucket is at most 1/128 of its durations wide, so a percentile is exact to
// 0.8 %. The zero value is an empty histogram.
type histogram struct {
	counts [buckets]uint32
	n      int64
	worst  time.Duration
}

const (
	perOctave = 128 // buckets from one power of two to the next
	shift     = 7   // its binary logarithm
	octaves   = 36  // up to 2^42 ns, more than an hour
	buckets   = (octaves + 1) * perOctave
)

// bucket returns the index of the bucket of a duration. Up to 2*perOctave ns each duration has its own bucket.
func bucket(d time.Duration) int {
	v := uint64(max(d, 0))
	octave := max(bits.Len64(v)-shift-1, 0)
	return min(octave*perOctave+int(v>>octave), buckets-1)
}

// upper returns the longest duration of a bucket.
func upper(bucket int) time.Duration {
	octave := max(bucket/perOctave-1, 0)
	return time.Duration(bucket-octave*perOctave+1)<<octave - 1
}

func (h *histogram) add(d time.Duration) {
	h.counts[bucket(d)]++
	h.n++
	h.worst = max(h.worst, d)
}

func (h *histogram) merge(other *histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.n += other.n
	h.worst = max(h.worst, other.worst)
}

// percentile returns the duration that a share of all (0 to 1) does not exceed; 0 for an empty histogram.
func (h *histogram) percentile(share float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	left := int64(share * float64(h.n))
	for i, n := range h.counts {
		if left -= int64(n); left < 0 {
			return min(upper(i), h.worst)
		}
	}
	return h.worst
}
