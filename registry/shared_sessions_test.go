package registry_test

import (
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// keyed gives replicas the same key of upload IDs, as the journal does.
func keyed(o *registry.Options) { o.UploadKey = []byte("0123456789abcdef0123456789abcdef") }

// TestIDsOfUploadsOverReplicas is what registry/README.md says about them: an ID is checked in the same way at each
// replica, but that one has ended is known where it ended alone. Elsewhere it is an upload without bytes, in which
// nothing of the former one is left.
func TestIDsOfUploadsOverReplicas(t *testing.T) {
	all := replicasOver(t, func(_ int, j storage.Journal) storage.Journal { return j }, keyed)
	content := []byte("content")
	d := digest.FromBytes(content).String()
	begin := func(w *server) string {
		return w.do("POST", "/v2/app/blobs/uploads/", nil).is(202).header.Get("Location")
	}
	other := func(i int) *server { return all[1-i] }
	for i, w := range all {
		fresh := begin(w)
		if got := other(i).do("GET", fresh, nil).is(204).header.Get("Range"); got != "0-0" {
			t.Errorf("an upload of another replica ends at %s", got)
		}
		other(i).do("PATCH", fresh, content).is(202)
		if got := w.do("GET", fresh, nil).is(204).header.Get("Range"); got != "0-6" {
			t.Errorf("an upload that goes on at another replica ends at %s", got)
		}

		id := fresh[strings.LastIndexByte(fresh, '/')+1:]
		for name, location := range map[string]string{
			"made up":               strings.Replace(fresh, id[:8], "00000000", 1),
			"made up, short":        fresh[:len(fresh)-len(id)] + "00000000-0000-4000-8000-000000000000",
			"of another repository": strings.Replace(fresh, "/app/", "/other/", 1),
		} {
			for _, w := range all {
				for _, method := range []string{"GET", "PATCH", "DELETE"} {
					if w.do(method, location, nil).status != 404 {
						t.Errorf("%s: %s is not answered 404", name, method)
					}
				}
			}
		}

		for name, end := range map[string]func(location string){
			"cancelled": func(l string) { w.do("DELETE", l, nil).is(204) },
			"completed": func(l string) { w.do("PUT", l+sep(l)+"digest="+d, nil).is(201) },
		} {
			location := begin(w)
			w.do("PATCH", location, content).is(202)
			end(location)
			w.do("GET", location, nil).is(404)
			w.do("PATCH", location, content).is(404)
			if got := other(i).do("GET", location, nil).is(204).header.Get("Range"); got != "0-0" {
				t.Errorf("%s: at the other replica it ends at %s", name, got)
			}
			other(i).do("PATCH", location, content, "Content-Range", "7-13").is(416)
			other(i).do("PUT", location+sep(location)+"digest="+d, nil).is(400) // no bytes are there
			other(i).do("GET", location, nil).is(404)                           // that has ended it there as well
		}
	}
}

// TestExpiredIDsOverReplicas: they are unknown at each, whichever has made them.
func TestExpiredIDsOverReplicas(t *testing.T) {
	all := replicasOver(t, func(_ int, j storage.Journal) storage.Journal { return j }, keyed,
		func(o *registry.Options) { o.UploadTimeout = time.Nanosecond })
	location := all[0].do("POST", "/v2/app/blobs/uploads/", nil).is(202).header.Get("Location")
	for _, w := range all {
		w.do("GET", location, nil).is(404)
	}
}

// TestEachReplicaRefusesNewNames: limits are about what all replicas have made.
func TestEachReplicaRefusesNewNames(t *testing.T) {
	journal := memory.NewJournal()
	journal.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 1 << 20}
	service := memory.NewService()
	var all [2]*server
	for i := range all {
		x := storagetest.OpenIndexWith(t, journal, storage.IndexOptions{Placed: true, Grace: time.Hour,
			Limits: storage.Limits{Tags: 3, Repos: 2}})
		blobs := &memory.Objects{Service: service, Records: x}
		all[i] = serve(t, memory.NewBlobs(), memory.NewJournal(),
			func(o *registry.Options) { o.Blobs, o.Index = blobs, x })
		all[i].blobs, all[i].index = blobs, x
	}
	put := []string{"Content-Type", typeManifest}
	m := all[0].image("a", "{}")
	for i, tag := range []string{"v1", "v2", "v3"} {
		all[i%2].do("PUT", "/v2/a/manifests/"+tag, m, put...).is(201)
	}
	all[1].image("b", "{}")
	for _, w := range all {
		w.do("PUT", "/v2/a/manifests/v4", m, put...).full("max-tags")
		w.do("POST", "/v2/c/blobs/uploads/", nil).full("max-repositories")
		w.do("PUT", "/v2/c/manifests/v", index(), "Content-Type", typeIndex).full("max-repositories")
		w.do("PUT", "/v2/a/manifests/v3", m, put...).is(201) // nothing new
		w.do("GET", "/v2/a/manifests/v1", nil).is(200)
	}
	all[0].do("DELETE", "/v2/a/manifests/v1", nil).is(202)
	all[1].do("PUT", "/v2/a/manifests/v4", m, put...).is(201)
	all[0].do("PUT", "/v2/a/manifests/v5", m, put...).full("max-tags")
}
