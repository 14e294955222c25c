package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	cacheof "trow/registry/mirror"
	"trow/storage"
)

// newBounded is a cache of at most limit bytes, and its origin.
func newBounded(t *testing.T, limit int64) (*server, *origin, *cacheof.Cache) {
	t.Helper()
	return newBoundedWith(t, limit, "")
}

// newBoundedWith is newBounded with tags that are fresh as in newCache.
func newBoundedWith(t *testing.T, limit int64, fresh string) (*server, *origin, *cacheof.Cache) {
	t.Helper()
	bound := cacheof.NewCache(limit)
	var index *storage.Index
	var blobs storage.Blobs
	w, o := newCacheOf(t, fresh, bound.Reserve, func(r *registry.Options) {
		index, blobs, r.Cache = r.Index, r.Blobs, bound
		r.Drop = func(ctx context.Context, all []digest.Digest) error {
			_, err := (&storage.Collector{Blobs: blobs, Index: index}).Drop(ctx, all)
			return err
		}
	})
	bound.Look(t.Context())
	return w, o, bound
}

// bytesOf returns what the bytes of a registry take.
func (w *server) bytesOf() (n int64) {
	w.Helper()
	for info, err := range w.blobs.All(w.Context()) {
		if err != nil {
			w.Fatal(err)
		}
		n += info.Size
	}
	return n
}

// layerOf returns a layer of an image and its digest at the origin.
func (o *origin) layerOf(repo string, n int) ([]byte, digest.Digest) {
	content := bytes.Repeat(fmt.Appendf(nil, "layer %4d ", n), 10_000) // 110 kB
	return content, o.blob(repo, content)
}

// TestTheBoundOfTheCache: however much is asked for, and by however many, it is not exceeded; what was evicted comes
// again, and what was pushed stays.
func TestTheBoundOfTheCache(t *testing.T) {
	const limit = 1 << 20
	w, o, bound := newBounded(t, limit)
	_, pushed := w.pushImage("team/app", "v", "pushed")
	layers := map[int][]byte{}
	for n := range 50 { // 5.5 MB in all
		layers[n], _ = o.layerOf(fmt.Sprint("team/app", n%3), n)
	}
	before := w.bytesOf()
	var wg sync.WaitGroup
	for client := range 8 {
		wg.Go(func() {
			for i := range 20 {
				n := (client*7 + i) % len(layers)
				w.do("GET", fmt.Sprintf("/v2/team/app%d/blobs/%s?ns=quay.io", n%3, digest.FromBytes(layers[n])), nil).
					is(200).
					equals(string(layers[n]))
				if got := w.bytesOf() - before; got > limit+128<<10 {
					t.Errorf("%d bytes are stored, of %d", got, limit)
				}
			}
		})
	}
	wg.Wait()
	stats := bound.Stats()
	if stats.Used > limit || stats.Evicted == 0 || stats.Reserved != 0 {
		t.Errorf("%+v", stats)
	}
	w.do("GET", "/v2/team/app/manifests/"+pushed.String(), nil).is(200)
	bound.Look(t.Context())
	if after := bound.Stats(); after.Used != stats.Used || after.Contents != stats.Contents {
		t.Errorf("%+v, and after a look %+v", stats, after)
	}
}

// TestWhatIsImportedStays: it is never asked about, moved or evicted.
func TestWhatIsImportedStays(t *testing.T) {
	w, o, bound := newBounded(t, 1<<20)
	o.push("team/app", "v", "of the upstream")
	_, imported := w.pushImage("f/quay.io/team/app", "v", "imported")
	o.requests()
	w.do("GET", "/v2/team/app/manifests/v?ns=quay.io", nil).is(200).has("Docker-Content-Digest", imported.String(),
		"Trow-Stale", "")
	if got := o.requests(); got != "" {
		t.Errorf("the upstream was asked\n%s", got)
	}
	bound.Look(t.Context())
	if stats := bound.Stats(); stats.Used != 0 {
		t.Errorf("it counts: %+v", stats)
	}
	for n := range 50 {
		content, d := o.layerOf("team/app", n)
		w.do("GET", "/v2/team/app/blobs/"+d.String()+"?ns=quay.io", nil).is(200).equals(string(content))
	}
	w.do("GET", "/v2/f/quay.io/team/app/manifests/v", nil).is(200).has("Docker-Content-Digest", imported.String())
	if h := w.do("GET", "/v2/f/quay.io/team/app/tags/list", nil).is(200); !bytes.Contains(h.body, []byte(`"v"`)) {
		t.Errorf("%s", h.body)
	}
}

// TestAMountOfCachedContent is a push: the content counts for the cache no longer, and is not evicted.
func TestAMountOfCachedContent(t *testing.T) {
	w, o, bound := newBounded(t, 300_000)
	content, d := o.layerOf("team/app", 1)
	w.do("GET", "/v2/team/app/blobs/"+d.String()+"?ns=quay.io", nil).is(200)
	if used := bound.Stats().Used; used != int64(len(content)) {
		t.Fatalf("%d bytes count", used)
	}
	o.requests()
	w.do("POST", "/v2/own/app/blobs/uploads/?mount="+d.String()+"&from=f/quay.io/team/app", nil).is(201)
	bound.Look(t.Context())
	if used := bound.Stats().Used; used != 0 {
		t.Errorf("%d bytes count after the mount", used)
	}
	for n := range 10 { // more than there is room for
		_, d := o.layerOf("team/app", 10+n)
		w.do("GET", "/v2/team/app/blobs/"+d.String()+"?ns=quay.io", nil).is(200)
	}
	w.do("GET", "/v2/own/app/blobs/"+d.String(), nil).is(200).equals(string(content))
	// What is not held is not fetched for a mount: the client uploads it.
	_, other := o.layerOf("team/app", 99)
	o.requests()
	w.do("POST", "/v2/own/app/blobs/uploads/?mount="+other.String()+"&from=f/quay.io/team/app", nil).is(202)
	if got := o.requests(); got != "" {
		t.Errorf("the upstream was asked\n%s", got)
	}
}

// TestATagIsAskedAboutOnce for each read: an upstream that does not answer delays each question.
func TestATagIsAskedAboutOnce(t *testing.T) {
	w, o, _ := newBoundedWith(t, 1<<20, "always")
	body, d := o.push("team/app", "v", "1")
	w.do("GET", "/v2/team/app/manifests/v?ns=quay.io", nil).is(200)
	o.requests()
	for _, method := range []string{"GET", "HEAD"} {
		w.do(method, "/v2/team/app/manifests/v?ns=quay.io", nil).is(200).has("Docker-Content-Digest", d.String()).
			has("Trow-Stale", "")
		if got := o.requests(); got != "HEAD /v2/team/app/manifests/v" {
			t.Errorf("%s: the upstream was asked\n%s", method, got)
		}
	}
	begin, hold := time.Now(), make(chan struct{})
	o.set(0, hold)
	w.do("GET", "/v2/team/app/manifests/v?ns=quay.io", nil).is(200).equals(string(body)).has("Trow-Stale", "upstream")
	if got := o.requests(); got != "HEAD /v2/team/app/manifests/v" {
		t.Errorf("the upstream that hangs was asked\n%s after %v", got, time.Since(begin))
	}
	// It is not waited for again: 20 reads would take 40 s.
	for range 20 {
		w.do("GET", "/v2/team/app/manifests/v?ns=quay.io", nil).is(200).has("Trow-Stale", "upstream")
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("reads while the upstream hangs took %v", took)
	}
	close(hold)
}
