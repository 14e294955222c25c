package registry_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
	"trow/storage"
)

// hasNothingOfASuccess checks that an error has no header that describes a content or that lets caches keep it. All
// tests on the wire check it for each error. The one Location is that of an upload, for a chunk that does not fit.
func (a *answer) hasNothingOfASuccess() {
	a.t.Helper()
	for _, name := range []string{"Cache-Control", "ETag", "Docker-Content-Digest", "Accept-Ranges", "Link",
		"OCI-Subject",
		"OCI-Tag", "OCI-Filters-Applied", "Last-Modified", "Warning", "Trow-Stale"} {
		if got := a.header.Values(name); got != nil {
			a.t.Errorf("%.200s: error %d with %s %q", a.what, a.status, name, got)
		}
	}
	if got := a.header.Get("Content-Range"); got != "" && (a.status != 416 || !strings.HasPrefix(got, "bytes */")) {
		a.t.Errorf("%.200s: error %d with Content-Range %q", a.what, a.status, got)
	}
	if got := a.header.Get("Location"); got != "" && (a.status != 416 || !strings.Contains(got, "/blobs/uploads/")) {
		a.t.Errorf("%.200s: error %d with Location %q", a.what, a.status, got)
	}
}

// TestErrorsHaveNoHeadersOfASuccess has an answer of each error status. A 404 for damaged content and a 416 had the
// Cache-Control of content that never changes, so that caches kept them for a year.
func TestErrorsHaveNoHeadersOfASuccess(t *testing.T) {
	dir := t.TempDir()
	disk, journal, _ := engines(t, dir)
	blobs := &failing{Blobs: disk}
	immutable := func(o *registry.Options) {
		o.Immutable = func(_, tag string) bool { return tag == "fixed" }
		o.MaxReferences = 3
	}
	w := serve(t, blobs, journal, immutable)
	body, d := w.pushImage("a", "v", "x")
	other, _ := w.pushImage("a", "fixed", "y")
	sbom := []byte(`{"mediaType":"` + typeOther + `","subject":` + desc(typeManifest, body) + `}`)
	w.do("PUT", "/v2/a/manifests/sbom", sbom).is(201)
	small, big := w.pushBlob("a", []byte("small")), w.pushBlob("a", random(t, 1<<20))
	loc := w.begin("a")
	seen := map[int]bool{}
	want := func(status int, method, path, content string, headers ...string) {
		t.Helper()
		w.do(method, path, []byte(content), headers...).is(status)
		seen[status] = true
	}
	m, b := "/v2/a/manifests/", "/v2/a/blobs/"
	want(416, "GET", b+small.String(), "", "Range", "bytes=9-")
	want(416, "GET", b+big.String(), "", "Range", "bytes=9999999-")
	want(416, "PATCH", loc, "abc", "Content-Range", "5-7")
	want(400, "PUT", m+"v", "{")
	want(400, "PUT", b+"uploads/x?digest=x", "")
	want(400, "GET", "/v2/a/tags/list?n=x", "")
	want(400, "GET", "/v2/_catalog?n=x", "")
	want(400, "GET", "/v2/a/referrers/"+d.String()+"?last=x&artifactType=y", "")
	want(403, "PUT", m+"fixed", string(body), "Content-Type", typeManifest)
	want(404, "GET", m+"none", "")
	want(404, "HEAD", m+"none", "")
	want(404, "GET", "/v2/none/tags/list", "")
	want(404, "PUT", b+"uploads/x?digest="+d.String(), "")
	want(405, "POST", m+"v", "")
	want(405, "DELETE", b+digest.FromString("layer x").String(), "")
	w.do("PUT", m+"bare", []byte("{}"), "Content-Type", typeOther).is(201)
	want(409, "PUT", m+"bare", "{}", "Content-Type", typeSchema1)
	want(412, "PUT", m+"v", string(other), "Content-Type", typeManifest, "If-Match", `"x"`)
	want(413, "PUT", m+"v", strings.Repeat(" ", 5<<20), "Content-Type", typeManifest)
	want(414, "PUT", m+d.String()+"?"+strings.Repeat("tag=x&", 101), string(body), "Content-Type", typeManifest)

	// Damaged and missing bytes.
	for i, d := range []digest.Digest{d, digest.FromBytes(sbom), small, big} {
		path := filepath.Join(dir, "blobs", "sha256", d.Encoded())
		if i%2 == 1 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte("other"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w = serve(t, blobs, journal, immutable) // without the cache
	for range 2 {                           // before the damage is recorded, and after
		want(404, "GET", m+d.String(), "")
		want(404, "GET", m+"v", "")
		want(404, "GET", b+small.String(), "")
		want(404, "GET", b+big.String(), "", "Range", "bytes=1-2")
	}
	for err, status := range map[error]int{errors.New("broken"): 500, storage.ErrFull: 507, storage.ErrBusy: 429,
		storage.ErrClosed: 503, storage.ErrUnavailable: 503, storage.ErrExpired: 404, storage.ErrTooLarge: 413} {
		blobs.err = err
		want(status, "GET", b+digest.FromString("layer y").String(), "")
		want(status, "POST", b+"uploads/", "")
		want(status, "PUT", m+"new", `{"mediaType":"`+typeOther+`"}`)
	}
	// A part that cannot be sought to, as behind a network.
	blobs.err = nil
	big2 := w.pushBlob("a", random(t, 1<<20))
	seeks := &failing{Blobs: unseekable{disk, storage.ErrUnavailable}}
	w = serve(t, seeks, journal, immutable)
	want(503, "GET", b+big2.String(), "", "Range", "bytes=9-")
	seeks.Blobs = unseekable{disk, storage.ErrNotFound}
	want(404, "GET", b+big2.String(), "", "Range", "bytes=9-")
	w = serve(t, disk, journal, func(o *registry.Options) { o.Auth = strict{open{}} })
	want(401, "GET", m+"v", "")
	want(401, "GET", b+small.String(), "", "If-None-Match", `"`+small.String()+`"`)
	w = serve(t, disk, journal, func(o *registry.Options) { o.Auth = &failingAuth{open{}, auth.ErrBusy} })
	want(429, "GET", b+small.String(), "")
	for _, status := range []int{400, 401, 403, 404, 405, 409, 412, 413, 414, 416, 429, 500, 503, 507} {
		if !seen[status] {
			t.Errorf("no answer with status %d (%s)", status, http.StatusText(status))
		}
	}
}

// unseekable are blobs in which every Seek fails.
type unseekable struct {
	storage.Blobs
	err error
}

func (b unseekable) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	f, err := b.Blobs.Open(ctx, d)
	return unseekableFile{f, b.err}, err
}

type unseekableFile struct {
	io.ReadSeekCloser
	err error
}

func (f unseekableFile) Seek(int64, int) (int64, error) { return 0, f.err }
