package registry_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/storage"
)

func TestManifestRoundTrip(t *testing.T) {
	w := newServer(t)
	body, d := w.pushImage("a/b", "v1", "one")
	for _, ref := range []string{"v1", d.String()} {
		accept := []string{"Accept", "application/vnd.docker.distribution.manifest.v1+json"}
		got := w.do("GET", "/v2/a/b/manifests/"+ref, nil, accept...).is(200).
			has("Content-Type", typeManifest, "Docker-Content-Digest", d.String(), "Content-Encoding", "").
			has("ETag", `"`+d.String()+`"`).
			equals(string(body))
		head := w.do("HEAD", "/v2/a/b/manifests/"+ref, nil).is(200).equals("")
		for _, h := range []string{"Content-Type", "Content-Length", "Docker-Content-Digest", "ETag", "Cache-Control"} {
			head.has(h, got.header.Get(h))
		}
	}
	w.do("GET", "/v2/a/b/manifests/v1", nil).has("Cache-Control", "")
	w.do("GET", "/v2/a/b/manifests/"+d.String(), nil).has("Cache-Control", "max-age=31536000, immutable")
	w.do("GET", "/v2/a/b/manifests/v1", nil, "If-None-Match", `"`+d.String()+`"`).is(304).equals("")
	w.do("HEAD", "/v2/a/b/manifests/v1", nil, "If-None-Match", `"x", W/"`+d.String()+`"`).is(304)
	w.do("GET", "/v2/a/b/manifests/v1", nil, "If-None-Match", `"x"`).is(200)
	w.do("GET", "/v2/a/b/manifests/v2", nil).code(404, "MANIFEST_UNKNOWN")
	w.do("HEAD", "/v2/a/b/manifests/v2", nil).is(404)
	w.do("GET", "/v2/a/c/manifests/"+d.String(), nil).code(404, "MANIFEST_UNKNOWN") // in another repository
}

func TestManifestPutAnswers(t *testing.T) {
	w := newServer(t)
	config, layer := []byte("{}"), []byte("l")
	w.pushBlob("a", config)
	w.pushBlob("a", layer)
	body := image(config, layer)
	d, d512 := digest.FromBytes(body), digest.SHA512.FromBytes(body)
	put := func(ref string, headers ...string) *answer {
		return w.do("PUT", "/v2/a/manifests/"+ref, body, headers...)
	}

	put("v1", "Content-Type", typeManifest).is(201).
		has("Location", "/v2/a/manifests/"+d.String(), "Docker-Content-Digest", d.String(), "OCI-Subject", "",
			"OCI-Tag", "")
	put(d.String(), "Content-Type", typeManifest+"; charset=utf-8").is(201)
	put(d512.String(), "Content-Type", typeManifest).is(201).has("Docker-Content-Digest", d512.String())
	w.do("GET", "/v2/a/manifests/"+d512.String(), nil).is(200).has("Content-Type", typeManifest).equals(string(body))
	put(d.String()+"?tag=x&tag=y", "Content-Type", typeManifest).is(201).has("OCI-Tag", "x, y")
	put(d512.String()+"?tag=long", "Content-Type", typeManifest).is(201).has("OCI-Tag", "long")
	w.do("HEAD", "/v2/a/manifests/long", nil).is(200).has("Docker-Content-Digest", d512.String())
	w.do("HEAD", "/v2/a/manifests/y", nil).is(200).has("Docker-Content-Digest", d.String())
	put("sha256:"+zeros, "Content-Type", typeManifest).code(400, "DIGEST_INVALID")
	put(d.String()+"?tag=-x", "Content-Type", typeManifest).code(400, "MANIFEST_INVALID")
	put(d.String()+"?"+strings.Repeat("tag=x&", 101), "Content-Type", typeManifest).code(414, "MANIFEST_INVALID")
	// A query of which a part would be ignored.
	for _, query := range []string{"tag=a&tag=%zz", "tag=a;tag=b", "tag=a&" + strings.Repeat("a&", 10_000)} {
		put("unread?"+query, "Content-Type", typeManifest).code(400, "MANIFEST_INVALID").contains("query")
	}
	put("v2").is(201) // the body has the type
	w.do("HEAD", "/v2/a/manifests/v2", nil).is(200).has("Content-Type", typeManifest)
}

