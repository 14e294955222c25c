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
)

func TestNamespaceOfAMirror(t *testing.T) {
	w := newServer(t)
	w.pushImage("library/nginx", "v", "x")
	w.do("GET", "/v2/library/nginx/manifests/v?ns=docker.io", nil).code(404, "NAME_UNKNOWN")
	w.do("HEAD", "/v2/library/nginx/manifests/v?ns=docker.io", nil).is(404)
	w.do("GET", "/v2/library/nginx/manifests/v?ns=Trow.kube-public:31000", nil).is(200).
		has("OCI-Namespace", "Trow.kube-public:31000")
	w.do("POST", "/v2/library/nginx/blobs/uploads/?ns=docker.io", nil).is(202)
}

func TestAccessByIdentity(t *testing.T) {
	g, err := auth.New(auth.Options{Dir: t.TempDir(), User: "u", Password: "p:ä",
		Anonymous: "pull"})
	if err != nil {
		t.Fatal(err)
	}
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

	none, err := auth.New(auth.Options{Dir: t.TempDir(), Anonymous: "push"})
	if err != nil {
		t.Fatal(err)
	}
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
	w.do("GET", "/v2/_catalog?n=1", nil).is(200).has("Link", "").equals(`{"repositories":[]}`)
}

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
