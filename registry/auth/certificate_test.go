package auth_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"

	"trow/registry/audit"
	"trow/registry/auth"
)

// shown returns the certificate of a test's connection: CN and O are in a header of the request.
func shown(r *http.Request) *x509.Certificate {
	v := r.Header["X-Certificate"]
	if v == nil {
		return nil
	}
	return &x509.Certificate{Subject: pkix.Name{CommonName: v[0], Organization: v[1:]}}
}

func withCertificate(cn string, orgs ...string) *http.Request {
	r := request()
	r.Header["X-Certificate"] = append([]string{cn}, orgs...)
	return r
}

func TestACertificateIsItsOwnKindOfIdentity(t *testing.T) {
	g := guard(t, auth.Options{User: "root", Password: "p", Htpasswd: htpasswd(t, "alice"), Certificate: shown,
		Reviewer: pretender{}, Rules: []auth.Rule{
			{Who: []string{"user:alice"}, May: []string{"pull"}, Repositories: []string{"user"}},
			{Who: []string{"group:devs"}, May: []string{"pull"}, Repositories: []string{"group"}},
			{Who: []string{"cert:alice", "cert:Build%20Server%2C%20Ltd"}, May: []string{"pull"},
				Repositories: []string{"cert"}},
			{Who: []string{"cert-group:devs"}, May: []string{"pull"}, Repositories: []string{"cert-group"}},
			{Who: []string{"user:system:node", "user:cert:alice", "robot:x"}, May: []string{"pull"},
				Repositories: []string{"cluster"}},
		}})
	repos := []string{"user", "group", "cert", "cert-group", "cluster"}
	for _, row := range []struct {
		name string
		r    *http.Request
		user string
		want string
	}{
		{"alice's certificate", withCertificate("alice"), "cert:alice", "hh+hh"},
		{"alice", withLogin("alice", "alice's"), "alice", "+hhhh"},
		{"a certificate of the organization", withCertificate("x", "ops", "devs"), "cert:x", "hhh+h"},
		{"a name with a space and a comma", withCertificate("Build Server, Ltd"), "cert:Build Server, Ltd", "hh+hh"},
		{"a name of the cluster", withCertificate("system:node"), "cert:system:node", "hhhhh"},
		{"a robot's name", withCertificate("robot:x"), "cert:robot:x", "hhhhh"},
		{"the name of the user who may do everything", withCertificate("root"), "cert:root", "hhhhh"},
		{"no name", withCertificate("", "devs"), "", "44444"},
		{"a name with a line break", withCertificate("a\nb"), "", "44444"},
		{"a name that is too long", withCertificate(strings.Repeat("a", 256)), "", "44444"},
		{"none", request(), "", "44444"},
	} {
		got := ""
		for _, repo := range repos {
			user, err := may(g, row.r, repo, auth.Pull)
			if user != row.user {
				t.Errorf("%s is called %q, want %q", row.name, user, row.user)
			}
			got += sign(err)
		}
		if got != row.want {
			t.Errorf("%s: %s for %v, want %s", row.name, got, repos, row.want)
		}
	}
	both := withCertificate("alice")
	both.SetBasicAuth("alice", "alice's")
	if user, err := may(g, both, "user", auth.Pull); user != "alice" || err != nil {
		t.Errorf("a login and a certificate: %q, %v", user, err)
	}
	both.SetBasicAuth("alice", "wrong")
	if _, err := g.Identify(both); !errors.Is(err, auth.ErrUnauthorized) {
		t.Errorf("a wrong login and a certificate: %v", err)
	}
	if e, err := g.Explain(t.Context(), auth.Named("cert:x", []string{"devs"}), "cert-group", auth.Pull); err != nil ||
		!e.Allowed || !strings.Contains(e.Why, "cert-group:devs") {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := g.Explain(t.Context(), auth.Named("cert:alice", nil), "cert", auth.Pull); err != nil || !e.Allowed ||
		!strings.Contains(e.Why, "cert:Build%20Server%2C%20Ltd") {
		t.Errorf("%+v, %v", e, err)
	}
}

// pretender is a cluster that vouches for every token as alice's certificate.
type pretender struct{}

func (pretender) Review(context.Context, string, turn) (authenticationv1.UserInfo, bool, string, error) {
	return authenticationv1.UserInfo{Username: "cert:alice"}, true, "", nil
}

func TestTheClusterCannotVouchForCertificates(t *testing.T) {
	g := guard(t, auth.Options{Reviewer: pretender{}})
	token := "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2t1YmUifQ.c2ln"
	if who, err := g.Identify(request("Authorization", "Bearer "+token)); !errors.Is(err, auth.ErrUnauthorized) {
		t.Errorf("%+v, %v", who, err)
	}
}

func TestWithoutRulesACertificateMayPull(t *testing.T) {
	g := guard(t, auth.Options{Certificate: shown})
	want := map[auth.Action]string{auth.Login: "+", auth.Pull: "+", auth.Catalog: "+", auth.Push: "-", auth.Delete: "-",
		auth.Admin: "-", auth.Metrics: "-"}
	for a, want := range want {
		if _, err := may(g, withCertificate("alice"), "repo", a); sign(err) != want {
			t.Errorf("%s: %v, want %s", a, err, want)
		}
		if _, err := may(g, request(), "repo", a); sign(err) != "4" {
			t.Errorf("%s without one: %v", a, err)
		}
	}
	if g := guard(t, auth.Options{User: "u", Password: "p"}); g.Readable(t.Context(), auth.Named("", nil)) == nil {
		t.Error("without a setting certificates mean something")
	} else if who, err := g.Identify(withCertificate("alice")); err != nil || !who.Anonymous() {
		t.Errorf("without a setting a certificate is %+v, %v", who, err)
	}
}

// TestATokenForACertificateKeepsItsIdentity: its holder does not become the user of the same name.
func TestATokenForACertificateKeepsItsIdentity(t *testing.T) {
	g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice"), Certificate: shown, Rules: []auth.Rule{
		{Who: []string{"user:alice"}, May: []string{"push"}}, {Who: []string{"cert-group:ci"}, May: []string{"pull"}}}})
	r := withCertificate("alice", "ci")
	r.URL.Path, r.URL.RawQuery = auth.TokenPath, "scope=repository:a:pull,push"
	w := httptest.NewRecorder()
	g.ServeToken(w, r)
	var answer struct{ Token, Scope string }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Scope != "repository:a:pull" {
		t.Fatalf("%s, %v", w.Body, err)
	}
	user, err := may(g, request("Authorization", "Bearer "+answer.Token), "a", auth.Pull)
	if user != "cert:alice" || err != nil {
		t.Errorf("%q, %v", user, err)
	}
	if _, err := may(g, request("Authorization", "Bearer "+answer.Token), "a", auth.Push); !errors.Is(err,
		auth.ErrDenied) {
		t.Errorf("a push: %v", err)
	}
}

