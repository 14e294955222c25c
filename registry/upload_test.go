package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/limit"
	"trow/storage"
)

func (w *server) begin(repo string) string {
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
		for name, upload := range map[string]func(*server) *answer{
			"in a single POST": func(w *server) *answer {
				return w.do("POST", "/v2/a/blobs/uploads/?digest="+d.String(), content)
			},
			"without the slash": func(w *server) *answer {
				return w.do("POST", "/v2/a/blobs/uploads?digest="+d.String(), content)
			},
			"by POST and PUT": func(w *server) *answer {
				return w.do("PUT", w.begin("a")+"?digest="+d.String(), content)
			},
			"by a stream": func(w *server) *answer {
				l := w.begin("a")
				w.send("PATCH", l, struct{ io.Reader }{bytes.NewReader(content)}).is(202).
					has("Range", "0-15", "Location", l)
				return w.do("PUT", l+"?digest="+d.String(), nil)
			},
			"in chunks": func(w *server) *answer {
				l := w.begin("a")
				w.do("PATCH", l, content[:5], "Content-Range", "0-4").is(202).has("Range", "0-4")
				w.do("PATCH", l, content[5:], "Content-Range", "5-15").is(202).has("Range", "0-15")
				return w.do("PUT", l+"?digest="+d.String(), nil)
			},
			"in chunks, the last by PUT": func(w *server) *answer {
				l := w.begin("a")
				w.do("PATCH", l, content[:5], "Content-Range", "0-4").is(202)
				return w.do("PUT", l+"?digest="+d.String(), content[5:], "Content-Range", "5-15")
			},
			"in a stream and a PUT without a range": func(w *server) *answer {
				l := w.begin("a")
				w.do("PATCH", l, content[:5]).is(202)
				return w.do("PUT", l+"?digest="+d.String(), content[5:])
			},
			"with the algorithm announced": func(w *server) *answer {
				l := w.do("POST", "/v2/a/blobs/uploads/?digest-algorithm="+alg.String(), nil).is(202).
					header.Get("Location")
				w.do("PATCH", l, content, "Content-Range", "0-15").is(202)
				return w.do("PUT", l+"?digest="+d.String(), nil)
			},
		} {
			t.Run(name+" "+alg.String(), func(t *testing.T) {
				w := newServer(t)
				upload(w).is(201).has("Location", "/v2/a/blobs/"+d.String(), "Docker-Content-Digest", d.String())
				w.do("GET", "/v2/a/blobs/"+d.String(), nil).is(200).equals(string(content))
			})
		}
	}
}

func TestFailingUploads(t *testing.T) {
	w := newServer(t)
	content := []byte("0123456789")
	d := digest.FromBytes(content).String()
	wrong := digest.FromString("other").String()

	l := w.begin("a")
	w.do("PATCH", l, content[5:], "Content-Range", "5-9").code(416, "BLOB_UPLOAD_INVALID").has("Range", "0-0",
		"Location", l)
	w.do("PATCH", l, content[:5], "Content-Range", "0-4").is(202)
	w.do("PATCH", l, content[:5], "Content-Range", "0-4").code(416, "BLOB_UPLOAD_INVALID").has("Range", "0-4")
	w.do("PUT", l+"?digest="+d, content[:5], "Content-Range", "0-4").code(416, "BLOB_UPLOAD_INVALID").
		has("Range", "0-4")
	for _, r := range []string{"x", "5", "5-", "-9", "9-5", "bytes 5-9/10", "5-9/10", "+5-9",
		"99999999999999999999-99999999999999999999", "0-9223372036854775807", "5-9223372036854775807"} {
		w.do("PATCH", l, content[5:], "Content-Range", r).code(416, "BLOB_UPLOAD_INVALID").
			has("Range", "0-4", "Location", l)
		w.do("PUT", l+"?digest="+d, content[5:], "Content-Range", r).code(416, "BLOB_UPLOAD_INVALID").
			has("Range", "0-4",
				"Location", l).contains("<first>-<last>")
	}
	w.do("PATCH", l, content[5:], "Content-Range", "5-6").code(400, "SIZE_INVALID")
	// longer than its Content-Range
	w.send("PATCH", l, struct{ io.Reader }{bytes.NewReader(content[5:])}, "Content-Range", "5-6").
		code(400, "SIZE_INVALID")
	// the announced bytes are here
	w.do("GET", l, nil).is(204).has("Range", "0-6", "Location", l)
	w.send("PATCH", l, struct{ io.Reader }{bytes.NewReader(content[7:8])}, "Content-Range", "7-9").code(400,
		"SIZE_INVALID")
	w.do("GET", l, nil).is(204).has("Range", "0-7")
	w.do("PUT", l, content[8:]).code(400, "DIGEST_INVALID")            // no digest: nothing is appended
	w.do("PUT", l+"?digest=sha256:x", nil).code(400, "DIGEST_INVALID") // as well
	w.do("PUT", l+"?digest="+d, content[8:], "Content-Range", "8-9").is(201)
	w.do("GET", l, nil).code(404, "BLOB_UPLOAD_UNKNOWN")
	w.do("PUT", l+"?digest="+d, nil).code(404, "BLOB_UPLOAD_UNKNOWN")

	l = w.begin("a")
	w.do("PUT", l+"?digest="+wrong, content).code(400, "DIGEST_INVALID")
	w.do("HEAD", "/v2/a/blobs/"+wrong, nil).is(404)
	w.do("POST", "/v2/a/blobs/uploads/?digest="+wrong, content).code(400, "DIGEST_INVALID")
	w.do("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5", nil).code(400, "DIGEST_INVALID")

	l = w.begin("a")
	// in another repository
	w.do("GET", strings.Replace(l, "/v2/a/", "/v2/b/", 1), nil).code(404, "BLOB_UPLOAD_UNKNOWN")
	w.do("DELETE", l, nil).is(204)
	w.do("DELETE", l, nil).code(404, "BLOB_UPLOAD_UNKNOWN")
	w.do("PATCH", l, content).code(404, "BLOB_UPLOAD_UNKNOWN")
	for _, id := range []string{"x", "..", "%2e%2e", "..%2f..%2fetc", "%00", strings.Repeat("a", 5000),
		"00000000-0000-4000-8000-000000000000"} {
		a := w.do("PATCH", "/v2/a/blobs/uploads/"+id, content)
		if a.status != 404 {
			t.Errorf("upload %.20q: status %d", id, a.status)
		}
		a.errors()
	}
}

