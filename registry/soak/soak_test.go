package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

const clients = 8

// run has clients work for a time.
func (w *stock) run(s *server, seed int, d time.Duration) {
	ctx, cancel := context.WithTimeout(s.t.Context(), d)
	defer cancel()
	var all sync.WaitGroup
	for n := range clients {
		c := &client{s.newClient(), s.url}
		all.Go(func() { w.work(ctx, c, random(seed+n)) })
	}
	all.Wait()
}

// TestSoak has clients push, mount, retag, delete and pull while garbage is collected every second. Content that is
// known to be there must stay intact, and in the end exactly the named content must be left.
func TestSoak(t *testing.T) {
	s := start(t, "--gc-interval=0", "--scrub-interval=0")
	w := newStock(random(0))
	w.run(s, 100, min(settings.time/2, 10*time.Second)) // to measure how long a push takes on this machine
	grace := time.Duration(10*w.gap.Load()).Truncate(time.Second) + time.Second
	t.Logf("the longest gap is %v, so the grace is %v", time.Duration(w.gap.Load()), grace)
	s.stop(syscall.SIGTERM)
	s.args = append(s.args, "--gc-interval=1s", fmt.Sprintf("--gc-grace=%v", grace))
	s.run()
	w.run(s, 200, settings.time+grace) // the Collector unlinks nothing during the first grace after a start
	w.wantIntact(t, &client{s.client, s.url}, &s.log)
	left := wantExactly(t, s.files, w, grace)
	collected := s.metric("trow_gc_deleted_total")
	t.Logf("%d pushes (longest gap %v), %d pulls, %d deletes, %d mounts requested; %v blobs collected, %d left; %d "+
		"broken",
		w.pushes.Load(), time.Duration(w.gap.Load()), w.pulls.Load(), w.deletes.Load(), w.mounts.Load(),
		collected, left, len(w.broken))
	if collected == 0 || w.pulls.Load() == 0 || w.pushes.Load() == 0 {
		t.Error("the test has tried nothing")
	}
	if time.Duration(w.gap.Load()) > grace && len(w.broken) > 0 {
		t.Errorf("a push took longer than the grace: this machine is too busy for the test")
	}
}

// wantIntact pulls everything once more, and reports all violations.
func (w *stock) wantIntact(t *testing.T, c *client, output fmt.Stringer) {
	t.Helper()
	for _, slot := range w.slots {
		if err := w.pull(t.Context(), c, slot); err != nil && errors.Is(err, errNoAnswer) {
			t.Error(err)
		}
	}
	for n, text := range w.broken {
		if n < 10 {
			t.Error("broken: " + text)
		}
	}
	if len(w.broken) > 0 {
		t.Fatalf("%d violations; the output of the server:\n%s", len(w.broken), output)
	}
}

// wantExactly waits until the contents that are stored are exactly those that the slots name.
func wantExactly(t *testing.T, stored func() map[digest.Digest]bool, w *stock, grace time.Duration) (files int) {
	t.Helper()
	want := w.names()
	var more, less []digest.Digest
	for deadline := time.Now().Add(3*grace +
		20*time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		have := stored()
		more, less = nil, nil
		for d := range have {
			if !want[d] {
				more = append(more, d)
			}
		}
		for d := range want {
			if !have[d] {
				less = append(less, d)
			}
		}
		if files = len(have); len(more)+len(less) == 0 {
			return files
		}
	}
	t.Errorf("%d files have no name, %d are missing", len(more), len(less))
	return files
}

// files returns the digests of the blobs in the data directory.
func (s *server) files() map[digest.Digest]bool {
	s.t.Helper()
	all := map[digest.Digest]bool{}
	err := fs.WalkDir(os.DirFS(filepath.Join(s.dir, "blobs")), ".", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // collected just now
			return nil
		}
		if err == nil && !d.IsDir() {
			all[digest.NewDigestFromEncoded(digest.Algorithm(strings.Split(path, "/")[0]), d.Name())] = true
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// metric returns one of the server's metrics without labels.
func (s *server) metric(name string) float64 {
	s.t.Helper()
	resp, err := s.client.Get(s.url + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(text)
	if m == nil {
		s.t.Fatalf("there is no metric %s", name)
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}
