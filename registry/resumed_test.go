package registry_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/namespace"
	"trow/registry/upstream"
	"trow/storage/memory"
	"trow/storage/storagetest/enginetest"
)

// stopping is an upstream that serves ranges, and stops after a number of bytes until the connection ends.
type stopping struct {
	content []byte
	mu      sync.Mutex
	stop    int      // 0: it does not
	ranges  []string // that were asked for
}

func (s *stopping) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	stop := s.stop
	s.ranges = append(s.ranges, req.Header.Get("Range"))
	s.mu.Unlock()
	if stop == 0 {
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(s.content))
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(s.content)))
	_, _ = w.Write(s.content[:stop])
	_ = http.NewResponseController(w).Flush()
	<-req.Context().Done()
}

// TestADownloadGoesOnAfterARestart: what has arrived is on the disk of the data directory, is found by its digest, and
// only the rest is fetched. Wrong bytes there are not given to anybody.
func TestADownloadGoesOnAfterARestart(t *testing.T) {
	const stop = 3 << 20
	for name, damaged := range map[string]bool{"continued": false, "damaged": true, "for another repository": false} {
		o := &stopping{content: random(t, 4<<20), stop: stop}
		origin := httptest.NewServer(o)
		t.Cleanup(origin.Close)
		d := digest.FromBytes(o.content)
		dir := t.TempDir()
		journal := memory.NewJournal()
		path := "/v2/f/quay.io/team/app/blobs/" + d.String()
		start := func() (*server, func()) {
			names := namespace.NewTable(nil)
			up := upstream.New(upstream.Config{Guard: upstream.NewGuard(), Names: names})
			err := up.Set([]upstream.Entry{{Host: "quay.io", Insecure: true,
				Endpoints: []upstream.Endpoint{{URL: origin.URL}}}})
			if err != nil {
				t.Fatal(err)
			}
			fetcher := upstream.NewFetcher(upstream.FetcherOptions{Dir: t.TempDir(), Spool: 1 << 30})
			blobs := enginetest.Disk(t, dir)
			w := serve(t, blobs, journal, func(r *registry.Options) {
				r.Namespaces, r.Upstreams, r.Fetcher = names, up, fetcher
			})
			return w, fetcher.Close
		}
		w, end := start()
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", w.url+path, nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, stop)); err != nil {
			t.Fatal(err)
		}
		// As a kill leaves it: the files as they are, and nothing of the process. end only frees the directory.
		end()
		cancel()
		resp.Body.Close()
		if damaged {
			files, _ := filepath.Glob(filepath.Join(dir, "uploads", "*"))
			if len(files) != 1 {
				t.Fatalf("uploads: %v", files)
			}
			if err := os.WriteFile(files[0], o.content[1:stop+1], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o.mu.Lock()
		o.stop, o.ranges = 0, nil
		o.mu.Unlock()
		w, end = start()
		defer end()
		if name == "for another repository" {
			path = "/v2/f/quay.io/team/other/blobs/" + d.String()
		}
		ranges := "bytes=3145727-"
		if damaged {
			resp, err := http.Get(w.url + path)
			if err == nil {
				all, readErr := io.ReadAll(resp.Body)
				resp.Body.Close()
				if readErr == nil && !bytes.Equal(all, o.content) {
					t.Error("wrong bytes are complete")
				}
			}
		}
		w.do("GET", path, nil).is(200).equals(string(o.content))
		o.mu.Lock()
		got := strings.Join(o.ranges, " ")
		o.mu.Unlock()
		if got != ranges && (!damaged || !strings.HasPrefix(got, ranges+" ")) {
			t.Errorf("%s: asked for %q, want %q", name, got, ranges)
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "uploads", "*")); len(files) != 0 {
			t.Errorf("left: %v", files)
		}
	}
}
