package registry_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/audit"
	"trow/registry/auth"
	"trow/registry/auth/authtest"
	"trow/registry/namespace"
	"trow/storage"
)

// mirror is a registry with the image f/docker.io/library/nginx:v, and hub.trow.example for Docker Hub.
type mirror struct {
	*server
	guard  *auth.Guard
	body   []byte
	digest digest.Digest

	mu       sync.Mutex
	failures []audit.Event // logins that failed
}

// login are the headers of a user whose password is the name.
func login(name string) []string {
	return []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+name))}
}

func newMirror(t *testing.T, rules ...auth.Rule) *mirror {
	t.Helper()
	m := &mirror{}
	table := namespace.NewTable([]namespace.Site{{Host: "hub.trow.example", Upstream: "docker.io"}})
	m.guard = authtest.New(t, auth.Options{Htpasswd: authtest.Htpasswd(t, "alice", "importer"), Rules: append(rules,
		auth.Rule{Who: []string{"user:importer"}, May: []string{"mirror", "pull"}}), Namespaces: table,
		Audit: func(_ context.Context, e audit.Event) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.failures = append(m.failures, e)
		}})
	m.server = newServer(t, func(o *registry.Options) { o.Auth, o.Namespaces = m.guard, table })
	mux := http.NewServeMux()
	mux.HandleFunc(auth.TokenPath, m.guard.ServeToken)
	mux.Handle("/v2/", m.registry)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	m.url = s.URL
	config, layer := []byte(`{"a":1}`), []byte("layer")
	for _, b := range [][]byte{config, layer} {
		m.do("POST", "/v2/f/docker.io/library/nginx/blobs/uploads/?digest="+digest.FromBytes(b).String(), b,
			login("importer")...).is(201)
	}
	m.body = image(config, layer)
	m.digest = digest.FromBytes(m.body)
	m.put("f/docker.io/library/nginx", "v", m.body, login("importer")...).is(201)
	return m
}

// at sends a request with a Host of its own.
func (w *server) at(host, method, path string, headers ...string) *answer {
	w.Helper()
	req, err := http.NewRequestWithContext(w.Context(), method, w.url+path, nil)
	if err != nil {
		w.Fatal(err)
	}
	req.Host = host
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.Fatal(err)
	}
	return readAnswer(w, host+" "+method+" "+path, resp)
}

var everybodyPulls = auth.Rule{Who: []string{"*"}, May: []string{"pull", "push", "create", "delete"}}

func TestEachFormReachesTheRepository(t *testing.T) {
	w := newMirror(t, everybodyPulls)
	layer := digest.FromString("layer").String()
	for path, ns := range map[string]string{
		"/v2/f/docker.io/library/nginx/":                   "",
		"/v2/f/docker.io/nginx/":                           "", // CRI-O and people write what images have
		"/v2/f/index.docker.io/library/nginx/":             "",
		"/v2/f/docker/nginx/":                              "", // Trow 0.x
		"/v2/library/nginx/?ns=docker.io":                  "docker.io",
		"/v2/nginx/?ns=docker.io":                          "docker.io",
		"/v2/nginx/?ns=registry-1.docker.io":               "registry-1.docker.io",
		"/v2/nginx/?ns=Docker.io:443":                      "Docker.io:443",
		"/v2/nginx/?ns=docker.io&ns=docker.io":             "docker.io",
		"/v2/nginx/?ns=hub.trow.example":                   "hub.trow.example",
		"/v2/f/docker.io/library/nginx/?ns=docker.io":      "docker.io", // override_path of containerd
		"/v2/f/docker.io/library/nginx/?ns=":               "",
		"/v2/f/docker.io/nginx/?ns=trow.kube-public:31000": "trow.kube-public:31000",
	} {
		repo, query, _ := strings.Cut(path, "?")
		for what, ref := range map[string]string{"manifests/": "v", "manifests": "/" + w.digest.String(),
			"blobs/": layer} {
			for _, method := range []string{"GET", "HEAD"} {
				w.do(method, repo+what+ref+"?"+query, nil).is(200).has("OCI-Namespace", ns)
			}
		}
		w.do("GET", repo+"tags/list?"+query, nil).is(200).has("OCI-Namespace", ns).
			contains(`{"name":"` + strings.TrimSuffix(strings.TrimPrefix(repo, "/v2/"), "/") + `","tags":["v"]}`)
		w.do("GET", repo+"referrers/"+w.digest.String()+"?"+query, nil).is(200).has("OCI-Namespace", ns)
		if repo, _ := w.notes.Load("repo"); repo != "f/docker.io/library/nginx" {
			t.Errorf("%s: the access log has the repository %s", path, repo)
		}
	}
	for _, host := range []string{"hub.trow.example", "HUB.trow.example:8443"} {
		w.at(host, "GET", "/v2/", login("alice")...).is(200)
		w.at(host, "GET", "/v2/library/nginx/manifests/v").is(200).equals(string(w.body)).has("OCI-Namespace", "")
		w.at(host, "GET", "/v2/nginx/blobs/"+layer).is(200)
		w.at(host, "GET", "/v2/f/docker.io/library/nginx/manifests/v").is(200)
		w.at(host, "GET", "/v2/f/quay.io/library/nginx/manifests/v").is(404)
		// With ?ns= that of this registry is meant.
		w.at(host, "GET", "/v2/library/nginx/manifests/v?ns=trow.kube-public:31000").code(404, "MANIFEST_UNKNOWN")
	}
	w.at("trow.example", "GET", "/v2/library/nginx/manifests/v").is(404)
}

