package cache

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestPollingWritesNothing: tags that are asked about again, and name what they named, cost no write.
func TestPollingWritesNothing(t *testing.T) {
	const tags = 10_000
	o := openOrigin(t)
	s := trow(t, "4Gi", o.entry("origin.example", "fresh: 1ms"))
	// The origin has a hundred images, and each of them a hundred names, of which the injector makes one.
	o.rename(func(ref string) string {
		var n int
		if _, err := fmt.Sscanf(ref, "v%d", &n); err == nil {
			return fmt.Sprintf("v%d", n%100)
		}
		return ref
	})
	var images []*image
	for n := range 100 {
		images = append(images, newImage(uint64(5000+n), 100))
		o.push("team/app", images[n], fmt.Sprintf("v%d", n))
	}
	c := s.client("origin.example")
	pull := func(method string) {
		t.Helper()
		each(t, tags, func(c *client, n int) error {
			resp, err := c.do(t.Context(), method, fmt.Sprintf("team/app/manifests/v%d", n), nil, "Accept", accepted)
			if err == nil && resp.Header.Get("Docker-Content-Digest") != images[n%100].digest() {
				t.Errorf("v%d is %s", n, resp.Header.Get("Docker-Content-Digest"))
			}
			return closed(resp, err, http.StatusOK)
		}, c)
	}
	pull(http.MethodGet)
	s.end(syscall.SIGTERM) // makes the backup that is made every hour otherwise
	s.start()
	file := filepath.Join(s.data, "journal.db")
	journal, changed, written := read(t, file), modified(t, file), s.written()
	o.reset()
	pull(http.MethodHead)
	pull(http.MethodGet)
	if at := modified(t, file); !at.Equal(changed) || !bytes.Equal(read(t, file), journal) {
		t.Errorf("polling has written to the journal at %v; it was written at %v before", at, changed)
	}
	// The server writes a small file now and then, to notice a disk that is read-only. A commit has at least 8 KiB.
	if got := s.written() - written; got > 256<<10 {
		t.Errorf("polling wrote %d bytes to the disk", got)
	}
	heads, gets := o.counted("HEAD manifests .*"), o.counted("GET .*")
	t.Logf("%d reads of %d tags: %d HEAD and %d GET at the origin, %d bytes written", 2*tags, tags, heads.requests,
		gets.requests, s.written()-written)
	if heads.requests < tags*3/2 || gets.requests > 0 {
		t.Errorf("the origin got %d HEAD and %d GET", heads.requests, gets.requests)
	}
}

// each calls f for each number, by several clients at once.
func each(t *testing.T, n int, f func(c *client, n int) error, c *client) {
	t.Helper()
	numbers := make(chan int)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for k := range numbers {
				if err := f(c, k); err != nil {
					t.Errorf("%d: %v", k, err)
				}
			}
		})
	}
	for k := range n {
		numbers <- k
	}
	close(numbers)
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func closed(resp *http.Response, err error, want int) error {
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != want {
		return fmt.Errorf("%s, want %d", resp.Status, want)
	}
	return nil
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// written returns how many bytes the process has sent to the storage layer, see proc_pid_io(5).
func (s *server) written() int {
	s.t.Helper()
	b := read(s.t, fmt.Sprintf("/proc/%d/io", s.cmd.Process.Pid))
	m := regexp.MustCompile(`(?m)^write_bytes: (\d+)$`).FindSubmatch(b)
	if m == nil {
		s.t.Fatalf("no write_bytes in %s", b)
	}
	return number(s.t, string(m[1]))
}

func modified(t *testing.T, path string) time.Time {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}
