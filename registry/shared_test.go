package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// deaf is a journal that may not answer, as one behind a network.
type deaf struct {
	storage.Journal
	silent *atomic.Bool
}

var errDeaf = errors.New("the network is down")

func (j deaf) Head(ctx context.Context) (storage.Revision, error) {
	if j.silent.Load() {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return j.Journal.Head(ctx)
}

func (j deaf) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	if j.silent.Load() {
		return 0, errDeaf
	}
	return j.Journal.Commit(ctx, b...)
}

// replicas serves a registry at two processes that share a journal and a service for objects.
func replicas(t *testing.T) (all [2]*server, silent *atomic.Bool) {
	silent = new(atomic.Bool)
	return replicasOver(t, func(_ int, j storage.Journal) storage.Journal { return deaf{j, silent} }), silent
}

// replicasOver is replicas, each of which sees the journal through what see returns.
func replicasOver(t *testing.T, see func(i int, j storage.Journal) storage.Journal, options ...option) [2]*server {
	return [2]*server(nReplicasOver(t, 2, see, options...))
}

// nReplicasOver is replicasOver for any number of them.
func nReplicasOver(t *testing.T, n int, see func(i int, j storage.Journal) storage.Journal,
	options ...option) []*server {
	all := make([]*server, n)
	journal := memory.NewJournal()
	journal.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 1 << 20}
	service := memory.NewService()
	for i := range all {
		x := storagetest.OpenIndexWith(t, see(i, journal), storage.IndexOptions{Placed: true, Grace: time.Hour})
		blobs := &memory.Objects{Service: service, Records: x}
		all[i] = serve(t, memory.NewBlobs(), memory.NewJournal(),
			append(options, func(o *registry.Options) { o.Blobs, o.Index = blobs, x })...)
		all[i].blobs, all[i].index = blobs, x
	}
	return all
}

// TestReplicasAreOneRegistry: what one replica has answered to a write, each other one shows to the next request.
func TestReplicasAreOneRegistry(t *testing.T) {
	all, _ := replicas(t)
	at := func(i int) *server { return all[i%2] }
	layer, config := []byte("layer"), []byte("{}")
	n := 0
	next := func() *server { n++; return at(n) }
	// Each request of a push reaches another replica.
	for _, content := range [][]byte{layer, config} {
		location := next().do("POST", "/v2/app/blobs/uploads/", nil).is(202).header.Get("Location")
		location = next().do("PATCH", location, content).is(202).header.Get("Location")
		d := digest.FromBytes(content).String()
		next().do("PUT", location+sep(location)+"digest="+d, nil).is(201)
		next().do("HEAD", "/v2/app/blobs/"+d, nil).is(200)
	}
	image := func(tag string) string {
		return `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest +
			`","config":{"mediaType":"application/x","digest":"` +
			digest.FromBytes(config).String() + `","size":2},"layers":[{"mediaType":"application/x","digest":"` +
			digest.FromBytes(layer).String() + `","size":5}],"annotations":{"tag":"` + tag + `"}}`
	}
	for _, tag := range []string{"a", "b", "a"} {
		body := image(tag + "x")
		next().do("PUT", "/v2/app/manifests/"+tag, []byte(body), "Content-Type", v1.MediaTypeImageManifest).is(201)
		if got := next().do("GET", "/v2/app/manifests/"+tag, nil).is(200); string(got.body) != body {
			t.Errorf("tag %s: %s", tag, got.body)
		}
	}
	if got := next().do("GET", "/v2/app/tags/list", nil).is(200); !strings.Contains(string(got.body), `["a","b"]`) {
		t.Errorf("%s", got.body)
	}
	next().do("DELETE", "/v2/app/manifests/a", nil).is(202)
	next().do("GET", "/v2/app/manifests/a", nil).is(404)
	next().do("GET", "/v2/app/manifests/a", nil).is(404)
}

func sep(location string) string {
	if strings.Contains(location, "?") {
		return "&"
	}
	return "?"
}

// contended is a journal that counts its conflicts. Its commits take a while, as those of a service do: others come in
// between.
type contended struct {
	storage.Journal
	conflicts *atomic.Int64
}

func (j contended) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	time.Sleep(2 * time.Millisecond)
	rev, err := j.Journal.Commit(ctx, b...)
	if errors.Is(err, storage.ErrConflict) {
		j.conflicts.Add(1)
	}
	return rev, err
}

