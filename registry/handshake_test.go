package registry_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
	"trow/registry/auth/authtest"
	"trow/storage"
)

// guarded runs a registry with a Guard and its token endpoint behind one HTTP server, as the program does.
func guarded(t *testing.T, o auth.Options) (*server, *auth.Guard) {
	t.Helper()
	g := authtest.New(t, o)
	w := newServer(t, func(o *registry.Options) { o.Auth = g })
	mux := http.NewServeMux()
	mux.HandleFunc(auth.TokenPath, g.ServeToken)
	mux.Handle("/v2/", w.registry)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	w.url = s.URL
	return w, g
}

// client logs in as the usual clients of registries do.
type client struct {
	*server
	user, password string
	// perRequest: it uses the challenge of each answer (containerd, oras), not that of GET /v2/ (docker, skopeo,
	// crane).
	perRequest bool
	post       bool // it tries POST first (containerd, regctl)
	basicLast  bool // it uses every challenge of GET /v2/, and Basic after Bearer (docker)
}

var challengeField = regexp.MustCompile(`(\w+)="([^"]*)"`)

// challenges returns the challenges of an answer, by scheme.
func challenges(t *testing.T, h http.Header) map[string]map[string]string {
	t.Helper()
	all := map[string]map[string]string{}
	for _, value := range h.Values("Www-Authenticate") {
		scheme, rest, _ := strings.Cut(value, " ")
		fields := map[string]string{}
		for _, m := range challengeField.FindAllStringSubmatch(rest, -1) {
			fields[m[1]] = m[2]
		}
		all[scheme] = fields
	}
	return all
}

// try sends a request, after the login that it needs, and returns the status, or 0 if the client gave up.
func (c client) try(method, path string, body string, scope string, headers ...string) int {
	c.Helper()
	first := "/v2/"
	if c.perRequest {
		first = path
	}
	probe := c.do(http.MethodGet, first, nil)
	if c.perRequest {
		probe = c.do(method, path, []byte(body), headers...)
	}
	if probe.status != 401 {
		if c.perRequest {
			return probe.status
		}
		return c.do(method, path, []byte(body), headers...).status
	}
	all := challenges(c.T, probe.header)
	b, ok := all["Bearer"]
	if !ok {
		c.Fatalf("no Bearer in %v", probe.header)
	}
	if c.perRequest {
		scope = b["scope"]
	}
	login := ""
	if token := c.token(b, scope); token != "" {
		login = "Bearer " + token
	}
	if _, basic := all["Basic"]; basic && c.basicLast {
		if login = ""; c.user != "" {
			r, _ := http.NewRequest("GET", c.url, nil)
			r.SetBasicAuth(c.user, c.password)
			login = r.Header.Get("Authorization")
		}
	}
	if login == "" {
		return 0
	}
	return c.do(method, path, []byte(body), append(headers, "Authorization", login)...).status
}