func TestNamespacesThatAreNotHere(t *testing.T) {
	w := newMirror(t, everybodyPulls)
	d := w.digest.String()
	long := strings.Repeat("a", 250)
	for _, path := range []string{"library/nginx/manifests/v?ns=quay.io",
		"library/nginx/manifests/" + d + "?ns=quay.io",
		"library/nginx/blobs/" + d + "?ns=quay.io", "library/nginx/tags/list?ns=quay.io",
		"library/nginx/referrers/" + d + "?ns=quay.io", "f/docker.io/library/nginx/manifests/v?ns=quay.io",
		"library/nginx/manifests/v?ns=docker.io:5000", "library/nginx/manifests/v?ns=nginx",
		long + "/manifests/v?ns=quay.io",
		"library/nginx/manifests/v?ns=../../x", "library/nginx/manifests/v?ns=docker.io/library",
		"_catalog?ns=docker.io",
		"library/nginx/manifests/v?ns=https://docker.io", "library/nginx/manifests/v?ns=a@docker.io", "?ns=quay.io",
		"library/nginx/manifests/v?ns=docker.io%00", "library/nginx/manifests/v?ns=[::1]:5000",
		"library/nginx/manifests/v?ns=127.0.0.1", "library/nginx/manifests/v?ns=169.254.169.254"} {
		a := w.do("GET", "/v2/"+path, nil).code(404, "NAME_UNKNOWN").has("OCI-Namespace", "")
		a.contains("pull it from ")
		w.do("HEAD", "/v2/"+path, nil).is(404)
	}
	w.do("GET", "/v2/?ns=docker.io", nil, login("alice")...).is(200)
	w.do("GET", "/v2/nginx/manifests/v?ns=docker.io&ns=quay.io", nil).code(400, "NAME_INVALID").contains("want one")
	for _, query := range []string{"ns=docker.io;x=1", "x;ns=docker.io", "ns=docker.io%zz", "x=1&n%73=docker.io;"} {
		w.do("GET", "/v2/nginx/manifests/v?"+query, nil).code(400, "MANIFEST_INVALID").contains("cannot be read")
		w.put("nginx", "v?"+query, w.body, login("alice")...).is(400)
	}
	w.do("GET", "/v2/other/manifests/v?ns=docker.io", nil).code(404, "MANIFEST_UNKNOWN").
		has("OCI-Namespace", "docker.io")
	w.do("GET", "/v2/other/referrers/"+d+"?ns=docker.io", nil).is(200)
}

