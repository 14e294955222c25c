package auth_test

import (
	"net/url"
	"strings"
	"testing"

	"trow/registry/auth"
)

// FuzzHost: whatever the Host header is, the challenge has one realm, which is the URL of a host.
func FuzzHost(f *testing.F) {
	g := guard(f, auth.Options{User: "u", Password: "p", Name: "trow:31000"})
	for _, s := range []string{"a", "a:1", "[::1]:1", `a",x="`, "a@b", "a/b", "a b", "a\r\nb", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		r := request()
		r.Host = host
		c := g.Challenge(r, "", auth.Login, nil)[0]
		rest, _ := strings.CutPrefix(c, `Bearer realm="`)
		realm, rest, _ := strings.Cut(rest, `"`)
		u, err := url.Parse(realm)
		if err != nil || u.Scheme != "http" || u.Path != "/token" || u.User != nil || u.RawQuery != "" ||
			u.Fragment != "" ||
			rest != `,service="`+u.Host+`"` {
			t.Errorf("host %q: %s", host, c)
		}
		if u.Host != "trow:31000" && !strings.EqualFold(u.Host, host) {
			t.Errorf("host %q: realm %s", host, realm)
		}
	})
}

// FuzzScope: whatever the requested scopes are, a token has none that the rules do not allow.
func FuzzScope(f *testing.F) {
	g := team(f)
	for _, s := range []string{"repository:team/a:pull,push", "repository:public/a:*", "registry:catalog:*",
		"a:b:c repository:secret:pull", "::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, scope string) {
		got := ask(t, g, tokenGET("", "", scope), 200)
		for s := range strings.FieldsSeq(got.Scope) {
			if !strings.HasPrefix(s, "repository:public/") || !strings.HasSuffix(s, ":pull") {
				t.Errorf("%q gives %q", scope, s)
			}
		}
	})
}
