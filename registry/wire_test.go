package registry_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
	"trow/registry/maintenance"
	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
	"trow/storage/memory"
)

const (
	typeManifest       = "application/vnd.oci.image.manifest.v1+json"
	typeIndex          = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// wire is a registry behind a real HTTP server, and what a client needs to talk to it.
type wire struct {
	*testing.T
	url   string
	blobs storage.Blobs
	index *storage.Index
	notes *sync.Map // what was annotated last, by key

	registry http.Handler
}

type option func(*registry.Options)

// newWire runs a registry over memory.
func newWire(t *testing.T, options ...option) *wire {
	return serve(t, memory.NewBlobs(), memory.NewJournal(), options...)
}

func serve(t *testing.T, blobs storage.Blobs, journal storage.Journal, options ...option) *wire {
	t.Helper()
	index, err := storage.OpenIndex(t.Context(), journal, storage.IndexOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(index.Close)
	w := &wire{T: t, blobs: blobs, index: index, notes: &sync.Map{}}
	scrubber := &storage.Scrubber{Blobs: blobs, Index: index}
	o := registry.Options{Blobs: blobs, Index: index, Auth: auth.All,
		Check:     func(ctx context.Context, d digest.Digest) error { _, err := scrubber.Check(ctx, d); return err },
		Names:     []string{"trow.kube-public:31000"},
		Annotate:  func(_ context.Context, key, value string) { w.notes.Store(key, value) },
		RequestID: func(context.Context) string { return "r1" }}
	for _, f := range options {
		f(&o)
	}
	w.registry = registry.New(o)
	s := httptest.NewServer(w.registry)
	t.Cleanup(s.Close)
	w.url = s.URL
	return w
}

// answer is a response, read.
type answer struct {
	t      *testing.T
	what   string
	status int
	header http.Header
	body   []byte
}

// do sends a request; headers are name, value, name, value. The path is sent as it stands.
func (w *wire) do(method, path string, body []byte, headers ...string) *answer {
	w.Helper()
	return w.send(method, path, bytes.NewReader(body), headers...)
}

func (w *wire) send(method, path string, body io.Reader, headers ...string) *answer {
	w.Helper()
	req, err := http.NewRequestWithContext(w.Context(), method, w.url+path, body)
	if err != nil {
		w.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatalf("%s %s: %v", method, path, err)
	}
	return &answer{w.T, method + " " + path, resp.StatusCode, resp.Header, b}
}

// is checks the status, and that every failure has the spec's form.
func (a *answer) is(status int) *answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%.200s: status %d, want %d\n%s", a.what, a.status, status, a.body)
	}
	if status >= 400 && !strings.HasPrefix(a.what, "HEAD") {
		a.errors()
	}
	return a
}

type wireError struct {
	Code    string
	Message string
	Detail  map[string]string
}

func (a *answer) errors() []wireError {
	a.t.Helper()
	var e struct{ Errors []wireError }
	if err := json.Unmarshal(a.body, &e); err != nil || len(e.Errors) == 0 || e.Errors[0].Code == "" || e.Errors[0].Message == "" {
		a.t.Fatalf("%.200s: body is not the spec's error form (%v): %s", a.what, err, a.body)
	}
	if ct := a.header.Get("Content-Type"); ct != "application/json" {
		a.t.Fatalf("%.200s: error with Content-Type %q", a.what, ct)
	}
	return e.Errors
}

// code checks a failure's code.
func (a *answer) code(status int, code string) *answer {
	a.t.Helper()
	a.is(status)
	if got := a.errors()[0].Code; got != code {
		a.t.Fatalf("%.200s: code %s, want %s", a.what, got, code)
	}
	return a
}

// has checks headers: name, value, name, value; the value "" means that there must be none.
func (a *answer) has(headers ...string) *answer {
	a.t.Helper()
	for i := 0; i < len(headers); i += 2 {
		if got := strings.Join(a.header.Values(headers[i]), ", "); got != headers[i+1] {
			a.t.Errorf("%.200s: %s is %q, want %q", a.what, headers[i], got, headers[i+1])
		}
	}
	return a
}

func (a *answer) contains(text string) *answer {
	a.t.Helper()
	if !bytes.Contains(a.body, []byte(text)) {
		a.t.Errorf("%.200s: body lacks %q: %s", a.what, text, a.body)
	}
	return a
}

// equals checks the body.
func (a *answer) equals(body string) *answer {
	a.t.Helper()
	if string(a.body) != body {
		a.t.Errorf("%.200s: body is %.300q, want %.300q", a.what, a.body, body)
	}
	return a
}

// pushBlob makes the repo hold content.
func (w *wire) pushBlob(repo string, content []byte) digest.Digest {
	w.Helper()
	d := digest.FromBytes(content)
	w.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), content).is(201)
	return d
}

// pushImage makes the repo hold an image with one layer under a tag.
func (w *wire) pushImage(repo, tag, content string) (manifest []byte, d digest.Digest) {
	w.Helper()
	config, layer := []byte(`{"a":"`+content+`"}`), []byte("layer "+content)
	w.pushBlob(repo, config)
	w.pushBlob(repo, layer)
	manifest = image(config, layer)
	w.do("PUT", "/v2/"+repo+"/manifests/"+tag, manifest, "Content-Type", typeManifest).is(201)
	return manifest, digest.FromBytes(manifest)
}

// image is an image manifest; extra are further fields, each with a comma in front.
func image(config, layer []byte, extra ...string) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]%s}`, typeManifest,
		desc("application/vnd.oci.image.config.v1+json", config), desc("application/vnd.oci.image.layer.v1.tar", layer), strings.Join(extra, ""))
}

func desc(mediaType string, content []byte, extra ...string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d%s}`, mediaType, digest.FromBytes(content), len(content), strings.Join(extra, ""))
}

