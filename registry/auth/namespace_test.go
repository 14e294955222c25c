package auth_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"

	"trow/registry/auth"
	"trow/registry/namespace"
)

func TestMirrorIsARightOfItsOwn(t *testing.T) {
	open := policy(t, auth.PolicyOptions{Anonymous: auth.ReadWrite, Private: true})
	p := policy(t, auth.PolicyOptions{Access: true}, rule("user:mallory", "none", ""),
		rule("*", "pull create push delete catalog admin metrics", ""), rule("user:root", "mirror", ""),
		rule("* user:alice", "mirror", "f/docker.io/**"), rule("namespace:team-a", "none", "f/quay.io/**"),
		rule("cert:importer", "mirror push", "f/quay.io/**"))
	for _, row := range []struct {
		p    *auth.Policy
		who  *auth.Identity
		repo string
		rule int // negative: it forbids; 0: refused, and no rule decides
	}{
		{p, auth.Named("alice", nil), "f/docker.io/library/nginx", 4},
		{p, auth.Named("alice", nil), "f/quay.io/a", 0},
		{p, auth.Named("", nil), "f/docker.io/library/nginx", 0}, // never anonymous, whatever a rule says of all
		{p, auth.Named("mallory", nil), "f/docker.io/a", -1},
		{p, auth.Owner("owner"), "f/quay.io/a", 0}, // who may do everything else
		{p, auth.Owner("root"), "f/quay.io/a", 3},
		{p, account("team-a", "ci"), "f/docker.io/a", 4},
		{p, account("team-a", "ci"), "f/quay.io/a", -5},
		{p, account("team-b", "ci"), "f/quay.io/a", 0}, // the Kubernetes API is not asked
		{p, auth.Named("cert:importer", nil), "f/quay.io/a", 6},
		{p, auth.Named("alice", nil), "f/x", 0},
		{open, auth.Named("alice", nil), "f/docker.io/a", 0},
		{open, auth.Named("", nil), "f/docker.io/a", 0},
	} {
		for _, a := range []auth.Action{auth.Push, auth.Create, auth.Delete, auth.Mirror} {
			got := row.p.Judge(row.who, row.repo, a)
			if got.Rule != max(row.rule, -row.rule) || got.Allowed != (row.rule > 0) {
				t.Errorf("%s %s %s: %+v, want rule %d", row.who.Label(), a, row.repo, got, row.rule)
			}
			why := row.p.Explain(row.who, row.repo, a).Why
			if row.rule == 0 && !strings.Contains(why, "a rule gives mirror") {
				t.Errorf("%s %s %s: %s", row.who.Label(), a, row.repo, why)
			}
		}
		if row.rule >= 0 && !row.p.Judge(row.who, row.repo, auth.Pull).Allowed {
			t.Errorf("%s may not pull %s", row.who.Label(), row.repo)
		}
	}
	for _, repo := range []string{"f", "ff/a", "team/f/a"} { // not below f/
		if !p.Judge(auth.Named("alice", nil), repo, auth.Push).Allowed {
			t.Errorf("push to %s", repo)
		}
	}
	_, err := auth.Compile([]auth.Rule{rule("user:a anonymous", "pull mirror", "")}, auth.PolicyOptions{})
	if err == nil || !strings.Contains(err.Error(), "rule 1: may: mirror is never for") {
		t.Errorf("a rule for clients without a login: %v", err)
	}
}

// foreign is a request for Docker Hub with a login.
func foreign(user, password string) *http.Request {
	r := withLogin(user, password)
	return r.WithContext(auth.ForNamespace(r.Context(), "docker.io"))
}

// TestAStrangerIsComparedOnce: a node sends the credentials of another registry with each request, and comparing takes
// long. They delay no login of ours, and a login that is right counts.
func TestAStrangerIsComparedOnce(t *testing.T) {
	g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice")})
	work := auth.CountComparisons(t)
	for range 50 {
		if who, err := g.Identify(foreign("alice", "hub's")); err != nil || !who.Anonymous() {
			t.Fatalf("%v, %v", who, err)
		}
	}
	if n := work(); n != 1 {
		t.Errorf("%d comparisons", n)
	}
	if pairs, _ := g.Scores(); pairs > 0 {
		t.Error("the throttle of logins has counted them")
	}
	for range 2 { // also once it was right
		if who, err := g.Identify(foreign("alice", "alice's")); err != nil || who.Name != "alice" {
			t.Errorf("our login: %v, %v", who, err)
		}
	}
	// What was taken for a stranger's is no login, and no failure either, until it is sent for this registry.
	if _, err := g.Identify(withLogin("alice", "hub's")); err == nil {
		t.Error("a wrong password is accepted")
	}
}

