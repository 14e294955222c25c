package registry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	cacheof "trow/registry/mirror"
	"trow/registry/upstream"
	"trow/storage"
)

// answers makes a repository there answer a path with JSON.
func (o *origin) answers(path string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.manifests[path] = b
}

// lists makes a repository there list tags.
func (o *origin) lists(repo string, tags ...string) {
	o.answers(repo+"/tags/list", map[string]any{"name": repo, "tags": tags})
}

const tagsOfApp = "/v2/f/quay.io/team/app/tags/list"

// TestTagsOfAnUpstream are listed with those that are held, in pages, and asked for once while they are fresh.
func TestTagsOfAnUpstream(t *testing.T) {
	w, o := newCache(t, "")
	o.push("team/app", "v", "1")
	w.do("GET", tagsOfApp, nil).is(404)
	w.do("GET", "/v2/f/quay.io/team/app/manifests/v", nil).is(200)
	w.do("GET", tagsOfApp, nil).is(200).contains(`"tags":["v"]`).has("Warning", "") // it lists none
	w2, o := newCache(t, "")
	o.lists("team/app", "b", "d", "a", "c")
	o.push("team/app", "e", "1")
	w2.do("GET", tagsOfApp, nil).is(200).contains(`"tags":["a","b","c","d"]`)
	w2.do("GET", "/v2/team/app/tags/list?ns=quay.io", nil).is(200).
		contains(`{"name":"team/app","tags":["a","b","c","d"]}`)
	w2.do("GET", "/v2/f/quay.io/team/app/manifests/e", nil).is(200)
	a := w2.do("GET", tagsOfApp+"?n=2", nil).is(200).contains(`"tags":["a","b"]`)
	a.has("Link", `</v2/f/quay.io/team/app/tags/list?last=b&n=2>; rel="next"`)
	w2.do("GET", tagsOfApp+"?n=2&last=b", nil).is(200).contains(`"tags":["c","d"]`)
	w2.do("GET", tagsOfApp+"?n=2&last=d", nil).is(200).contains(`"tags":["e"]`).has("Link", "")
	w2.do("GET", tagsOfApp+"?last=bb", nil).is(200).contains(`"tags":["c","d","e"]`)
	w2.do("GET", tagsOfApp, nil, "Cache-Control", "max-age=0, Only-If-Cached").is(200).contains(`"tags":["e"]`)
	if got := o.requests(); strings.Count(got, "tags/list") != 1 {
		t.Errorf("the upstream was asked\n%s", got)
	}
}

// TestTagsOfAnUpstreamThatIsGone are those that are held, with a warning.
func TestTagsOfAnUpstreamThatIsGone(t *testing.T) {
	w, o := newCache(t, "always")
	o.lists("team/app", "v", "w")
	o.push("team/app", "v", "1")
	w.do("GET", "/v2/f/quay.io/team/app/manifests/v", nil).is(200)
	for status, want := range map[int]int{500: 503, 401: 401} {
		none := fmt.Sprintf("/v2/f/quay.io/team/none-%d/tags/list", status) // a 401 is remembered
		o.set(status, nil)
		a := w.do("GET", tagsOfApp, nil).is(200).contains(`"tags":["v"]`).has("Trow-Stale", "upstream")
		if text := a.header.Get("Warning"); !strings.HasPrefix(text, `299 - "stale: quay.io/team/app tags/list`) {
			t.Errorf("Warning %s", text)
		}
		w.do("GET", none, nil).is(want)
	}
}

// signed returns a manifest with a subject, and its descriptor in a list.
func signed(subject []byte, content string) (body []byte, in map[string]any) {
	body = image([]byte(content), []byte("layer "+content), `,"subject":`+desc(typeManifest, subject))
	return body, map[string]any{"mediaType": typeManifest, "digest": digest.FromBytes(body), "size": len(body)}
}