// token asks the realm for a token. It is empty if the realm refuses it.
func (c client) token(challenge map[string]string, scope string) string {
	c.Helper()
	realm, err := url.Parse(challenge["realm"])
	if err != nil || !realm.IsAbs() || "http://"+realm.Host != c.url || challenge["service"] != realm.Host {
		c.Fatalf("the challenge is %v, the registry %s", challenge, c.url)
	}
	var resp *http.Response
	if c.post && c.user != "" {
		resp, err = http.PostForm(realm.String(), url.Values{"grant_type": {"password"}, "client_id": {"test"},
			"username": {c.user}, "password": {c.password}, "service": {challenge["service"]}, "scope": {scope}})
	} else {
		q := url.Values{"service": {challenge["service"]}, "scope": strings.Fields(scope), "account": {c.user}}
		req, _ := http.NewRequestWithContext(c.Context(), "GET", realm.String()+"?"+q.Encode(), nil)
		if c.user != "" {
			req.SetBasicAuth(c.user, c.password)
		}
		resp, err = http.DefaultTransport.RoundTrip(req)
	}
	if err != nil {
		c.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	var answer struct {
		Token     string
		ExpiresIn int `json:"expires_in"`
	}
	if resp.StatusCode != 200 {
		return ""
	}
	if err := json.Unmarshal(b, &answer); err != nil || answer.Token == "" || answer.ExpiresIn < 60 {
		c.Fatalf("%v: %s", err, b)
	}
	return answer.Token
}

// TestTheHandshake has each kind of client log in to registries with three settings.
func TestTheHandshake(t *testing.T) {
	user := auth.Options{Htpasswd: authtest.Htpasswd(t, "alice", "bob")}
	anonymous := func(o auth.Options, level string) auth.Options { o.Anonymous = level; return o }
	blob := digest.FromString("x").String()
	for _, setup := range []struct {
		name string
		o    auth.Options
		// The status of GET /v2/, a pull, a push and a delete: without a login, with one, and with a wrong one. If the
		// registry has no users, it ignores logins.
		anonymous, alice, wrong [4]int
	}{
		{"open", anonymous(auth.Options{}, "push"), [4]int{200, 200, 202, 403}, [4]int{200, 200, 202, 403},
			[4]int{200, 200, 202, 403}},
		{"anonymous pull, push with a login", anonymous(user, "pull"), [4]int{200, 200, 401, 401},
			[4]int{200, 200, 202, 202}, [4]int{0, 0, 0, 0}},
		{"everything with a login", anonymous(user, "none"), [4]int{200, 401, 401, 401}, [4]int{200, 200, 202, 202},
			[4]int{0, 0, 0, 0}},
	} {
		for _, kind := range []struct {
			name string
			c    client
		}{{"ping and GET", client{}}, {"ping, GET, Basic last", client{basicLast: true}},
			{"per request and GET", client{perRequest: true}},
			{"per request and POST", client{perRequest: true, post: true}}} {
			t.Run(setup.name+"/"+kind.name, func(t *testing.T) {
				w, _ := guarded(t, setup.o)
				for _, caller := range []struct {
					user, password string
					want           [4]int
				}{{"", "", setup.anonymous}, {"alice", "alice", setup.alice}, {"alice", "wrong", setup.wrong}} {
					link(t, w, "app", "x")
					c := kind.c
					c.server, c.user, c.password = w, caller.user, caller.password
					got := [4]int{c.try("GET", "/v2/", "", ""),
						c.try("GET", "/v2/app/blobs/"+blob, "", "repository:app:pull"),
						c.try("POST", "/v2/app/blobs/uploads/", "", "repository:app:pull,push"),
						c.try("DELETE", "/v2/app/blobs/"+blob, "", "repository:app:delete")}
					want := caller.want
					closed := setup.o.Anonymous == "none"
					switch {
					// the client gives up: "no basic auth credentials"
					case kind.c.basicLast && caller.user == "" && closed:
						want = [4]int{}
					case kind.c.basicLast && caller.user != "" && caller.password == "wrong" && closed:
						want = [4]int{401, 401, 401, 401}
					// pulls without its login
					case kind.c.perRequest && caller.password == "wrong" && setup.o.Anonymous == "pull":
						want[1] = 200
					}
					if got != want {
						t.Errorf("%q with %q: %v, want %v", caller.user, caller.password, got, want)
					}
				}
			})
		}
	}
}

// TestTheChallengeGivesTheReason because some clients show it to the user instead of the answer's body.
func TestTheChallengeGivesTheReason(t *testing.T) {
	w, _ := guarded(t, auth.Options{Htpasswd: authtest.Htpasswd(t, "alice", "bob"), Anonymous: "pull"})
	c := client{server: w}
	token := func(c client, scope string) []string {
		login := challenges(t, c.do("GET", "/v2/", nil).is(401).header)["Bearer"]
		return []string{"Authorization", "Bearer " + c.token(login, scope)}
	}
	anonymous := token(c, "repository:app:pull,push")
	c.user, c.password = "alice", "alice"
	elsewhere := token(c, "repository:other:pull,push")
	for _, row := range []struct {
		login     []string
		code, say string
	}{
		{nil, "", ""}, // no credentials, so nothing is wrong with them
		{anonymous, "insufficient_scope", "login required"},
		{elsewhere, "insufficient_scope", "token lacks the required scope"},
		{[]string{"Authorization", "Bearer x"}, "invalid_token", "token is invalid or has expired; get a new one"},
	} {
		refused := w.do("POST", "/v2/app/blobs/uploads/", nil, row.login...).code(401, "UNAUTHORIZED")
		got := challenges(t, refused.header)["Bearer"]
		if got["error"] != row.code || got["error_description"] != row.say ||
			got["scope"] != "repository:app:pull,push" {
			t.Errorf("%q: %v, want %q, %q", row.login, got, row.code, row.say)
		}
	}
}

// link makes a repository hold a blob, without a request.
func link(t *testing.T, w *server, repo, content string) {
	t.Helper()
	d := digest.FromString(content)
	u, err := w.blobs.Create(t.Context(), repo, d.Algorithm())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(u, content); err != nil {
		t.Fatal(err)
	}
	size := u.Size()
	release, err := w.index.Commit(t.Context(), u, d)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	err = w.index.Update(t.Context(), repo, func(tx *storage.Tx) error {
		tx.Link(d, size)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRulesOnTheWire: a client that may not pull gets 404, one that may not push gets 403.
func TestRulesOnTheWire(t *testing.T) {
	w, _ := guarded(t, auth.Options{User: "owner", Password: "owner", Htpasswd: authtest.Htpasswd(t, "alice", "bob"),
		Rules: []auth.Rule{
			{Who: []string{"*"}, May: []string{"pull"}, Repositories: []string{"public/**"}},
			{Who: []string{"user:alice"}, May: []string{"pull", "push", "catalog"}, Repositories: []string{"team/**"}},
			{Who: []string{"user:bob"}, May: []string{"push"}, Repositories: []string{"drop/**"}},
		}})
	for _, repo := range []string{"public/a", "team/a", "secret/a"} {
		link(t, w, repo, "x")
	}
	blob := digest.FromString("x").String()
	login := func(name string) []string {
		r, _ := http.NewRequest("GET", "/", nil)
		r.SetBasicAuth(name, name)
		return []string{"Authorization", r.Header.Get("Authorization")}
	}
	alice, bob, owner := login("alice"), login("bob"), login("owner")
	w.do("GET", "/v2/team/a/blobs/"+blob, nil).code(401, "UNAUTHORIZED")
	w.do("GET", "/v2/public/a/blobs/"+blob, nil).is(200)
	w.do("GET", "/v2/team/a/blobs/"+blob, nil, alice...).is(200)
	w.do("GET", "/v2/secret/a/blobs/"+blob, nil, alice...).code(404, "BLOB_UNKNOWN")
	w.do("HEAD", "/v2/secret/a/blobs/"+blob, nil, alice...).is(404)
	w.do("GET", "/v2/secret/a/manifests/v", nil, alice...).code(404, "MANIFEST_UNKNOWN")
	w.do("GET", "/v2/secret/a/tags/list", nil, alice...).code(404, "NAME_UNKNOWN")
	w.do("POST", "/v2/public/a/blobs/uploads/", nil, alice...).code(403, "DENIED")
	w.do("POST", "/v2/secret/a/blobs/uploads/", nil, alice...).code(403, "DENIED")
	w.do("DELETE", "/v2/team/a/blobs/"+blob, nil, alice...).code(403, "DENIED")
	w.do("PUT", "/v2/public/a/manifests/v", []byte("{}"), alice...).code(403, "DENIED")
	w.do("GET", "/v2/_catalog", nil, bob...).code(403, "DENIED")
	w.do("GET", "/v2/_catalog", nil).code(401, "UNAUTHORIZED")
	// A mount needs permission to pull from the source.
	w.do("POST", "/v2/team/b/blobs/uploads/?mount="+blob+"&from=secret/a", nil, alice...).is(202)
	w.do("POST", "/v2/team/b/blobs/uploads/?mount="+blob+"&from=absent", nil, alice...).is(202)
	w.do("POST", "/v2/team/b/blobs/uploads/?mount="+blob+"&from=public/a", nil, alice...).is(201)
	w.do("POST", "/v2/drop/b/blobs/uploads/?mount="+blob+"&from=team/a", nil, bob...).is(202)
	w.do("POST", "/v2/drop/b/blobs/uploads/?mount="+digest.FromString("y").String(), nil, bob...).is(202)
	// public/a holds it as well, but the others would have to be asked about
	w.do("POST", "/v2/drop/b/blobs/uploads/?mount="+blob, nil, bob...).is(202)
	w.do("POST", "/v2/drop/b/blobs/uploads/?mount="+blob+"&from=public/a", nil, bob...).is(201)
	w.do("POST", "/v2/drop/c/blobs/uploads/?mount="+blob, nil, owner...).is(201) // who may pull from all
	// An upload belongs to its repository, not to the client that started it.
	at := w.do("POST", "/v2/team/a/blobs/uploads/", nil, alice...).is(202).header.Get("Location")
	w.do("GET", at, nil, bob...).code(403, "DENIED")
	w.do("PATCH", at, []byte("x"), bob...).code(403, "DENIED")
	w.do("PATCH", strings.Replace(at, "/team/a/", "/drop/a/", 1), []byte("x"), bob...).code(404, "BLOB_UPLOAD_UNKNOWN")
	w.do("DELETE", at, nil, alice...).is(204)
	// The catalog.
	for _, repo := range []string{"public/p", "team/t", "secret/s"} {
		w.pushAs(owner, repo)
	}
	w.do("GET", "/v2/_catalog", nil, alice...).is(200).equals(`{"repositories":["public/p","team/t"]}`)
	w.do("GET", "/v2/_catalog?n=1&last=public/p", nil, alice...).is(200).equals(`{"repositories":["team/t"]}`)
	w.do("GET", "/v2/_catalog", nil, owner...).is(200).equals(`{"repositories":["public/p","secret/s","team/t"]}`)
}

// pushAs pushes a manifest with a login.
func (w *server) pushAs(login []string, repo string) {
	w.Helper()
	config := []byte("{}")
	w.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest.FromBytes(config).String(), config, login...).is(201)
	body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[]}`,
		typeManifest, desc("application/vnd.oci.empty.v1+json", config))
	w.do("PUT", "/v2/"+repo+"/manifests/v", body, append(login, "Content-Type", typeManifest)...).is(201)
}

// TestBusyAndUnavailable: the answer tells the client to retry.
func TestBusyAndUnavailable(t *testing.T) {
	a := &failingAuth{Authorizer: open{}}
	w := newServer(t, func(o *registry.Options) { o.Auth = a })
	for err, want := range map[error]struct {
		status int
		code   string
	}{auth.ErrBusy: {429, "TOOMANYREQUESTS"}, auth.ErrUnavailable: {503, "UNAVAILABLE"},
		fmt.Errorf("%w: dial 10.0.0.1", auth.ErrUnavailable): {503, "UNAVAILABLE"}} {
		a.err = err
		got := w.do("GET", "/v2/a/tags/list", nil).code(want.status, want.code).has("Retry-After", "1")
		if strings.Contains(string(got.body), "10.0.0.1") {
			t.Errorf("the answer shows the cause: %s", got.body)
		}
	}
}

// failingAuth cannot identify any request.
type failingAuth struct {
	auth.Authorizer
	err error
}

func (f *failingAuth) Identify(*http.Request) (*auth.Identity, error) { return nil, f.err }
