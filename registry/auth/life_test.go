package auth_test

import (
	"errors"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"trow/registry/auth"
)

// TestHowLongTokensLive: a token with push lives longer, because a proxy may keep a layer for longer than five minutes;
// not that of an account of the cluster, of whose end the registry does not learn.
func TestHowLongTokensLive(t *testing.T) {
	rules := []auth.Rule{rule("*", "pull push", "")}
	def := guard(t, auth.Options{User: "u", Password: "p", Rules: rules, Reviewer: &reviewer{}})
	set := guard(t, auth.Options{User: "u", Password: "p", TokenLifetime: time.Minute,
		PushTokenLifetime: 2 * time.Hour})
	short := guard(t, auth.Options{User: "u", Password: "p", TokenLifetime: 10 * time.Minute,
		PushTokenLifetime: time.Minute})
	for _, row := range []struct {
		g     *auth.Guard
		user  string
		scope string
		want  int
	}{
		{def, "u", "", 300}, {def, "u", "repository:a:pull", 300}, {def, "u", "repository:a:pull,push", 3600},
		{def, "u", "repository:a:delete", 300}, {def, "", "repository:a:push", 3600},
		{def, "", "repository:a:pull", 300},
		{set, "u", "repository:a:pull", 60}, {set, "u", "repository:a:*", 7200}, {short, "u", "repository:a:push", 600},
	} {
		if got := ask(t, row.g, tokenGET(row.user, "p", row.scope), 200); got.ExpiresIn != row.want {
			t.Errorf("%q %s: %d s, want %d", row.user, row.scope, got.ExpiresIn, row.want)
		}
	}
}

// TestATokenEndsWithThePassword: it lives for an hour, and a password is changed because somebody else knows it.
func TestATokenEndsWithThePassword(t *testing.T) {
	dir := t.TempDir()
	o := auth.Options{Dir: dir, User: "u", Password: "p", Htpasswd: htpasswd(t, "alice"),
		Rules: []auth.Rule{rule("*", "pull push", "")}}
	g := guard(t, o)
	mine := ask(t, g, tokenGET("u", "p", "repository:a:push"), 200).Token
	hers := ask(t, g, tokenGET("alice", "alice's", "repository:a:push"), 200).Token
	check := func(what string, g *auth.Guard, token string, ok bool) {
		t.Helper()
		if _, err := may(g, bearer(token), "a", auth.Push); (err == nil) != ok ||
			!ok && !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("%s: %v", what, err)
		}
	}
	again := guard(t, o)
	check("mine after a restart", again, mine, true)
	check("hers after a restart", again, hers, true)
	o.Password, o.Htpasswd = "another", htpasswd(t, "alice") // another salt, so another hash
	changed := guard(t, o)
	check("mine after a change", changed, mine, false)
	check("hers after a change", changed, hers, false)
}

func TestLifetimesAndProxiesThatAreInvalid(t *testing.T) {
	for want, flag := range map[string]string{
		"token-lifetime: 30s":      "--token-lifetime=30s",
		"push-token-lifetime: 25h": "--push-token-lifetime=25h",
		`trusted-proxies: "proxy"`: "--trusted-proxies=10.0.0.0/8,proxy",
	} {
		if _, err := load(t, "", flag); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", flag, err)
		}
	}
	if _, err := load(t, "", "--trusted-proxies=10.0.0.7,fd00::/8", "--token-lifetime=1m"); err != nil {
		t.Error(err)
	}
}

// TestLoginsOverPlainHTTPAreRefused: clients were sent to http:// with their passwords.
func TestLoginsOverPlainHTTPAreRefused(t *testing.T) {
	login := auth.Options{User: "u", Password: "p", PlainHTTP: true}
	file := auth.Options{Htpasswd: filepath.Join(t.TempDir(), "x"), PlainHTTP: true}
	with := func(change func(*auth.Options)) auth.Options { o := login; change(&o); return o }
	for name, row := range map[string]struct {
		o  auth.Options
		ok bool
	}{
		"a user": {login, false},
		"users":  {file, false},
		"rules": {auth.Options{Rules: []auth.Rule{rule("robot:ci", "pull", "")}, PlainHTTP: true},
			false},
		"rules for all":        {auth.Options{Rules: []auth.Rule{rule("*", "pull", "")}, PlainHTTP: true}, true},
		"no logins":            {auth.Options{PlainHTTP: true}, true},
		"TLS":                  {with(func(o *auth.Options) { o.PlainHTTP = false }), true},
		"loopback":             {with(func(o *auth.Options) { o.Loopback = true }), true},
		"behind TLS":           {with(func(o *auth.Options) { o.PublicURL = "https://registry.example" }), true},
		"in so many words":     {with(func(o *auth.Options) { o.PublicURL = "http://registry.example" }), true},
		"a proxy that says it": {with(func(o *auth.Options) { o.TrustedProxies = []string{"10.0.0.0/8"} }), true},
	} {
		if err := row.o.Validate(); (err == nil) != row.ok || !row.ok && !strings.Contains(err.Error(), "public-url") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTheSchemeThatAProxySays is believed of trusted proxies alone, and for the realm alone.
func TestTheSchemeThatAProxySays(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", TrustedProxies: []string{"10.0.0.0/8", "fd00::1"}})
	for _, row := range []struct{ peer, said, want string }{
		{"10.1.2.3:4000", "https", "https"}, {"10.1.2.3:4000", "HTTPS", "https"}, {"[fd00::1]:4000", "https", "https"},
		{"[::ffff:10.1.2.3]:4000", "https", "https"}, {"10.1.2.3:4000", "http", "http"}, {"10.1.2.3:4000", "", "http"},
		{"10.1.2.3:4000", "https, http", "https"}, {"10.1.2.3:4000", "https,http", "https"},
		{"10.1.2.3:4000", "http, https", "http"}, {"10.1.2.3:4000", ", https", "http"},
		{"11.1.2.3:4000", "https, http", "http"},
		{"10.1.2.3:4000", "javascript", "http"}, {"11.1.2.3:4000", "https", "http"},
		{"[fd00::2]:4000", "https", "http"},
	} {
		r := httptest.NewRequest("GET", "/v2/", nil)
		r.RemoteAddr, r.Host = row.peer, "registry.example"
		r.Header.Set("X-Forwarded-Proto", row.said)
		r.Header.Set("X-Forwarded-Host", "evil.example")
		got := g.Challenge(r, "", auth.Login, auth.ErrUnauthorized)[0]
		if !strings.HasPrefix(got, `Bearer realm="`+row.want+`://registry.example/token",`) {
			t.Errorf("%+v: %s", row, got)
		}
	}
}
