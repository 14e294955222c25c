package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	cacheof "trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/upstream"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// cachingReplicas are n replicas that share a journal, a service for objects and the bound of the cache.
func cachingReplicas(t *testing.T, url string, n int, limit int64) (all []*server, stored func() int64) {
	t.Helper()
	journal := memory.NewJournal()
	journal.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 1 << 20}
	service := memory.NewService()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	var objects *memory.Objects
	for i := range n {
		names := namespace.NewTable(nil)
		up := upstream.New(upstream.Config{Guard: upstream.NewGuard(), Names: names})
		entry := upstream.Entry{Host: "quay.io", Insecure: true, Endpoints: []upstream.Endpoint{{URL: url}}}
		if err := up.Set([]upstream.Entry{entry}); err != nil {
			t.Fatal(err)
		}
		bound := cacheof.NewCache(limit)
		bound.Share(fmt.Sprint("replica", i))
		fetcher := upstream.NewFetcher(upstream.FetcherOptions{Dir: t.TempDir(), Spool: 1 << 30,
			Reserve: bound.Reserve})
		x := storagetest.OpenIndexWith(t, journal, storage.IndexOptions{Placed: true, Grace: time.Hour})
		objects = &memory.Objects{Service: service, Records: x}
		blobs := objects
		w := serve(t, memory.NewBlobs(), memory.NewJournal(), func(o *registry.Options) {
			o.Blobs, o.Index, o.Namespaces, o.Upstreams, o.Fetcher, o.Cache = blobs, x, names, up, fetcher, bound
			o.Drop = func(ctx context.Context, all []digest.Digest) error {
				_, err := (&storage.Collector{Blobs: blobs, Index: x}).Drop(ctx, all)
				return err
			}
		})
		w.blobs, w.index = blobs, x
		t.Cleanup(fetcher.Close)
		running.Go(func() { _ = bound.Run(ctx) })
		if i == 0 {
			running.Go(func() { bound.Lead(ctx) })
		}
		all = append(all, w)
	}
	return all, func() (n int64) {
		for o, err := range objects.Objects(t.Context()) {
			if err != nil {
				t.Error(err)
			}
			n += o.Size
		}
		return n
	}
}

// TestReplicasOfACacheShareItsBound: what all of them store together is not more than the bound, while each answers
// with the right bytes.
func TestReplicasOfACacheShareItsBound(t *testing.T) {
	const limit = 1 << 20
	o := &origin{manifests: map[string][]byte{}, blobs: map[string][]byte{}}
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	all, stored := cachingReplicas(t, o.URL, 2, limit)
	layers := map[int][]byte{}
	for n := range 50 { // 5.5 MB in all
		layers[n], _ = o.layerOf(fmt.Sprint("team/app", n%3), n)
	}
	var clients sync.WaitGroup
	for client := range 8 {
		clients.Go(func() {
			for i := range 20 {
				n := (client*7 + i) % len(layers)
				path := fmt.Sprintf("/v2/team/app%d/blobs/%s?ns=quay.io", n%3, digest.FromBytes(layers[n]))
				all[(client+i)%len(all)].do("GET", path, nil).is(200).equals(string(layers[n]))
				if got := stored(); got > limit {
					t.Errorf("%d bytes are stored, of %d", got, limit)
				}
			}
		})
	}
	clients.Wait()
	if got := stored(); got < limit/4 {
		t.Errorf("only %d bytes are stored, of %d", got, limit)
	}
}

// TestEachReplicaFetchesAtMostOnce what none of them holds; what one has stored, none fetches. Clients of each replica
// get the first bytes while the others are still on their way: those of a replica that waited for another one would get
// them after the last byte. Both are measured.
func TestEachReplicaFetchesAtMostOnce(t *testing.T) {
	const size, rate = 8 << 20, 16 << 20 // bytes, and bytes per second
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	d := digest.FromBytes(content)
	var mu sync.Mutex
	downloads := 0
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, "/blobs/") {
			return
		}
		mu.Lock()
		downloads++
		mu.Unlock()
		w.Header().Set("Content-Length", fmt.Sprint(size))
		for at := 0; at < size; at += size / 64 {
			if _, err := w.Write(content[at : at+size/64]); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Second * size / 64 / rate)
		}
	}))
	t.Cleanup(origin.Close)
	all, _ := cachingReplicas(t, origin.URL, 3, 1<<30)
	var first, last time.Duration // the latest of all clients
	ask := func(w *server) {
		begun := time.Now()
		resp, err := http.Get(w.url + "/v2/team/app/blobs/" + d.String() + "?ns=quay.io")
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		var head [1]byte
		_, err = io.ReadFull(resp.Body, head[:])
		early := time.Since(begun)
		rest, err2 := io.ReadAll(resp.Body)
		if err != nil || err2 != nil || digest.FromBytes(append(head[:], rest...)) != d {
			t.Errorf("%d: %d bytes, %v, %v", resp.StatusCode, len(rest)+1, err, err2)
		}
		mu.Lock()
		defer mu.Unlock()
		first, last = max(first, early), max(last, time.Since(begun))
	}
	var clients sync.WaitGroup
	for i := range 50 {
		clients.Go(func() { ask(all[i%len(all)]) })
	}
	clients.Wait()
	if downloads > len(all) || downloads == 0 {
		t.Errorf("%d downloads by %d replicas", downloads, len(all))
	}
	t.Logf("50 clients of 3 replicas, %d MiB at %d MiB/s: %d downloads, the first byte after %v, the last after %v; "+
		"if the others waited for one download, their first byte would come after the last one",
		size>>20, rate>>20, downloads, first.Round(time.Millisecond), last.Round(time.Millisecond))
	if first > last/2 {
		t.Errorf("the first byte came after %v, and the last after %v", first, last)
	}
	before := downloads
	first = 0
	for _, w := range all {
		ask(w)
	}
	if downloads != before {
		t.Errorf("%d downloads of what is held", downloads-before)
	}
	t.Logf("held: the first byte after %v", first.Round(time.Millisecond))
}
