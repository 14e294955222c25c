package storage_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

const (
	benchRepos  = 100
	benchImages = 1000 // per repo
)

func benchRepo(r int) string { return fmt.Sprintf("team%d/application-%d", r%7, r) }

// image returns a manifest of eight references: four that the images of its repo share, and four of its own.
func image(r, i int) storage.Manifest {
	m := storage.Manifest{
		Digest:    digest.FromString(fmt.Sprint("manifest", r, i)),
		MediaType: "application/vnd.oci.image.manifest.v1+json",
		Size:      1500,
	}
	for k := range 4 {
		m.Refs = append(m.Refs, digest.FromString(fmt.Sprint("base", r, k)),
			digest.FromString(fmt.Sprint("own", r, i, k)))
	}
	return m
}

// fill pushes images with a tag each.
func fill(tb testing.TB, j storage.Journal, repos, images int) {
	tb.Helper()
	x, err := storage.OpenIndex(context.Background(), j, storage.IndexOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	defer x.Close()
	for r := range repos {
		err := x.Update(context.Background(), benchRepo(r), func(tx *storage.Tx) (err error) {
			for i := range images {
				m := image(r, i)
				for _, d := range m.Refs {
					tx.Link(d, 1<<20)
				}
				err = errors.Join(err, tx.PutManifest(m), tx.SetTag(fmt.Sprintf("1.0.%d", i), m.Digest))
			}
			return err
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
}

func TestResolveAllocatesNothing(t *testing.T) {
	j := memory.NewJournal()
	fill(t, j, 3, 20)
	x := storagetest.OpenIndex(t, j)
	repo, d := benchRepo(1), image(1, 7).Digest
	for _, ref := range []string{"1.0.7", string(d)} {
		found := false
		allocs := testing.AllocsPerRun(100, func() { _, found, _ = x.Resolve(t.Context(), repo, ref) })
		if allocs != 0 || !found {
			t.Errorf("Resolve of %s allocates %v times, found: %v", ref, allocs, found)
		}
	}
}

func BenchmarkResolve(b *testing.B) {
	j := memory.NewJournal()
	fill(b, j, benchRepos, benchImages)
	x := storagetest.OpenIndex(b, j)
	const n = 4096 // spread over all of them, so that processor caches do not flatter
	repos, tags, digests := make([]string, n), make([]string, n), make([]string, n)
	for i := range n {
		r, k := i*37%benchRepos, i*7919%benchImages
		repos[i], tags[i], digests[i] = benchRepo(r), fmt.Sprintf("1.0.%d", k), string(image(r, k).Digest)
	}
	for name, refs := range map[string][]string{"tag": tags, "digest": digests} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			ctx, i := context.Background(), 0
			for b.Loop() {
				if _, ok, err := x.Resolve(ctx, repos[i%n], refs[i%n]); !ok || err != nil {
					b.Fatal(refs[i%n], ok, err)
				}
				i++
			}
		})
		b.Run(name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if _, ok, err := x.Resolve(context.Background(), repos[i%n], refs[i%n]); !ok || err != nil {
						b.Error(refs[i%n], ok, err)
					}
				}
			})
		})
	}
}

