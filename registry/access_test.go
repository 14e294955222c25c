package registry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
	"trow/registry/auth/authtest"
)

func TestNamespaceOfAMirror(t *testing.T) {
	w := newServer(t)
	w.pushImage("library/nginx", "v", "x")
	w.do("GET", "/v2/library/nginx/manifests/v?ns=docker.io", nil).code(404, "NAME_UNKNOWN")
	w.do("HEAD", "/v2/library/nginx/manifests/v?ns=docker.io", nil).is(404)
	w.do("GET", "/v2/library/nginx/manifests/v?ns=Trow.kube-public:31000", nil).is(200).
		has("OCI-Namespace", "Trow.kube-public:31000")
	for _, same := range []string{"trow.kube-public.:31000", "trow.kube-public:031000"} {
		w.do("GET", "/v2/library/nginx/manifests/v?ns="+same, nil).is(200).has("OCI-Namespace", same)
	}
	for _, other := range []string{"trow.kube-public", "trow.kube-public:0", "[", ":", "1.2",
		"trow.kube-public:31000/x"} {
		w.do("GET", "/v2/library/nginx/manifests/v?ns="+other, nil).code(404, "NAME_UNKNOWN")
	}
	// A push with another name is for the repository below f/ as well, and not for one of ours.
	w.do("POST", "/v2/library/nginx/blobs/uploads/?ns=docker.io", nil).is(202)
	if repo, _ := w.notes.Load("repo"); repo != "f/docker.io/library/nginx" {
		t.Errorf("the push is for %s", repo)
	}
}

func TestAccessByIdentity(t *testing.T) {
	g := authtest.New(t, auth.Options{User: "u", Password: "p:ä", Anonymous: "pull"})
	w := newServer(t, func(o *registry.Options) { o.Auth = g })
	login := []string{"Authorization", "Basic dTpwOsOk"} // u:p:ä
	challenge := fmt.Sprintf(`Bearer realm="%s/token",service="%s"`, w.url, strings.TrimPrefix(w.url, "http://"))
	w.do("GET", "/v2/", nil).code(401, "UNAUTHORIZED").has("Www-Authenticate", challenge)
	w.do("GET", "/v2/", nil, login...).is(200)
	d := digest.FromString("x").String()
	w.do("POST", "/v2/a/blobs/uploads/?digest="+d, []byte("x")).code(401, "UNAUTHORIZED")
	w.do("POST", "/v2/a/blobs/uploads/?digest="+d, []byte("x"), "Authorization", "Basic eDp5").code(401, "UNAUTHORIZED")
	w.do("POST", "/v2/a/blobs/uploads/?digest="+d, []byte("x"), login...).is(201)
	if user, _ := w.notes.Load("user"); user != "u" {
		t.Errorf("the access log has user %q", user)
	}
	w.do("GET", "/v2/a/blobs/"+d, nil).is(200)
	w.do("DELETE", "/v2/a/blobs/"+d, nil).code(401, "UNAUTHORIZED")
	w.do("PUT", "/v2/a/manifests/v", []byte("{}")).code(401, "UNAUTHORIZED")
	w.do("DELETE", "/v2/a/blobs/"+d, nil, login...).is(202)

	none := authtest.New(t, auth.Options{Anonymous: "push"})
	w = newServer(t, func(o *registry.Options) { o.Auth = none })
	w.do("POST", "/v2/a/blobs/uploads/?digest="+d, []byte("x")).is(201)
	w.do("DELETE", "/v2/a/blobs/"+d, nil).code(403, "DENIED").contains("--user")
}

func TestAMountRevealsNoOtherRepository(t *testing.T) {
	a := &rules{Authorizer: open{}, deny: "secret", err: auth.ErrHidden}
	w := newServer(t, func(o *registry.Options) { o.Auth = a })
	a.deny = ""
	d := w.pushBlob("secret", []byte("x")).String()
	a.deny = "secret"
	w.do("POST", "/v2/mine/blobs/uploads/?mount="+d+"&from=secret", nil).is(202)
	w.do("POST", "/v2/mine/blobs/uploads/?mount="+d, nil).is(202)
	a.err = auth.ErrUnavailable
	w.do("POST", "/v2/mine/blobs/uploads/?mount="+d+"&from=secret", nil).is(202)
	w.do("GET", "/v2/mine/blobs/"+d, nil).is(404)
}

