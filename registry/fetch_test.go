package registry_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	cacheof "trow/registry/mirror"
	"trow/registry/upstream"
)

// whole is push with the blobs of the image.
func (o *origin) whole(repo, tag, content string) (body []byte, d digest.Digest) {
	o.blob(repo, []byte(content))
	o.blob(repo, []byte("layer "+content))
	return o.push(repo, tag, content)
}

// put makes a tag name a manifest there.
func (o *origin) put(repo, tag string, body []byte) digest.Digest {
	d := digest.FromBytes(body)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.manifests[repo+"/manifests/"+tag], o.manifests[repo+"/manifests/"+d.String()] = body, body
	return d
}

// drop makes the origin lose a blob.
func (o *origin) drop(repo, content string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.blobs, repo+"/blobs/"+digest.FromString(content).String())
}

// fetch fetches an image of the repository team/app of quay.io.
func (w *server) fetch(ref string, platforms ...cacheof.Platform) error {
	return w.registry.(*registry.Registry).Fetch(w.Context(), "f/quay.io/team/app", ref, platforms, nil)
}

// TestFetchAWholeImage, of all platforms or of some, without asking for anything twice.
func TestFetchAWholeImage(t *testing.T) {
	w, o := newCache(t, "")
	amd, _ := o.whole("team/app", "amd", "amd64")
	arm, _ := o.whole("team/app", "arm", "arm64")
	platform := func(arch string) string { return `,"platform":{"os":"linux","architecture":"` + arch + `"}` }
	all := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s,%s]}`, typeIndex,
		desc(typeManifest, amd, platform("amd64")), desc(typeManifest, arm, platform("arm64")))
	o.put("team/app", "v", all)
	holds := func(content string, yes bool) {
		t.Helper()
		o.set(503, nil)
		defer o.set(0, nil)
		want := map[bool]int{true: 200, false: 503}[yes]
		w.do("GET", "/v2/f/quay.io/team/app/blobs/"+digest.FromString("layer "+content).String(), nil).is(want)
	}
	if err := w.fetch("v", cacheof.Platform{OS: "linux", Architecture: "arm64"}); err != nil {
		t.Fatal(err)
	}
	holds("arm64", true)
	err := w.fetch("v", cacheof.Platform{OS: "plan9", Architecture: "arm64"})
	if err == nil || !strings.Contains(err.Error(), "no manifest for the platforms") {
		t.Errorf("%v", err)
	}
	o.requests()
	got := map[digest.Digest]int64{}
	err = w.registry.(*registry.Registry).Fetch(t.Context(), "f/quay.io/team/app", "v", nil,
		func(d digest.Digest, n, size int64) {
			if n > size || n < got[d] {
				t.Errorf("%s: %d after %d of %d", d, n, got[d], size)
			}
			got[d] = n
		})
	if err != nil || len(got) != 7 || got[digest.FromString("layer amd64")] != int64(len("layer amd64")) {
		t.Fatalf("%v, progress %v", err, got)
	}
	asked := strings.Split(o.requests(), "\n")
	slices.Sort(asked)
	want := []string{"GET /v2/team/app/blobs/" + digest.FromString("amd64").String(),
		"GET /v2/team/app/blobs/" + digest.FromString("layer amd64").String(),
		"GET /v2/team/app/manifests/" + digest.FromBytes(amd).String(),
		"GET /v2/team/app/referrers/" + digest.FromBytes(amd).String(), // its signatures: there are none
		"HEAD /v2/team/app/manifests/" + strings.Replace(digest.FromBytes(amd).String(), ":", "-", 1)}
	slices.Sort(want)
	if !slices.Equal(asked, want) {
		t.Errorf("the upstream was asked\n%s\nwant\n%s", strings.Join(asked, "\n"), strings.Join(want, "\n"))
	}
	holds("amd64", true)
	if err := w.fetch(digest.FromBytes(all).String()); err != nil || o.requests() != "" {
		t.Errorf("a second time: %v", err)
	}
}

// TestFetchNamesWhatIsMissing, and keeps the rest.
func TestFetchNamesWhatIsMissing(t *testing.T) {
	w, o := newCache(t, "")
	_, d := o.whole("team/app", "v", "1")
	o.drop("team/app", "layer 1")
	err := w.fetch("v")
	for _, part := range []string{"f/quay.io/team/app@" + d.String(), "of 3 known parts are missing",
		digest.FromString("layer 1").String(), "not found"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v lacks %s", err, part)
		}
	}
	if err := w.fetch("absent"); err == nil || !strings.Contains(err.Error(), "absent: not found") {
		t.Errorf("%v", err)
	}
	if err := w.registry.(*registry.Registry).Fetch(t.Context(), "own/app", "v", nil, nil); err == nil {
		t.Error("a repository without an upstream is fetched")
	}
}

// TestFetchWithoutRoom fails, and evicts nothing of the image itself.
func TestFetchWithoutRoom(t *testing.T) {
	w, o, _ := newBounded(t, 300_000)
	var layers []string
	for n := range 5 {
		content, _ := o.layerOf("team/app", n) // 110 kB each
		layers = append(layers, desc("application/vnd.oci.image.layer.v1.tar", content))
	}
	config := []byte("{}")
	o.blob("team/app", config)
	o.put("team/app", "v", fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`,
		typeManifest, desc("application/vnd.oci.image.config.v1+json", config), strings.Join(layers, ",")))
	if err := w.fetch("v"); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("%v", err)
	}
	// Nothing is left in use: the next image finds room.
	o.whole("team/app", "small", "1")
	for n := range 5 {
		content, d := o.layerOf("team/app", 10+n)
		w.do("GET", "/v2/f/quay.io/team/app/blobs/"+d.String(), nil).is(200).equals(string(content))
	}
	if err := w.fetch("small"); err != nil {
		t.Error(err)
	}
}

