package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/bolt"
)

// The shape of a busy registry: each manifest has its own config and four layers, and five tags.
const (
	blobsPerManifest = 5
	tagsPerManifest  = 5
	manifestsPerRepo = 200 // except in the first repository, which has a hundredth of all
)

// shape is the size of a registry.
type shape struct{ tags, big, repos int }

func shapeOf(tags int) shape {
	return shape{tags: tags, big: max(1, tags/tagsPerManifest/100), repos: 1 +
		max(1, tags/tagsPerManifest/manifestsPerRepo)}
}

// manifests returns how many repository r has: big for the first one.
func (s shape) manifests(r int) int {
	if r == 0 {
		return s.big
	}
	rest, others := s.tags/tagsPerManifest-s.big, s.repos-1
	return rest*r/others - rest*(r-1)/others
}

func sizeRepo(r int) string { return fmt.Sprintf("team%d/application-%d", r%7, r) }

func sizeTag(n int) string { return fmt.Sprintf("1.0.%d", n) }

func sizeManifest(r, i int) digest.Digest { return digest.FromString(fmt.Sprint("manifest", r, i)) }

// fill writes the journal of a registry of that shape, without the bytes.
func (s shape) fill(t *testing.T, dir string) {
	t.Helper()
	j, err := bolt.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	for r := range s.repos {
		if err := x.Update(t.Context(), sizeRepo(r), func(tx *storage.Tx) error { return s.push(tx, r) }); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%+v", x.Stats())
}

func (s shape) push(tx *storage.Tx, r int) (err error) {
	for i := range s.manifests(r) {
		m := storage.Manifest{Digest: sizeManifest(r, i),
			MediaType: "application/vnd.oci.image.manifest.v1+json", Size: 1500}
		for k := range blobsPerManifest {
			d := digest.FromString(fmt.Sprint("blob", r, i, k))
			tx.Link(d, 1<<20)
			m.Refs = append(m.Refs, d)
		}
		err = errors.Join(err, tx.PutManifest(m))
		for k := range tagsPerManifest {
			err = errors.Join(err, tx.SetTag(sizeTag(i*tagsPerManifest+k), m.Digest))
		}
	}
	return err
}

// TestSize starts a server on a journal of SOAK_TAGS tags, asks for them, and logs the time and memory that takes.
func TestSize(t *testing.T) {
	s, dir := shapeOf(settings.tags), t.TempDir()
	s.fill(t, dir)
	server := newServer(t, dir, nil, "--gc-interval=0", "--scrub-interval=0")
	server.wait = 3 * time.Minute // a million tags on a busy machine
	began := time.Now()
	server.run()
	s.wantTag(t, server, server.client, 0, 0)
	pid := server.process().Process.Pid
	t.Logf("exec to HEAD of a tag: %v, of CPU: %v", time.Since(began).Round(time.Millisecond), cpuTime(t, pid))
	t.Logf("loaded: %s", resident(t, pid))
	ctx, cancel := context.WithTimeout(t.Context(), settings.time)
	defer cancel()
	var answered atomic.Int64
	var all sync.WaitGroup
	for n := range clients {
		client, choice := server.newClient(), random(n)
		all.Go(func() {
			for ctx.Err() == nil {
				r := choice.IntN(s.repos)
				s.wantTag(t, server, client, r, choice.IntN(max(1, s.manifests(r)))*tagsPerManifest)
				answered.Add(1)
			}
		})
	}
	all.Wait()
	t.Logf("after %d requests: %s", answered.Load(), resident(t, pid))
	server.stop(syscall.SIGTERM)
}

// wantTag asks for a tag and checks which manifest it names.
func (s shape) wantTag(t *testing.T, server *server, client *http.Client, r, n int) {
	if s.manifests(r) == 0 {
		return
	}
	tag := n + rand.IntN(tagsPerManifest)
	resp, err := client.Head(server.url + "/v2/" + sizeRepo(r) + "/manifests/" + sizeTag(tag))
	if err != nil {
		t.Error(err)
		return
	}
	resp.Body.Close()
	want := sizeManifest(r, tag/tagsPerManifest)
	if got := resp.Header.Get("Docker-Content-Digest"); resp.StatusCode != http.StatusOK || got != want.String() {
		t.Errorf("%s:%s: %s, %s, want %s", sizeRepo(r), sizeTag(tag), resp.Status, got, want)
	}
}

// resident returns the memory of a process, as the kernel counts it.
func resident(t *testing.T, pid int) string {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && (strings.HasPrefix(f[0], "Rss") || f[0] == "VmRSS:" ||
			f[0] == "VmHWM:") {
			found = append(found, f[0]+" "+f[1]+" kB")
		}
	}
	return strings.Join(found, ", ")
}

// cpuTime returns the processor time of a process on all cores, in the program and in the kernel.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	const tick = 10 * time.Millisecond // of proc(5), everywhere
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var user, kernel int
	_, rest, _ := strings.Cut(string(stat), ") ") // after the name of the program; 11 fields precede the times
	f := strings.Fields(rest)
	if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &kernel); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+kernel) * tick
}