// heap returns the memory in use, in bytes.
func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // objects with a finalizer take two
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func BenchmarkIndexMemory(b *testing.B) {
	measure := func(b *testing.B, j storage.Journal, unit string, n int) {
		for b.Loop() {
			before := heap()
			x, err := storage.OpenIndex(b.Context(), j, storage.IndexOptions{})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric((heap()-before)/float64(n), unit)
			x.Close()
		}
	}
	b.Run("manifests", func(b *testing.B) { // with their links and a tag each
		j := openBolt(b, b.TempDir())
		fill(b, j, benchRepos, benchImages)
		measure(b, j, "B/manifest", benchRepos*benchImages)
	})
	b.Run("tags", func(b *testing.B) {
		const n = 200_000
		j := openBolt(b, b.TempDir())
		x := storagetest.OpenIndex(b, j)
		m := image(0, 0)
		err := x.Update(b.Context(), benchRepo(0), func(tx *storage.Tx) error {
			err := tx.PutManifest(m)
			for i := range n {
				err = errors.Join(err, tx.SetTag(fmt.Sprintf("1.0.%d", i), m.Digest))
			}
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		x.Close()
		measure(b, j, "B/tag", n)
	})
}

// registryOf makes the journal of a registry with that many repos and tags. Five tags share a manifest, which has five
// blobs of its own. A hundredth of all tags is in the first repo.
func registryOf(b *testing.B, repos, tags int) storage.Journal {
	b.Helper()
	j := openBolt(b, b.TempDir())
	x := storagetest.OpenIndex(b, j)
	defer x.Close()
	big := max(1, tags/100)
	for r := range repos {
		n := big
		if r > 0 {
			n = (tags-big)*r/(repos-1) - (tags-big)*(r-1)/(repos-1)
		}
		if err := x.Update(b.Context(), benchRepo(r), func(tx *storage.Tx) error {
			return pushTags(tx, r, n)
		}); err != nil {
			b.Fatal(err)
		}
	}
	return j
}

func pushTags(tx *storage.Tx, r, tags int) (err error) {
	var m storage.Manifest
	for i := range tags {
		if i%5 == 0 {
			m = storage.Manifest{Digest: digest.FromString(fmt.Sprint("manifest", r, i)), Size: 1500,
				MediaType: "application/vnd.oci.image.manifest.v1+json"}
			for k := range 5 {
				d := digest.FromString(fmt.Sprint("own", r, i, k))
				tx.Link(d, 1<<20)
				m.Refs = append(m.Refs, d)
			}
			err = errors.Join(err, tx.PutManifest(m))
		}
		err = errors.Join(err, tx.SetTag(fmt.Sprintf("1.0.%d", i), m.Digest))
	}
	return err
}

// BenchmarkLarge also measures the processor time of loading, which hardly depends on what else the machine does.
func BenchmarkLarge(b *testing.B) {
	for _, size := range []struct{ repos, tags int }{{5000, 10_000}, {1000, 1_000_000}} {
		b.Run(fmt.Sprintf("repos=%d/tags=%d", size.repos, size.tags), func(b *testing.B) {
			j := registryOf(b, size.repos, size.tags)
			b.ReportAllocs()
			var used time.Duration
			var memory float64
			for b.Loop() {
				b.StopTimer()
				before, start := heap(), processorTime(b)
				b.StartTimer()
				x, err := storage.OpenIndex(b.Context(), j, storage.IndexOptions{})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				used += processorTime(b) - start
				memory += heap() - before
				x.Close()
				b.StartTimer()
			}
			b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
			b.ReportMetric(memory/float64(b.N)/1e6, "heap-MB")
		})
	}
}

// processorTime returns what the process has used of all cores.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkLoad(b *testing.B) {
	j := openBolt(b, b.TempDir())
	fill(b, j, benchRepos, benchImages)
	b.ReportAllocs()
	for b.Loop() {
		x, err := storage.OpenIndex(b.Context(), j, storage.IndexOptions{})
		if err != nil {
			b.Fatal(err)
		}
		x.Close()
	}
}

func BenchmarkUpdate(b *testing.B) {
	inner := openBolt(b, b.TempDir())
	fill(b, inner, 10, 100)
	var commits, next atomic.Int64
	count := func(ctx context.Context, batches ...storage.Batch) (storage.Revision, error) {
		commits.Add(1)
		return inner.Commit(ctx, batches...)
	}
	x := storagetest.OpenIndex(b, hooked{inner, count})
	for _, parallel := range []int{1, 64} { // times GOMAXPROCS
		b.Run(fmt.Sprint("parallel=", parallel), func(b *testing.B) {
			commits.Store(0)
			b.SetParallelism(parallel)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := int(next.Add(1))
					m := image(1000, i)
					err := x.Update(b.Context(), benchRepo(i%10), func(tx *storage.Tx) error {
						return errors.Join(tx.PutManifest(m), tx.SetTag(fmt.Sprint("v", i), m.Digest))
					})
					if err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(commits.Load())/float64(b.N), "commits/op")
		})
	}
}