func TestATruncatedBodyIsNotABlob(t *testing.T) {
	w := newServer(t)
	content := random(t, 128<<10)
	d := digest.FromBytes(content[:64<<10]).String() // of the bytes that arrive
	l := w.begin("a")
	w.breakOff("PUT", l+"?digest="+d, content[:64<<10])
	w.do("HEAD", "/v2/a/blobs/"+d, nil).is(404)
	w.do("GET", l, nil).is(204) // the session still exists
}

// breakOff announces twice the bytes of a body, and disconnects after the body.
func (w *server) breakOff(method, path string, body []byte) {
	w.Helper()
	req, err := http.NewRequest(method, w.url+path, io.MultiReader(bytes.NewReader(body), brokenReader{}))
	if err != nil {
		w.Fatal(err)
	}
	req.ContentLength = 2 * int64(len(body))
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		resp.Body.Close()
		w.Fatalf("status %d", resp.StatusCode)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestMounts(t *testing.T) {
	w := newServer(t)
	d := w.pushBlob("from", []byte("x")).String()
	w.do("POST", "/v2/to/blobs/uploads/?mount="+d+"&from=from", nil).is(201).has("Location", "/v2/to/blobs/"+d,
		"Docker-Content-Digest", d)
	w.do("GET", "/v2/to/blobs/"+d, nil).is(200).equals("x")
	w.do("POST", "/v2/anon/blobs/uploads/?mount="+d, nil).is(201)
	w.do("HEAD", "/v2/anon/blobs/"+d, nil).is(200)
	for _, q := range []string{"mount=sha256:" + zeros + "&from=from", "mount=" + d + "&from=nowhere", "mount=" + d +
		"&from=../x", "from=from", "mount=sha256:" + zeros} {
		a := w.do("POST", "/v2/other/blobs/uploads/?"+q, nil).is(202)
		if a.header.Get("Location") == "" {
			t.Errorf("%s: no session", q)
		}
	}
}

// TestEveryUploadIsEnded by the request that has it, also when the client errs.
func TestEveryUploadIsEnded(t *testing.T) {
	memory, journal := inMemory()
	uploads := &endings{Blobs: memory}
	w := serve(t, uploads, journal)
	wrong := digest.FromString("other").String()
	l := w.begin("a")
	for _, run := range []func(){
		func() { w.do("GET", l, nil).is(204) },
		func() { w.do("PATCH", l, []byte("abc")).is(202) },
		func() { w.do("PATCH", l, []byte("abc"), "Content-Range", "0-2").is(416) },
		func() { w.do("PATCH", l, []byte("abc"), "Content-Range", "3-4").is(400) },
		func() {
			body := struct{ io.Reader }{strings.NewReader("abcdef")}
			w.send("PATCH", l, body, "Content-Range", "3-5").is(400)
		},
		func() { w.do("PUT", l+"?digest="+wrong, nil).is(400) },
		func() { w.do("DELETE", w.begin("a"), nil).is(204) },
		func() { w.do("POST", "/v2/a/blobs/uploads/?digest="+wrong, []byte("abc")).is(400) },
		func() { w.do("PUT", "/v2/a/manifests/v", []byte("text"), "Content-Type", typeArtifact).is(201) },
		func() {
			quotas(t, w, limit.Quota{Repositories: []string{"**"}, Bytes: quantity(20)})
			l := w.begin("a")
			w.do("PATCH", l, bytes.Repeat([]byte("x"), 30)).is(403)
			w.send("PATCH", l, struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 30))}).is(202)
			w.do("PUT", l+"?digest="+digest.FromString(strings.Repeat("x", 30)).String(), nil).is(403)
		},
	} {
		run()
		uploads.want(t)
	}
}