// TestReferrersOfAnUpstream come along, by its API or by the tag that replaces it; that there are none is remembered.
func TestReferrersOfAnUpstream(t *testing.T) {
	for _, way := range []string{"API", "tag", "none"} {
		w, o := newCache(t, "")
		subject, d := o.whole("team/app", "v", "1")
		body, in := signed(subject, "signature")
		list := map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []any{in}}
		fallback := "sha256-" + d.Encoded()
		o.blob("team/app", []byte("signature"))
		o.blob("team/app", []byte("layer signature"))
		switch way {
		case "API":
			o.put("team/app", "sig", body)
			o.answers("team/app/referrers/"+d.String(), list)
		case "tag":
			o.put("team/app", "sig", body)
			text, _ := json.Marshal(list)
			o.put("team/app", fallback, text)
		}
		at := "/v2/team/app/referrers/" + d.String() + "?ns=quay.io"
		for range 3 {
			a := w.do("GET", at, nil).is(200).has("Warning", "")
			if strings.Contains(string(a.body), digest.FromBytes(body).String()) != (way != "none") {
				t.Errorf("%s: %s", way, a.body)
			}
		}
		got := o.requests()
		if n := strings.Count(got, "GET /v2/team/app/referrers/"); n != 1 {
			t.Errorf("%s: the upstream was asked\n%s", way, got)
		}
		want := fmt.Sprintf("GET /v2/team/app/referrers/%s\nHEAD /v2/team/app/manifests/%s", d, fallback)
		if way == "none" && got != want {
			t.Errorf("the upstream was asked\n%s", got)
		}
		// With the image comes all of the signature.
		if err := w.fetch("v"); err != nil {
			t.Fatal(err)
		}
		o.set(500, nil)
		if way != "none" {
			w.do("GET", "/v2/f/quay.io/team/app/blobs/"+digest.FromString("layer signature").String(), nil).is(200)
			w.do("GET", "/v2/f/quay.io/team/app/manifests/"+digest.FromBytes(body).String(), nil).is(200)
		}
	}
}

// TestReferrersOfAnUpstreamThatIsGone: those that are held, with a warning, and never a list that says that there are
// none.
func TestReferrersOfAnUpstreamThatIsGone(t *testing.T) {
	w, o := newCache(t, "always")
	subject, d := o.whole("team/app", "v", "1")
	body, in := signed(subject, "signature")
	o.put("team/app", "sig", body)
	o.answers("team/app/referrers/"+d.String(), map[string]any{"mediaType": typeIndex, "manifests": []any{in}})
	at := "/v2/f/quay.io/team/app/referrers/"
	w.do("GET", at+d.String(), nil).is(200).contains(digest.FromBytes(body).String())
	o.set(500, nil)
	w.do("GET", at+d.String(), nil).is(200).contains(digest.FromBytes(body).String()).has("Trow-Stale", "upstream")
	w.do("GET", at+digest.FromString("other").String(), nil).code(503, "UNAVAILABLE")
	w.do("GET", at+digest.FromString("other").String(), nil, "Cache-Control", "only-if-cached").is(200).
		contains(`"manifests":[]`)
	// Without an upstream the list is empty, as of any repository.
	w.do("GET", "/v2/f/ghcr.io/team/app/referrers/"+d.String(), nil).is(200).contains(`"manifests":[]`)
}

// TestSignaturesOfCosign are tags like others: they are cached, and so is the answer that there are none.
func TestSignaturesOfCosign(t *testing.T) {
	w, o := newCache(t, "")
	_, d := o.whole("team/app", "v", "1")
	tag := "sha256-" + d.Encoded()
	sig, _ := o.whole("team/app", tag+".sig", "signature")
	for range 3 {
		w.do("GET", "/v2/team/app/manifests/"+tag+".sig?ns=quay.io", nil).is(200).equals(string(sig))
		w.do("HEAD", "/v2/team/app/manifests/"+tag+".att?ns=quay.io", nil).is(404)
		w.do("GET", "/v2/team/app/manifests/"+tag+".sbom?ns=quay.io", nil).is(404)
	}
	got := o.requests()
	for _, kind := range []string{".sig", ".att", ".sbom"} {
		if strings.Count(got, "HEAD /v2/team/app/manifests/"+tag+kind) != 1 {
			t.Errorf("the upstream was asked\n%s", got)
		}
	}
}

// poll fetches ahead once.
func (w *server) poll() error { return w.registry.(*registry.Registry).Poll(w.Context()) }

