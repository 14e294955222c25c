package registry_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	cacheof "trow/registry/mirror"
)

var linuxAMD = []cacheof.Platform{{OS: "linux", Architecture: "amd64"}}

// api is the registry of a server.
func (w *server) api() *registry.Registry { return w.registry.(*registry.Registry) }

// index makes a tag name an index of two platforms there, all of whose parts are there.
func (o *origin) index(repo, tag, content string) digest.Digest {
	amd, _ := o.whole(repo, "amd-"+tag, content+" amd64")
	arm, _ := o.whole(repo, "arm-"+tag, content+" arm64")
	platform := func(arch string) string { return `,"platform":{"os":"linux","architecture":"` + arch + `"}` }
	return o.put(repo, tag, fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s,%s]}`, typeIndex,
		desc(typeManifest, amd, platform("amd64")), desc(typeManifest, arm, platform("arm64"))))
}

// forget makes the origin lose what it has at a path.
func (o *origin) forget(path string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.manifests, path)
}

// held lists what a selection has: name, state, and how much.
func (w *server) held(sel registry.Selection) (all []string, total registry.HeldTotal) {
	w.Helper()
	total, err := w.api().HeldImages(w.Context(), sel, func(i registry.HeldImage) {
		all = append(all, fmt.Sprintf("%s %s %t %s", strings.Join(i.Names(), "+"), i.State, i.Whole,
			strings.Join(i.Platforms, ",")))
	})
	if err != nil {
		w.Fatal(err)
	}
	slices.Sort(all)
	return all, total
}

// evict evicts a selection, and returns what it says.
func (w *server) evict(sel registry.Selection, dry bool) (all []string, total registry.EvictTotal) {
	w.Helper()
	total, err := w.api().EvictImages(w.Context(), sel, dry, func(i registry.EvictedImage) {
		all = append(all, strings.Join(i.Names(), "+")+" "+i.Why)
	})
	if err != nil {
		w.Fatal(err)
	}
	slices.Sort(all)
	return all, total
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestWarm: an image is here as a whole, by any of its names, with its signatures; what is here is not fetched again.
func TestWarm(t *testing.T) {
	w, o, _ := newBounded(t, 1<<20)
	d := o.index("team/app", "v", "1")
	signature := []byte(`{"schemaVersion":2,"mediaType":"` + typeManifest + `","config":` +
		desc("application/vnd.oci.image.config.v1+json", []byte("{}"), "") + `,"layers":[]}`)
	o.blob("team/app", []byte("{}"))
	sig := strings.Replace(d.String(), ":", "-", 1) + ".sig"
	o.put("team/app", sig, signature)
	var here, known int64
	progress := func(h, k int64) {
		if h < here || h > k {
			t.Errorf("%d of %d after %d of %d", h, k, here, known)
		}
		here, known = h, k
	}
	done, err := w.api().Warm(t.Context(), "quay.io/team/app:v", linuxAMD, progress)
	if err != nil || done.Digest != d || done.Repository != "f/quay.io/team/app" || done.Host != "quay.io" ||
		done.Fetched != int64(len("1 amd64layer 1 amd64")) || done.Bytes != here || here != known ||
		len(done.Notes) != 0 {
		t.Fatalf("%+v, %v; %d of %d", done, err, here, known)
	}
	w.do("GET", "/v2/team/app/manifests/"+sig+"?ns=quay.io", nil, onlyHeld...).is(200)
	for arch, want := range map[string]int{"amd64": 200, "arm64": 404} {
		layer := digest.FromString("layer 1 " + arch).String()
		w.do("GET", "/v2/team/app/blobs/"+layer+"?ns=quay.io", nil, onlyHeld...).is(want)
	}
	w.pushImage("own/app", "v", "own")
	for image, want := range map[string]string{
		"trow.kube-public:31000/own/app:v": "",
		"trow.kube-public:31000/own/app:w": "is an image of this registry, which does not hold it; push it",
		"quay.io/team/app:none":            "quay.io/team/app:none: not found",
		"nginx":                            "docker.io/library/nginx:latest: refused: no entry of upstreams names it; ",
		"a b":                              "is not a valid image",
	} {
		_, err := w.api().Warm(t.Context(), image, linuxAMD, nil)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", image, err)
		}
	}
	// By the name that it has here, while the upstream is down.
	o.set(503, nil)
	done, err = w.api().Warm(t.Context(), "trow.kube-public:31000/f/quay.io/team/app:v", linuxAMD, nil)
	if err != nil || done.Fetched != 0 || done.Image != "quay.io/team/app:v" {
		t.Errorf("%+v, %v", done, err)
	}
}

// TestWarmATagThatIsGone says that it is what it was.
func TestWarmATagThatIsGone(t *testing.T) {
	w, o, _ := newBoundedWith(t, 1<<20, "always")
	o.whole("team/gone", "v", "gone")
	if done, err := w.api().Warm(t.Context(), "quay.io/team/gone:v", nil, nil); err != nil || len(done.Notes) > 0 {
		t.Errorf("%+v, %v", done, err)
	}
	o.forget("team/gone/manifests/v")
	done, err := w.api().Warm(t.Context(), "quay.io/team/gone:v", nil, nil)
	if err != nil || len(done.Notes) != 1 || !strings.Contains(done.Notes[0], "what was here before: ") ||
		!strings.Contains(done.Notes[0], "not found") {
		t.Errorf("%+v, %v", done, err)
	}
}

// onlyHeld are the headers of a request that no upstream is asked for.
var onlyHeld = []string{"Cache-Control", "only-if-cached"}

// TestWhatTheCacheHolds is listed with how much of it is here, and why it stays.
func TestWhatTheCacheHolds(t *testing.T) {
	w, o, bound := newBounded(t, 1<<20)
	o.index("team/app", "v", "1")
	if _, err := w.api().Warm(t.Context(), "quay.io/team/app:v", linuxAMD, nil); err != nil {
		t.Fatal(err)
	}
	_, d := o.whole("team/other", "v", "2")
	w.do("GET", "/v2/team/other/manifests/"+d.String()+"?ns=quay.io", nil).is(200) // and nothing of it
	w.pushImage("f/quay.io/team/in", "v", "imported")
	w.pushImage("f/docker.io/library/nginx", "1", "nginx")
	w.pushImage("f/team/old", "v", "of an earlier version")
	bound.Look(t.Context())
	all, total := w.held(registry.Selection{})
	same(t, "all", all, "docker.io/library/nginx:1 imported true ", "quay.io/team/app:v cached true linux/amd64",
		"quay.io/team/in:v imported true ", "quay.io/team/other@"+d.String()+" cached false ")
	if total.Images != 4 || total.Limit != 1<<20 || total.Used == 0 || total.Imported == 0 ||
		total.Bytes != total.Used+total.Imported {
		t.Errorf("%+v", total)
	}
	for below, want := range map[string]int{"quay.io": 3, "quay.io/team": 3, "quay.io/team/in": 1, "quay.io/te": 0,
		"nginx": 1, "library/nginx": 1, "docker.io": 1, "ghcr.io": 0, "index.docker.io/": 1, "docker.io/nginx": 1,
		"library": 1, "docker.io/library": 1, "f/quay.io": 3, "f/quay.io/team/in": 1, "f/docker.io/nginx": 1,
		"f/docker.io/library": 1, "f/team": 0, "trow.kube-public:31000/f/quay.io/team": 3,
		"trow.kube-public:31000/f/index.docker.io/nginx": 1, "trow.kube-public:31000/team": 0,
		"ghcr.io/f/quay.io": 0} {
		if all, _ := w.held(registry.Selection{Below: below}); len(all) != want {
			t.Errorf("below %s: %v", below, all)
		}
	}
	all, _ = w.held(registry.Selection{Images: []string{"nginx:1", "quay.io/team/other@" + d.String(), "nginx:2"}})
	if len(all) != 2 {
		t.Errorf("by name: %v", all)
	}
	if all, _ := w.held(registry.Selection{Before: time.Now()}); len(all) != 2 {
		t.Errorf("not used in this hour: %v", all)
	}
	for _, sel := range []registry.Selection{{Below: "a b"}, {Images: []string{"a b"}},
		{Images: []string{"trow.kube-public:31000/own/app"}}} {
		if _, err := w.api().HeldImages(t.Context(), sel, nil); err == nil {
			t.Errorf("%+v: no error", sel)
		}
	}
}

// TestEvict: the image goes, with what nothing else needs, and its bytes at once; what is imported or read stays.
func TestEvict(t *testing.T) {
	w, o, bound := newBounded(t, 1<<20)
	empty := w.bytesOf()
	o.index("team/app", "v", "1")
	o.index("team/app", "w", "2")
	shared, _ := o.whole("team/app", "amd-too", "1 amd64") // a tag of its own for an image of the first
	o.whole("team/other", "v", "1 amd64")                  // the same blobs in another repository
	for _, image := range []string{"app:v", "app:w", "other:v"} {
		if _, err := w.api().Warm(t.Context(), "quay.io/team/"+image, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	w.pushImage("f/quay.io/team/in", "v", "imported")
	before := w.bytesOf()
	said, dry := w.evict(registry.Selection{Images: []string{"f/quay.io/team/app:v"}}, true)
	same(t, "dry run, as it is named here", said, "quay.io/team/app:v ")
	v := registry.Selection{Images: []string{"quay.io/team/app:v", "quay.io/team/app:x"}}
	said, dry = w.evict(v, true)
	same(t, "dry run", said, "quay.io/team/app:v ")
	if dry.Evicted != 1 || len(dry.Absent) != 1 || w.bytesOf() != before {
		t.Errorf("%+v; %d bytes, %d before", dry, w.bytesOf(), before)
	}
	_, done := w.evict(v, false)
	if done.Freed != dry.Freed || done.Freed != before-w.bytesOf() || done.Freed == 0 || done.Reading != 0 {
		t.Errorf("%+v; %d bytes, %d before", done, w.bytesOf(), before)
	}
	all, _ := w.held(registry.Selection{Below: "quay.io"})
	same(t, "after it", all, "quay.io/team/app:w cached true linux/amd64,linux/arm64",
		"quay.io/team/in:v imported true ", "quay.io/team/other:v cached true ")
	at := "/v2/f/quay.io/team/"
	w.do("GET", at+"other/blobs/"+digest.FromString("layer 1 amd64").String(), nil, onlyHeld...).is(200)
	w.do("GET", at+"app/blobs/"+digest.FromString("layer 1 amd64").String(), nil, onlyHeld...).is(404)
	w.do("GET", at+"app/manifests/"+digest.FromBytes(shared).String(), nil, onlyHeld...).is(404)
	w.do("GET", at+"app/manifests/v", nil, onlyHeld...).is(404)
	w.do("GET", at+"app/manifests/v", nil).is(200) // it comes again

	// One that is read stays as a whole.
	release := bound.Use(digest.FromString("layer 2 arm64"))
	said, done = w.evict(registry.Selection{Below: "quay.io"}, false)
	if release(); len(said) != 4 || done.Evicted != 2 || done.Stay != 2 {
		t.Errorf("%q %+v", said, done)
	}
	for _, line := range said {
		if strings.HasPrefix(line, "quay.io/team/app:w ") != strings.Contains(line, "a client is reading it") ||
			strings.HasPrefix(line, "quay.io/team/in:v ") != strings.Contains(line, "trow rm f/quay.io/team/in@") {
			t.Error(line)
		}
	}
	if _, done = w.evict(registry.Selection{Below: "quay.io"}, false); done.Evicted != 1 || done.Stay != 1 {
		t.Errorf("%+v", done)
	}
	w.do("GET", at+"in/manifests/v", nil).is(200)
	if stats := bound.Stats(); stats.Used != 0 || stats.Contents != 0 || stats.Evicted == 0 {
		t.Errorf("%+v", stats)
	}
	w.do("DELETE", at+"in/manifests/"+imageDigest(w, at+"in/manifests/v"), nil).is(202)
	if left := w.bytesOf(); left < empty {
		t.Errorf("%d bytes, %d before anything was fetched", left, empty)
	}
	if _, err := w.api().EvictImages(t.Context(), registry.Selection{}, false, nil); err == nil {
		t.Error("without a selection")
	}
}

// TestEvictWhatAnotherRepositoryHolds: the cache still has it, and counts it.
func TestEvictWhatAnotherRepositoryHolds(t *testing.T) {
	w, o, bound := newBounded(t, 1<<20)
	for _, repo := range []string{"team/app", "team/other"} {
		o.whole(repo, "v", "1")
		if _, err := w.api().Warm(t.Context(), "quay.io/"+repo+":v", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	before, used := w.bytesOf(), bound.Stats().Used
	_, done := w.evict(registry.Selection{Images: []string{"quay.io/team/app:v"}}, false)
	if got := bound.Stats().Used; done.Evicted != 1 || got != used || w.bytesOf() != before {
		t.Errorf("%+v; %d bytes are used, %d before", done, got, used)
	}
	// What was also pushed is not of the cache.
	w.pushImage("own/app", "v", "1")
	w.evict(registry.Selection{Images: []string{"quay.io/team/other:v"}}, false)
	if got := bound.Stats().Used; got != 0 {
		t.Errorf("%d bytes are used, want none", got)
	}
}

func imageDigest(w *server, path string) string {
	return w.do("HEAD", path, nil).is(200).header.Get("Docker-Content-Digest")
}

// TestEvictWhatIsOld, and what belongs to no image.
func TestEvictWhatIsOld(t *testing.T) {
	w, o, bound := newBounded(t, 1<<20)
	o.whole("team/app", "v", "1")
	if _, err := w.api().Warm(t.Context(), "quay.io/team/app:v", nil, nil); err != nil {
		t.Fatal(err)
	}
	stray := o.blob("team/app", []byte("of a manifest that was never asked for"))
	w.do("GET", "/v2/f/quay.io/team/app/blobs/"+stray.String(), nil).is(200)
	if said, done := w.evict(registry.Selection{Before: time.Now().Add(-2 * time.Hour)}, false); len(said) != 0 ||
		done.Freed != 0 {
		t.Errorf("%q %+v", said, done)
	}
	if said, done := w.evict(registry.Selection{Before: time.Now().Add(2 * time.Hour)}, false); len(said) != 1 ||
		done.Freed == 0 {
		t.Errorf("%q %+v", said, done)
	}
	if stats := bound.Stats(); stats.Contents != 0 {
		t.Errorf("%+v", stats)
	}
}

// TestForeignLayersOfAnImage: warm and the list say that an image has layers that are never here, and so no verdict
// takes it for held.
func TestForeignLayersOfAnImage(t *testing.T) {
	w, o, _ := newBounded(t, 1<<20)
	config := []byte("{}")
	o.blob("team/app", config)
	body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, typeManifest,
		desc("application/vnd.oci.image.config.v1+json", config, ""),
		desc(foreignType, []byte("far"), `,"urls":["https://example.com/x"]`))
	o.put("team/app", "v", body)
	o.put("team/app", "multi", fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, typeIndex,
		desc(typeManifest, body, `,"platform":{"os":"linux","architecture":"amd64"}`)))
	for _, image := range []string{"quay.io/team/app:v", "quay.io/team/app:multi"} {
		done, err := w.api().Warm(t.Context(), image, linuxAMD, nil)
		if err != nil || len(done.Notes) != 1 || !strings.Contains(done.Notes[0], image+": it has foreign layers") {
			t.Errorf("%s: %+v, %v", image, done, err)
		}
		_, err = w.api().HeldImages(t.Context(), registry.Selection{Images: []string{image}},
			func(i registry.HeldImage) {
				if !i.Foreign || !i.Whole {
					t.Errorf("%+v", i)
				}
			})
		if err != nil {
			t.Error(err)
		}
	}
	o.whole("team/app", "w", "1")
	done, err := w.api().Warm(t.Context(), "quay.io/team/app:w", linuxAMD, nil)
	if err != nil || len(done.Notes) > 0 {
		t.Errorf("%+v, %v", done, err)
	}
	plan9 := []cacheof.Platform{{OS: "plan9", Architecture: "amd64"}}
	_, err = w.api().Warm(t.Context(), "quay.io/team/app:multi", plan9, nil)
	if err == nil || strings.Contains(err.Error(), "parts are missing") ||
		!strings.Contains(err.Error(), "the platforms that are wanted, plan9/amd64: it is for linux/amd64") {
		t.Error(err)
	}
}

// TestWhatMayRunGoesLast: an image that a verdict has allowed is not evicted for what is fetched next, and no part
// of it is.
func TestWhatMayRunGoesLast(t *testing.T) {
	w, o, bound := newBounded(t, 1<<20)
	bound.Look(t.Context())
	d := o.index("team/app", "v", "1")
	for _, image := range []string{"app:v", "other:v"} {
		if image == "other:v" {
			o.whole("team/other", "v", strings.Repeat("2", 300<<10))
		}
		if _, err := w.api().Warm(t.Context(), "quay.io/team/"+image, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	images := w.api().Images()
	m, _ := images.Lookup("f/quay.io/team/app", "v")
	images.Used("f/quay.io/team/app", m)
	o.whole("team/third", "v", strings.Repeat("3", 300<<10))
	if _, err := w.api().Warm(t.Context(), "quay.io/team/third:v", nil, nil); err != nil || bound.Stats().Evicted == 0 {
		t.Fatalf("%v; %+v", err, bound.Stats())
	}
	if m, ok := images.Lookup("f/quay.io/team/app", d.String()); !ok || !images.Whole("f/quay.io/team/app", m) {
		t.Error("what may run was evicted")
	}
	if m, ok := images.Lookup("f/quay.io/team/other", "v"); ok && images.Whole("f/quay.io/team/other", m) {
		t.Error("what was used before is here as a whole")
	}
}

// TestAPullWhileItIsEvicted gets every byte, from here or from the upstream.
func TestAPullWhileItIsEvicted(t *testing.T) {
	w, o, _ := newBounded(t, 10<<20)
	content, d := o.layerOf("team/app", 1)
	w.do("GET", "/v2/f/quay.io/team/app/blobs/"+d.String(), nil).is(200)
	resp, err := http.Get(w.url + "/v2/f/quay.io/team/app/blobs/" + d.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	half := make([]byte, len(content)/2)
	if _, err := io.ReadFull(resp.Body, half); err != nil {
		t.Fatal(err)
	}
	w.evict(registry.Selection{Below: "quay.io"}, false)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || string(half)+string(rest) != string(content) {
		t.Errorf("%d of %d bytes, %v", len(half)+len(rest), len(content), err)
	}
}

// TestOnlyIfCached is answered with what is held, and the upstream is not asked.
func TestOnlyIfCached(t *testing.T) {
	w, o := newCache(t, "always")
	body, d := o.whole("team/app", "v", "1")
	blob := "/v2/team/app/blobs/" + digest.FromString("layer 1").String() + "?ns=quay.io"
	held := []string{"Cache-Control", "max-age=0, Only-If-Cached"}
	for _, method := range []string{"GET", "HEAD"} {
		w.do(method, "/v2/team/app/manifests/v?ns=quay.io", nil, held...).is(404)
		w.do(method, "/v2/f/quay.io/team/app/manifests/"+d.String(), nil, held...).is(404)
		w.do(method, blob, nil, held...).is(404)
	}
	if got := o.requests(); got != "" {
		t.Errorf("the upstream was asked\n%s", got)
	}
	w.do("GET", "/v2/team/app/manifests/v?ns=quay.io", nil).is(200)
	w.do("GET", blob, nil).is(200)
	o.requests()
	w.do("GET", "/v2/team/app/manifests/v?ns=quay.io", nil, held...).is(200).equals(string(body))
	w.do("GET", blob, nil, held...).is(200).equals("layer 1")
	if got := o.requests(); got != "" {
		t.Errorf("the upstream was asked\n%s", got)
	}
}

// TestAnIndexOfAnotherRegistryMayBeSparse when it is imported: its images are here for some platforms.
func TestAnIndexOfAnotherRegistryMayBeSparse(t *testing.T) {
	w := newServer(t)
	for repo, want := range map[string]int{"f/docker.io/library/nginx": 201, "team/app": 400} {
		one, _ := w.pushImage(repo, "one", "1")
		all := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s,%s]}`, typeIndex,
			desc(typeManifest, one, ""), desc(typeManifest, []byte("not here"), ""))
		status := w.do("PUT", "/v2/"+repo+"/manifests/v", all, "Content-Type", typeIndex).status
		if status != want && (want != 400 || status != 404) {
			t.Errorf("%s: %d", repo, status)
		}
	}
}