// TestLinksKeepTheNamespace, because clients follow them as they are.
func TestLinksKeepTheNamespace(t *testing.T) {
	w := newMirror(t, everybodyPulls)
	w.put("f/docker.io/library/nginx", "w", w.body, login("importer")...).is(201)
	next := func(a *answer) string {
		link, _, _ := strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
		return link
	}
	w.do("GET", next(w.do("GET", "/v2/nginx/tags/list?n=1&ns=docker.io", nil).is(200)), nil).is(200).
		equals(`{"name":"nginx","tags":["w"]}`)
	w.do("GET", next(w.do("GET", "/v2/f/docker.io/nginx/tags/list?n=1", nil).is(200)), nil).is(200).contains(`["w"]`)

	a := w.do("POST", "/v2/nginx/blobs/uploads/?ns=docker.io", nil, login("importer")...).is(202)
	a = w.do("PATCH", a.header.Get("Location"), []byte("abc"), login("importer")...).is(202)
	d := digest.FromString("abc").String()
	a = w.do("PUT", a.header.Get("Location")+"&digest="+d, nil, login("importer")...).is(201).
		has("Location", "/v2/nginx/blobs/"+d+"?ns=docker.io")
	w.do("GET", a.header.Get("Location"), nil).is(200).equals("abc")
	w.do("GET", "/v2/f/docker.io/library/nginx/blobs/"+d, nil).is(200)
	w.do("GET", "/v2/nginx/blobs/"+d, nil).is(404)
	a = w.do("PUT", "/v2/nginx/manifests/x?ns=docker.io", w.body, append(login("importer"), "Content-Type",
		typeManifest)...).is(201)
	w.do("GET", a.header.Get("Location"), nil).is(200).equals(string(w.body))
}

// TestNobodyPushesToTheMirror but those that a rule gives mirror: whoever may would replace images for all.
func TestNobodyPushesToTheMirror(t *testing.T) {
	w := newMirror(t, everybodyPulls)
	robot := func(name string, actions ...auth.Action) []string {
		secret, err := w.guard.CreateRobot(t.Context(), auth.Robot{Name: name, Actions: actions,
			Repositories: []string{"**"}})
		if err != nil {
			t.Fatal(err)
		}
		return []string{"Authorization", "Bearer " + secret}
	}
	d := digest.FromString("x").String()
	w.do("POST", "/v2/own/blobs/uploads/?digest="+d, []byte("x")).is(201)
	writes := [][2]string{{"POST", "blobs/uploads/"}, {"POST", "blobs/uploads/?digest=" + d},
		{"POST", "blobs/uploads/?mount=" + d + "&from=own"}, {"POST", "blobs/uploads/?mount=" + d},
		{"PUT", "manifests/v"}, {"PUT", "manifests/new"}, {"PUT", "manifests/" + w.digest.String()},
		{"DELETE", "manifests/v"},
		{"DELETE", "manifests/" + w.digest.String()}, {"DELETE", "blobs/" + digest.FromString("layer").String()},
		{"PATCH", "blobs/uploads/abc"}, {"PUT", "blobs/uploads/abc?digest=" + d}, {"GET", "blobs/uploads/abc"},
		{"DELETE", "blobs/uploads/abc"}}
	repos := [][2]string{{"f/docker.io/library/nginx/", ""}, {"f/docker.io/nginx/", ""}, {"f/quay.io/new/", ""},
		{"f/team/app/", ""}, {"f/x/", ""}, {"library/nginx/", "ns=docker.io"}, {"new/", "ns=quay.io"},
		{"f/docker.io/library/nginx/", "ns=docker.io"}, {"library/nginx/", "ns=hub.trow.example"},
		{"%66/docker.io/library/nginx/", ""}, {"nginx/", "ns=DOCKER.IO:443"},
		{"nginx/", "ns=docker.io&ns=docker.io"}, {"nginx/", "%6Es=index.docker.io"},
		{"f/docker.io/library/nginx/", "ns=trow.kube-public:31000"}}
	ci, pusher := robot("mirrors", "mirror", "pull"), robot("pusher", "pull", "push", "delete", "create")
	for who, headers := range map[string][]string{"alice": login("alice"), "pusher": pusher,
		"token": w.token(w.guard, "repository:f/docker.io/library/nginx:pull,push,delete", login("alice")...)} {
		for _, write := range writes {
			for _, repo := range repos {
				path := "/v2/" + repo[0] + write[1]
				if repo[1] != "" {
					path += map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")] + repo[1]
				}
				a := w.do(write[0], path, w.body, append(headers, "Content-Type", typeManifest)...)
				if a.status != 403 {
					t.Errorf("%s: %s %s: %d %s", who, write[0], path, a.status, a.body)
					continue
				}
				a.code(403, "DENIED").contains("a rule gives mirror")
				// Credentials may help those that have none yet.
				w.do(write[0], path, w.body, "Content-Type", typeManifest).code(401, "UNAUTHORIZED")
			}
		}
		if who != "token" { // it is for another host
			w.at("hub.trow.example", "DELETE", "/v2/library/nginx/manifests/v", headers...).code(403, "DENIED")
		}
	}
	w.do("GET", "/v2/f/docker.io/library/nginx/manifests/v", nil).is(200).equals(string(w.body))
	w.do("POST", "/v2/own/blobs/uploads/?from=f/docker.io/library/nginx&mount="+digest.FromString("layer").
		String(), nil).
		is(201)
	w.put("f/docker.io/library/nginx", "w", w.body, ci...).is(201)
	w.do("DELETE", "/v2/f/docker.io/library/nginx/manifests/w", nil, ci...).is(202)
	// By tokens, as Docker's clients push.
	token := w.token(w.guard, "repository:f/docker.io/library/nginx:pull,push", login("importer")...)
	w.put("f/docker.io/library/nginx", "w", w.body, token...).is(201)
	// Mirror is for f/ alone.
	w.do("PUT", "/v2/own/manifests/v", w.body, append(ci, "Content-Type", typeManifest)...).code(403, "DENIED")
}

