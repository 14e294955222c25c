package registry_test

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"trow/registry"
	"trow/registry/auth"
)

// namedClient is an Authorizer for which the client is the user in the header X-User, and may push if it has a name.
type namedClient struct{ open }

func (namedClient) Identify(r *http.Request) (*auth.Identity, error) {
	return &auth.Identity{Name: r.Header.Get("X-User")}, nil
}

type historyAnswer struct {
	Image   string
	History []struct {
		Digest, By string
		Date       time.Time
	}
}

func TestHistory(t *testing.T) {
	w := newServer(t, func(o *registry.Options) { o.Auth = namedClient{} })
	_, first := w.pushImage("a/b", "v", "1")
	body, second := w.pushImage("a/b", "other", "2")
	w.do("PUT", "/v2/a/b/manifests/v", body, "Content-Type", typeManifest, "X-User", "ann").is(201)
	list := func(path string) historyAnswer {
		a := w.do("GET", path, nil).is(200).has("Content-Type", "application/json")
		var h historyAnswer
		if err := json.Unmarshal(a.body, &h); err != nil || h.Image != "a/b:v" {
			t.Errorf("%s: %s", path, a.body)
		}
		return h
	}
	for path, want := range map[string][]string{
		"":                             {second.String() + " ann", first.String() + " (anonymous)"},
		"?n=1":                         {second.String() + " ann"},
		"?n=0":                         {},
		"?last=" + second.String():     {first.String() + " (anonymous)"},
		"?last=" + first.String():      {},
		"?last=none":                   {},
		"?n=5&last=" + second.String(): {first.String() + " (anonymous)"},
	} {
		h := list("/v2/a/b/manifest_history/v" + path)
		var got []string
		for _, x := range h.History {
			got = append(got, x.Digest+" "+x.By)
			if age := time.Since(x.Date); age < -time.Second || age > time.Hour {
				t.Errorf("%s: since %v", path, x.Date)
			}
		}
		if strings.Join(got, ",") != strings.Join(want, ",") {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	w.do("GET", "/v2/a/b/manifest_history/none", nil).code(404, "MANIFEST_UNKNOWN")
	w.do("GET", "/v2/none/manifest_history/v", nil).code(404, "MANIFEST_UNKNOWN")
	w.do("GET", "/v2/a/b/manifest_history/"+first.String(), nil).code(400, "MANIFEST_INVALID")
	w.do("GET", "/v2/a/b/manifest_history/v?n=x", nil).code(400, "UNSUPPORTED")
	w.do("DELETE", "/v2/a/b/manifest_history/v", nil).code(405, "UNSUPPORTED")
	w.do("GET", "/v2/manifest_history/v", nil).is(404)
}

// namedKinds is an Authorizer for which the client is one of the identities, by the header X-User.
type namedKinds struct {
	open
	all map[string]*auth.Identity
}

func (n namedKinds) Identify(r *http.Request) (*auth.Identity, error) {
	return cmp.Or(n.all[r.Header.Get("X-User")], &auth.Identity{}), nil
}

// TestEveryKindOfClientHasANameInTheHistory: also the longest, and those without a name.
func TestEveryKindOfClientHasANameInTheHistory(t *testing.T) {
	account := "system:serviceaccount:" + strings.Repeat("n", 63) + ":" + strings.Repeat("a", 253)
	who := namedKinds{all: map[string]*auth.Identity{
		"ann": {Name: "ann"}, "robot:ci": {Name: "robot:ci"}, account: {Name: account, Cluster: true},
		"cert:" + strings.Repeat("c", 255): {Name: "cert:" + strings.Repeat("c", 255)},
		"(socket)":                         auth.Socket, "(anonymous)": {},
	}}
	w := newServer(t, func(o *registry.Options) { o.Auth = who })
	body, _ := w.pushImage("a", "other", "1")
	for name := range who.all {
		w.do("PUT", "/v2/a/manifests/v", body, "Content-Type", typeManifest, "X-User", name).is(201)
		a := w.do("GET", "/v2/a/manifest_history/v", nil, "X-User", name).is(200)
		var h historyAnswer
		if err := json.Unmarshal(a.body, &h); err != nil || len(h.History) != 1 || h.History[0].By != name {
			t.Errorf("%s: %v %s", name, err, a.body)
		}
		w.do("DELETE", "/v2/a/manifests/v", nil, "X-User", name).is(202)
	}
}

// pullOnly lets clients do nothing but pull.
type pullOnly struct{ open }

func (pullOnly) Authorize(_ context.Context, _ *auth.Identity, _ string, a auth.Action) error {
	if a != auth.Pull {
		return auth.ErrDenied
	}
	return nil
}

func TestWhoHasSetATagIsForThoseWhoMayPush(t *testing.T) {
	blobs, journal := inMemory()
	w := serve(t, blobs, journal, func(o *registry.Options) { o.Auth = namedClient{} })
	body, _ := w.pushImage("a", "v", "1")
	w.pushImage("a", "v", "2")
	w.do("PUT", "/v2/a/manifests/v", body, "Content-Type", typeManifest, "X-User", "ann").is(201)
	if a := w.do("GET", "/v2/a/manifest_history/v", nil).is(200); !strings.Contains(string(a.body), `"by":"ann"`) {
		t.Errorf("%s", a.body)
	}
	reader := serve(t, blobs, journal, func(o *registry.Options) { o.Auth = pullOnly{} })
	if a := reader.do("GET", "/v2/a/manifest_history/v", nil).is(200); strings.Contains(string(a.body), "ann") ||
		!strings.Contains(string(a.body), `"date"`) {
		t.Errorf("%s", a.body)
	}
}

func TestOldPaths(t *testing.T) {
	w := newServer(t)
	w.pushImage("a/b", "v", "1")
	next := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }
	h := registry.OldPaths(w.registry, next)
	for path, want := range map[string]int{
		"/a/b/manifest_history/v":    200,
		"/a/b/manifest_history/none": 404,
		"/A/manifest_history/v":      400,
		"/manifest_history/v":        http.StatusTeapot,
		"/a/b/tags/list":             http.StatusTeapot,
		"/a/b/manifests/v":           http.StatusTeapot,
		"/":                          http.StatusTeapot,
		"/metrics":                   http.StatusTeapot,
	} {
		rec := httptest.NewRecorder()
		h(rec, httptest.NewRequest("GET", path, nil))
		if rec.Code != want {
			t.Errorf("%s: %d %s, want %d", path, rec.Code, rec.Body, want)
		}
	}
}
