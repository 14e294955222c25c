package registry_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
	"trow/storage"
)

const foreignType = "application/vnd.oci.image.layer.nondistributable.v1.tar"

// TestOnlyLayersAreForeign: with urls, the children of an index and the config of an image need not be here, so that a
// registry accepted an image of which it holds nothing.
func TestOnlyLayersAreForeign(t *testing.T) {
	w := newServer(t)
	config := []byte("{}")
	w.pushBlob("a", config)
	c := desc("x/y", config)
	absent := func(mediaType, more string) string { return desc(mediaType, []byte("absent"), more) }
	for _, far := range []string{absent("x/y", `,"urls":["https://example.com/x"]`), absent(foreignType, ""),
		absent("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "")} {
		for _, mediaType := range []string{typeManifest, typeDockerManifest} {
			w.do("PUT", "/v2/a/manifests/v", []byte(`{"schemaVersion":2,"config":`+far+`,"layers":[]}`), "Content-Type",
				mediaType).code(404, "MANIFEST_BLOB_UNKNOWN")
			w.do("PUT", "/v2/a/manifests/v", []byte(`{"schemaVersion":2,"config":`+c+`,"layers":[`+far+`],"n":"`+
				mediaType+`"}`),
				"Content-Type", mediaType).is(201)
		}
		for _, mediaType := range []string{typeIndex, typeDockerList} {
			w.do("PUT", "/v2/a/manifests/i", []byte(`{"schemaVersion":2,"manifests":[`+far+`]}`),
				"Content-Type", mediaType).
				code(404, "MANIFEST_BLOB_UNKNOWN")
		}
	}
	for _, near := range []string{"application/vnd.example.foreign.tar", "application/vnd.example.nondistributable.tar",
		"application/vnd.oci.image.layer.v1.tar.foreign.gzip", "APPLICATION/vnd.docker.image.rootfs.foreign.diff.tar"} {
		w.do("PUT", "/v2/a/manifests/n", []byte(`{"schemaVersion":2,"config":`+c+`,"layers":[`+absent(near, "")+`]}`),
			"Content-Type", typeManifest).code(404, "MANIFEST_BLOB_UNKNOWN")
	}
	m, ok, err := w.index.Resolve(t.Context(), "a", "v")
	if err != nil || !ok || !w.index.Incomplete("a", m) {
		t.Errorf("an image with a foreign layer is complete (%v, %v)", ok, err)
	}
}

// TestForeignLayersAreRefused by the setting foreign-layers.
func TestForeignLayersAreRefused(t *testing.T) {
	w := newServer(t, func(o *registry.Options) { o.RefuseForeign = true })
	config := []byte("{}")
	w.pushBlob("a", config)
	layer := desc(foreignType, []byte("absent"))
	body := []byte(`{"schemaVersion":2,"config":` + desc("x/y", config) + `,"layers":[` + layer + `]}`)
	w.do("PUT", "/v2/a/manifests/v", body, "Content-Type", typeManifest).code(400, "MANIFEST_INVALID").
		contains("foreign-layers").contains(digest.FromString("absent").String())
	w.pushImage("a", "v", "x")
}

// TestWhatIsHeldMayBePushedAgain, also if today's rules would refuse it: the push heals damaged content. Other bytes,
// another type and another repository are new.
func TestWhatIsHeldMayBePushedAgain(t *testing.T) {
	w := newServer(t, func(o *registry.Options) { o.RefuseForeign = true })
	config := []byte("{}")
	w.pushBlob("a", config)
	w.pushBlob("b", config)
	layer := desc(foreignType, []byte("absent"))
	foreign := []byte(`{"schemaVersion":2,"config":` + desc("x/y", config) + `,"layers":[` + layer + `]}`)
	doubled := []byte(`{"schemaVersion":2,"config":` + desc("x/y", config) + `,"layers":[],"x":1,"x":2,"layers":[]}`)
	untyped := []byte(`{"schemaVersion":2,"config":` + desc("no type", config) + `,"layers":[]}`)
	for _, body := range [][]byte{foreign, doubled, untyped} {
		path := "/manifests/" + digest.FromBytes(body).String()
		w.do("PUT", "/v2/a"+path, body, "Content-Type", typeManifest).code(400, "MANIFEST_INVALID")
		w.hold("a", typeManifest, body) // by an earlier version
		if err := w.index.Quarantine(t.Context(), digest.FromBytes(body), "damaged"); err != nil {
			t.Fatal(err)
		}
		w.do("GET", "/v2/a"+path, nil).is(404)
		w.do("PUT", "/v2/a"+path, body, "Content-Type", typeManifest).is(201)
		w.do("GET", "/v2/a"+path, nil).is(200)
		w.do("PUT", "/v2/a/manifests/tag", body, "Content-Type", typeManifest).is(201)
		w.do("PUT", "/v2/a"+path, append(body, ' '), "Content-Type", typeManifest).is(400)
		w.do("PUT", "/v2/a"+path, body, "Content-Type", "application/vnd.oci.image.manifest.v1+json; x=y").is(201)
		w.do("PUT", "/v2/a"+path, body, "Content-Type", "application/vnd.docker.distribution.manifest.v2+json").is(400)
		w.do("PUT", "/v2/b"+path, body, "Content-Type", typeManifest).is(400)
	}
}

// TestReferencesAreBounded: a manifest of 4 MiB can name 40,000 blobs, each of which is an entry of the Index.
func TestReferencesAreBounded(t *testing.T) {
	w := newServer(t, func(o *registry.Options) { o.MaxReferences = 3 })
	config := []byte("{}")
	w.pushBlob("a", config)
	image := func(layers int) []byte {
		list := strings.TrimSuffix(strings.Repeat(desc("x/y", config)+",", layers), ",")
		return []byte(`{"schemaVersion":2,"config":` + desc("x/y", config) + `,"layers":[` + list + `]}`)
	}
	put := func(tag string, body []byte, mediaType string) *answer {
		return w.do("PUT", "/v2/a/manifests/"+tag, body, "Content-Type", mediaType)
	}
	put("v", image(2), typeManifest).is(201)
	put("v", image(3), typeManifest).code(400, "MANIFEST_INVALID").contains("max-references").contains("at most 3")
	child := image(2)
	put("i", index(child, child, child), typeIndex).is(201)
	put("i", index(child, child, child, child), typeIndex).code(400, "MANIFEST_INVALID")
	blob := `{"digest":"` + digest.FromBytes(config).String() + `"}`
	put("o", fmt.Appendf(nil, `{"blobs":[%s,%s,%s,%s]}`, blob, blob, blob, blob), typeArtifact).
		code(400, "MANIFEST_INVALID")
	w.hold("a", typeManifest, image(9)) // by an earlier version
	put("old", image(9), typeManifest).is(201)
}

// TestAnIndexOfAnIncompleteImageIsIncomplete, until the layer is pushed.
func TestAnIndexOfAnIncompleteImageIsIncomplete(t *testing.T) {
	w := newServer(t)
	config := []byte("{}")
	w.pushBlob("a", config)
	image := []byte(`{"schemaVersion":2,"config":` + desc("x/y", config) + `,"layers":[` +
		desc(foreignType, []byte("far")) + `]}`)
	w.do("PUT", "/v2/a/manifests/v", image, "Content-Type", typeManifest).is(201)
	whole, _ := w.pushImage("a", "whole", "x")
	w.do("PUT", "/v2/a/manifests/i", index(whole, image), "Content-Type", typeIndex).is(201)
	w.do("PUT", "/v2/a/manifests/j", index(whole), "Content-Type", typeIndex).is(201)
	want := func(all map[string]bool) {
		t.Helper()
		for tag, incomplete := range all {
			m, ok, err := w.index.Resolve(t.Context(), "a", tag)
			if err != nil || !ok || w.index.Incomplete("a", m) != incomplete {
				t.Errorf("%s: incomplete is not %v (%v, %v)", tag, incomplete, ok, err)
			}
		}
	}
	want(map[string]bool{"v": true, "i": true, "whole": false, "j": false})
	w.pushBlob("a", []byte("far"))
	want(map[string]bool{"v": false, "i": false, "whole": false, "j": false})
	if w.index.Incomplete("b", storage.Descriptor{}) || w.index.Incomplete("a", storage.Descriptor{}) {
		t.Error("what is not here is incomplete")
	}
}

// TestSparseIndexes: an index of which only some manifests are here is accepted where the setting says so, and always
// of an import, which comes over the socket.
func TestSparseIndexes(t *testing.T) {
	w := newServer(t, func(o *registry.Options) { o.Sparse = func(repo string) bool { return repo == "sparse" } })
	for _, repo := range []string{"sparse", "whole"} {
		here, _ := w.pushImage(repo, "amd64", "x")
		partial := index(here, []byte("absent"))
		absent := digest.FromString("absent").String()
		if repo == "whole" {
			w.put(repo, "v", partial).code(404, "MANIFEST_BLOB_UNKNOWN")
			continue
		}
		w.put(repo, "v", partial).is(201)
		w.do("GET", "/v2/sparse/manifests/v", nil).is(200).equals(string(partial))
		w.do("GET", "/v2/sparse/manifests/"+absent, nil).code(404, "MANIFEST_UNKNOWN")
		w.put(repo, "none", index([]byte("absent"))).code(404, "MANIFEST_BLOB_UNKNOWN") // nothing of it is here
		m, _, err := w.index.Resolve(t.Context(), repo, "v")
		if err != nil || !w.index.Incomplete(repo, m) {
			t.Errorf("it is complete (%v)", err)
		}
		image := []byte(`{"schemaVersion":2,"config":` + desc("x/y", []byte("absent")) + `,"layers":[]}`)
		w.put(repo, "image", image).code(404, "MANIFEST_BLOB_UNKNOWN") // an image is whole or not here
	}
	w = newServer(t, func(o *registry.Options) { o.Auth = socket{open{}} })
	here, _ := w.pushImage("a", "amd64", "x")
	w.put("a", "v", index(here, []byte("absent"))).is(201)
}

// socket is an Authorizer for which every client is the administration socket.
type socket struct{ open }

func (socket) Identify(*http.Request) (*auth.Identity, error) { return auth.Socket, nil }

// TestAForeignLayerThatIsHere is served from here, so that no warning says otherwise.
func TestAForeignLayerThatIsHere(t *testing.T) {
	w := newServer(t)
	config, layer := []byte("{}"), []byte("layer")
	w.pushBlob("a", config)
	w.pushBlob("a", layer)
	body := []byte(`{"schemaVersion":2,"config":` + desc("x/y", config) + `,"layers":[` + desc(foreignType, layer) +
		`]}`)
	w.do("PUT", "/v2/a/manifests/v", body, "Content-Type", typeManifest).is(201).has("Warning", "")
	body = []byte(strings.Replace(string(body), `"layers":[`, `"layers":[`+desc(foreignType, []byte("absent"))+",", 1))
	if a := w.do("PUT", "/v2/a/manifests/v", body, "Content-Type", typeManifest).
		is(201); len(a.header["Warning"]) != 1 {
		t.Errorf("warnings: %q", a.header["Warning"])
	}
}

// TestPlatformsOfAnIndexInMemory: they are known once the index was read, and never read for the question.
func TestPlatformsOfAnIndexInMemory(t *testing.T) {
	w := newServer(t, func(o *registry.Options) { o.Sparse = func(string) bool { return true } })
	body, here := w.pushImage("a", "v", "x")
	absent := []digest.Digest{digest.FromString("none"), digest.FromString("arm"), digest.FromString("plain")}
	all := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s,`+
		`{"mediaType":%[3]q,"digest":%[4]q,"size":1,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}},`+
		`{"mediaType":%[3]q,"digest":%[5]q,"size":1}]}`, typeIndex, desc(typeManifest, body), typeManifest, absent[1],
		absent[2])
	w.do("PUT", "/v2/a/manifests/sparse", []byte(all), "Content-Type", typeIndex).is(201)
	index := digest.FromString(all)
	if got := w.registry.(*registry.Registry).Images().
		Platforms(index, absent); !slices.Equal(got, []string{"", "", ""}) {
		t.Errorf("before the index was read: %q", got)
	}
	w.do("GET", "/v2/a/manifests/sparse", nil).is(200)
	got := w.registry.(*registry.Registry).Images().Platforms(index, absent)
	if !slices.Equal(got, []string{"", "linux/arm64/v8", ""}) {
		t.Errorf("after it was read: %q", got)
	}
	m, _, err := w.index.Resolve(t.Context(), "a", "sparse")
	if got := w.index.Absent("a", m, 1); err != nil || !slices.Equal(got, absent[1:2]) {
		t.Errorf("absent: %v %v", got, err)
	}
	if got := w.index.Absent("a", m, 9); !slices.Equal(got, absent[1:]) || slices.Contains(got, here) {
		t.Errorf("absent: %v", got)
	}
	if got := w.index.Absent("b", m, 9); got != nil {
		t.Errorf("in another repository: %v", got)
	}
}
