package registry_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/address"
	"trow/registry/auth"
	cacheof "trow/registry/mirror"
	"trow/storage"
)

// elsewhere is an engine whose blobs clients can read without the registry, at URLs below at.
type elsewhere struct {
	storage.Blobs
	at    string
	err   error
	asked atomic.Int64
	life  time.Duration
}

func (e *elsewhere) Redirect(_ context.Context, d digest.Digest, ttl time.Duration) (string, error) {
	e.asked.Add(1)
	if e.life = ttl; e.err != nil {
		return "", e.err
	}
	return e.at + "/" + d.Encoded() + "?signature=s3cret", nil
}

// redirecting is a registry that redirects clients of these networks.
func redirecting(t *testing.T, all ...string) (*server, *elsewhere) {
	t.Helper()
	b, journal := inMemory()
	e := &elsewhere{Blobs: b, at: "http://s3.example"}
	return serve(t, b, journal, func(o *registry.Options) { o.Blobs, o.Redirected = e, networks(t, all...) }), e
}

func networks(t *testing.T, all ...string) address.Networks {
	t.Helper()
	parsed, err := address.ParseNetworks(all)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

const (
	large = 16<<10 + 1 // more than what is kept in memory
	local = "127.0.0.0/8"
)

// streams requires an answer with the bytes.
func (a *answer) streams(e *elsewhere, status int) *answer {
	a.t.Helper()
	a.is(status).has("Location", "")
	if n := e.asked.Swap(0); n != 0 {
		a.t.Errorf("%s: %d URLs were made", a.what, n)
	}
	return a
}

func TestBlobsAreRedirected(t *testing.T) {
	w, e := redirecting(t, "192.0.2.0/24", local)
	content := random(t, large)
	d := w.pushBlob("team/app", content)
	path := "/v2/team/app/blobs/" + d.String()
	redirected := func(headers ...string) {
		t.Helper()
		w.do("GET", path, nil, headers...).is(307).equals("").has("Location", e.at+"/"+d.Encoded()+"?signature=s3cret",
			"Cache-Control", "no-store", "ETag", "", "Docker-Content-Digest", "", "Accept-Ranges", "",
			"Content-Range", "", "Content-Length", "0")
		if e.asked.Swap(0) != 1 || e.life < 5*time.Minute || e.life > 15*time.Minute {
			t.Errorf("%q: the URL is valid for %v", headers, e.life)
		}
	}
	redirected()
	redirected("Range", "bytes=5-9")
	redirected("Range", "bytes=-5")
	redirected("Range", "bytes=5-")
	redirected("Authorization", "Bearer x") // to another host, to which no client sends it
	w.notes.Range(func(key, value any) bool {
		if strings.Contains(fmt.Sprint(value), "s3cret") {
			t.Errorf("the access log has %s=%s", key, value)
		}
		return true
	})

	// What is answered from here.
	w.do("HEAD", path, nil).streams(e, 200).has("Content-Length", fmt.Sprint(large))
	etag := `"` + d.String() + `"`
	w.do("GET", path, nil, "If-None-Match", etag).streams(e, 304)
	w.do("GET", path, nil, "Range", fmt.Sprintf("bytes=%d-", large)).streams(e, 416)
	w.do("GET", path, nil, "Range", "bytes=0-1,4-5").streams(e, 206)
	for headers, part := range map[[4]string]string{
		{"Range", "bytes=0-1,99999-"}:                            string(content[:2]), // services take one range
		{"Range", "bytes=0-1", "Range", "x"}:                     string(content[:2]),
		{"Range", "bytes= 0-1"}:                                  string(content[:2]), // nor all that is parsed here
		{"Range", "BYTES=0-1"}:                                   string(content[:2]),
		{"Range", "lines=0-1"}:                                   string(content),
		{"Range", "bytes=0-1", "If-Range", etag}:                 string(content[:2]), // a condition on our ETag
		{"Range", "bytes=0-1", "If-Range", `"other"`}:            string(content),
		{"If-None-Match", `"other"`}:                             string(content),
		{"If-Match", etag}:                                       string(content),
		{"If-Modified-Since", "Sat, 01 Jan 2000 00:00:00 GMT"}:   string(content),
		{"If-Unmodified-Since", "Sat, 01 Jan 2000 00:00:00 GMT"}: string(content),
		{"Origin", "https://page.example"}:                       string(content),
	} {
		var sent []string
		for _, h := range headers {
			if h != "" {
				sent = append(sent, h)
			}
		}
		status := 200
		if len(part) == 2 {
			status = 206
		}
		w.do("GET", path, nil, sent...).streams(e, status).equals(part)
	}

	small := w.pushBlob("team/app", content[:large-1])
	w.do("GET", "/v2/team/app/blobs/"+small.String(), nil).streams(e, 200).equals(string(content[:large-1]))
	manifest, tagged := w.pushImage("team/app", "v1", strings.Repeat("x", large))
	w.do("GET", "/v2/team/app/manifests/"+tagged.String(), nil).streams(e, 200).equals(string(manifest))
}

// TestAURLIsForThoseWhoMayHaveTheBlob: it is made only for what the repository holds, whole, and for who may pull it.
func TestAURLIsForThoseWhoMayHaveTheBlob(t *testing.T) {
	w, e := redirecting(t, local)
	d := w.pushBlob("team/app", random(t, large))
	for _, repo := range []string{"team/other", "f/docker.io/library/app"} {
		w.do("GET", "/v2/"+repo+"/blobs/"+d.String(), nil).streams(e, 404)
	}
	if err := w.index.Quarantine(t.Context(), d, "damaged"); err != nil {
		t.Fatal(err)
	}
	w.do("GET", "/v2/team/app/blobs/"+d.String(), nil).streams(e, 404)

	b, journal := inMemory()
	e = &elsewhere{Blobs: b, at: "http://s3.example"}
	w = serve(t, b, journal, func(o *registry.Options) {
		o.Blobs, o.Redirected, o.Auth = e, networks(t, local), pushOnly{}
	})
	d = w.pushBlob("team/app", random(t, large))
	w.do("GET", "/v2/team/app/blobs/"+d.String(), nil).streams(e, 401)
}

// pushOnly refuses pulls.
type pushOnly struct{ open }

func (pushOnly) Authorize(_ context.Context, _ *auth.Identity, _ string, a auth.Action) error {
	if a == auth.Push {
		return nil
	}
	return auth.ErrUnauthorized
}

func (pushOnly) Challenge(*http.Request, string, auth.Action, error) []string {
	return []string{"Basic"}
}

// TestOtherNetworksAreNotRedirected, whatever headers they send.
func TestOtherNetworksAreNotRedirected(t *testing.T) {
	for _, all := range [][]string{nil, {"192.0.2.0/24", "::/0"}} {
		w, e := redirecting(t, all...)
		content := random(t, large)
		path := "/v2/team/app/blobs/" + w.pushBlob("team/app", content).String()
		w.do("GET", path, nil, "X-Forwarded-For", "192.0.2.1", "Forwarded", "for=192.0.2.1").streams(e, 200).
			equals(string(content))
		for peer, status := range map[string]int{"192.0.2.1:4711": 307, "[::ffff:192.0.2.1]:4711": 307,
			"@": 200, "": 200} {
			if all == nil {
				status = 200
			}
			req := httptest.NewRequest("GET", path, nil)
			req.RemoteAddr = peer
			got := httptest.NewRecorder()
			w.registry.ServeHTTP(got, req)
			if got.Code != status {
				t.Errorf("%v, %q: %d, want %d", all, peer, got.Code, status)
			}
		}
	}
}

// TestALoginIsNotRedirectedWithItsClient: clients send it to each port of a host, and to the hosts below.
func TestALoginIsNotRedirectedWithItsClient(t *testing.T) {
	w, e := redirecting(t, local)
	path := "/v2/a/blobs/" + w.pushBlob("a", random(t, large)).String()
	for at, status := range map[string]int{"https://Trow.example:9000": 200, "https://s3.trow.example": 200,
		"https://s3.example": 307, "https://nottrow.example": 307, "https://example": 307} {
		e.at = at
		for login, want := range map[string]int{"": 307, "Basic eDp5": status} {
			req := httptest.NewRequest("GET", "https://trow.example:8443"+path, nil)
			req.RemoteAddr = "127.0.0.1:1"
			if login != "" {
				req.Header.Set("Authorization", login)
			}
			got := httptest.NewRecorder()
			w.registry.ServeHTTP(got, req)
			if got.Code != want || (got.Header().Get("Location") != "") != (want == 307) {
				t.Errorf("%s with %q: %d, want %d", at, login, got.Code, want)
			}
		}
	}
}

// TestAURLThatCannotBeMade costs nobody a pull.
func TestAURLThatCannotBeMade(t *testing.T) {
	w, e := redirecting(t, local)
	content := random(t, large)
	path := "/v2/a/blobs/" + w.pushBlob("a", content).String()
	e.err = errors.New("there are no credentials")
	w.do("GET", path, nil).is(200).has("Location", "").equals(string(content))
	if note, _ := w.notes.Load("err"); note != "not redirected: there are no credentials" {
		t.Errorf("the access log says %v", note)
	}
	w.do("GET", path, nil, "Range", "bytes=1-2").is(206).equals(string(content[1:3]))
}

// TestABlobOfAnUpstreamIsRedirected once it is held: until then, the service does not have it.
func TestABlobOfAnUpstreamIsRedirected(t *testing.T) {
	e := &elsewhere{at: "http://s3.example"}
	w, o := newCacheOf(t, "", nil, func(r *registry.Options) {
		e.Blobs = r.Blobs
		r.Blobs, r.Redirected = e, networks(t, local)
	})
	content := random(t, 1<<20)
	path := "/v2/team/app/blobs/" + o.blob("team/app", content).String() + "?ns=quay.io"
	w.do("GET", path, nil).streams(e, 200).equals(string(content))
	w.do("GET", path, nil).is(307).has("Cache-Control", "no-store")
	e.asked.Store(0)
	w.do("GET", strings.Replace(path, "/app/", "/other/", 1), nil).streams(e, 404)
}

// TestWhatAClientIsRedirectedToIsNotEvicted while it begins to read.
func TestWhatAClientIsRedirectedToIsNotEvicted(t *testing.T) {
	bound := cacheof.NewCache(3 << 19) // 1.5 MiB
	e := &elsewhere{at: "http://s3.example"}
	w, o := newCacheOf(t, "", bound.Reserve, func(r *registry.Options) {
		e.Blobs = r.Blobs
		index := r.Index
		r.Blobs, r.Redirected, r.Cache = e, networks(t, local), bound
		r.Drop = func(ctx context.Context, all []digest.Digest) error {
			_, err := (&storage.Collector{Blobs: e.Blobs, Index: index}).Drop(ctx, all)
			return err
		}
	})
	bound.Look(t.Context())
	get := func(content []byte, status int) digest.Digest {
		d := o.blob("team/app", content)
		w.do("GET", "/v2/f/quay.io/team/app/blobs/"+d.String(), nil).is(status)
		return d
	}
	held := func(d digest.Digest) bool {
		_, held, err := w.index.Blob(t.Context(), "f/quay.io/team/app", d)
		return held && err == nil
	}
	first, second, third := random(t, 1<<20), random(t, 1<<20), random(t, 1<<20)
	d := get(first, 200)
	d2 := get(second, 200) // there is room for one
	if held(d) || !held(d2) {
		t.Fatal("nothing was evicted")
	}
	get(second, 307)
	w.do("GET", "/v2/f/quay.io/team/app/blobs/"+o.blob("team/app", third).String(), nil)
	if !held(d2) {
		t.Error("what a client reads from the service was evicted")
	}
}