// TestFetchAndClientsShareADownload.
func TestFetchAndClientsShareADownload(t *testing.T) {
	w, o := newCache(t, "")
	content := strings.Repeat("0123456789abcdef", 64<<10)
	o.whole("team/app", "v", content)
	rest := make(chan struct{})
	o.mu.Lock()
	o.rest = rest
	o.mu.Unlock()
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if err := w.fetch("v"); err != nil {
				t.Error(err)
			}
		})
	}
	path := "/v2/f/quay.io/team/app/blobs/" + digest.FromString("layer "+content).String()
	wg.Go(func() { w.do("GET", path, nil).is(200) })
	close(rest)
	wg.Wait()
	if got := o.requests(); strings.Count(got, "/blobs/") != 2 ||
		strings.Count(got, "GET /v2/team/app/manifests/") != 1 {
		t.Errorf("the upstream was asked\n%s", got)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

// TestATagMovesOnlyToAWholeImage where only what is held may run.
func TestATagMovesOnlyToAWholeImage(t *testing.T) {
	for _, mayRun := range []upstream.MayRun{upstream.MayRunHeld, upstream.MayRunDeny} {
		w, o := newCacheEntry(t, "always", nil, func(*registry.Options) {},
			func(e *upstream.Entry) { e.MayRun = mayRun })
		at := "/v2/f/quay.io/team/app/manifests/v"
		first, d1 := o.whole("team/app", "v", "1")
		w.do("GET", at, nil).is(200).equals(string(first)).has("Trow-Stale", "") // a new tag is recorded at once
		_, d2 := o.whole("team/app", "v", "2")
		o.drop("team/app", "layer 2")
		// As long as a layer is missing, the tag stays.
		a := w.do("GET", at, nil).is(200).equals(string(first)).has("Trow-Stale", "upstream")
		if text := a.header.Get("Warning"); !strings.Contains(text, "app v: it moves when its new image is here") ||
			!strings.Contains(text, d2.String()) {
			t.Errorf("Warning %s", text)
		}
		until(t, "the layer is asked for", func() bool {
			return strings.Contains(o.requests(), "GET /v2/team/app/blobs/"+digest.FromString("layer 2").String())
		})
		a = w.do("HEAD", at, nil).is(200).has("Trow-Stale", "upstream", "Docker-Content-Digest", d1.String())
		if text := a.header.Get("Warning"); !strings.Contains(text, d2.String()) {
			t.Errorf("Warning %s", text)
		}
		third, _ := o.whole("team/app", "v", "3")
		// The attempt in the background may have just asked again: then the first one here gets that answer as well.
		until(t, "the new image is here", func() bool { return w.fetch("v") == nil })
		w.do("GET", at, nil).is(200).equals(string(third)).has("Trow-Stale", "", "Warning", "")
	}
}

// TestATagMovesInTheBackground: without a call of Fetch.
func TestATagMovesInTheBackground(t *testing.T) {
	w, o := newCacheEntry(t, "always", nil, func(*registry.Options) {},
		func(e *upstream.Entry) { e.MayRun = upstream.MayRunHeld })
	at := "/v2/f/quay.io/team/app/manifests/v"
	first, _ := o.whole("team/app", "v", "1")
	w.do("GET", at, nil).is(200).equals(string(first))
	second, _ := o.whole("team/app", "v", "2")
	until(t, "the tag moves", func() bool { return string(w.do("GET", at, nil).is(200).body) == string(second) })
	o.set(503, nil)
	for _, content := range []string{"2", "layer 2"} {
		w.do("GET", "/v2/f/quay.io/team/app/blobs/"+digest.FromString(content).String(), nil).is(200)
	}
}
