package engines

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"trow/storage"
)

// TestFigures measures with fsync, when ENGINES_FACTS says over how many facts.
func TestFigures(t *testing.T) {
	sizes := os.Getenv("ENGINES_FACTS")
	if sizes == "" {
		t.Skip("ENGINES_FACTS names no numbers of facts to measure with")
	}
	for _, s := range strings.Split(sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(s, func(t *testing.T) { figures(t, n) })
	}
}

func figures(t *testing.T, n int) {
	c := startEtcd(t, 1, "--quota-backend-bytes", fmt.Sprint(8<<30), "--unsafe-no-fsync=false")
	j := c.open(t, newPrefix())
	size := func() int64 {
		c.compact()
		if _, err := c.admin.Defragment(t.Context(), c.members[0].addr); err != nil {
			t.Fatal(err)
		}
		s, err := c.admin.Status(t.Context(), c.members[0].addr)
		if err != nil {
			t.Fatal(err)
		}
		return s.DbSize
	}
	before := size()
	begin := time.Now()
	fill(t, j, n, 48)
	filled := time.Since(begin)
	after := size()
	t.Logf("%d facts were written in %v, %.0f each second; %.0f bytes each in etcd (%.0f MiB)", n,
		filled.Round(time.Millisecond), float64(n)/filled.Seconds(), float64(after-before)/float64(n),
		float64(after)/(1<<20))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	loaded, parts := 0, 0
	begin = time.Now()
	_ = j.Watch(ctx, func(u storage.Update) error {
		for _, b := range u.Batches {
			loaded += len(b.Facts)
		}
		if parts++; u.Synced {
			t.Logf("%d facts were loaded in %v, in %d parts", loaded, time.Since(begin).Round(time.Millisecond), parts)
			cancel()
		}
		return nil
	})
	if loaded != n {
		t.Errorf("%d facts were loaded, want %d", loaded, n)
	}
	var took []time.Duration
	var rev storage.Revision
	for i := range 300 {
		begin := time.Now()
		var err error
		rev, err = j.Commit(t.Context(), one("latency", rev, set("a", fmt.Sprint(i))))
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	t.Logf("a commit takes %v (p50), %v (p99)", took[150], took[297])
	took = took[:0]
	for range 300 {
		begin := time.Now()
		if _, err := j.Head(t.Context()); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	t.Logf("Head takes %v (p50), %v (p99)", took[150], took[297])
}