func TestManifestContent(t *testing.T) {
	w := newServer(t)
	config, layer := []byte("{}"), []byte("l")
	w.pushBlob("a", config)
	w.pushBlob("a", layer)
	child, childDigest := w.pushImage("a", "child", "c")
	c, l := desc("application/vnd.oci.image.config.v1+json", config), desc("x/y", layer)
	missing := `{"mediaType":"x/y","digest":"sha256:` + zeros + `","size":1}`

	const invalid, unknown = "MANIFEST_INVALID", "MANIFEST_BLOB_UNKNOWN"
	docker := `{"schemaVersion":2,"mediaType":"` + typeDockerManifest + `","config":` + c + `,"layers":[` + l + `]}`
	schema1 := `{"schemaVersion":1,"fsLayers":[{"blobSum":"` + digest.FromBytes(layer).String() + `"}]}`
	foreign := `{"mediaType":"x/y","digest":"sha256:` + zeros + `","size":1,"urls":["https://example.com/l"]}`
	// img and idx have a list of layers or manifests, and further fields.
	img := func(list, more string) string {
		return `{"schemaVersion":2,"config":` + c + `,"layers":[` + list + `]` + more + `}`
	}
	idx := func(list, more string) string { return `{"schemaVersion":2,"manifests":[` + list + `]` + more + `}` }
	for _, row := range []struct {
		name        string
		contentType string
		body        string
		status      int
		code        string
	}{
		{"an image", typeManifest, string(image(config, layer)), 201, ""},
		{"a Docker image", typeDockerManifest, docker, 201, ""},
		{"an index", typeIndex, string(index(child)), 201, ""},
		{"a Docker manifest list", typeDockerList, idx(desc(typeManifest, child), ""), 201, ""},
		{"an index whose children are blobs, as in build caches", typeIndex, idx(l, ""), 201, ""},
		{"an index without children", typeIndex, idx("", ""), 201, ""},
		{"an image without layers", typeManifest, img("", ""), 201, ""},
		{"unknown fields", typeManifest, img(l, `,"x":{"y":[1,2,{"z":null}]}`), 201, ""},
		{"data in a descriptor", typeManifest, img(desc("x/y", config, `,"data":"e30="`), ""), 201, ""},
		{"an unknown type", "application/vnd.example+json", `{"anything":true}`, 201, ""},
		{"an unknown type, not JSON", "application/x-unknown", `hello`, 201, ""},
		{"a missing subject", typeManifest, img(l, `,"subject":`+missing), 201, ""},
		{"an ORAS artifact with a missing blob", typeArtifact, `{"blobs":[` + missing + `]}`, 201, ""},
		{"Docker's schema 1", typeSchema1, schema1, 201, ""},
		{"a foreign layer", typeManifest, img(foreign, ""), 201, ""},

		{"a missing layer", typeManifest, img(missing, ""), 404, unknown},
		{"a missing config", typeManifest, `{"schemaVersion":2,"config":` + missing + `,"layers":[]}`, 404, unknown},
		{"a missing child", typeIndex, idx(missing, ""), 404, unknown},
		{"another type in the body", typeIndex, string(image(config, layer)), 400, invalid},
		{"invalid JSON", typeManifest, `{`, 400, invalid},
		{"nothing", typeManifest, ``, 400, invalid},
		{"neither type nor JSON", "", `x`, 400, invalid},
		{"no type at all", "", `{}`, 400, invalid},
		{"a type with control characters", "a\tb c", `{}`, 400, invalid},
		{"duplicate names", typeManifest, img("", `,"layers":[`+missing+`]`), 400, invalid},
		{"invalid UTF-8", typeManifest, img("", ",\"x\":\"\xff\""), 400, invalid},
		{"a huge number", typeManifest, `{"schemaVersion":2e400,"config":` + c + `,"layers":[]}`, 400, invalid},
		{"deep nesting", typeManifest,
			`{"schemaVersion":2,"x":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + `}`, 400, invalid},
		{"another schema", typeManifest, `{"schemaVersion":1,"config":` + c + `,"layers":[]}`, 400, invalid},
		{"no config", typeManifest, `{"schemaVersion":2,"layers":[]}`, 400, invalid},
		{"a descriptor without a digest", typeManifest, img(`{"size":1}`, ""), 400, invalid},
		{"a digest that is a path", typeManifest, img(`{"digest":"sha256:../../../etc/passwd","size":1}`, ""),
			400, invalid},
		{"a negative size", typeManifest, img(`{"digest":"sha256:`+zeros+`","size":-1}`, ""), 400, invalid},
		{"layers and manifests", typeManifest, img("", `,"manifests":[]`), 400, invalid},
		{"an index with a config", typeIndex, idx("", `,"config":`+c), 400, invalid},
		{"a subject without a digest", typeManifest, img(l, `,"subject":{}`), 400, invalid},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := *w
			w.T = t
			before, _, err := w.index.Tags(t.Context(), "a", "", -1)
			if err != nil {
				t.Fatal(err)
			}
			a := w.do("PUT", "/v2/a/manifests/v", []byte(row.body), "Content-Type", row.contentType)
			if row.status != 201 {
				a.code(row.status, row.code)
				after, _, err := w.index.Tags(t.Context(), "a", "", -1)
				if err != nil || strings.Join(before, " ") != strings.Join(after, " ") {
					t.Errorf("refused, but the tags changed to %v (%v) from %v", after, err, before)
				}
				return
			}
			a.is(201)
			w.do("GET", "/v2/a/manifests/v", nil).is(200).equals(row.body).has("Content-Type", row.contentType)
			w.do("DELETE", "/v2/a/manifests/v", nil).is(202)
		})
	}
	w.do("HEAD", "/v2/a/manifests/"+childDigest.String(), nil).is(200)
}

func TestAllMissingPartsAreListed(t *testing.T) {
	w := newServer(t)
	one, two := []byte("1"), []byte("2")
	a := w.do("PUT", "/v2/a/manifests/v", image(one, two), "Content-Type", typeManifest).
		code(404, "MANIFEST_BLOB_UNKNOWN")
	a.contains(digest.FromBytes(one).String()).contains(digest.FromBytes(two).String())
	var layers []string
	for i := range 3000 {
		layers = append(layers, desc("x/y", fmt.Append(nil, i)))
	}
	many := `{"schemaVersion":2,"config":` + desc("x/y", one) + `,"layers":[` + strings.Join(layers, ",") + `]}`
	a = w.do("PUT", "/v2/a/manifests/v", []byte(many), "Content-Type", typeManifest).code(404, "MANIFEST_BLOB_UNKNOWN")
	if n := len(a.errors()); n != 20 {
		t.Errorf("%d errors in the answer, want 20", n)
	}
}

func TestForeignLayersWarn(t *testing.T) {
	w := newServer(t)
	config := []byte("{}")
	w.pushBlob("a", config)
	body := `{"schemaVersion":2,"config":` + desc("x/y", config) +
		`,"layers":[{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"sha256:` + zeros +
		`","size":1}]}`
	got := w.do("PUT", "/v2/a/manifests/v", []byte(body), "Content-Type", typeManifest).is(201).header.Get("Warning")
	if !strings.HasPrefix(got, `299 - "layer sha256:000`) || !strings.HasSuffix(got, `"`) {
		t.Errorf("Warning is %q", got)
	}
}

func TestManifestSize(t *testing.T) {
	w := newServer(t)
	config, layer := []byte("{}"), []byte("l")
	w.pushBlob("a", config)
	w.pushBlob("a", layer)
	body := image(config, layer, `,"annotations":{"x":"`, `"}`)
	body = bytes.Replace(body, []byte(`"x":""`), []byte(`"x":"`+strings.Repeat("y", 4<<20-len(body))+`"`), 1)
	if len(body) != 4<<20 {
		t.Fatal(len(body))
	}
	w.do("PUT", "/v2/a/manifests/v", body, "Content-Type", typeManifest).is(201)
	w.do("GET", "/v2/a/manifests/v", nil).is(200).equals(string(body))
	w.do("PUT", "/v2/a/manifests/w", append(body, ' '), "Content-Type", typeManifest).code(413, "MANIFEST_INVALID")
	for _, more := range []int{1, 1 << 20} { // without a Content-Length
		stream := struct{ io.Reader }{bytes.NewReader(append(body, make([]byte, more)...))}
		w.send("PUT", "/v2/a/manifests/w", stream, "Content-Type", typeManifest).code(413, "MANIFEST_INVALID")
	}
	w.do("HEAD", "/v2/a/manifests/w", nil).is(404)
}

func TestConditionalManifestWrites(t *testing.T) {
	w := newServer(t)
	one, d1 := w.pushImage("a", "v", "one")
	two, d2 := w.pushImage("a", "w", "two")
	put := func(ref string, body []byte, headers ...string) *answer {
		return w.do("PUT", "/v2/a/manifests/"+ref, body, append(headers, "Content-Type", typeManifest)...)
	}
	put("v", two, "If-Match", `"`+d2.String()+`"`).code(412, "DENIED")
	put("v", two, "If-None-Match", "*").code(412, "DENIED")
	put("new", two, "If-Match", "*").code(412, "DENIED")
	put("v", one, "If-None-Match", `"`+d1.String()+`"`).code(412, "DENIED")
	w.do("HEAD", "/v2/a/manifests/v", nil).has("Docker-Content-Digest", d1.String())
	put("v", two, "If-Match", `"`+d1.String()+`"`).is(201)
	put("new", two, "If-None-Match", "*").is(201)
	put("v", one, "If-None-Match", `"`+d1.String()+`"`).is(201)
	put(d1.String(), one, "If-Match", "*").is(201)
	put(d1.String(), one, "If-None-Match", "*").code(412, "DENIED")
	w.do("DELETE", "/v2/a/manifests/v", nil, "If-Match", `"`+d2.String()+`"`).code(412, "DENIED")
	w.do("DELETE", "/v2/a/manifests/v", nil, "If-Match", `"`+d1.String()+`"`).is(202)
	w.do("DELETE", "/v2/a/manifests/"+d1.String(), nil, "If-Match", `"`+d2.String()+`"`).code(412, "DENIED")
}

func TestImmutableTags(t *testing.T) {
	w := newServer(t, func(o *registry.Options) {
		o.Immutable = func(repo, tag string) bool { return repo == "a" && tag == "v1" }
	})
	body, d := w.pushImage("a", "v1", "x")
	w.do("PUT", "/v2/a/manifests/v1", body, "Content-Type", typeManifest).is(201) // the same digest again
	w.do("PUT", "/v2/a/manifests/v2", body, "Content-Type", typeManifest).is(201)
	other, od := w.pushImage("a", "v2", "y") // other tags may move
	w.do("PUT", "/v2/a/manifests/v1", other, "Content-Type", typeManifest).code(403, "DENIED").contains("immutable")
	w.do("PUT", "/v2/a/manifests/"+od.String()+"?tag=v3&tag=v1", other, "Content-Type", typeManifest).
		code(403, "DENIED")
	w.do("GET", "/v2/a/manifests/v3", nil).is(404)
	w.do("DELETE", "/v2/a/manifests/v1", nil).code(403, "DENIED")
	w.do("DELETE", "/v2/a/manifests/"+d.String(), nil).code(403, "DENIED")
	w.do("GET", "/v2/a/manifests/v1", nil).is(200).equals(string(body))
	w.do("DELETE", "/v2/a/manifests/v2", nil).is(202)
}

func TestDeletes(t *testing.T) {
	w := newServer(t)
	child, c := w.pushImage("a", "child", "x")
	w.do("PUT", "/v2/a/manifests/index", index(child), "Content-Type", typeIndex).is(201)
	idx := digest.FromBytes(index(child))
	layer := digest.FromString("layer x")

	w.do("DELETE", "/v2/a/manifests/nix", nil).code(404, "MANIFEST_UNKNOWN")
	w.do("DELETE", "/v2/a/manifests/sha256:"+zeros, nil).code(404, "MANIFEST_UNKNOWN")
	w.do("DELETE", "/v2/b/manifests/"+c.String(), nil).code(404, "MANIFEST_UNKNOWN")
	w.do("DELETE", "/v2/a/blobs/sha256:"+zeros, nil).code(404, "BLOB_UNKNOWN")
	w.do("DELETE", "/v2/a/manifests/"+c.String(), nil).code(405, "UNSUPPORTED").contains(idx.String())
	w.do("DELETE", "/v2/a/blobs/"+layer.String(), nil).code(405, "UNSUPPORTED").contains(c.String())

	w.do("DELETE", "/v2/a/manifests/child", nil).is(202) // deletes the tag alone
	w.do("HEAD", "/v2/a/manifests/child", nil).is(404)
	w.do("HEAD", "/v2/a/manifests/"+c.String(), nil).is(200)

	w.do("DELETE", "/v2/a/manifests/"+idx.String(), nil).is(202) // deletes its tags as well
	w.do("GET", "/v2/a/manifests/"+idx.String(), nil).is(404)
	w.do("GET", "/v2/a/manifests/index", nil).is(404)
	w.do("DELETE", "/v2/a/manifests/"+c.String(), nil).is(202)
	w.do("DELETE", "/v2/a/blobs/"+layer.String(), nil).is(202)
	w.do("HEAD", "/v2/a/blobs/"+layer.String(), nil).is(404)
	w.do("GET", "/v2/a/tags/list", nil).is(200).equals(`{"name":"a","tags":[]}`) // the config keeps the repository
	w.do("GET", "/v2/_catalog", nil).is(200).equals(`{"repositories":[]}`)
}

// TestWhatAManifestOnlyNamesIsNotMissing: a foreign layer and the parts of a manifest of an unknown type need not be
// here, so nothing may report them as damaged.
func TestWhatAManifestOnlyNamesIsNotMissing(t *testing.T) {
	w := newServer(t)
	config := []byte("{}")
	w.pushBlob("a", config)
	foreign := digest.FromString("foreign layer").String()
	body := `{"schemaVersion":2,"config":` + desc("x/y", config) +
		`,"layers":[{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"` + foreign +
		`","size":1,"urls":["https://example.com/l"]}]}`
	w.do("PUT", "/v2/a/manifests/v", []byte(body), "Content-Type", typeManifest).is(201)
	other := `{"blobs":[{"digest":"` + digest.FromString("elsewhere").String() + `","size":1}]}`
	w.do("PUT", "/v2/a/manifests/other", []byte(other), "Content-Type", "application/x.unknown+json").is(201)
	scrubber := &storage.Scrubber{Blobs: w.blobs, Index: w.index}
	done, err := scrubber.Run(t.Context(), 0, func(f storage.Finding) { t.Errorf("found: %+v", f) }, nil)
	if err != nil || done.Damaged != 0 || done.Contents != 3 || len(w.index.Damages()) != 0 {
		t.Errorf("scrub: %+v, %v, %v; want three intact contents", done, w.index.Damages(), err)
	}
	for _, tag := range []string{"v", "other"} { // what the webhook warns of
		if m, ok, err := w.index.Resolve(t.Context(), "a", tag); !ok || err != nil || m.Damaged() != "" {
			t.Errorf("%s: damaged %q, found %v, %v", tag, m.Damaged(), ok, err)
		}
	}
	w.do("HEAD", "/v2/a/blobs/"+foreign, nil).is(404)
	w.pushBlob("a", []byte("foreign layer")) // pushed all the same, it is a part like any other
	w.do("DELETE", "/v2/a/blobs/"+foreign, nil).is(405)
}