// TestTheTokensOfOthersStayHere: passwords of registries in clouds are tokens, and the Kubernetes API would get them.
func TestTheTokensOfOthersStayHere(t *testing.T) {
	r := &reviewer{user: authenticationv1.UserInfo{Username: "system:serviceaccount:a:b"}}
	g := guard(t, auth.Options{Reviewer: r})
	token := clusterToken(`{"iss":"https://auth.docker.io"}`)
	bearer := request("Authorization", "Bearer "+token)
	for name, req := range map[string]*http.Request{"password": foreign("x", token),
		"bearer": bearer.WithContext(auth.ForNamespace(bearer.Context(), "docker.io"))} {
		if who, err := g.Identify(req); err != nil || !who.Anonymous() {
			t.Errorf("%s: %v, %v", name, who, err)
		}
	}
	for _, req := range []*http.Request{
		httptest.NewRequest("GET", "/token?ns=docker.io&scope=repository:f/docker.io/a:pull", nil),
		httptest.NewRequest("POST", "/token?ns=docker.io", strings.NewReader(url.Values{"grant_type": {"password"},
			"username": {"x"}, "password": {token}, "scope": {"repository:f/docker.io/a:pull"}}.Encode())),
	} {
		if req.Method == "GET" {
			req.SetBasicAuth("x", token)
		} else {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		if got := ask(t, g, req, 200); got.Scope != "" {
			t.Errorf("%s: scope %q", req.Method, got.Scope)
		}
	}
	if n := r.asked.Load(); n > 0 {
		t.Errorf("the API was asked %d times", n)
	}
	if _, err := g.Identify(withLogin("x", token)); err != nil || r.asked.Load() != 1 {
		t.Errorf("for this registry: asked %d times, %v", r.asked.Load(), err)
	}
}

// TestTheRealmOfAMirror is where the client has the mirror, also where a proxy has another name.
func TestTheRealmOfAMirror(t *testing.T) {
	g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice"), PublicURL: "https://trow.example/reg",
		Namespaces: namespace.NewTable([]namespace.Site{{Host: "hub.trow.example", Upstream: "docker.io"}})})
	for host, want := range map[string]string{
		"other.example":        `Bearer realm="https://trow.example/reg/token",service="trow.example"`,
		"hub.trow.example":     `Bearer realm="https://hub.trow.example/reg/token",service="hub.trow.example"`,
		"Hub.trow.example:443": `Bearer realm="https://hub.trow.example:443/reg/token",service="hub.trow.example:443"`,
	} {
		r := request()
		r.Host = host
		if got := g.Challenge(r, "", auth.Login, nil); got[0] != want {
			t.Errorf("%s: %s, want %s", host, got[0], want)
		}
		r = r.WithContext(auth.ForNamespace(r.Context(), "quay.io:5000"))
		got := g.Challenge(r, "f/quay.io__5000/a", auth.Pull, nil)[0]
		if !strings.Contains(got, `/reg/token?ns=quay.io%3A5000",service=`) ||
			!strings.Contains(got, `scope="repository:f/quay.io__5000/a:pull"`) {
			t.Errorf("%s: %s", host, got)
		}
	}
}

// TestReadersOfAnUpstream: read: decides alone, but for rules that forbid.
func TestReadersOfAnUpstream(t *testing.T) {
	who, err := auth.ParseWho([]string{"user:alice", "user:carol", "user:mallory", "namespace:team-a", "robot:puller"})
	if err != nil {
		t.Fatal(err)
	}
	readers := func(repo string) (auth.Who, string, bool) {
		return who, "quay.io", strings.HasPrefix(repo, "f/quay.io/")
	}
	g := guard(t, auth.Options{User: "owner", Password: "p", Readers: readers,
		Rules: []auth.Rule{rule("user:mallory", "none", "f/**"), rule("*", "pull push catalog", ""),
			rule("user:carol", "none", "f/**")}}) // too late: the rule before decides
	puller, other := create(t, g, robot("puller", "pull", "f/quay.io/public")),
		create(t, g, robot("other", "pull", "**"))
	robots := map[string]*auth.Identity{}
	for name, secret := range map[string]string{"puller": puller, "other": other} {
		if robots[name], err = g.Identify(bearer(secret)); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		who  *auth.Identity
		repo string
		want bool
		why  string
	}{
		{auth.Named("alice", nil), "f/quay.io/secret", true, "of the upstream quay.io allows it"},
		{auth.Named("carol", nil), "f/quay.io/secret", true, "of the upstream quay.io allows it"},
		{auth.Named("bob", nil), "f/quay.io/secret", false, "of the upstream quay.io does not"},
		{auth.Named("", nil), "f/quay.io/secret", false, "of the upstream quay.io does not"},
		{auth.Named("mallory", nil), "f/quay.io/secret", false, "rule 1"},
		{account("team-a", "x"), "f/quay.io/secret", true, "read:"},
		{account("team-b", "x"), "f/quay.io/secret", false, "read:"},
		{robots["puller"], "f/quay.io/public", true, "read:"},
		{robots["puller"], "f/quay.io/secret", false, "the robot was not created"},
		{robots["other"], "f/quay.io/secret", false, "read:"},
		{auth.Owner("owner"), "f/quay.io/secret", true, "may do everything"},
		{auth.Socket, "f/quay.io/secret", true, "administration socket"},
		{auth.Named("bob", nil), "f/docker.io/a", true, "rule 2"},
		{auth.Named("bob", nil), "team/app", true, "rule 2"},
	} {
		got := g.Policy().Explain(row.who, row.repo, auth.Pull)
		if got.Allowed != row.want || !strings.Contains(got.Why, row.why) {
			t.Errorf("%s %s: %+v, want %v, %s", row.who.Label(), row.repo, got, row.want, row.why)
		}
		// A list shows what may be pulled, and no more.
		readable := g.Readable(t.Context(), row.who)
		if readable == nil {
			if !row.want {
				t.Errorf("%s may read all", row.who.Label())
			}
			continue
		}
		if ok, err := readable(row.repo); ok != row.want || err != nil {
			t.Errorf("%s %s is listed: %v, %v", row.who.Label(), row.repo, ok, err)
		}
	}
	// Also where there are no rules, and all may pull.
	open := guard(t, auth.Options{Anonymous: "pull", Readers: readers})
	anonymous, err := open.Identify(request())
	if err != nil || open.Authorize(t.Context(), anonymous, "f/quay.io/a", auth.Pull) == nil ||
		open.Authorize(t.Context(), anonymous, "f/docker.io/a", auth.Pull) != nil {
		t.Errorf("without rules: %v", err)
	}
	if readable := open.Readable(t.Context(), anonymous); readable == nil {
		t.Error("a client without a login may read all")
	}
}

