package auth_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"trow/registry/auth"
)

// private is a request that has certainly come from this machine.
func private(headers ...string) *http.Request {
	r := request(headers...)
	r.Host = "localhost:8443"
	return r
}

// TestAProxyOnTheSameHostOpensNoDelete, and by default no push: a loopback listener alone does not make a request
// private. A proxy on this host connects from it, and so does a browser with a page whose name resolves to 127.0.0.1.
func TestAProxyOnTheSameHostOpensNoDelete(t *testing.T) {
	loopback := auth.Options{Anonymous: "push", Loopback: true}
	public := auth.Options{Anonymous: "push", Loopback: true, PublicURL: "https://localhost"}
	rules := auth.Options{Rules: []auth.Rule{rule("*", "push", "")}, Loopback: true}
	for name, row := range map[string]struct {
		o       auth.Options
		host    string
		headers []string
		want    string
	}{
		"localhost":                  {loopback, "localhost", nil, "+"},
		"localhost, a port":          {loopback, "LocalHost:8443", nil, "+"},
		"a name below localhost":     {loopback, "trow.localhost:1", nil, "+"},
		"127.0.0.1":                  {loopback, "127.0.0.1:8443", nil, "+"},
		"127.1.2.3":                  {loopback, "127.1.2.3", nil, "+"},
		"[::1]":                      {loopback, "[::1]:8443", nil, "+"},
		"[::1] without a port":       {loopback, "[::1]", nil, "+"},
		"another address":            {loopback, "10.0.0.1:8443", nil, "-"},
		"0.0.0.0":                    {loopback, "0.0.0.0:8443", nil, "-"},
		"a name that is rebound":     {loopback, "rebound.example:8443", nil, "-"},
		"localhost as a label":       {loopback, "localhost.example", nil, "-"},
		"an end of localhost":        {loopback, "mylocalhost", nil, "-"},
		"127.0.0.1 as a label":       {loopback, "127.0.0.1.nip.io", nil, "-"},
		"no Host":                    {loopback, "", nil, "-"},
		"an invalid Host":            {loopback, "localhost:0", nil, "-"},
		"::1 without brackets":       {loopback, "::1", nil, "-"},
		"Forwarded":                  {loopback, "localhost", []string{"Forwarded", "for=10.0.0.1"}, "-"},
		"X-Forwarded-For":            {loopback, "localhost", []string{"X-Forwarded-For", "10.0.0.1"}, "-"},
		"X-Forwarded-Proto":          {loopback, "localhost", []string{"x-forwarded-proto", "https"}, "-"},
		"an empty X-Forwarded-Host":  {loopback, "localhost", []string{"X-Forwarded-Host", ""}, "-"},
		"Via":                        {loopback, "localhost", []string{"Via", "1.1 proxy"}, "-"},
		"X-Real-IP":                  {loopback, "localhost", []string{"X-Real-IP", "127.0.0.1"}, "-"},
		"public-url":                 {public, "localhost", nil, "-"},
		"a listener for all":         {auth.Options{Anonymous: "push"}, "localhost", nil, "-"},
		"pull, on a loopback":        {auth.Options{Anonymous: "pull", Loopback: true}, "localhost", nil, "-"},
		"create, on a loopback":      {auth.Options{Anonymous: "create", Loopback: true}, "localhost", nil, "-"},
		"rules, on a loopback":       {rules, "localhost", nil, "-"},
		"unrelated headers are fine": {loopback, "localhost", []string{"X-Request-Id", "1", "User-Agent", "x"}, "+"},
	} {
		g := guard(t, row.o)
		r := request(row.headers...)
		r.Host = row.host
		_, err := may(g, r, "repo", auth.Delete)
		if sign(err) != row.want {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && row.o.Loopback && row.o.Anonymous == "push" &&
			!strings.Contains(err.Error(), "neither a proxy") {
			t.Errorf("%s: the error does not name the cause: %v", name, err)
		}
		if row.o.Anonymous != "push" {
			continue
		}
		// By default, a request that may delete may push, and others may create.
		row.o.Anonymous = ""
		g = byDefault(t, row.o)
		_, pushed := may(g, r, "repo", auth.Push)
		if _, err := may(g, r, "repo", auth.Delete); sign(err) != row.want || sign(pushed) != row.want {
			t.Errorf("%s, by default: %v, %v", name, err, pushed)
		}
		if pushed != nil && !errors.Is(pushed, auth.ErrCreateOnly) {
			t.Errorf("%s: not even creates: %v", name, pushed)
		}
		if pushed != nil && row.o.Loopback && row.o.PublicURL == "" &&
			!strings.Contains(pushed.Error(), "neither a proxy") {
			t.Errorf("%s: the error does not name the cause: %v", name, pushed)
		}
	}
}

// TestATokenDoesNotCarryWhatIsPrivate through a proxy: it is decided for each request.
func TestATokenDoesNotCarryWhatIsPrivate(t *testing.T) {
	g := byDefault(t, auth.Options{Loopback: true})
	create(t, g, robot("ci", "pull", "a"))
	get := tokenGET("", "", "repository:a:pull,push,delete")
	get.Host = "localhost:8443"
	get.Header.Del("Authorization")
	token := ask(t, g, get, 200).Token
	if _, err := may(g, private("Authorization", "Bearer "+token), "a", auth.Delete); err != nil {
		t.Errorf("from here: %v", err)
	}
	proxied := private("Authorization", "Bearer "+token, "X-Forwarded-For", "10.0.0.1")
	if _, err := may(g, proxied, "a", auth.Delete); !errors.Is(err, auth.ErrUnauthorized) {
		t.Errorf("through a proxy: %v", err)
	}
	if _, err := may(g, proxied, "a", auth.Push); !errors.Is(err, auth.ErrCreateOnly) {
		t.Errorf("push through a proxy: %v", err)
	}
	if _, err := may(g, proxied, "a", auth.Create); err != nil {
		t.Errorf("create through a proxy: %v", err)
	}
	// A client behind a proxy needs a login to delete, so it is asked for one.
	if _, err := may(g, private("X-Forwarded-For", "10.0.0.1"), "", auth.Login); !errors.Is(err, auth.ErrUnauthorized) {
		t.Errorf("login through a proxy: %v", err)
	}
	if _, err := may(g, private(), "", auth.Login); err != nil {
		t.Errorf("login from here: %v", err)
	}
}

// TestAPrivateRequestKeepsItsIdentity: it may do more, and is still the one that it was.
func TestAPrivateRequestKeepsItsIdentity(t *testing.T) {
	g := guard(t, auth.Options{Anonymous: "push", Loopback: true, Certificate: shown, Reviewer: &reviewer{}})
	certificate := private()
	certificate.Header["X-Certificate"] = []string{"ann", "devs"}
	for want, r := range map[string]*http.Request{
		"cert:ann":                        certificate,
		"system:serviceaccount:team-a:ci": private("Authorization", "Bearer "+clusterToken(`{}`)),
		"":                                private(),
	} {
		who, err := g.Identify(r)
		if err != nil || who.Name != want {
			t.Errorf("%+v, %v, want %q", who, err, want)
			continue
		}
		if err := g.Authorize(t.Context(), who, "a", auth.Delete); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		r.Header.Set("Via", "1.1 proxy")
		if who, err = g.Identify(r); err != nil || who.Name != want {
			t.Errorf("through a proxy: %+v, %v, want %q", who, err, want)
			continue
		}
		if err := g.Authorize(t.Context(), who, "a", auth.Delete); err == nil {
			t.Errorf("through a proxy, %s deletes", want)
		}
	}
}

// TestOnlyALoopbackListenerWithoutPublicURLHasPrivateRequests, whatever the rules allow these.
func TestOnlyALoopbackListenerWithoutPublicURLHasPrivateRequests(t *testing.T) {
	for _, row := range []struct {
		o    auth.Options
		want bool
	}{
		{auth.Options{Loopback: true}, true},
		{auth.Options{}, false},
		{auth.Options{Loopback: true, PublicURL: "https://localhost"}, false},
		{auth.Options{PublicURL: "https://localhost"}, false},
	} {
		if got := byDefault(t, row.o).Private(private()); got != row.want {
			t.Errorf("loopback %v, public-url %q: %v", row.o.Loopback, row.o.PublicURL, got)
		}
	}
}
