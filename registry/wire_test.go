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
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
	front "trow/registry/server"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

const (
	typeManifest       = "application/vnd.oci.image.manifest.v1+json"
	typeIndex          = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeSchema1        = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	typeArtifact       = "application/vnd.oci.artifact.manifest.v1+json"
)

// server is a registry behind a real HTTP server, with the client side of a test.
type server struct {
	*testing.T
	url   string
	blobs storage.Blobs
	index *storage.Index
	notes *sync.Map // the last annotation of each key

	registry http.Handler
}

type option func(*registry.Options)

// open is an Authorizer that lets anonymous clients do everything.
type open struct{}

func (open) Identify(*http.Request) (*auth.Identity, error)                       { return &auth.Identity{}, nil }
func (open) Authorize(context.Context, *auth.Identity, string, auth.Action) error { return nil }
func (open) Readable(context.Context, *auth.Identity) func(string) (bool, error)  { return nil }
func (open) Challenge(*http.Request, string, auth.Action, error) []string         { return nil }

// newWire runs a registry over memory.
func newServer(t *testing.T, options ...option) *server {
	blobs, journal := inMemory()
	return serve(t, blobs, journal, options...)
}

func serve(t *testing.T, blobs storage.Blobs, journal storage.Journal, options ...option) *server {
	t.Helper()
	var counting storage.IndexOptions
	if b, ok := blobs.(*memory.Blobs); ok {
		counting.Uploads = b.Uploads
	}
	index := storagetest.OpenIndexWith(t, journal, counting)
	w := &server{T: t, blobs: blobs, index: index, notes: &sync.Map{}}
	scrubber := &storage.Scrubber{Blobs: blobs, Index: index}
	o := registry.Options{Blobs: blobs, Index: index, Auth: open{}, Bodies: front.NewBodies(1 << 30),
		Check:     func(ctx context.Context, d digest.Digest) error { _, err := scrubber.Check(ctx, d); return err },
		Names:     []string{"trow.kube-public:31000"},
		UploadKey: bytes.Repeat([]byte("k"), 32),
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

// answer is a response with its body.
type answer struct {
	t      *testing.T
	what   string
	status int
	header http.Header
	body   []byte
}

// do sends a request. headers are name, value, name, value. The path is sent unchanged.
func (w *server) do(method, path string, body []byte, headers ...string) *answer {
	w.Helper()
	return w.send(method, path, bytes.NewReader(body), headers...)
}

func (w *server) send(method, path string, body io.Reader, headers ...string) *answer {
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
	return readAnswer(w, method+" "+path, resp)
}

// readAnswer reads a response.
func readAnswer(w *server, what string, resp *http.Response) *answer {
	w.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatalf("%s: %v", what, err)
	}
	return &answer{w.T, what, resp.StatusCode, resp.Header, b}
}

// is checks the status, and that every failure has the spec's JSON body.
func (a *answer) is(status int) *answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%.200s: status %d, want %d\n%s", a.what, a.status, status, a.body)
	}
	if status >= 400 {
		a.hasNothingOfASuccess()
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
	if err := json.Unmarshal(a.body, &e); err != nil || len(e.Errors) == 0 || e.Errors[0].Code == "" ||
		e.Errors[0].Message == "" {
		a.t.Fatalf("%.200s: the body does not have the spec's error form (%v): %s", a.what, err, a.body)
	}
	if ct := a.header.Get("Content-Type"); ct != "application/json" {
		a.t.Fatalf("%.200s: error with Content-Type %q", a.what, ct)
	}
	return e.Errors
}

// code checks status and code of a failure.
func (a *answer) code(status int, code string) *answer {
	a.t.Helper()
	a.is(status)
	if got := a.errors()[0].Code; got != code {
		a.t.Fatalf("%.200s: code %s, want %s", a.what, got, code)
	}
	return a
}

// has checks headers: name, value, name, value. The value "" means that the header must be absent.
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

// equals checks the whole body.
func (a *answer) equals(body string) *answer {
	a.t.Helper()
	if string(a.body) != body {
		a.t.Errorf("%.200s: body is %.300q, want %.300q", a.what, a.body, body)
	}
	return a
}

// pushBlob pushes content as a blob.
func (w *server) pushBlob(repo string, content []byte) digest.Digest {
	w.Helper()
	d := digest.FromBytes(content)
	w.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), content).is(201)
	return d
}

