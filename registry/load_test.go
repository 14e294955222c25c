package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// onDisk runs a registry over the embedded engines.
func onDisk(t *testing.T) (w *server, dir string) {
	t.Helper()
	dir = t.TempDir()
	blobs, journal, _ := engines(t, dir)
	return serve(t, blobs, journal), dir
}

// entries counts the files of a directory below dir.
func entries(t *testing.T, dir ...string) int {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(dir...))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// descriptors counts the open files of this process, on systems with /proc.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("this system has no /proc/self/fd")
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestThousandsOfOpenUploadsHoldNoFiles(t *testing.T) {
	w, dir := onDisk(t)
	w.begin("a")
	before := descriptors(t)
	const n = 2000
	for i := range n {
		l := w.begin("a")
		if i%10 == 0 {
			w.do("PATCH", l, []byte("some bytes")).is(202)
		}
	}
	if kept := entries(t, dir, "uploads"); kept != n/10 {
		t.Errorf("%d uploads are stored, want the %d that have bytes", kept, n/10)
	}
	if after := descriptors(t); after > before+20 {
		t.Errorf("%d files are open, %d before", after, before)
	}
	freed, err := w.blobs.Expire(t.Context(), time.Now().Add(time.Hour))
	if err != nil || freed != n/10*int64(len("some bytes")) {
		t.Errorf("freed %d bytes: %v", freed, err)
	}
	if left := entries(t, dir, "uploads"); left != 0 {
		t.Errorf("%d uploads left", left)
	}
}

func TestFailedRequestsLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	blobs, journal, _ := engines(t, dir)
	uploads := &endings{Blobs: blobs}
	w := serve(t, uploads, journal)
	content := []byte("content")
	wrong := digest.FromString("other").String()
	w.do("POST", "/v2/a/blobs/uploads/?digest="+wrong, content).is(400)
	w.do("PUT", w.begin("a")+"?digest="+wrong, content).is(400)
	w.do("DELETE", w.begin("a"), nil).is(204)
	w.do("PUT", "/v2/a/manifests/v", image(content, content), "Content-Type", typeManifest).is(404)
	w.do("PUT", "/v2/a/manifests/v", []byte("{"), "Content-Type", typeManifest).is(400)
	before, _ := uploads.count()
	// A body that breaks off, after more bytes than the client keeps back.
	w.breakOff("POST", "/v2/a/blobs/uploads/?digest="+wrong, random(t, 64<<10))
	left := func() int { return entries(t, dir, "uploads") + entries(t, dir, "blobs", "sha256") }
	eventually(t, "the request that breaks off has ended its upload", func() bool {
		created, open := uploads.count()
		return created > before && open == 0
	})
	if n := left(); n != 0 {
		t.Errorf("%d files left", n)
	}
	if s := w.index.Stats(); s != (storage.Stats{}) {
		t.Errorf("the index has %+v", s)
	}
}

// eventually waits for what a server does after its answer, or without one.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 seconds: %s", what)
		}
	}
}