func TestInvalidSubjectsOfCertificates(t *testing.T) {
	for _, who := range []string{"cert:", "cert-group:", "cert", "cert:%zz", "cert-groups:x"} {
		if _, err := auth.ParseWho([]string{who}); err == nil {
			t.Errorf("%q is accepted", who)
		}
	}
}

func TestTheActionMetrics(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Htpasswd: htpasswd(t, "prom", "alice"), Rules: []auth.Rule{
		{Who: []string{"user:prom"}, May: []string{"metrics"}, Repositories: []string{"anything"}},
		{Who: []string{"*"}, May: []string{"pull", "catalog", "admin"}}}})
	h := g.Protect(auth.Metrics, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("trow_up 1"))
	}))
	secret, err := g.CreateRobot(t.Context(), auth.Robot{Name: "scraper", Repositories: []string{"none"},
		Actions: []auth.Action{auth.Metrics}})
	if err != nil {
		t.Fatal(err)
	}
	for want, all := range map[int][]*http.Request{
		200: {withLogin("prom", "prom's"), withLogin("u", "p"), withLogin("any", secret)},
		401: {request(), withLogin("prom", "x")},
		403: {withLogin("alice", "alice's")},
	} {
		for _, r := range all {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != want || want != 200 && strings.Contains(w.Body.String(), "trow_up") {
				t.Errorf("%v: %d, want %d: %s", r.Header, w.Code, want, w.Body)
			}
		}
	}
}

// recorder collects events.
type recorder struct {
	mu  sync.Mutex
	all []audit.Event
}

func (o *recorder) audit(_ context.Context, e audit.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, e)
}