func index(children ...[]byte) []byte {
	var list []string
	for _, c := range children {
		list = append(list, desc(typeManifest, c))
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, typeIndex, strings.Join(list, ","))
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	rand.Read(b)
	return b
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

func TestBase(t *testing.T) {
	w := newWire(t)
	for _, path := range []string{"/v2/", "/v2"} {
		w.do("GET", path, nil).is(200).has("Docker-Distribution-Api-Version", "registry/2.0").equals("{}")
	}
	w.do("HEAD", "/v2/", nil).is(200)
}

func TestPathsThatAreNoEndpoint(t *testing.T) {
	w := newWire(t)
	for _, path := range []string{"/v2/x", "/v2/x/", "/v2/a/b/c", "/v2/tags/list", "/v2/a/manifests", "/v2//", "/v2/_catalog/x",
		"/v2/a%2fb/tags/list", "/v2/a%2Fmanifests%2Fx", "/v2/a/blobs", "/v2/a/tags", "/v2/a/_oci/x"} {
		a := w.do("GET", path, nil)
		if a.status != 404 && a.status != 400 {
			t.Errorf("GET %s: %d", path, a.status)
		}
		a.errors()
	}
}

func TestNames(t *testing.T) {
	w := newWire(t)
	for _, name := range []string{"a", "a/b", "a/b/c/d/e/f/g/h/i/j", "a-b", "a--b", "a---b", "a_b", "a__b", "a.b", "0", "blobs", "a/blobs",
		"manifests", "manifests/manifests", "tags/list/x", "uploads", "blobs/uploads", strings.Repeat("a", 255)} {
		w.do("GET", "/v2/"+name+"/tags/list", nil).code(404, "NAME_UNKNOWN")
	}
	for _, name := range []string{"A", "a/B", "-a", "a-", "a..b", "a___b", "a._b", ".a", "a/-b", "a//b", "a/", "..", "a/../b", "a/./b", "%2e%2e",
		"a%00b", "a%0ab", "a b", "ä", "a+b", "a@b", "a:b", "_a", strings.Repeat("a", 256), strings.Repeat("a/", 200) + "a"} {
		w.do("GET", "/v2/"+strings.ReplaceAll(name, " ", "%20")+"/tags/list", nil).code(400, "NAME_INVALID")
	}
}

func TestMalformedReferences(t *testing.T) {
	w := newWire(t)
	bad := []string{"sha256:" + zeros[1:], "sha256:" + zeros + "0", "sha256:" + strings.Repeat("A", 64), "sha512:" + zeros,
		"md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:", ":", "sha256:baddigeststring", "sha384:" + strings.Repeat("0", 96), "sha256:" + zeros[:62] + "%00"}
	for _, d := range bad {
		w.do("GET", "/v2/a/blobs/"+d, nil).code(400, "DIGEST_INVALID")
		w.do("HEAD", "/v2/a/blobs/"+d, nil).is(400)
		w.do("DELETE", "/v2/a/blobs/"+d, nil).code(400, "DIGEST_INVALID")
		w.do("GET", "/v2/a/manifests/"+d, nil).code(400, "DIGEST_INVALID")
		w.do("PUT", "/v2/a/manifests/"+d, []byte("{}")).code(400, "DIGEST_INVALID")
		w.do("GET", "/v2/a/referrers/"+d, nil).code(400, "DIGEST_INVALID")
		w.do("POST", "/v2/a/blobs/uploads/?digest="+d, []byte("x")).code(400, "DIGEST_INVALID")
		w.do("POST", "/v2/a/blobs/uploads/?mount="+d, nil).code(400, "DIGEST_INVALID")
	}
	for _, tag := range []string{".x", "-x", "a%20b", strings.Repeat("a", 129), "ä", "a@b", "%00"} {
		w.do("PUT", "/v2/a/manifests/"+tag, []byte("{}")).code(400, "MANIFEST_INVALID")
	}
	w.do("GET", "/v2/a/blobs/sha256%3A"+zeros, nil).code(404, "BLOB_UNKNOWN") // an escaped colon is a colon
}

func TestMethods(t *testing.T) {
	w := newWire(t)
	for path, allow := range map[string]string{
		"/v2/":                            "GET, HEAD",
		"/v2/_catalog":                    "GET, HEAD",
		"/v2/a/tags/list":                 "GET, HEAD",
		"/v2/a/manifests/x":               "DELETE, GET, HEAD, PUT",
		"/v2/a/blobs/sha256:" + zeros:     "DELETE, GET, HEAD",
		"/v2/a/blobs/uploads/":            "POST",
		"/v2/a/blobs/uploads/x":           "DELETE, GET, PATCH, PUT",
		"/v2/a/referrers/sha256:" + zeros: "GET, HEAD",
	} {
		w.do("OPTIONS", path, nil).code(405, "UNSUPPORTED").has("Allow", allow)
	}
}

func TestManifestRoundTrip(t *testing.T) {
	w := newWire(t)
	body, d := w.pushImage("a/b", "v1", "one")
	for _, ref := range []string{"v1", d.String()} {
		got := w.do("GET", "/v2/a/b/manifests/"+ref, nil, "Accept", "application/vnd.docker.distribution.manifest.v1+json").is(200).
			has("Content-Type", typeManifest, "Docker-Content-Digest", d.String(), "ETag", `"`+d.String()+`"`, "Content-Encoding", "").
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
	w.do("GET", "/v2/a/c/manifests/"+d.String(), nil).code(404, "MANIFEST_UNKNOWN") // another repository's
}

func TestManifestPutAnswers(t *testing.T) {
	w := newWire(t)
	config, layer := []byte("{}"), []byte("l")
	w.pushBlob("a", config)
	w.pushBlob("a", layer)
	body := image(config, layer)
	d, d512 := digest.FromBytes(body), digest.SHA512.FromBytes(body)
	put := func(ref string, headers ...string) *answer {
		return w.do("PUT", "/v2/a/manifests/"+ref, body, headers...)
	}

	put("v1", "Content-Type", typeManifest).is(201).
		has("Location", "/v2/a/manifests/"+d.String(), "Docker-Content-Digest", d.String(), "OCI-Subject", "", "OCI-Tag", "")
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
	put("v2").is(201) // the body says what it is
	w.do("HEAD", "/v2/a/manifests/v2", nil).is(200).has("Content-Type", typeManifest)
}

func TestManifestContent(t *testing.T) {
	w := newWire(t)
	config, layer := []byte("{}"), []byte("l")
	w.pushBlob("a", config)
	w.pushBlob("a", layer)
	child, childDigest := w.pushImage("a", "child", "c")
	c, l := desc("application/vnd.oci.image.config.v1+json", config), desc("x/y", layer)
	missing := `{"mediaType":"x/y","digest":"sha256:` + zeros + `","size":1}`

	for _, row := range []struct {
		name        string
		contentType string
		body        string
		status      int
		code        string
	}{
		{"an image", typeManifest, string(image(config, layer)), 201, ""},
		{"an image of Docker's", typeDockerManifest, `{"schemaVersion":2,"mediaType":"` + typeDockerManifest + `","config":` + c + `,"layers":[` + l + `]}`, 201, ""},
		{"an index", typeIndex, string(index(child)), 201, ""},
		{"a list of Docker's", typeDockerList, `{"schemaVersion":2,"manifests":[` + desc(typeManifest, child) + `]}`, 201, ""},
		{"an index whose children are blobs, as build caches have them", typeIndex, `{"schemaVersion":2,"manifests":[` + l + `]}`, 201, ""},
		{"an index without children", typeIndex, `{"schemaVersion":2,"manifests":[]}`, 201, ""},
		{"an image without layers", typeManifest, `{"schemaVersion":2,"config":` + c + `,"layers":[]}`, 201, ""},
		{"fields nobody knows", typeManifest, string(image(config, layer, `,"x":{"y":[1,2,{"z":null}]}`)), 201, ""},
		{"data in a descriptor", typeManifest, `{"schemaVersion":2,"config":` + desc("x/y", config, `,"data":"e30="`) + `,"layers":[]}`, 201, ""},
		{"a type nobody knows", "application/vnd.example+json", `{"anything":true}`, 201, ""},
		{"a type nobody knows, not JSON", "text/plain", `hello`, 201, ""},
		{"a missing subject", typeManifest, string(image(config, layer, `,"subject":`+missing)), 201, ""},
		{"an artifact of ORAS, with what is missing", "application/vnd.oci.artifact.manifest.v1+json", `{"blobs":[` + missing + `]}`, 201, ""},
		{"Docker's schema 1", "application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"fsLayers":[{"blobSum":"` + digest.FromBytes(layer).String() + `"}]}`, 201, ""},
		{"a foreign layer", typeManifest, `{"schemaVersion":2,"config":` + c + `,"layers":[{"mediaType":"x/y","digest":"sha256:` + zeros + `","size":1,"urls":["https://example.com/l"]}]}`, 201, ""},

		{"a missing layer", typeManifest, `{"schemaVersion":2,"config":` + c + `,"layers":[` + missing + `]}`, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"a missing config", typeManifest, `{"schemaVersion":2,"config":` + missing + `,"layers":[]}`, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"a missing child", typeIndex, `{"schemaVersion":2,"manifests":[` + missing + `]}`, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"another type in the body", typeIndex, string(image(config, layer)), 400, "MANIFEST_INVALID"},
		{"no JSON", typeManifest, `{`, 400, "MANIFEST_INVALID"},
		{"nothing", typeManifest, ``, 400, "MANIFEST_INVALID"},
		{"neither type nor JSON", "", `x`, 400, "MANIFEST_INVALID"},
		{"no type at all", "", `{}`, 400, "MANIFEST_INVALID"},
		{"a type with control characters", "a\tb c", `{}`, 400, "MANIFEST_INVALID"},
		{"names that come twice", typeManifest, `{"schemaVersion":2,"config":` + c + `,"layers":[],"layers":[` + missing + `]}`, 400, "MANIFEST_INVALID"},
		{"invalid UTF-8", typeManifest, "{\"schemaVersion\":2,\"config\":" + c + ",\"layers\":[],\"x\":\"\xff\"}", 400, "MANIFEST_INVALID"},
		{"a huge number", typeManifest, `{"schemaVersion":2e400,"config":` + c + `,"layers":[]}`, 400, "MANIFEST_INVALID"},
		{"deep nesting", typeManifest, `{"schemaVersion":2,"x":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + `}`, 400, "MANIFEST_INVALID"},
		{"another schema", typeManifest, `{"schemaVersion":1,"config":` + c + `,"layers":[]}`, 400, "MANIFEST_INVALID"},
		{"no config", typeManifest, `{"schemaVersion":2,"layers":[]}`, 400, "MANIFEST_INVALID"},
		{"a descriptor without a digest", typeManifest, `{"schemaVersion":2,"config":` + c + `,"layers":[{"size":1}]}`, 400, "MANIFEST_INVALID"},
		{"a digest that leads elsewhere", typeManifest, `{"schemaVersion":2,"config":` + c + `,"layers":[{"digest":"sha256:../../../etc/passwd","size":1}]}`, 400, "MANIFEST_INVALID"},
		{"a negative size", typeManifest, `{"schemaVersion":2,"config":` + c + `,"layers":[{"digest":"sha256:` + zeros + `","size":-1}]}`, 400, "MANIFEST_INVALID"},
		{"layers and manifests", typeManifest, `{"schemaVersion":2,"config":` + c + `,"layers":[],"manifests":[]}`, 400, "MANIFEST_INVALID"},
		{"an index with a config", typeIndex, `{"schemaVersion":2,"manifests":[],"config":` + c + `}`, 400, "MANIFEST_INVALID"},
		{"a subject without a digest", typeManifest, string(image(config, layer, `,"subject":{}`)), 400, "MANIFEST_INVALID"},
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
					t.Errorf("refused, and yet the tags are %v (%v), not %v", after, err, before)
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

func TestMissingPartsAreAllNamed(t *testing.T) {
	w := newWire(t)
	one, two := []byte("1"), []byte("2")
	a := w.do("PUT", "/v2/a/manifests/v", image(one, two), "Content-Type", typeManifest).code(404, "MANIFEST_BLOB_UNKNOWN")
	a.contains(digest.FromBytes(one).String()).contains(digest.FromBytes(two).String())
	var layers []string
	for i := range 3000 {
		layers = append(layers, desc("x/y", fmt.Append(nil, i)))
	}
	many := `{"schemaVersion":2,"config":` + desc("x/y", one) + `,"layers":[` + strings.Join(layers, ",") + `]}`
	if n := len(w.do("PUT", "/v2/a/manifests/v", []byte(many), "Content-Type", typeManifest).code(404, "MANIFEST_BLOB_UNKNOWN").errors()); n != 20 {
		t.Errorf("%d errors are told, want 20", n)
	}
}

func TestForeignLayersWarn(t *testing.T) {
	w := newWire(t)
	config := []byte("{}")
	w.pushBlob("a", config)
	body := `{"schemaVersion":2,"config":` + desc("x/y", config) + `,"layers":[{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"sha256:` + zeros + `","size":1}]}`
	got := w.do("PUT", "/v2/a/manifests/v", []byte(body), "Content-Type", typeManifest).is(201).header.Get("Warning")
	if !strings.HasPrefix(got, `299 - "layer sha256:000`) || !strings.HasSuffix(got, `"`) {
		t.Errorf("Warning is %q", got)
	}
}

// TestWhatAManifestOnlyNamesIsNotMissing: a foreign layer and the parts of a manifest of an unknown type need not be
// here, so nothing may report them as damaged.
func TestWhatAManifestOnlyNamesIsNotMissing(t *testing.T) {
	dir := t.TempDir()
	blobs, err := disk.Open(dir, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	journal, err := bolt.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	w := serve(t, blobs, journal)
	config := []byte("{}")
	w.pushBlob("a", config)
	foreign := digest.FromString("foreign layer").String()
	layer := `{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","size":1,` +
		`"urls":["https://example.com/l"],"digest":"` + foreign + `"}`
	body := `{"schemaVersion":2,"config":` + desc("x/y", config) + `,"layers":[` + layer + `]}`
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
	if err := blobs.Delete(t.Context(), digest.Digest(foreign)); err != nil { // now its bytes are missing
		t.Fatal(err)
	}
	w.index.Close()
	if err := journal.Close(); err != nil {
		t.Fatal(err)
	}
	o := maintenance.RebuildOptions{Into: "recovered", Parse: registry.RecoverManifest}
	r, err := maintenance.Rebuild(t.Context(), dir, o)
	if err != nil || len(r.Missing) != 1 || r.Missing[0].String() != foreign {
		t.Errorf("a rebuild of an intact journal: %+v, %v; want the pushed layer alone missing", r, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "journal.db"), []byte("not a journal"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err = maintenance.Rebuild(t.Context(), dir, o)
	if err != nil || len(r.Found) != 1 || len(r.Missing) != 0 {
		t.Errorf("a rebuild without a journal: %+v, %v; want one manifest and nothing missing", r, err)
	}
}

func TestManifestSize(t *testing.T) {
	w := newWire(t)
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
	w.send("PUT", "/v2/a/manifests/w", struct{ io.Reader }{bytes.NewReader(append(body, ' '))}, "Content-Type", typeManifest).code(413, "MANIFEST_INVALID") // without a Content-Length
	w.send("PUT", "/v2/a/manifests/w", struct{ io.Reader }{bytes.NewReader(append(body, make([]byte, 1<<20)...))}, "Content-Type", typeManifest).code(413, "MANIFEST_INVALID")
	w.do("HEAD", "/v2/a/manifests/w", nil).is(404)
}

func TestConditionalManifestWrites(t *testing.T) {
	w := newWire(t)
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
	w := newWire(t, func(o *registry.Options) {
		o.Immutable = func(repo, tag string) bool { return repo == "a" && tag == "v1" }
	})
	body, d := w.pushImage("a", "v1", "x")
	w.do("PUT", "/v2/a/manifests/v1", body, "Content-Type", typeManifest).is(201) // the same again
	w.do("PUT", "/v2/a/manifests/v2", body, "Content-Type", typeManifest).is(201)
	other, od := w.pushImage("a", "v2", "y") // another tag may move
	w.do("PUT", "/v2/a/manifests/v1", other, "Content-Type", typeManifest).code(403, "DENIED").contains("immutable")
	w.do("PUT", "/v2/a/manifests/"+od.String()+"?tag=v3&tag=v1", other, "Content-Type", typeManifest).code(403, "DENIED")
	w.do("GET", "/v2/a/manifests/v3", nil).is(404)
	w.do("DELETE", "/v2/a/manifests/v1", nil).code(403, "DENIED")
	w.do("DELETE", "/v2/a/manifests/"+d.String(), nil).code(403, "DENIED")
	w.do("GET", "/v2/a/manifests/v1", nil).is(200).equals(string(body))
	w.do("DELETE", "/v2/a/manifests/v2", nil).is(202)
}

func TestDeletes(t *testing.T) {
	w := newWire(t)
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

	w.do("DELETE", "/v2/a/manifests/child", nil).is(202) // the tag alone
	w.do("HEAD", "/v2/a/manifests/child", nil).is(404)
	w.do("HEAD", "/v2/a/manifests/"+c.String(), nil).is(200)

	w.do("DELETE", "/v2/a/manifests/"+idx.String(), nil).is(202) // the tags as well
	w.do("GET", "/v2/a/manifests/"+idx.String(), nil).is(404)
	w.do("GET", "/v2/a/manifests/index", nil).is(404)
	w.do("DELETE", "/v2/a/manifests/"+c.String(), nil).is(202)
	w.do("DELETE", "/v2/a/blobs/"+layer.String(), nil).is(202)
	w.do("HEAD", "/v2/a/blobs/"+layer.String(), nil).is(404)
	w.do("GET", "/v2/a/tags/list", nil).is(200).equals(`{"name":"a","tags":[]}`) // the config is left
	w.do("GET", "/v2/_catalog", nil).is(200).equals(`{"repositories":[]}`)
}

func TestBlobsAreOfTheirRepositoryAlone(t *testing.T) {
	w := newWire(t)
	d := w.pushBlob("secret/a", []byte("x"))
	w.do("GET", "/v2/other/blobs/"+d.String(), nil).code(404, "BLOB_UNKNOWN")
	w.do("HEAD", "/v2/other/blobs/"+d.String(), nil).is(404)
	w.do("GET", "/v2/secret/a/blobs/"+d.String(), nil).is(200).equals("x")
	w.do("GET", "/v2/secret/a/manifests/"+d.String(), nil).code(404, "MANIFEST_UNKNOWN") // a blob is no manifest
}

func TestBlobHeadersAndRanges(t *testing.T) {
	w := newWire(t)
	content := random(t, 2048)
	d := w.pushBlob("a", content)
	path := "/v2/a/blobs/" + d.String()
	all := []string{"Content-Type", "application/octet-stream", "Docker-Content-Digest", d.String(), "ETag", `"` + d.String() + `"`,
		"Accept-Ranges", "bytes", "Cache-Control", "max-age=31536000, immutable", "Content-Encoding", ""}
	w.do("GET", path, nil, "Accept-Encoding", "zstd, gzip").is(200).has(all...).has("Content-Length", "2048").equals(string(content))
	w.do("HEAD", path, nil).is(200).has(all...).has("Content-Length", "2048")
	w.do("GET", path, nil, "If-None-Match", `"`+d.String()+`"`).is(304).equals("")
	for _, row := range []struct {
		header   string
		status   int
		from, to int
	}{
		{"bytes=500-1499", 206, 500, 1500},
		{"bytes=500-", 206, 500, 2048},
		{"bytes=-500", 206, 1548, 2048},
		{"bytes=2000-5000", 206, 2000, 2048},
		{"bytes=0-0", 206, 0, 1},
		{"bytes=0-", 206, 0, 2048},
		{"bytes=-5000", 206, 0, 2048},
		{"bytes=0-99999999999999999999999999", 206, 0, 2048},
		{"bytes= 1-2", 206, 1, 3},
		{"bytes=500-0", 416, 0, 0},
		{"bytes=2048-", 416, 0, 0},
		{"bytes=5000-10000", 416, 0, 0},
		{"bytes=99999999999999999999999999-", 416, 0, 0},
		{"bytes=-0", 416, 0, 0},
		{"bytes=0-1,5-6", 200, 0, 2048}, // several: the whole is a right answer
		{"bytes=x-y", 200, 0, 2048},     // what cannot be understood is ignored
		{"bytes=-", 200, 0, 2048},
		{"bytes=--5", 200, 0, 2048},
		{"bytes=+1-2", 200, 0, 2048},
		{"lines=1-2", 200, 0, 2048},
	} {
		a := w.do("GET", path, nil, "Range", row.header).is(row.status)
		w.do("HEAD", path, nil, "Range", row.header).is(200).has("Content-Length", "2048") // a range is for GET
		switch row.status {
		case 416:
			a.code(416, "SIZE_INVALID").has("Content-Range", "bytes */2048")
		case 206:
			a.has("Content-Range", fmt.Sprintf("bytes %d-%d/2048", row.from, row.to-1), "Content-Length", fmt.Sprint(row.to-row.from))
			fallthrough
		default:
			a.equals(string(content[row.from:row.to]))
		}
	}
	w.do("GET", path, nil, "Range", "bytes=0-1", "If-Range", `"`+d.String()+`"`).is(206)
	w.do("GET", path, nil, "Range", "bytes=0-1", "If-Range", `"other"`).is(200)
	empty := w.pushBlob("a", nil)
	w.do("GET", "/v2/a/blobs/"+empty.String(), nil).is(200).has("Content-Length", "0").equals("")
	w.do("GET", "/v2/a/blobs/"+empty.String(), nil, "Range", "bytes=0-").is(416)
}

// begin starts an upload and returns its location.
func (w *wire) begin(repo string) string {
	w.Helper()
	a := w.do("POST", "/v2/"+repo+"/blobs/uploads/", nil).is(202).has("Range", "0-0")
	location := a.header.Get("Location")
	if !strings.HasPrefix(location, "/v2/"+repo+"/blobs/uploads/") || a.header.Get("Docker-Upload-UUID") == "" {
		w.Fatalf("Location %q, UUID %q", location, a.header.Get("Docker-Upload-UUID"))
	}
	return location
}

func TestUploads(t *testing.T) {
	content := []byte("0123456789abcdef")
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		d := alg.FromBytes(content)
		for name, upload := range map[string]func(*wire) *answer{
			"in a single POST": func(w *wire) *answer {
				return w.do("POST", "/v2/a/blobs/uploads/?digest="+d.String(), content)
			},
			"without the slash": func(w *wire) *answer {
				return w.do("POST", "/v2/a/blobs/uploads?digest="+d.String(), content)
			},
			"by POST and PUT": func(w *wire) *answer {
				return w.do("PUT", w.begin("a")+"?digest="+d.String(), content)
			},
			"by a stream": func(w *wire) *answer {
				l := w.begin("a")
				w.send("PATCH", l, struct{ io.Reader }{bytes.NewReader(content)}).is(202).has("Range", "0-15", "Location", l)
				return w.do("PUT", l+"?digest="+d.String(), nil)
			},
			"in chunks": func(w *wire) *answer {
				l := w.begin("a")
				w.do("PATCH", l, content[:5], "Content-Range", "0-4").is(202).has("Range", "0-4")
				w.do("PATCH", l, content[5:], "Content-Range", "5-15").is(202).has("Range", "0-15")
				return w.do("PUT", l+"?digest="+d.String(), nil)
			},
			"in chunks, the last by PUT": func(w *wire) *answer {
				l := w.begin("a")
				w.do("PATCH", l, content[:5], "Content-Range", "0-4").is(202)
				return w.do("PUT", l+"?digest="+d.String(), content[5:], "Content-Range", "5-15")
			},
			"in a stream and a PUT without a range": func(w *wire) *answer {
				l := w.begin("a")
				w.do("PATCH", l, content[:5]).is(202)
				return w.do("PUT", l+"?digest="+d.String(), content[5:])
			},
			"with the algorithm announced": func(w *wire) *answer {
				l := w.do("POST", "/v2/a/blobs/uploads/?digest-algorithm="+alg.String(), nil).is(202).header.Get("Location")
				w.do("PATCH", l, content, "Content-Range", "0-15").is(202)
				return w.do("PUT", l+"?digest="+d.String(), nil)
			},
		} {
			t.Run(name+" "+alg.String(), func(t *testing.T) {
				w := newWire(t)
				upload(w).is(201).has("Location", "/v2/a/blobs/"+d.String(), "Docker-Content-Digest", d.String())
				w.do("GET", "/v2/a/blobs/"+d.String(), nil).is(200).equals(string(content))
			})
		}
	}
}

func TestUploadsThatGoWrong(t *testing.T) {
	w := newWire(t)
	content := []byte("0123456789")
	d := digest.FromBytes(content).String()
	wrong := digest.FromString("other").String()

	l := w.begin("a")
	w.do("PATCH", l, content[5:], "Content-Range", "5-9").code(416, "BLOB_UPLOAD_INVALID").has("Range", "0-0", "Location", l)
	w.do("PATCH", l, content[:5], "Content-Range", "0-4").is(202)
	w.do("PATCH", l, content[:5], "Content-Range", "0-4").code(416, "BLOB_UPLOAD_INVALID").has("Range", "0-4")
	w.do("PUT", l+"?digest="+d, content[:5], "Content-Range", "0-4").code(416, "BLOB_UPLOAD_INVALID").has("Range", "0-4")
	for _, r := range []string{"x", "5", "5-", "-9", "9-5", "bytes 5-9/10", "5-9/10", "+5-9", "99999999999999999999-99999999999999999999", "0-9223372036854775807", "5-9223372036854775807"} {
		w.do("PATCH", l, content[5:], "Content-Range", r).code(416, "BLOB_UPLOAD_INVALID")
	}
	w.do("PATCH", l, content[5:], "Content-Range", "5-6").code(400, "SIZE_INVALID")
	w.send("PATCH", l, struct{ io.Reader }{bytes.NewReader(content[5:])}, "Content-Range", "5-6").code(400, "SIZE_INVALID") // longer than it says
	w.do("GET", l, nil).is(204).has("Range", "0-6", "Location", l)                                                          // what was announced is in
	w.send("PATCH", l, struct{ io.Reader }{bytes.NewReader(content[7:8])}, "Content-Range", "7-9").code(400, "SIZE_INVALID")
	w.do("GET", l, nil).is(204).has("Range", "0-7")
	w.do("PUT", l, content[8:]).code(400, "DIGEST_INVALID")            // no digest: nothing happens
	w.do("PUT", l+"?digest=sha256:x", nil).code(400, "DIGEST_INVALID") // likewise
	w.do("PUT", l+"?digest="+d, content[8:], "Content-Range", "8-9").is(201)
	w.do("GET", l, nil).code(404, "BLOB_UPLOAD_UNKNOWN")
	w.do("PUT", l+"?digest="+d, nil).code(404, "BLOB_UPLOAD_UNKNOWN")

	l = w.begin("a")
	w.do("PUT", l+"?digest="+wrong, content).code(400, "DIGEST_INVALID")
	w.do("HEAD", "/v2/a/blobs/"+wrong, nil).is(404)
	w.do("POST", "/v2/a/blobs/uploads/?digest="+wrong, content).code(400, "DIGEST_INVALID")
	w.do("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5", nil).code(400, "DIGEST_INVALID")

	l = w.begin("a")
	w.do("GET", strings.Replace(l, "/v2/a/", "/v2/b/", 1), nil).code(404, "BLOB_UPLOAD_UNKNOWN") // another repository's
	w.do("DELETE", l, nil).is(204)
	w.do("DELETE", l, nil).code(404, "BLOB_UPLOAD_UNKNOWN")
	w.do("PATCH", l, content).code(404, "BLOB_UPLOAD_UNKNOWN")
	for _, id := range []string{"x", "..", "%2e%2e", "..%2f..%2fetc", "%00", strings.Repeat("a", 5000), "00000000-0000-4000-8000-000000000000"} {
		a := w.do("PATCH", "/v2/a/blobs/uploads/"+id, content)
		if a.status != 404 {
			t.Errorf("upload %.20q: status %d", id, a.status)
		}
		a.errors()
	}
}

func TestATruncatedBodyIsNotABlob(t *testing.T) {
	w := newWire(t)
	content := []byte("0123456789")
	d := digest.FromBytes(content[:5]).String() // of what does arrive
	l := w.begin("a")
	req, err := http.NewRequest("PUT", w.url+l+"?digest="+d, io.MultiReader(bytes.NewReader(content[:5]), brokenReader{}))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 10
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		resp.Body.Close()
		t.Fatalf("status %d", resp.StatusCode)
	}
	w.do("HEAD", "/v2/a/blobs/"+d, nil).is(404)
	w.do("GET", l, nil).is(204) // the session lives
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestMounts(t *testing.T) {
	w := newWire(t)
	d := w.pushBlob("from", []byte("x")).String()
	w.do("POST", "/v2/to/blobs/uploads/?mount="+d+"&from=from", nil).is(201).has("Location", "/v2/to/blobs/"+d, "Docker-Content-Digest", d)
	w.do("GET", "/v2/to/blobs/"+d, nil).is(200).equals("x")
	w.do("POST", "/v2/anon/blobs/uploads/?mount="+d, nil).is(201)
	w.do("HEAD", "/v2/anon/blobs/"+d, nil).is(200)
	for _, q := range []string{"mount=sha256:" + zeros + "&from=from", "mount=" + d + "&from=nowhere", "mount=" + d + "&from=../x", "from=from", "mount=sha256:" + zeros} {
		a := w.do("POST", "/v2/other/blobs/uploads/?"+q, nil).is(202)
		if a.header.Get("Location") == "" {
			t.Errorf("%s: no session", q)
		}
	}
}

func TestTags(t *testing.T) {
	w := newWire(t)
	w.do("GET", "/v2/a/tags/list", nil).code(404, "NAME_UNKNOWN")
	w.pushBlob("a", []byte("x"))
	w.do("GET", "/v2/a/tags/list", nil).is(200).equals(`{"name":"a","tags":[]}`)
	for _, tag := range []string{"b", "a", "C", "_x", "1.0"} {
		w.pushImage("a", tag, "x")
	}
	w.pushImage("ab", "other", "x") // a neighbour
	list := func(query string) *answer { return w.do("GET", "/v2/a/tags/list"+query, nil).is(200) }
	list("").has("Content-Type", "application/json", "Link", "").equals(`{"name":"a","tags":["1.0","C","_x","a","b"]}`)
	list("?n=2").has("Link", `</v2/a/tags/list?last=C&n=2>; rel="next"`).equals(`{"name":"a","tags":["1.0","C"]}`)
	list("?n=2&last=C").has("Link", `</v2/a/tags/list?last=a&n=2>; rel="next"`).equals(`{"name":"a","tags":["_x","a"]}`)
	list("?n=2&last=a").has("Link", "").equals(`{"name":"a","tags":["b"]}`)
	list("?n=5").has("Link", "")
	list("?n=0").has("Link", "").equals(`{"name":"a","tags":[]}`)
	list("?n=99999999999999999999").has("Link", "").equals(`{"name":"a","tags":["1.0","C","_x","a","b"]}`)
	list("?last=D").equals(`{"name":"a","tags":["_x","a","b"]}`) // need not exist
	list("?last=zzz").equals(`{"name":"a","tags":[]}`)
	for _, n := range []string{"-1", "x", "", "1.5"} {
		w.do("GET", "/v2/a/tags/list?n="+n, nil).code(400, "UNSUPPORTED")
	}
	w.do("HEAD", "/v2/a/tags/list", nil).is(200)
}

func TestCatalog(t *testing.T) {
	w := newWire(t)
	w.do("GET", "/v2/_catalog", nil).is(200).equals(`{"repositories":[]}`)
	for _, repo := range []string{"b/c", "a", "b", "a/b"} {
		w.pushImage(repo, "x", repo)
	}
	w.pushBlob("blobs-alone", nil)
	w.do("GET", "/v2/_catalog", nil).is(200).equals(`{"repositories":["a","a/b","b","b/c"]}`)
	w.do("GET", "/v2/_catalog?n=3", nil).is(200).has("Link", `</v2/_catalog?last=b&n=3>; rel="next"`).equals(`{"repositories":["a","a/b","b"]}`)
	w.do("GET", "/v2/_catalog?n=3&last=b", nil).is(200).has("Link", "").equals(`{"repositories":["b/c"]}`)
	w.do("GET", "/v2/_catalog?n=x", nil).code(400, "UNSUPPORTED")
}

func TestReferrers(t *testing.T) {
	w := newWire(t)
	subject, d := w.pushImage("a", "v", "x")
	config := []byte("{}")
	w.pushBlob("a", config)
	empty := `{"schemaVersion":2,"mediaType":"` + typeIndex + `","manifests":[]}`
	list := func(repo, query string) *answer {
		return w.do("GET", "/v2/"+repo+"/referrers/"+d.String()+query, nil).is(200).has("Content-Type", typeIndex)
	}
	list("a", "").equals(empty)
	list("nowhere", "").equals(empty)
	s := `,"subject":` + desc(typeManifest, subject)
	sbom := []byte(`{"schemaVersion":2,"mediaType":"` + typeManifest + `","artifactType":"x/sbom","config":` + desc("application/vnd.oci.empty.v1+json", config) + `,"layers":[]` + s + `,"annotations":{"k":"v"}}`)
	sig := []byte(`{"schemaVersion":2,"mediaType":"` + typeManifest + `","config":` + desc("x/signature", config) + `,"layers":[]` + s + `}`)
	plain := []byte(`{"schemaVersion":2,"mediaType":"` + typeIndex + `","manifests":[]` + s + `}`)
	w.do("PUT", "/v2/a/manifests/"+digest.FromBytes(sbom).String(), sbom, "Content-Type", typeManifest).is(201).has("OCI-Subject", d.String())
	w.do("PUT", "/v2/a/manifests/sig", sig, "Content-Type", typeManifest).is(201).has("OCI-Subject", d.String())
	w.do("PUT", "/v2/a/manifests/plain", plain, "Content-Type", typeIndex).is(201).has("OCI-Subject", d.String())

	type descriptor struct {
		MediaType, Digest, ArtifactType string
		Size                            int
		Annotations                     map[string]string
	}
	parse := func(a *answer) map[string]descriptor {
		var idx struct {
			SchemaVersion int
			MediaType     string
			Manifests     []descriptor
		}
		if err := json.Unmarshal(a.body, &idx); err != nil || idx.SchemaVersion != 2 || idx.MediaType != typeIndex {
			t.Fatalf("%v: %s", err, a.body)
		}
		m := map[string]descriptor{}
		for _, d := range idx.Manifests {
			m[d.Digest] = d
		}
		return m
	}
	want := map[string]descriptor{
		digest.FromBytes(sbom).String():  {typeManifest, digest.FromBytes(sbom).String(), "x/sbom", len(sbom), map[string]string{"k": "v"}},
		digest.FromBytes(sig).String():   {typeManifest, digest.FromBytes(sig).String(), "x/signature", len(sig), nil},
		digest.FromBytes(plain).String(): {typeIndex, digest.FromBytes(plain).String(), "", len(plain), nil},
	}
	if got := parse(list("a", "").has("OCI-Filters-Applied", "")); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("referrers are %v, want %v", got, want)
	}
	filtered := parse(list("a", "?artifactType=x/sbom").has("OCI-Filters-Applied", "artifactType"))
	if len(filtered) != 1 || filtered[digest.FromBytes(sbom).String()].ArtifactType != "x/sbom" {
		t.Errorf("filtered are %v", filtered)
	}
	if got := parse(list("a", "?artifactType=none")); len(got) != 0 {
		t.Errorf("filtered are %v", got)
	}
	list("b", "").equals(empty) // of another repository
	w.do("DELETE", "/v2/a/manifests/"+digest.FromBytes(sbom).String(), nil).is(202)
	if got := parse(list("a", "")); len(got) != 2 {
		t.Errorf("after a delete they are %v", got)
	}
	w.do("GET", "/v2/a/referrers/"+d.String()+"?last=x", nil).code(400, "DIGEST_INVALID")

	// A list under the fallback tag, kept by a client of old, is folded in as far as its entries are here.
	other, o := w.pushImage("a", "other", "other")
	tagged := `{"schemaVersion":2,"mediaType":"` + typeIndex + `","manifests":[` + desc(typeManifest, other) + `,` + desc(typeManifest, sig) + `]}`
	w.do("PUT", "/v2/a/manifests/"+strings.Replace(d.String(), ":", "-", 1), []byte(tagged), "Content-Type", typeIndex).is(201)
	if got := parse(list("a", "")); len(got) != 3 || got[o.String()].Digest == "" {
		t.Errorf("with the fallback tag they are %v", got)
	}
}

func TestReferrersAreTurnedByPages(t *testing.T) {
	w := newWire(t)
	d := digest.FromString("subject")
	config := []byte("{}")
	w.pushBlob("a", config)
	want := map[string]bool{}
	for i := range 5 {
		body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[],"subject":{"digest":%q,"size":1,"mediaType":"x/y"},"annotations":{"n":"%d","x":%q}}`,
			typeManifest, desc("x/y", config), d, i, strings.Repeat("y", 900<<10))
		w.do("PUT", "/v2/a/manifests/v", body, "Content-Type", typeManifest).is(201)
		want[digest.FromBytes(body).String()] = true
	}
	pages := 0
	for path := "/v2/a/referrers/" + d.String() + "?artifactType=x/y"; path != ""; pages++ {
		a := w.do("GET", path, nil).is(200).has("OCI-Filters-Applied", "artifactType")
		if len(a.body) > 3<<20 {
			t.Errorf("a page of %d bytes", len(a.body))
		}
		var idx struct{ Manifests []struct{ Digest string } }
		if err := json.Unmarshal(a.body, &idx); err != nil {
			t.Fatal(err)
		}
		for _, m := range idx.Manifests {
			if !want[m.Digest] {
				t.Errorf("%s came twice, or should not have come", m.Digest)
			}
			delete(want, m.Digest)
		}
		path, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
	}
	if len(want) != 0 || pages < 2 {
		t.Errorf("after %d pages there is missing %v", pages, want)
	}
}

func TestNamespaceOfAMirror(t *testing.T) {
	w := newWire(t)
	w.pushImage("library/nginx", "v", "x")
	w.do("GET", "/v2/library/nginx/manifests/v?ns=docker.io", nil).code(404, "NAME_UNKNOWN")
	w.do("HEAD", "/v2/library/nginx/manifests/v?ns=docker.io", nil).is(404)
	w.do("GET", "/v2/library/nginx/manifests/v?ns=Trow.kube-public:31000", nil).is(200).has("OCI-Namespace", "Trow.kube-public:31000")
	w.do("POST", "/v2/library/nginx/blobs/uploads/?ns=docker.io", nil).is(202)
}

func TestWhoMayDoWhat(t *testing.T) {
	g, err := auth.New(auth.Options{Dir: t.TempDir(), User: "u", Password: "p:ä", PolicyOptions: auth.PolicyOptions{Anonymous: auth.ReadOnly}})
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(t, func(o *registry.Options) { o.Auth = g })
	login := []string{"Authorization", "Basic dTpwOsOk"} // u:p:ä
	w.do("GET", "/v2/", nil).code(401, "UNAUTHORIZED").has("Www-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="%s"`, w.url, strings.TrimPrefix(w.url, "http://")))
	w.do("GET", "/v2/", nil, login...).is(200)
	d := digest.FromString("x").String()
	w.do("POST", "/v2/a/blobs/uploads/?digest="+d, []byte("x")).code(401, "UNAUTHORIZED")
	w.do("POST", "/v2/a/blobs/uploads/?digest="+d, []byte("x"), "Authorization", "Basic eDp5").code(401, "UNAUTHORIZED")
	w.do("POST", "/v2/a/blobs/uploads/?digest="+d, []byte("x"), login...).is(201)
	if user, _ := w.notes.Load("user"); user != "u" {
		t.Errorf("the log has user %q", user)
	}
	w.do("GET", "/v2/a/blobs/"+d, nil).is(200)
	w.do("DELETE", "/v2/a/blobs/"+d, nil).code(401, "UNAUTHORIZED")
	w.do("PUT", "/v2/a/manifests/v", []byte("{}")).code(401, "UNAUTHORIZED")
	w.do("DELETE", "/v2/a/blobs/"+d, nil, login...).is(202)

	none, err := auth.New(auth.Options{Dir: t.TempDir(), PolicyOptions: auth.PolicyOptions{Anonymous: auth.ReadWrite}})
	if err != nil {
		t.Fatal(err)
	}
	w = newWire(t, func(o *registry.Options) { o.Auth = none })
	w.do("POST", "/v2/a/blobs/uploads/?digest="+d, []byte("x")).is(201)
	w.do("DELETE", "/v2/a/blobs/"+d, nil).code(403, "DENIED").contains("--user")
}

func TestMountDoesNotTellWhatOthersHold(t *testing.T) {
	a := &rules{Authorizer: auth.All, deny: "secret", err: auth.ErrHidden}
	w := newWire(t, func(o *registry.Options) { o.Auth = a })
	a.deny = ""
	d := w.pushBlob("secret", []byte("x")).String()
	a.deny = "secret"
	w.do("POST", "/v2/mine/blobs/uploads/?mount="+d+"&from=secret", nil).is(202)
	w.do("POST", "/v2/mine/blobs/uploads/?mount="+d, nil).is(202)
	a.err = auth.ErrUnavailable
	w.do("POST", "/v2/mine/blobs/uploads/?mount="+d+"&from=secret", nil).is(202)
	w.do("GET", "/v2/mine/blobs/"+d, nil).is(404)
}

// TestWhatIsHiddenIsAsIfItWereNotThere compares every answer about a repository that is not for the client with that
// about one that does not exist.
func TestWhatIsHiddenIsAsIfItWereNotThere(t *testing.T) {
	a := &rules{Authorizer: auth.All, deny: "", err: auth.ErrHidden}
	w := newWire(t, func(o *registry.Options) { o.Auth = a })
	body, d := w.pushImage("secret", "v", "x")
	blob := w.pushBlob("secret", []byte("x")).String()
	w.do("PUT", "/v2/secret/manifests/signature", fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":1},"layers":[],"subject":{"mediaType":%q,"digest":%q,"size":%d}}`,
		typeManifest, blob, typeManifest, d, len(body)), "Content-Type", typeManifest).is(201)
	a.deny = "secret"
	for _, path := range []string{"manifests/v", "manifests/" + d.String(), "manifests/v?ns=docker.io", "manifests/v?ns=trow.kube-public:31000", "blobs/" + blob, "blobs/" + blob + "?ns=docker.io",
		"tags/list", "tags/list?n=x", "tags/list?n=1&last=a", "referrers/" + d.String(), "referrers/" + d.String() + "?artifactType=x", "referrers/" + d.String() + "?last=x"} {
		for _, method := range []string{"GET", "HEAD"} {
			for _, headers := range [][]string{nil, {"Range", "bytes=0-0"}, {"If-None-Match", `"` + d.String() + `"`}, {"If-None-Match", `"` + blob + `"`}, {"If-None-Match", "*"}} {
				hidden, absent := w.do(method, "/v2/secret/"+path, nil, headers...), w.do(method, "/v2/absent/"+path, nil, headers...)
				for _, a := range []*answer{hidden, absent} {
					a.header.Del("Date")
				}
				// the same length of names, so that Content-Length compares as well
				if got, want := strings.ReplaceAll(string(hidden.body), "secret", "absent"), string(absent.body); hidden.status != absent.status || got != want || !reflect.DeepEqual(hidden.header, absent.header) {
					t.Errorf("%s %s %v: hidden %d %s %v, absent %d %s %v", method, path, headers, hidden.status, got, hidden.header, absent.status, want, absent.header)
				}
			}
		}
	}
}

// TestTheCatalogListsWhatMayBeRead pages through a catalog in which most is not for the client.
func TestTheCatalogListsWhatMayBeRead(t *testing.T) {
	a := &rules{Authorizer: auth.All}
	w := newWire(t, func(o *registry.Options) { o.Auth = a })
	var mine []string
	for i := range 120 {
		repo := fmt.Sprintf("secret/%03d", i)
		if i%8 == 3 {
			repo = fmt.Sprintf("secret-%03d/mine", i)
			mine = append(mine, repo)
		}
		w.pushImage(repo, "v", "x")
	}
	a.readable = func(repo string) bool { return strings.HasSuffix(repo, "/mine") }
	for _, n := range []int{1, 2, 4, 15, 16, 100} {
		var got []string
		pages := 0
		for path := fmt.Sprintf("/v2/_catalog?n=%d", n); path != ""; pages++ {
			answer := w.do("GET", path, nil).is(200)
			var page struct{ Repositories []string }
			if err := json.Unmarshal(answer.body, &page); err != nil || page.Repositories == nil {
				t.Fatalf("%v: %s", err, answer.body)
			}
			got = append(got, page.Repositories...)
			path, _, _ = strings.Cut(strings.TrimPrefix(answer.header.Get("Link"), "<"), ">")
			if path != "" && len(page.Repositories) != n {
				t.Errorf("n=%d: a page of %d that is not the last", n, len(page.Repositories))
			}
		}
		if !slices.Equal(got, mine) || pages != max(1, (len(mine)+n-1)/n) {
			t.Errorf("n=%d: %d pages of %v, want %v", n, pages, got, mine)
		}
	}
	a.readable = func(string) bool { return false }
	if answer := w.do("GET", "/v2/_catalog?n=1", nil).is(200); string(answer.body) != `{"repositories":[]}` || answer.header.Get("Link") != "" {
		t.Errorf("%s, link %s", answer.body, answer.header.Get("Link"))
	}
}

// rules deny everything in one repository, and make others unreadable in the catalog.
type rules struct {
	auth.Authorizer
	deny     string
	err      error
	readable func(string) bool
}

func (r *rules) Authorize(_ context.Context, _ *auth.Identity, repo string, _ auth.Action) error {
	if repo != "" && repo == r.deny {
		return r.err
	}
	return nil
}

func (r *rules) Readable(context.Context, *auth.Identity) func(string) bool { return r.readable }

// TestOnDisk runs a push, a pull and a healing over the embedded engines.
func TestOnDisk(t *testing.T) {
	dir := t.TempDir()
	blobs, journal := engines(t, dir)
	w := serve(t, blobs, journal)
	body, d := w.pushImage("a", "v", "x")
	big := random(t, 10<<20)
	bd := w.pushBlob("a", big)
	w.do("GET", "/v2/a/blobs/"+bd.String(), nil, "Range", "bytes=5000000-").is(206).equals(string(big[5000000:]))

	file := filepath.Join(dir, "blobs", "sha256", d.Encoded())
	if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	w2 := serve(t, blobs, journal) // without the cache
	w2.do("GET", "/v2/a/manifests/v", nil).code(404, "MANIFEST_UNKNOWN")
	w2.do("HEAD", "/v2/a/manifests/v", nil).is(404)
	w2.do("PUT", "/v2/a/manifests/v", body, "Content-Type", typeManifest).is(201)
	w2.do("GET", "/v2/a/manifests/v", nil).is(200).equals(string(body))

	if err := os.Remove(filepath.Join(dir, "blobs", "sha256", bd.Encoded())); err != nil {
		t.Fatal(err)
	}
	w2.do("GET", "/v2/a/blobs/"+bd.String(), nil).code(404, "BLOB_UNKNOWN")
	w2.do("HEAD", "/v2/a/blobs/"+bd.String(), nil).is(404)
	w2.do("POST", "/v2/b/blobs/uploads/?from=a&mount="+bd.String(), nil).is(202)
	config := []byte("{}")
	w2.pushBlob("a", config)
	whole := image(config, big) // a manifest with a layer that is lost
	w2.do("PUT", "/v2/a/manifests/w", whole, "Content-Type", typeManifest).code(404, "MANIFEST_BLOB_UNKNOWN")
	w2.pushBlob("b", big) // heals it everywhere
	w2.do("GET", "/v2/a/blobs/"+bd.String(), nil).is(200).equals(string(big))
	w2.do("PUT", "/v2/a/manifests/w", whole, "Content-Type", typeManifest).is(201)
}