// keeping is a cache whose upstream has keep:.
func keeping(t *testing.T, bound *cacheof.Cache, more option, keep ...upstream.Keep) (*server, *origin) {
	return newCacheEntry(t, "always", bound.Reserve, func(r *registry.Options) { r.Cache = bound; more(r) },
		func(e *upstream.Entry) { e.Keep = keep })
}

// TestKeepIsFetchedAhead: what patterns and names of tags name now, and what they name after a change.
func TestKeepIsFetchedAhead(t *testing.T) {
	w, o := keeping(t, cacheof.NewCache(1<<30), func(*registry.Options) {},
		upstream.Keep{Repository: "team/app", Tags: []string{"1.*"}},
		upstream.Keep{Repository: "team/db", Tags: []string{"v"}})
	images := map[string]string{}
	for _, tag := range []string{"1.1", "1.2", "2.0"} {
		body, _ := o.whole("team/app", tag, tag)
		images[tag] = string(body)
	}
	db, _ := o.whole("team/db", "v", "db")
	o.lists("team/app", "1.1", "1.2", "2.0")
	if err := w.poll(); err != nil {
		t.Fatal(err)
	}
	if got := o.requests(); strings.Contains(got, "team/db/tags") || strings.Contains(got, "manifests/2.0") {
		t.Errorf("the upstream was asked\n%s", got)
	}
	newer, _ := o.whole("team/app", "1.1", "newer")
	if err := w.poll(); err != nil {
		t.Fatal(err)
	}
	o.set(500, nil)
	for tag, want := range map[string]string{"1.1": string(newer), "1.2": images["1.2"]} {
		w.do("GET", "/v2/f/quay.io/team/app/manifests/"+tag, nil).is(200).equals(want)
	}
	w.do("GET", "/v2/f/quay.io/team/db/manifests/v", nil).is(200).equals(string(db))
	w.do("GET", "/v2/f/quay.io/team/app/manifests/2.0", nil).is(503)
	for _, content := range []string{"newer", "layer newer", "1.2", "layer 1.2"} {
		w.do("GET", "/v2/f/quay.io/team/app/blobs/"+digest.FromString(content).String(), nil).is(200)
	}
	if err := w.poll(); err == nil || !strings.Contains(err.Error(), "cannot be asked") {
		t.Errorf("the upstream is gone: %v", err)
	}
}

// counted counts commits.
type counted struct {
	storage.Journal
	commits *atomic.Int64
}

func (c counted) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	c.commits.Add(1)
	return c.Journal.Commit(ctx, b...)
}

// TestAPollThatFindsNothingNewWritesNothing, and reads no blob; nor is there a last use to write.
func TestAPollThatFindsNothingNewWritesNothing(t *testing.T) {
	const tags = 500
	var commits atomic.Int64
	blobs, journal := inMemory()
	bound := cacheof.NewCache(1 << 30)
	w, o := newCacheOver(t, blobs, counted{journal, &commits}, "always", bound.Reserve,
		func(r *registry.Options) { r.Cache = bound },
		func(e *upstream.Entry) { e.Keep = []upstream.Keep{{Repository: "team/app", Tags: []string{"*"}}} })
	var names []string
	for n := range tags {
		names = append(names, fmt.Sprintf("v%d", n))
		o.whole("team/app", names[n], names[n])
	}
	o.lists("team/app", names...)
	if err := w.poll(); err != nil {
		t.Fatal(err)
	}
	bound.Look(t.Context())
	if err := bound.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := commits.Load()
	if before < tags {
		t.Fatalf("%d commits for %d tags", before, tags)
	}
	o.requests()
	for range 3 {
		if err := w.poll(); err != nil {
			t.Fatal(err)
		}
	}
	if err := bound.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := commits.Load() - before; n != 0 {
		t.Errorf("%d commits although nothing is new", n)
	}
	got := o.requests()
	if strings.Count(got, "HEAD /v2/team/app/manifests/") != 3*tags || strings.Count(got, "GET ") != 3 {
		t.Errorf("%d requests, of which %d GETs", strings.Count(got, "\n")+1, strings.Count(got, "GET "))
	}
}