// TestAnUploadContinuesAfterARestart sends a blob in three parts, with a restart of the engines before each.
func TestAnUploadContinuesAfterARestart(t *testing.T) {
	dir := t.TempDir()
	content := random(t, 3<<20)
	d := digest.FromBytes(content).String()
	var location string
	for i := range 3 {
		blobs, journal, closeJournal := engines(t, dir)
		w := serve(t, blobs, journal)
		if i == 0 {
			location = w.begin("a")
		} else {
			w.do("GET", location, nil).is(204).has("Range", fmt.Sprintf("0-%d", i<<20-1))
		}
		w.do("PATCH", location, content[i<<20:(i+1)<<20], "Content-Range", fmt.Sprintf("%d-%d", i<<20, (i+1)<<20-1)).
			is(202)
		if i == 2 {
			w.do("PUT", location+"?digest="+d, nil).is(201)
			w.do("GET", "/v2/a/blobs/"+d, nil).is(200).equals(string(content))
		}
		w.index.Close()
		if err := closeJournal(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestConcurrentPushesAndDeletes checks that the repository holds all parts of a manifest that it holds.
func TestConcurrentPushesAndDeletes(t *testing.T) {
	w, _ := onDisk(t)
	config, layer := []byte("{}"), []byte("layer")
	manifest := image(config, layer)
	c, l, m := digest.FromBytes(config).String(), digest.FromBytes(layer).String(), digest.FromBytes(manifest).String()
	var wg sync.WaitGroup
	var pushed, deleted atomic.Int64
	do := func(method, path string, body []byte) int {
		req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, bytes.NewReader(body))
		if err != nil {
			t.Error(err)
			return 0
		}
		req.Header.Set("Content-Type", typeManifest)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode >= 500 {
			t.Errorf("%s %s: status %d", method, path, resp.StatusCode)
		}
		return resp.StatusCode
	}
	pushers := atomic.Int64{}
	const pushing, rounds = 3, 30
	pushers.Store(pushing)
	for range pushing {
		wg.Go(func() {
			defer pushers.Add(-1)
			for range rounds {
				do("POST", "/v2/a/blobs/uploads/?digest="+c, config)
				do("POST", "/v2/a/blobs/uploads/?digest="+l, layer)
				if do("PUT", "/v2/a/manifests/v", manifest) == 201 {
					pushed.Add(1)
				}
			}
		})
		wg.Go(func() {
			for pushers.Load() > 0 { // a delete that finds nothing is faster than a push
				do("DELETE", "/v2/a/manifests/"+m, nil)
				if do("DELETE", "/v2/a/blobs/"+l, nil) == 202 {
					deleted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if _, ok, _ := w.index.Resolve(t.Context(), "a", m); ok {
		w.do("GET", "/v2/a/blobs/"+l, nil).is(200)
		w.do("GET", "/v2/a/blobs/"+c, nil).is(200)
	}
	if pushed.Load() == 0 || deleted.Load() == 0 {
		t.Errorf("%d pushed, %d deleted: nothing was concurrent", pushed.Load(), deleted.Load())
	}
}

// failing is storage whose methods return an error.
type failing struct {
	storage.Blobs
	err error
}

func (f *failing) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	if f.err != nil {
		return nil, f.err
	}
	return f.Blobs.Open(ctx, d)
}

func (f *failing) Room(ctx context.Context) error {
	return errors.Join(f.err, f.Blobs.Room(ctx))
}

func (f *failing) Create(ctx context.Context, repo string, alg digest.Algorithm) (storage.Upload, error) {
	if f.err != nil {
		return nil, f.err
	}
	return f.Blobs.Create(ctx, repo, alg)
}

func (f *failing) Resume(ctx context.Context, repo, id string, offset int64) (storage.Upload, error) {
	if f.err != nil && !strings.HasPrefix(id, "ok") {
		return nil, f.err
	}
	return f.Blobs.Resume(ctx, repo, id, offset)
}

func TestAnswersWhenTheStorageFails(t *testing.T) {
	memory, journal := inMemory()
	blobs := &failing{Blobs: memory}
	w := serve(t, blobs, journal)
	d := w.pushBlob("a", []byte("x")).String()
	body, m := w.pushImage("a", "v", "x")
	l := w.begin("a")
	for _, row := range []struct {
		err    error
		status int
	}{
		{fmt.Errorf("write: %w", storage.ErrFull), 507},
		{fmt.Errorf("write: %w", storage.ErrClosed), 503},
		{fmt.Errorf("write: %w", storage.ErrReadOnly), 503},
		{errors.New("the disk is on fire"), 500},
	} {
		blobs.err = row.err
		for _, a := range []*answer{
			w.do("POST", "/v2/a/blobs/uploads/", nil),
			w.do("POST", "/v2/a/blobs/uploads/?digest="+d, []byte("x")),
			w.do("PUT", "/v2/a/manifests/w", body, "Content-Type", typeManifest),
			w.do("GET", "/v2/a/blobs/"+d, nil),
		} {
			a.is(row.status)
			if (row.status != 500) != (a.header.Get("Retry-After") != "") {
				t.Errorf("%s: Retry-After is %q", a.what, a.header.Get("Retry-After"))
			}
			if strings.Contains(string(a.body), "fire") || !strings.Contains(string(a.body), "r1") {
				t.Errorf("%s: the answer is %s", a.what, a.body)
			}
		}
		if row.status == 500 {
			w.do("PATCH", l, []byte("x")).is(500)
			w.do("PUT", l+"?digest="+d, []byte("x")).is(500)
			w.do("GET", l, nil).is(500)
			w.do("DELETE", l, nil).is(500)
		}
	}
	blobs.err = nil
	w.do("HEAD", "/v2/a/manifests/w", nil).is(404) // nothing became visible
	w.do("HEAD", "/v2/a/manifests/"+m.String(), nil).is(200)
}

// TestATruncatedFileIsLost: each pull began as a success, with the headers of one, and broke off.
func TestATruncatedFileIsLost(t *testing.T) {
	w, dir := onDisk(t)
	content := random(t, 1<<20)
	d := w.pushBlob("a", content)
	path := "/v2/a/blobs/" + d.String()
	w.do("GET", path, nil).is(200)
	if err := os.Truncate(filepath.Join(dir, "blobs", "sha256", d.Encoded()), 1000); err != nil {
		t.Fatal(err)
	}
	got := w.do("GET", path, nil, "Range", "bytes=0-9").code(404, "BLOB_UNKNOWN").header
	if got.Get("ETag") != "" || got.Get("Cache-Control") != "" {
		t.Errorf("an error has the headers of a success: %v", got)
	}
	w.do("HEAD", path, nil).is(404)
	w.pushBlob("a", content)
	w.do("GET", path, nil).is(200).equals(string(content))
}
