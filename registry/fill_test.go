package registry_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/upstream"
	"trow/storage"
)

// limited runs a registry whose index has limits.
func limited(t *testing.T, l storage.Limits) *server {
	t.Helper()
	blobs, index := limitedIndex(t, l)
	_, other := inMemory()
	w := serve(t, blobs, other, func(o *registry.Options) { o.Index = index })
	w.index = index
	return w
}

// limitedIndex returns an index that has limits, and the blobs beside it.
func limitedIndex(t *testing.T, l storage.Limits) (storage.Blobs, *storage.Index) {
	t.Helper()
	blobs, journal := inMemory()
	index, err := storage.OpenIndex(t.Context(), journal, storage.IndexOptions{Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(index.Close)
	return blobs, index
}

// full checks that a new name is refused because of a limit.
func (a *answer) full(setting string) {
	a.t.Helper()
	e := a.is(507).errors()[0]
	if e.Code != "DENIED" || !strings.Contains(e.Message, "(setting "+setting+")") ||
		!strings.Contains(e.Message, "delete") {
		a.t.Errorf("%.80s: %+v", a.what, e)
	}
}

// TestAFullIndexRefusesNewNamesAlone: a client could fill the memory with tags, with repositories, and with manifests
// of many references.
func TestAFullIndexRefusesNewNamesAlone(t *testing.T) {
	put := []string{"Content-Type", typeManifest}
	w := limited(t, storage.Limits{Tags: 3, Repos: 2})
	m := w.image("a", "{}")
	w.do("PUT", "/v2/a/manifests/v1", m, put...).is(201)
	d := digest.FromBytes(m).String()
	w.do("PUT", "/v2/a/manifests/"+d+"?tag=v2&tag=v3&tag=v4", m, put...).full("max-tags")
	w.do("PUT", "/v2/a/manifests/v1?tag=v2&tag=v3&tag=v2&tag=v1", m, put...).is(201) // those named twice count once
	m2 := w.image("a", "{ }")
	kept := w.bytesKept()
	w.do("PUT", "/v2/a/manifests/v4", m2, put...).full("max-tags")
	if got := w.bytesKept(); got != kept {
		t.Errorf("a refused manifest has left %d bytes", got-kept)
	}
	w.do("PUT", "/v2/a/manifests/v3", m2, put...).is(201) // moved
	w.do("DELETE", "/v2/a/manifests/v1", nil).is(202)
	w.do("PUT", "/v2/a/manifests/v4", m2, put...).is(201)

	w.image("b", "{}")
	config := digest.FromString("{}").String()
	w.do("POST", "/v2/c/blobs/uploads/", nil).full("max-repositories") // before a byte is sent
	w.do("POST", "/v2/c/blobs/uploads/?digest="+config, []byte("{}")).full("max-repositories")
	w.do("POST", "/v2/c/blobs/uploads/?mount="+config+"&from=a", nil).full("max-repositories")
	w.do("PUT", "/v2/c/manifests/v", index(), "Content-Type", typeIndex).full("max-repositories")
	w.do("GET", "/v2/a/tags/list", nil).is(200)
}

func TestAFullMemoryRefusesNewNamesAlone(t *testing.T) {
	put := []string{"Content-Type", typeManifest}
	w := limited(t, storage.Limits{Bytes: 10_000})
	m := w.image("a", "{}")
	d := digest.FromBytes(m).String()
	w.do("PUT", "/v2/a/manifests/v1", m, put...).is(201)
	at := w.do("POST", "/v2/a/blobs/uploads/", nil).is(202).header.Get("Location")
	full := false
	for i := 0; i < 200 && !full; i++ {
		full = w.do("PUT", fmt.Sprintf("/v2/a/manifests/%s?tag=t%0100d", d, i), m, put...).status == 507
	}
	w.do("PUT", "/v2/a/manifests/"+strings.Repeat("x", 100), m, put...).full("max-index")
	w.do("POST", "/v2/new/blobs/uploads/", nil).full("max-index")
	body := []byte("content")
	w.send("PATCH", at, struct{ io.Reader }{bytes.NewReader(body)}) // an upload ends as well when its blob is new
	w.do("PUT", "/v2/a/manifests/v1", m, put...).is(201)            // nothing new
	w.do("GET", "/v2/a/manifests/v1", nil).is(200).equals(string(m))
	w.do("DELETE", "/v2/a/manifests/"+d, nil).is(202)
	w.do("PUT", "/v2/a/manifests/v1", m, put...).is(201)
}

// TestWhatIsCachedLeavesRoomForPushes: a client that may pull through an upstream could fill the index with its tags
// and repositories, so that every push was refused.
func TestWhatIsCachedLeavesRoomForPushes(t *testing.T) {
	for setting, limits := range map[string]storage.Limits{"max-index": {Bytes: 40_000},
		"max-repositories": {Repos: 8}} {
		blobs, index := limitedIndex(t, limits)
		_, other := inMemory()
		w, o := newCacheOver(t, blobs, other, "", nil, func(r *registry.Options) { r.Index = index },
			func(*upstream.Entry) {})
		w.index = index
		pulled, first := 0, "a"
		if limits.Repos > 0 {
			first = "a0"
		}
		for ; pulled < 1000; pulled++ {
			repo, tag := "a", fmt.Sprint("v", pulled)
			if limits.Repos > 0 {
				repo = fmt.Sprint("a", pulled)
			}
			o.push(repo, tag, tag)
			a := w.do("GET", "/v2/f/quay.io/"+repo+"/manifests/"+tag, nil)
			if a.status == 507 {
				a.contains(setting).contains("trow evict")
				break
			}
			a.is(200)
		}
		if pulled < 5 || pulled == 1000 {
			t.Errorf("%s: %d images were cached", setting, pulled)
		}
		w.pushImage("pushed", "v", "x")
		w.do("GET", "/v2/f/quay.io/"+first+"/manifests/v0", nil).is(200)
	}
}