// TestTokensForAMirror: a login is one there as well, a token gets no other token but that of a client without a login,
// and the name at the other registry is that of the repository here. Another spelling of that name stands for both, and
// each is permitted or not.
func TestTokensForAMirror(t *testing.T) {
	g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice", "bob"), Rules: []auth.Rule{rule("user:alice", "pull", ""),
		rule("user:bob", "pull", "f/docker.io/library/**")},
		Namespaces: namespace.NewTable([]namespace.Site{{Host: "hub.trow.example", Upstream: "docker.io"}})})
	const here, spelling = "repository:f/docker.io/library/nginx:pull", "repository:f/docker.io/nginx:pull"
	ours := func() *http.Request { return tokenGET("alice", "alice's", here) }
	other := ours()
	other.URL.RawQuery += "&ns=docker.io"
	site := tokenGET("alice", "alice's", "repository:library/nginx:pull")
	site.Host = "hub.trow.example"
	renewed := tokenGET("", "", here)
	renewed.URL.RawQuery += "&ns=docker.io"
	renewed.Header.Set("Authorization", "Bearer "+ask(t, g, ours(), 200).Token)
	for name, row := range map[string]struct {
		r    *http.Request
		want string
	}{
		"for this registry": {ours(), here}, "for another one": {other, here},
		"at a host that stands for it": {site, here}, "with a token": {renewed, ""},
		"another spelling":            {tokenGET("alice", "alice's", spelling), spelling + " " + here},
		"of which one is not allowed": {tokenGET("bob", "bob's", spelling), here},
	} {
		if got := ask(t, g, row.r, 200); got.Scope != row.want {
			t.Errorf("%s: scope %q, want %q", name, got.Scope, row.want)
		}
	}
}

// TestATokenLearnsWhoMayRead: a client that asks for the token first has sent no request yet for which the upstream was
// asked. It is asked only about a pull of its content that nothing else permits.
func TestATokenLearnsWhoMayRead(t *testing.T) {
	public := false
	var asked []string
	g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice"), Anonymous: "pull",
		Readers: func(repo string) (auth.Who, string, bool) {
			who, err := auth.ParseWho([]string{map[bool]string{true: "*", false: "user:alice"}[public]})
			if err != nil {
				t.Error(err)
			}
			return who, "quay.io", strings.HasPrefix(repo, "f/")
		},
		Learn: func(_ context.Context, repo, _, _ string) error {
			asked = append(asked, repo)
			public = true
			return nil
		}})
	for _, row := range []struct{ user, scope, want, asked string }{
		{"alice", "repository:f/quay.io/a:pull", "repository:f/quay.io/a:pull", ""},
		{"", "repository:f/quay.io/a:delete", "", ""},
		{"", "repository:team/a:pull", "repository:team/a:pull", ""},
		{"", "repository:f/quay.io/a:pull", "repository:f/quay.io/a:pull", "f/quay.io/a"},
	} {
		asked, public = nil, false
		password := ""
		if row.user != "" {
			password = row.user + "'s"
		}
		got := ask(t, g, tokenGET(row.user, password, row.scope), 200)
		if got.Scope != row.want || strings.Join(asked, " ") != row.asked {
			t.Errorf("%q %s: scope %q, asked about %q; want %q and %q", row.user, row.scope, got.Scope, asked, row.want,
				row.asked)
		}
	}
}
