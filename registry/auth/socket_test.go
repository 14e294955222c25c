package auth_test

import (
	"net/http/httptest"
	"testing"

	"trow/registry/auth"
)

// TestTheSocketMayDoEverything: a client that can open the socket owns the data.
func TestTheSocketMayDoEverything(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Rules: []auth.Rule{rule("*", "none", "")}})
	r := withLogin("u", "wrong") // credentials do not matter there
	r = r.WithContext(auth.WithSocket(r.Context()))
	who, err := g.Identify(r)
	if err != nil || who != auth.Socket || who.Kind() != "socket" || who.Name != "" || who.Anonymous() ||
		!who.Unlimited() {
		t.Fatalf("%+v, %v", who, err)
	}
	for _, a := range []auth.Action{auth.Login, auth.Pull, auth.Push, auth.Delete, auth.Catalog, auth.Admin,
		auth.Metrics} {
		if err := g.Authorize(t.Context(), who, "repo", a); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		if e := g.Policy().Explain(who, "repo", a); !e.Allowed {
			t.Errorf("%s: %+v", a, e)
		}
	}
	if g.Readable(t.Context(), who) != nil {
		t.Error("some repositories are hidden from the socket")
	}
}

// TestNothingElseIsTheSocket: only the connection's context makes a request one of the socket.
func TestNothingElseIsTheSocket(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Htpasswd: htpasswd(t, "socket"), Certificate: shown})
	for _, r := range []struct {
		name    string
		headers []string
	}{{"no login", nil}, {"a header", []string{"X-Socket", "true", "X-Forwarded-For", "@"}}} {
		who, err := g.Identify(request(r.headers...))
		if err != nil || who.Unlimited() || !who.Anonymous() {
			t.Errorf("%s: %+v, %v", r.name, who, err)
		}
	}
	for name, who := range map[string]*auth.Identity{"a user": auth.Named("socket", nil), "the owner": auth.Owner("u"),
		"an account": account("a", "socket"), "a certificate": auth.Named("cert:socket", nil)} {
		if who.Unlimited() || who.Kind() == "socket" {
			t.Errorf("%s is the socket", name)
		}
	}
	r := httptest.NewRequest("GET", "/v2/", nil)
	r.RemoteAddr = "@" // as of a unix socket
	if who, err := g.Identify(r); err != nil || who.Unlimited() {
		t.Errorf("%+v, %v", who, err)
	}
}
