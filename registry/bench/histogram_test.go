package bench

import (
	"math"
	"testing"
	"time"
)

func TestPercentiles(t *testing.T) {
	var a, b histogram
	for i := 1; i <= 100_000; i++ {
		h := &a
		if i%2 == 0 {
			h = &b
		}
		h.add(time.Duration(i) * time.Microsecond)
	}
	a.merge(&b)
	for share, want := range map[float64]float64{0.5: 50e6, 0.99: 99e6, 1: 100e6, 0: 1e3} {
		if got := float64(a.percentile(share)); math.Abs(got-want) > want/100 {
			t.Errorf("%v: %v, want %v", share, time.Duration(got), time.Duration(want))
		}
	}
	for _, d := range []time.Duration{0, 1, 255, 256, 257, time.Hour, 1 << 62, -1} {
		if i := bucket(d); i < 0 || i >= buckets || d < time.Hour && upper(i) < d {
			t.Errorf("%d is in bucket %d, whose upper bound is %d", d, i, upper(i))
		}
	}
}