// pushImage pushes an image with one layer under a tag.
func (w *server) pushImage(repo, tag, content string) (manifest []byte, d digest.Digest) {
	w.Helper()
	config, layer := []byte(`{"a":"`+content+`"}`), []byte("layer "+content)
	w.pushBlob(repo, config)
	w.pushBlob(repo, layer)
	manifest = image(config, layer)
	w.do("PUT", "/v2/"+repo+"/manifests/"+tag, manifest, "Content-Type", typeManifest).is(201)
	return manifest, digest.FromBytes(manifest)
}

// image returns an image manifest. extra are further fields, each with a leading comma.
func image(config, layer []byte, extra ...string) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]%s}`, typeManifest,
		desc("application/vnd.oci.image.config.v1+json", config), desc("application/vnd.oci.image.layer.v1.tar", layer),
		strings.Join(extra, ""))
}

func desc(mediaType string, content []byte, extra ...string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d%s}`, mediaType, digest.FromBytes(content), len(content),
		strings.Join(extra, ""))
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
	w := newServer(t)
	for _, path := range []string{"/v2/", "/v2"} {
		w.do("GET", path, nil).is(200).has("Docker-Distribution-Api-Version", "registry/2.0").equals("{}")
	}
	w.do("HEAD", "/v2/", nil).is(200)
}

func TestPathsOutsideTheAPI(t *testing.T) {
	w := newServer(t)
	for _, path := range []string{"/v2/x", "/v2/x/", "/v2/a/b/c", "/v2/tags/list", "/v2/a/manifests", "/v2//",
		"/v2/_catalog/x",
		"/v2/a%2fb/tags/list", "/v2/a%2Fmanifests%2Fx", "/v2/a/blobs", "/v2/a/tags", "/v2/a/_oci/x"} {
		a := w.do("GET", path, nil)
		if a.status != 404 && a.status != 400 {
			t.Errorf("GET %s: %d", path, a.status)
		}
		a.errors()
	}
}

func TestNames(t *testing.T) {
	w := newServer(t)
	for _, name := range []string{"a", "a/b", "a/b/c/d/e/f/g/h/i/j", "a-b", "a--b", "a---b", "a_b", "a__b", "a.b", "0",
		"blobs", "a/blobs",
		"manifests", "manifests/manifests", "tags/list/x", "uploads", "blobs/uploads", strings.Repeat("a", 255)} {
		w.do("GET", "/v2/"+name+"/tags/list", nil).code(404, "NAME_UNKNOWN")
	}
	for _, name := range []string{"A", "a/B", "-a", "a-", "a..b", "a___b", "a._b", ".a", "a/-b", "a//b", "a/", "..",
		"a/../b", "a/./b", "%2e%2e",
		"a%00b", "a%0ab", "a b", "ä", "a+b", "a@b", "a:b", "_a", strings.Repeat("a", 256),
		strings.Repeat("a/", 200) + "a"} {
		w.do("GET", "/v2/"+strings.ReplaceAll(name, " ", "%20")+"/tags/list", nil).code(400, "NAME_INVALID")
	}
}

func TestMalformedReferences(t *testing.T) {
	w := newServer(t)
	bad := []string{"sha256:" + zeros[1:], "sha256:" + zeros + "0", "sha256:" + strings.Repeat("A", 64),
		"sha512:" + zeros,
		"md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:", ":", "sha256:baddigeststring", "sha384:" +
			strings.Repeat("0", 96), "sha256:" + zeros[:62] + "%00"}
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
	w.do("GET", "/v2/a/blobs/sha256%3A"+zeros, nil).code(404, "BLOB_UNKNOWN") // an escaped colon counts as a colon
}

func TestMethods(t *testing.T) {
	w := newServer(t)
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

// begin opens a session and returns its location.
// TestAHiddenRepositoryLooksAbsent compares every answer about a hidden repository with that about one that does not
// exist.
// TestTheCatalogListsReadableRepositories pages through a catalog in which most repositories are not readable.
// rules deny everything in one repository, and list the readable ones in the catalog.
// TestOnDisk pushes, pulls and repairs over the embedded engines.

// written writes bytes to an upload in storage, past the API. The caller commits it.
func (w *server) written(repo string, body []byte) storage.Upload {
	w.Helper()
	u, err := w.blobs.Create(w.Context(), repo, digest.SHA256)
	if err != nil {
		w.Fatal(err)
	}
	if _, err := u.Write(body); err != nil {
		w.Fatal(err)
	}
	return u
}