// TestNoClientSeesAConflict: three replicas push into one repository at once, and change and delete tags there. Their
// commits are in conflict with each other, and each is made again until it is answered as if it had been alone.
func TestNoClientSeesAConflict(t *testing.T) {
	const clients, images = 6, 12
	conflicts := new(atomic.Int64)
	all := nReplicasOver(t, 3, func(_ int, j storage.Journal) storage.Journal { return contended{j, conflicts} })
	// push pushes an image with a layer of its own, each request at the next replica, and returns its manifest.
	push := func(next func() *server, name string, tags ...string) string {
		content := digest.FromString(name).String()
		next().do("POST", "/v2/app/blobs/uploads/?digest="+content, []byte(name)).is(201)
		body := `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest +
			`","config":{"mediaType":"application/x","digest":"` + content + `","size":` + strconv.Itoa(len(name)) +
			`},"layers":[]}`
		for _, tag := range tags {
			next().do("PUT", "/v2/app/manifests/"+tag, []byte(body), "Content-Type", v1.MediaTypeImageManifest).is(201)
		}
		return body
	}
	want := make([][]string, clients) // the tags that stay
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			n := c
			next := func() *server { n++; return all[n%len(all)] }
			own := "own" + strconv.Itoa(c)
			for i := range images {
				name := fmt.Sprintf("c%d-%02d", c, i)
				body := push(next, name, "same", own, name)
				if got := next().do("GET", "/v2/app/manifests/"+own, nil).is(200); string(got.body) != body {
					t.Errorf("%s is older than what was acknowledged", own)
				}
				switch i % 3 {
				case 0: // the manifest with all its tags
					d := digest.FromString(body).String()
					next().do("DELETE", "/v2/app/manifests/"+d, nil).is(202)
					next().do("GET", "/v2/app/manifests/"+name, nil).is(404)
				case 1: // the tag
					next().do("DELETE", "/v2/app/manifests/"+name, nil).is(202)
					next().do("GET", "/v2/app/manifests/"+name, nil).is(404)
				default:
					want[c] = append(want[c], name)
				}
			}
			want[c] = append(want[c], own)
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	if n := conflicts.Load(); n < clients {
		t.Errorf("%d conflicts: the clients were not in each other's way", n)
	}
	t.Logf("%d conflicts", conflicts.Load())
	tags := slices.Sorted(slices.Values(slices.Concat(want...)))
	for i, s := range all {
		var got []string
		for path := "/v2/app/tags/list?n=7"; path != ""; { // longer than a page
			a := s.do("GET", path, nil).is(200)
			var page struct{ Tags []string }
			if err := json.Unmarshal(a.body, &page); err != nil {
				t.Fatal(err)
			}
			got = append(got, page.Tags...)
			path, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
		}
		// What "same" names may have been deleted.
		if got = slices.DeleteFunc(got, func(tag string) bool { return tag == "same" }); !slices.Equal(got, tags) {
			t.Errorf("replica %d has the tags %q, want %q", i, got, tags)
		}
	}
}

// TestASilentJournal: what is held is served and says how old it may be; a miss is no answer, and content by digest is
// as always.
func TestASilentJournal(t *testing.T) {
	all, silent := replicas(t)
	w := all[0]
	body := `{"schemaVersion":2,"mediaType":"` + typeOther + `"}`
	d := digest.FromString(body).String()
	w.do("PUT", "/v2/app/manifests/v", []byte(body), "Content-Type", typeOther).is(201)
	all[1].do("GET", "/v2/app/manifests/v", nil).is(200)
	silent.Store(true)
	for _, path := range []string{"/v2/app/manifests/v", "/v2/app/tags/list", "/v2/_catalog"} {
		got := all[1].do("GET", path, nil).is(200)
		if h := got.header; !strings.HasPrefix(h.Get("Warning"), `299 - "stale: `) ||
			!strings.HasPrefix(h.Get("Trow-Stale"), "journal; age=") {
			t.Errorf("%s: %v", path, h)
		}
	}
	if got := all[1].do("GET", "/v2/app/manifests/"+d, nil).is(200); got.header.Get("Warning") != "" {
		t.Errorf("by digest: %v", got.header)
	}
	// Whether it is here can change.
	if got := all[1].do("HEAD", "/v2/app/manifests/"+d, nil).is(200); got.header.Get("Trow-Stale") == "" {
		t.Errorf("HEAD by digest: %v", got.header)
	}
	for path, status := range map[string]int{"/v2/app/manifests/none": 503, "/v2/none/tags/list": 503,
		"/v2/app/tags/list?n=x": 400, "/v2/_catalog?n=x": 400, "/v2/app/referrers/x": 400} {
		all[1].do("GET", path, nil).is(status) // without the headers of a success
	}
	w.do("PUT", "/v2/app/manifests/w", []byte(body), "Content-Type", typeOther).is(500)
	silent.Store(false)
	for stale := true; stale; time.Sleep(10 * time.Millisecond) { // after a silence no request waits for a second
		stale = all[1].do("GET", "/v2/app/manifests/v", nil).is(200).header.Get("Warning") != ""
	}
	w.do("PUT", "/v2/app/manifests/w", []byte(body), "Content-Type", typeOther).is(201)
}

// TestAMissThatCannotBeConfirmed is no 404: another replica may hold it.
func TestAMissThatCannotBeConfirmed(t *testing.T) {
	all, silent := replicas(t)
	silent.Store(true)
	got := all[0].do("GET", "/v2/app/blobs/"+digest.FromString("x").String(), nil).is(503)
	if got.header.Get("Retry-After") == "" {
		t.Errorf("%v", got.header)
	}
}