// TestNoLoginIsAskedForInVain: where nobody may mirror, the refusal says so at once.
func TestNoLoginIsAskedForInVain(t *testing.T) {
	g := authtest.New(t, auth.Options{User: "alice", Password: "alice", Anonymous: "push"})
	w := newServer(t, func(o *registry.Options) { o.Auth = g })
	for _, headers := range [][]string{nil, login("alice")} {
		w.put("f/docker.io/library/nginx", "v", []byte("{}"), headers...).code(403, "DENIED").contains("trow import")
	}
	none := authtest.New(t, auth.Options{Loopback: true})
	w = newServer(t, func(o *registry.Options) { o.Auth = none })
	w.put("f/docker.io/library/nginx", "v", []byte("{}")).code(403, "DENIED")
}

// TestARepositoryOfBeforeStaysReadable, under the name that it has.
func TestARepositoryOfBeforeStaysReadable(t *testing.T) {
	w := newServer(t)
	d := digest.FromString("{}")
	for _, repo := range []string{"f/docker.io/nginx", "f/team/app", "f/x"} {
		up := w.written(repo, []byte("{}"))
		release, err := w.index.Commit(t.Context(), up, d)
		if err == nil {
			defer release()
			err = w.index.Update(t.Context(), repo, func(tx *storage.Tx) error {
				if err := tx.PutManifest(storage.Manifest{Digest: d, MediaType: typeManifest, Size: 2}); err != nil {
					return err
				}
				return tx.SetTag("v", d)
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		w.do("GET", "/v2/"+repo+"/manifests/v", nil).is(200).equals("{}")
	}
	w.do("GET", "/v2/nginx/manifests/v?ns=docker.io", nil).is(404)
}

// TestCredentialsForAnotherRegistry: containerd may send those of docker.io along. They count as none: the request goes
// on, nothing is delayed, and no failed login is recorded.
func TestCredentialsForAnotherRegistry(t *testing.T) {
	public := []string{"f/docker.io/library/*"}
	w := newMirror(t, auth.Rule{Who: []string{"*"}, May: []string{"pull"}, Repositories: public},
		auth.Rule{Who: []string{"user:alice"}, May: []string{"pull"}, Repositories: []string{"f/**"}})
	w.do("POST", "/v2/f/docker.io/team/secret/blobs/uploads/?digest="+digest.FromString("x").String(), []byte("x"),
		login("importer")...).is(201)
	w.failures = nil
	hub := []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:hub's password"))}
	for _, headers := range [][]string{hub, {"Authorization", "Bearer e30.e30.x"}, {"Authorization", "Negotiate x"},
		{"Authorization", "Basic !"}, {"Authorization", "Bearer trow_of-another"}, login("nobody-here")} {
		for range 30 { // more than the throttle accepts
			w.do("GET", "/v2/nginx/manifests/v?ns=docker.io", nil, headers...).is(200)
		}
		w.at("hub.trow.example", "GET", "/v2/library/nginx/manifests/v", headers...).is(200)
		// What anonymous clients may not have is asked for in the name that it has here.
		a := w.do("GET", "/v2/team/secret/manifests/v?ns=docker.io", nil, headers...).code(401, "UNAUTHORIZED")
		b := challenges(t, a.header)["Bearer"]
		if b["scope"] != "repository:f/docker.io/team/secret:pull" || b["realm"] != w.url+"/token?ns=docker.io" {
			t.Fatalf("challenge %v", b)
		}
		// And so does the token endpoint, which gives a token without rights.
		at := b["realm"] + "&service=" + b["service"] + "&scope=" + b["scope"]
		req, _ := http.NewRequestWithContext(t.Context(), "GET", at, nil)
		req.Header.Add(headers[0], headers[1])
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		readAnswer(w.server, "token", resp).is(200).contains(`"scope":""`)
	}
	if len(w.failures) > 0 {
		t.Errorf("failed logins: %v", w.failures)
	}
	// Ours count, also here; and elsewhere wrong ones are refused as ever.
	blob := "/v2/team/secret/blobs/" + digest.FromString("x").String() + "?ns=docker.io"
	w.do("GET", blob, nil, login("alice")...).is(200)
	w.do("GET", "/v2/f/docker.io/library/nginx/manifests/v", nil, hub...).code(401, "UNAUTHORIZED")
	if len(w.failures) != 1 {
		t.Errorf("failed logins: %v", w.failures)
	}
}

// TestDockerAsksForItsOwnName: its tokens are for the repository in the path, at the host of the mirror.
func TestDockerAsksForItsOwnName(t *testing.T) {
	w := newMirror(t, auth.Rule{Who: []string{"user:alice"}, May: []string{"pull"}})
	req := httptest.NewRequest("GET", "/token?scope=repository:library/nginx:pull", nil)
	req.Host = "hub.trow.example"
	req.Header.Set("Authorization", login("alice")[1])
	rec := httptest.NewRecorder()
	w.guard.ServeToken(rec, req)
	token, _, ok := strings.Cut(strings.TrimPrefix(rec.Body.String(), `{"token":"`), `"`)
	if !ok || !strings.Contains(rec.Body.String(), `"scope":"repository:f/docker.io/library/nginx:pull"`) {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	w.at("hub.trow.example", "GET", "/v2/library/nginx/manifests/v", "Authorization", "Bearer "+token).is(200)
	w.at("hub.trow.example", "GET", "/v2/library/nginx/manifests/v").code(401, "UNAUTHORIZED")
	// A token is no way to another one.
	req.Header.Set("Authorization", "Bearer "+token)
	rec = httptest.NewRecorder()
	w.guard.ServeToken(rec, req)
	if !strings.Contains(rec.Body.String(), `"scope":""`) {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// TestATokenForAnotherSpelling of a repository below f/ is one for it: Docker's scope has the name that it was given.
func TestATokenForAnotherSpelling(t *testing.T) {
	w := newMirror(t, auth.Rule{Who: []string{"user:alice"}, May: []string{"pull"}})
	for _, name := range []string{"f/docker.io/nginx", "f/index.docker.io/library/nginx", "f/docker.io__443/nginx"} {
		token := w.token(w.guard, "repository:"+name+":pull,push", login("alice")...)
		w.do("GET", "/v2/"+name+"/manifests/v", nil, token...).is(200).equals(string(w.body))
		w.put(name, "w", w.body, token...).code(403, "DENIED")
		w.put(name, "w", w.body, w.token(w.guard, "repository:"+name+":pull,push", login("importer")...)...).is(201)
		w.do("GET", "/v2/f/docker.io/team/app/manifests/v", nil, token...).code(401, "UNAUTHORIZED")
	}
}