// stalled is a body of which no more arrives.
type stalled struct{ io.Reader }

func (b stalled) Read(p []byte) (int, error) {
	if n, err := b.Reader.Read(p); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("stalled: %w", os.ErrDeadlineExceeded)
}

// TestABodyThatStalls is answered 408, so that clients and proxies retry it; of an upload, what came before stays.
func TestABodyThatStalls(t *testing.T) {
	w := newServer(t)
	l := w.begin("a")
	for _, row := range []struct{ method, path, contentType string }{
		{"PATCH", l, ""},
		{"PUT", l + "?digest=" + digest.FromString("x").String(), ""},
		{"POST", "/v2/a/blobs/uploads/?digest=" + digest.FromString("x").String(), ""},
		{"PUT", "/v2/a/manifests/v", typeManifest},
	} {
		req := httptest.NewRequest(row.method, row.path, stalled{strings.NewReader("abc")})
		req.Header.Set("Content-Type", row.contentType)
		got := httptest.NewRecorder()
		w.registry.ServeHTTP(got, req)
		if got.Code != http.StatusRequestTimeout || !strings.Contains(got.Body.String(), "stall-timeout") {
			t.Errorf("%s %s: %d %s", row.method, row.path, got.Code, got.Body)
		}
	}
	w.do("GET", l, nil).is(204).has("Range", "0-5")
}

// TestAPrefixIsPartOfLocationsAndLinks, behind a proxy that serves the registry below a path.
func TestAPrefixIsPartOfLocationsAndLinks(t *testing.T) {
	w := newServer(t, func(o *registry.Options) { o.Prefix = "/some/path" })
	starts := func(a *answer, name, want string) {
		t.Helper()
		if got := a.header.Get(name); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s %q", a.what, name, got)
		}
	}
	a := w.do("POST", "/v2/a/blobs/uploads/", nil).is(202)
	starts(a, "Location", "/some/path/v2/a/blobs/uploads/")
	l := strings.TrimPrefix(a.header.Get("Location"), "/some/path")
	starts(w.do("PATCH", l, []byte("abc")).is(202), "Location", "/some/path/v2/a/blobs/uploads/")
	starts(w.do("PATCH", l, []byte("abc"), "Content-Range", "9-11").is(416), "Location",
		"/some/path/v2/a/blobs/uploads/")
	starts(w.do("PUT", l+"?digest="+digest.FromString("abc").String(), nil).is(201), "Location",
		"/some/path/v2/a/blobs/")
	for _, tag := range []string{"v1", "v2"} {
		starts(w.do("PUT", "/v2/a/manifests/"+tag, []byte("{}"), "Content-Type", typeOther).is(201), "Location",
			"/some/path/v2/a/manifests/")
	}
	w.do("PUT", "/v2/b/manifests/v", []byte("{}"), "Content-Type", typeOther).is(201)
	starts(w.do("GET", "/v2/a/tags/list?n=1", nil).is(200), "Link", "</some/path/v2/a/tags/list?")
	starts(w.do("GET", "/v2/_catalog?n=1", nil).is(200), "Link", "</some/path/v2/_catalog?")
}

// nameless is Blobs in which no upload stays for later requests.
type nameless struct{ storage.Blobs }

func (nameless) CreateAs(context.Context, string, string, digest.Algorithm) (storage.Upload, error) {
	return nil, errors.New("CreateAs was called")
}

// TestASmallBlobInOneRequestLeavesNoUpload: storage need not know a session of which one PUT brings all bytes. If that
// breaks off, the client starts the session anew, as its status says.
func TestASmallBlobInOneRequestLeavesNoUpload(t *testing.T) {
	memory, journal := inMemory()
	uploads := &endings{Blobs: nameless{memory}}
	w := serve(t, uploads, journal)
	content := random(t, 64<<10)
	d := digest.FromBytes(content).String()
	l := w.begin("a")
	w.breakOff("PUT", l+"?digest="+d, content)
	if got := w.do("GET", l, nil).is(204).header.Get("Range"); got != "0-0" {
		t.Errorf("after half of a PUT, Range is %q", got)
	}
	uploads.want(t)
	w.do("PUT", l+"?digest="+d, content).is(201)
	w.do("GET", "/v2/a/blobs/"+d, nil).is(200)
	w.do("PUT", l+"?digest="+d, content).is(404) // the session has ended
	w.do("PUT", w.begin("a")+"?digest="+d, content[1:]).is(400)
	uploads.want(t)
	// Of more, what arrives is kept.
	w.do("PUT", w.begin("a")+"?digest="+d, make([]byte, 2<<20)).is(500)
}