// TestFailedLoginsAreRecordedWithoutASecret checks each way to log in, and each place where the secret may be.
func TestFailedLoginsAreRecordedWithoutASecret(t *testing.T) {
	const canary = "CANARY-s3cret"
	o := &recorder{}
	g := guard(t, auth.Options{User: "root", Password: canary, Htpasswd: htpasswd(t, "alice"), Audit: o.audit,
		Rules: []auth.Rule{{Who: []string{"user:alice"}, May: []string{"pull"}}}})
	secret, err := g.CreateRobot(t.Context(), auth.Robot{Name: "ci", Repositories: []string{"**"},
		Actions: []auth.Action{auth.Pull}})
	if err != nil {
		t.Fatal(err)
	}
	form := func(values ...string) *http.Request {
		f := url.Values{}
		for i := 0; i < len(values); i += 2 {
			f.Set(values[i], values[i+1])
		}
		r := httptest.NewRequest("POST", auth.TokenPath, strings.NewReader(f.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return r
	}
	wrongAlice, wrongRoot := withLogin("alice", canary), withLogin("root", canary+"x")
	rows := map[string]struct {
		r    *http.Request
		user string
	}{
		"a wrong password":              {wrongAlice, "alice"},
		"a wrong password of the owner": {wrongRoot, "root"},
		"a password as the name":        {withLogin(canary, "x"), ""},
		"a robot's secret as the name":  {withLogin(secret, "x"), ""},
		"a made-up secret":              {withLogin("x", "trow_"+canary), ""},
		"a made-up token":               {request("Authorization", "Bearer "+canary), ""},
		"two headers": {request("Authorization", "Bearer "+canary, "Authorization", "Bearer "+secret),
			""},
		"another scheme":            {request("Authorization", "Digest "+canary), ""},
		"invalid Basic credentials": {request("Authorization", "Basic "+canary), ""},
		"a form with a wrong password": {form("grant_type", "password", "username", "alice", "password", canary),
			"alice"},
		"a form with a wrong refresh": {form("grant_type", "refresh_token", "refresh_token", "trow_"+canary), ""},
		"a form with a colon in the name": {form("grant_type", "password", "username", canary+":", "password", canary),
			""},
	}
	for name, row := range rows {
		o.all = nil
		row.r.RemoteAddr = "192.0.2.7:99"
		w := httptest.NewRecorder()
		g.ServeToken(w, row.r)
		if w.Code != 401 || len(o.all) != 1 {
			t.Errorf("%s: %d, %+v", name, w.Code, o.all)
			continue
		}
		kind := "unknown"
		if row.user != "" {
			kind = "user"
		}
		if e := o.all[0]; e.What != audit.Login || e.Outcome != audit.Failed || e.User != row.user || e.Kind != kind ||
			e.From != "192.0.2.7" || e.Reason == "" {
			t.Errorf("%s: %+v", name, e)
		}
		text, err := json.Marshal(o.all)
		if err != nil || strings.Contains(string(text), canary) || strings.Contains(string(text), secret) ||
			strings.Contains(string(text), secret[5:]) {
			t.Errorf("%s: there is a secret in %s", name, text)
		}
	}

	o.all = nil
	h := g.Protect(auth.Admin, http.NotFoundHandler())
	for _, r := range []*http.Request{request(), withLogin("root", canary), withLogin("alice", "alice's"),
		withLogin("x", secret), withLogin("alice", "?")} {
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	got := []string{}
	for _, e := range o.all {
		got = append(got, string(e.What)+" "+string(e.Outcome)+" "+e.Kind+" "+e.User+" "+e.Action)
	}
	if want := []string{"request denied user alice admin", "request denied robot robot:ci admin",
		"login failed user alice "}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestATokenForATokenIsAFailedLogin, or a token could be renewed for ever.
func TestATokenForATokenIsAFailedLogin(t *testing.T) {
	o := &recorder{}
	g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice"), Audit: o.audit})
	w := httptest.NewRecorder()
	g.ServeToken(w, withLogin("alice", "alice's"))
	var answer struct{ Token string }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || len(o.all) != 0 {
		t.Fatal(err, o.all)
	}
	g.ServeToken(httptest.NewRecorder(), request("Authorization", "Bearer "+answer.Token))
	if len(o.all) != 1 || strings.Contains(o.all[0].Reason, answer.Token) {
		t.Errorf("%+v", o.all)
	}
}