func TestAHiddenRepositoryLooksAbsent(t *testing.T) {
	a := &rules{Authorizer: open{}, deny: "", err: auth.ErrHidden}
	w := newServer(t, func(o *registry.Options) { o.Auth = a })
	body, d := w.pushImage("secret", "v", "x")
	blob := w.pushBlob("secret", []byte("x")).String()
	signature := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[],"subject":%s}`,
		typeManifest, desc("application/vnd.oci.empty.v1+json", []byte("x")), desc(typeManifest, body))
	w.do("PUT", "/v2/secret/manifests/signature", signature, "Content-Type", typeManifest).is(201)
	a.deny = "secret"
	for _, path := range []string{"manifests/v", "manifests/" + d.String(), "manifests/v?ns=docker.io",
		"manifests/v?ns=trow.kube-public:31000", "blobs/" + blob, "blobs/" + blob + "?ns=docker.io",
		"tags/list", "tags/list?n=x", "tags/list?n=1&last=a", "referrers/" + d.String(),
		"referrers/" + d.String() + "?artifactType=x", "referrers/" + d.String() + "?last=x"} {
		for _, method := range []string{"GET", "HEAD"} {
			for _, headers := range [][]string{nil, {"Range", "bytes=0-0"}, {"If-None-Match", `"` + d.String() + `"`},
				{"If-None-Match", `"` + blob + `"`}, {"If-None-Match", "*"}} {
				hidden := w.do(method, "/v2/secret/"+path, nil, headers...)
				absent := w.do(method, "/v2/absent/"+path, nil, headers...)
				for _, a := range []*answer{hidden, absent} {
					a.header.Del("Date")
				}
				// the names have the same length, so that Content-Length must be equal as well
				got, want := strings.ReplaceAll(string(hidden.body), "secret", "absent"), string(absent.body)
				if hidden.status != absent.status || got != want || !reflect.DeepEqual(hidden.header, absent.header) {
					t.Errorf("%s %s %v: hidden %d %s %v, absent %d %s %v", method, path, headers,
						hidden.status, got, hidden.header, absent.status, want, absent.header)
				}
			}
		}
	}
}

func TestTheCatalogListsReadableRepositories(t *testing.T) {
	a := &rules{Authorizer: open{}}
	w := newServer(t, func(o *registry.Options) { o.Auth = a })
	var mine []string
	for i := range 120 {
		repo := fmt.Sprintf("secret/%03d", i)
		if i%8 == 3 {
			repo = fmt.Sprintf("secret-%03d/mine", i)
			mine = append(mine, repo)
		}
		w.pushImage(repo, "v", "x")
	}
	a.readable = func(repo string) (bool, error) { return strings.HasSuffix(repo, "/mine"), nil }
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
	a.readable = func(string) (bool, error) { return false, nil }
	w.do("GET", "/v2/_catalog?n=1", nil).is(200).has("Link", "").equals(`{"repositories":[]}`)
}

// spending is an Authorizer that answers few questions for one request.
type spending struct {
	open
	asked int // by the last request
}

func (s *spending) Readable(context.Context, *auth.Identity) func(string) (bool, error) {
	s.asked = 0
	return func(repo string) (bool, error) {
		if s.asked == 10 {
			return false, auth.ErrSpent
		}
		s.asked++
		return strings.HasSuffix(repo, "/mine"), nil
	}
}

// TestAPageOfTheCatalogEndsWhenTheQuestionsAreSpent: no repository is left out for that, and no link names a hidden
// one.
func TestAPageOfTheCatalogEndsWhenTheQuestionsAreSpent(t *testing.T) {
	a := &spending{}
	w := newServer(t, func(o *registry.Options) { o.Auth = a })
	var mine []string
	for i := range 60 {
		repo := fmt.Sprintf("secret/%0*d", 3+i%5, i)
		if i == 3 || i == 50 {
			repo = fmt.Sprintf("secret-%03d/mine", i)
			mine = append(mine, repo)
		}
		w.pushImage(repo, "v", "x")
	}
	for _, query := range []string{"", "?n=1", "?n=5"} {
		var got []string
		links := map[int]bool{}
		for path, pages := "/v2/_catalog"+query, 1; path != ""; pages++ {
			answer := w.do("GET", path, nil).is(200)
			var page struct{ Repositories []string }
			if err := json.Unmarshal(answer.body, &page); err != nil || page.Repositories == nil || pages > 20 {
				t.Fatalf("page %d: %v: %s", pages, err, answer.body)
			}
			got = append(got, page.Repositories...)
			path, _, _ = strings.Cut(strings.TrimPrefix(answer.header.Get("Link"), "<"), ">")
			if path != "" && strings.Contains(path, "~") {
				links[len(path)] = true
			}
			if strings.Contains(path, "secret/") || strings.Contains(path, "secret%2F") {
				t.Errorf("a link names a hidden repository: %s", path)
			}
		}
		if !slices.Equal(got, mine) || len(links) != 1 {
			t.Errorf("%q: %v, want %v; links of %d lengths", query, got, mine, len(links))
		}
	}
	for _, last := range []string{"~", "~x", "~" + strings.Repeat("A", 380)} {
		w.do("GET", "/v2/_catalog?last="+last, nil).code(400, "UNSUPPORTED")
	}
}

// TestTheCatalogIsNotCutWhileTheKubernetesAPIIsAway: a list without what may be readable would look complete.
func TestTheCatalogIsNotCutWhileTheKubernetesAPIIsAway(t *testing.T) {
	a := &rules{Authorizer: open{}}
	w := newServer(t, func(o *registry.Options) { o.Auth = a })
	w.pushImage("a", "v", "x")
	a.readable = func(string) (bool, error) { return false, fmt.Errorf("%w: 10.0.0.1", auth.ErrUnavailable) }
	w.do("GET", "/v2/_catalog", nil).code(503, "UNAVAILABLE").has("Retry-After", "1")
}

type rules struct {
	auth.Authorizer
	deny     string
	err      error
	readable func(string) (bool, error)
}

func (r *rules) Authorize(_ context.Context, _ *auth.Identity, repo string, _ auth.Action) error {
	if repo != "" && repo == r.deny {
		return r.err
	}
	return nil
}

func (r *rules) Readable(context.Context, *auth.Identity) func(string) (bool, error) {
	return r.readable
}
