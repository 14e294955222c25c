package cache

import (
	"io/fs"
	"os"
	"syscall"
	"testing"
	"time"
)

// forget drops the files of a server that has ended from the kernel's memory: how they are kept there depends on how
// they came, a push in large pieces, a download as it arrives.
func (s *server) forget(t *testing.T) {
	t.Helper()
	const dontNeed = 4 // POSIX_FADV_DONTNEED
	s.files(func(path string, info fs.FileInfo) {
		if !info.Mode().IsRegular() {
			return
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, _, errno := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0); errno != 0 {
			t.Fatal(errno)
		}
	})
}

// smallSlower is how much longer a cached pull of 40 layers of 2 kB may take: each request has to find out who may
// read, and to note the use. In some runs it is 1.0 times, in others up to 1.15, from the start of the server to its
// end.
const smallSlower = 1.25

// TestACachedPullIsAsFast as one of a pushed image: at least 0.95 of its speed.
func TestACachedPullIsAsFast(t *testing.T) {
	o := openOrigin(t)
	s := trow(t, "4Gi", o.entry("origin.example"))
	own := s.client("")
	both := *own // the same connections
	cached := &both
	cached.ns = "origin.example"
	small := make([]int, 40)
	for n := range small {
		small[n] = 2000
	}
	for name, sizes := range map[string][]int{"of large layers": layers(), "of small layers": small} {
		pushed, held := newImage(uint64(len(sizes)), sizes...), newImage(uint64(100+len(sizes)), sizes...)
		own.push("own/app", pushed, name[3:8])
		o.push("team/app", held, name[3:8])
		cached.pulls("team/app", name[3:8], true)
		one := func(c *client, repo string) func() time.Duration {
			return func() (sum time.Duration) {
				for range len(sizes) / 4 { // as many bytes of small layers as is worth measuring
					sum += c.pulls(repo, name[3:8], false).took
				}
				return sum
			}
		}
		s.end(syscall.SIGTERM)
		s.forget(t)
		s.start()
		limit := 1 / 0.95
		if len(sizes) == len(small) { // requests without bytes
			limit = smallSlower
		}
		compare(t, "a cached pull "+name, limit, one(own, "own/app"), one(cached, "team/app"))
	}
}
