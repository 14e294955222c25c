package auth_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/crypto/bcrypt"

	"trow/registry/auth"
)

// token is an answer of the token endpoint.
type token struct {
	Token       string `json:"token"`
	AccessToken string `json:"access_token"`
	ExpiresIn   int    `json:"expires_in"`
	IssuedAt    string `json:"issued_at"`
	Scope       string `json:"scope"`
}

// ask sends a request to the token endpoint.
func ask(t testing.TB, g *auth.Guard, r *http.Request, status int) (answer token) {
	t.Helper()
	w := httptest.NewRecorder()
	g.ServeToken(w, r)
	if w.Code != status {
		t.Fatalf("%s %.200s: %d %s, want %d", r.Method, r.URL, w.Code, w.Body, status)
	}
	if w.Header().Get("Cache-Control") != "no-store" {
		t.Error("a token may be cached on the way")
	}
	if status == 200 {
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Token == "" ||
			answer.AccessToken != answer.Token {
			t.Fatalf("%v: %s", err, w.Body)
		}
		return answer
	}
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Code == "" ||
		e.Errors[0].Message == "" {
		t.Errorf("%v: %s", err, w.Body)
	}
	if (status == 401) != (w.Header().Get("WWW-Authenticate") != "") {
		t.Errorf("%d with WWW-Authenticate %q", status, w.Header().Get("WWW-Authenticate"))
	}
	return answer
}

// tokenGET is a request for a token with a login, without one if user is empty.
func tokenGET(user, password string, scopes ...string) *http.Request {
	r := httptest.NewRequest("GET", "/token?"+url.Values{"service": {"example.com"}, "scope": scopes}.Encode(), nil)
	if user != "" {
		r.SetBasicAuth(user, password)
	}
	return r
}

func tokenPOST(form url.Values) *http.Request {
	r := httptest.NewRequest("POST", "/token", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

func bearer(token string) *http.Request { return request("Authorization", "Bearer "+token) }

// team is a registry with public repositories, a team's, and others that only the owner may use.
func team(t testing.TB) *auth.Guard {
	return guard(t, auth.Options{User: "owner", Password: "p", Htpasswd: htpasswd(t, "alice", "bob"),
		Rules: []auth.Rule{
			rule("*", "pull", "public/**"), rule("user:alice", "pull push catalog", "team/**"),
			rule("user:bob", "pull", "team/**"),
		}})
}

func TestATokenAllowsWhatBothScopesAndRulesAllow(t *testing.T) {
	g := team(t)
	got := ask(t, g, tokenGET("alice", "alice's", "repository:team/app:pull,push,delete",
		"repository:secret:pull repository:public/x:pull", "registry:catalog:*"), 200)
	if want := "repository:team/app:pull,push repository:public/x:pull registry:catalog:*"; got.Scope != want {
		t.Errorf("scope %q, want %q", got.Scope, want)
	}
	if got.ExpiresIn != 3600 || got.IssuedAt != "" { // a time would be compared with the client's clock
		t.Errorf("%+v", got)
	}
	for _, row := range []struct {
		repo string
		a    auth.Action
		want string
	}{
		{"", auth.Login, "+"}, {"team/app", auth.Pull, "+"}, {"team/app", auth.Push, "+"}, {"public/x", auth.Pull, "+"},
		{"", auth.Catalog, "+"},
		{"team/other", auth.Pull, "4"}, // the rules allow it, the token does not
		{"team/app", auth.Delete, "-"}, {"secret", auth.Pull, "h"}, {"", auth.Admin, "-"},
	} {
		if user, err := may(g, bearer(got.Token), row.repo, row.a); sign(err) != row.want || user != "alice" {
			t.Errorf("%s %s: %q %v, want %s", row.a, row.repo, user, err, row.want)
		}
	}
	who, err := g.Identify(bearer(got.Token))
	if err != nil {
		t.Fatal(err)
	}
	err = g.Authorize(t.Context(), who, "team/other", auth.Pull)
	if c := g.Challenge(bearer(got.Token), "team/other", auth.Pull, err); !strings.HasSuffix(c[0],
		`,scope="repository:team/other:pull",error="insufficient_scope",`+
			`error_description="token lacks the required scope"`) {
		t.Errorf("%q", c)
	}
	if readable := reads(t, g, who); !readable("team/other") || readable("secret") {
		t.Error("the catalog is not what the rules say")
	}
	// A change of the rules takes effect at once.
	if err := g.SetRules([]auth.Rule{rule("user:alice", "push", "team/**")}, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := may(g, bearer(got.Token), "team/app", auth.Pull); !errors.Is(err, auth.ErrHidden) {
		t.Errorf("after the rule was removed: %v", err)
	}
}

func TestAnonymousTokens(t *testing.T) {
	g := team(t)
	got := ask(t, g, tokenGET("", "", "repository:public/x:pull,push", "repository:team/app:pull"), 200)
	if got.Scope != "repository:public/x:pull" {
		t.Errorf("scope %q", got.Scope)
	}
	for repo, want := range map[string]string{"public/x": "+", "team/app": "4", "public/y": "4"} {
		if user, err := may(g, bearer(got.Token), repo, auth.Pull); user != "" || sign(err) != want {
			t.Errorf("%s: %q %v", repo, user, err)
		}
	}
	if _, err := may(g, bearer(got.Token), "", auth.Login); err != nil {
		t.Errorf("a client with a token is asked for a login: %v", err)
	}
	if got := ask(t, g, tokenGET("", ""), 200); got.Scope != "" {
		t.Errorf("scope %q", got.Scope)
	}
}

func TestWhichCredentialsGetAToken(t *testing.T) {
	g := team(t)
	ask(t, g, tokenGET("alice", "alice's"), 200) // docker login
	ask(t, g, tokenGET("alice", "wrong"), 401)
	ask(t, g, tokenGET("unknown", "alice's"), 401)
	form := url.Values{"grant_type": {"password"}, "username": {"alice"}, "password": {"alice's"},
		"service": {"example.com"}, "client_id": {"c"},
		"access_type": {"offline"}, "scope": {"repository:team/a:pull repository:team/b:push"}}
	if got := ask(t, g, tokenPOST(form), 200); got.Scope != "repository:team/a:pull repository:team/b:push" {
		t.Errorf("scope %q", got.Scope)
	}
	form.Set("password", "wrong")
	ask(t, g, tokenPOST(form), 401)
	form.Set("username", "ali:ce")
	ask(t, g, tokenPOST(form), 401)
	ask(t, g, tokenPOST(url.Values{"grant_type": {"client_credentials"}}), 400)
	ask(t, g, tokenPOST(nil), 400)
	ask(t, g, tokenPOST(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"x"}}), 401)
	secret, err := g.CreateRobot(t.Context(), auth.Robot{Name: "ci", Repositories: []string{"team/**"},
		Actions: []auth.Action{auth.Pull}})
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, g, tokenPOST(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {secret},
		"scope": {"repository:team/a:pull,push"}}), 200); got.Scope != "repository:team/a:pull" {
		t.Errorf("scope %q", got.Scope)
	}
	if got := ask(t, g, tokenGET("alice", "alice's"), 200); ask(t, g, bearerGET(got.Token), 401).Token != "" {
		t.Error("a token gets a token")
	}
	r := tokenGET("", "")
	r.Method = "DELETE"
	ask(t, g, r, 405)
	open := guard(t, auth.Options{Anonymous: "push"})
	if got := ask(t, open, tokenGET("any", "body", "repository:a:push"), 200); got.Scope != "repository:a:push" {
		t.Errorf("where everything is open: scope %q", got.Scope)
	}
	form.Set("username", "x")
	ask(t, open, tokenPOST(form), 200)
}

func bearerGET(token string) *http.Request {
	r := tokenGET("", "")
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

// TestHugeForm: more than any form needs is not read.
func TestHugeForm(t *testing.T) {
	g := team(t)
	r := tokenPOST(url.Values{"grant_type": {"password"}, "username": {"alice"},
		"password": {strings.Repeat("x", 1<<20)}})
	ask(t, g, r, 413)
	ask(t, g, tokenPOST(url.Values{"grant_type": {"password"}, "username": {"alice"},
		"password": {strings.Repeat("x", 60<<10)}}), 401)
	r = tokenPOST(url.Values{"grant_type": {"password"}})
	r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
	ask(t, g, r, 400)
	r = tokenPOST(nil)
	r.Body = http.NoBody
	r.Header.Set("Content-Type", "%%%")
	ask(t, g, r, 400)
}

func TestScopesWithTricks(t *testing.T) {
	g := guard(t, auth.Options{User: "owner", Password: "p"})
	for _, row := range []struct{ ask, want string }{
		{"repository:a:pull,push repository:../b:*", "repository:a:pull,push"},
		{"repository:a/../b:pull", ""},
		{"repository:a:*", "repository:a:pull,push,delete"},
		{"repository:a:pull,*,x", "repository:a:pull,push,delete"},
		{"repository:a:pull,pull,pull", "repository:a:pull"},
		{"repository:a:admin,catalog,login", ""},
		{"repository:A:pull", ""},
		{"repository:a b:pull", ""},
		{"repository:host:5000/a:pull", ""},
		{"repository::pull", ""},
		{"repository:a", ""},
		{"repository", ""},
		{":", ""},
		{"::", ""},
		{"repository(plugin):a:pull", "repository:a:pull"}, // docker plugin
		{"repository(:a:pull", ""},
		{"(plugin):a:pull", ""},
		{"registry:catalog:*", "registry:catalog:*"},
		{"registry:catalog:pull", ""},
		{"registry:other:*", ""},
		{"other:a:pull", ""},
		{"repository:" + strings.Repeat("a", 255) + ":pull", "repository:" + strings.Repeat("a", 255) + ":pull"},
		{"repository:" + strings.Repeat("a", 256) + ":pull", ""},
		{"repository:a\x00b:pull", ""},
		{`repository:a":pull`, ""},
	} {
		if got := ask(t, g, tokenGET("owner", "p", row.ask), 200); got.Scope != row.want {
			t.Errorf("%q: scope %q, want %q", row.ask, got.Scope, row.want)
		}
	}
	var many []string
	for i := range 10_000 {
		many = append(many, fmt.Sprintf("repository:%s%d:pull", strings.Repeat("a", 200), i))
	}
	got := ask(t, g, tokenGET("owner", "p", strings.Join(many, " ")), 200)
	if n := strings.Count(got.Scope, "repository:"); len(got.Token) > auth.MaxToken || n == 0 || n > 64 {
		t.Errorf("10,000 scopes make a token of %d bytes with %d of them", len(got.Token), n)
	}
	if _, err := may(g, bearer(got.Token), strings.Repeat("a", 200)+"0", auth.Pull); err != nil {
		t.Error(err)
	}
	got = ask(t, g, tokenGET("owner", "p", many...), 200) // net/http takes fewer parameters, and leaves all of them out
	if len(got.Token) > auth.MaxToken {
		t.Errorf("10,000 parameters make a token of %d bytes", len(got.Token))
	}
}

// TestTokensThatAreRefused: each is valid except for what its name says.
func TestTokensThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	g := guard(t, auth.Options{Dir: dir, User: "owner", Password: "p"})
	good := ask(t, g, tokenGET("owner", "p", "repository:a:pull"), 200).Token
	kid, key := g.Key()
	now := time.Now().Unix()
	claims := func(change map[string]any) map[string]any {
		c := map[string]any{"iss": "trow", "sub": "owner", "aud": []string{"example.com"}, "iat": now, "nbf": now,
			"exp": now + 300, "proof": g.Proof("owner"),
			"access": []any{map[string]any{"type": "repository", "name": "a", "actions": []string{"pull"}}}}
		maps.Copy(c, change)
		maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
		return c
	}
	signed := func(change map[string]any) string {
		return auth.Sign(t, jwt.SigningMethodEdDSA, kid, key, claims(change))
	}
	for name, token := range map[string]string{"the endpoint's": good, "our own": signed(nil)} {
		if _, err := may(g, bearer(token), "a", auth.Pull); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	_, stranger, _ := ed25519.GenerateKey(nil)
	parts := strings.Split(good, ".")
	other := strings.Split(signed(map[string]any{"sub": ""}), ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT","kid":"` + kid + `"}`))
	public := key.Public().(ed25519.PublicKey)
	for name, token := range map[string]string{
		"tampered claims":               parts[0] + "." + other[1] + "." + parts[2],
		"tampered signature":            parts[0] + "." + parts[1] + "." + other[2],
		"no signature":                  parts[0] + "." + parts[1] + ".",
		"two parts":                     parts[0] + "." + parts[1],
		"four parts":                    good + ".x",
		"white space":                   good + "\t",
		"expired":                       signed(map[string]any{"exp": now - 6}),
		"without an expiry":             signed(map[string]any{"exp": nil}),
		"not yet valid":                 signed(map[string]any{"nbf": now + 600}),
		"issued in the future":          signed(map[string]any{"iat": now + 600}),
		"wrong audience":                signed(map[string]any{"aud": []string{"other.example.com"}}),
		"several audiences":             signed(map[string]any{"aud": []string{"example.com", "other"}}),
		"no audience":                   signed(map[string]any{"aud": nil}),
		"wrong issuer":                  signed(map[string]any{"iss": "https://kubernetes.default.svc"}),
		"no issuer":                     signed(map[string]any{"iss": nil}),
		"an unknown user":               signed(map[string]any{"sub": "unknown"}),
		"another password":              signed(map[string]any{"proof": []byte("0123456789abcdef")}),
		"no password":                   signed(map[string]any{"proof": nil}),
		"an unknown robot":              signed(map[string]any{"sub": "robot:ci", "robot": "0123"}),
		"alg none":                      none + "." + parts[1] + ".",
		"alg none with the signature":   none + "." + parts[1] + "." + parts[2],
		"alg HS256 with the public key": auth.Sign(t, jwt.SigningMethodHS256, kid, []byte(public), claims(nil)),
		"alg HS256 with the public key, as text": auth.Sign(t, jwt.SigningMethodHS256, kid,
			[]byte(base64.StdEncoding.EncodeToString(public)), claims(nil)),
		"another key":            auth.Sign(t, jwt.SigningMethodEdDSA, kid, stranger, claims(nil)),
		"an unknown key":         auth.Sign(t, jwt.SigningMethodEdDSA, "x", key, claims(nil)),
		"oversized":              signed(map[string]any{"groups": strings.Repeat("x", auth.MaxToken)}),
		"claims of another form": signed(map[string]any{"access": "all"}),
	} {
		for range 2 { // nor is the second time
			_, err := may(g, bearer(token), "a", auth.Pull)
			if !errors.Is(err, auth.ErrUnauthorized) {
				t.Errorf("%s: %v", name, err)
			}
			if c := g.Challenge(request(), "a", auth.Pull, err); !strings.Contains(c[0], `error="invalid_token"`) {
				t.Errorf("%s: challenge %q", name, c)
			}
		}
	}
	if _, err := may(g, withLogin("owner", good), "a", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
		t.Errorf("a token as a password: %v", err)
	}
	// It was verified above, and is remembered: that holds under Bearer alone, which checks the host.
	for _, host := range []string{"example.com", "other.example.com"} {
		raw := request("Authorization", "Basic "+good)
		raw.Host = host
		if _, err := may(g, raw, "a", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("%s: a token in the place of Basic credentials: %v", host, err)
		}
	}
	elsewhere := bearer(good)
	elsewhere.Host = "other.example.com"
	if _, err := may(g, elsewhere, "a", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
		t.Errorf("a token for another host: %v", err)
	}
}

func TestTokensExpire(t *testing.T) {
	g := guard(t, auth.Options{User: "owner", Password: "p"})
	kid, key := g.Key()
	ends := time.Now().Add(-4 * time.Second).Unix() // of which the leeway leaves one
	token := auth.Sign(t, jwt.SigningMethodEdDSA, kid, key,
		map[string]any{"iss": "trow", "sub": "owner", "aud": "example.com", "exp": ends, "proof": g.Proof("owner")})
	if _, err := g.Identify(bearer(token)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := g.Identify(bearer(token)); errors.Is(err, auth.ErrUnauthorized) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it is accepted after it has expired")
		}
	}
}

func TestTheKeysOfTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		o := auth.Options{Dir: dir, User: "owner", Password: "p", TokenLifetime: 24 * time.Hour}
		g := guard(t, o)
		issue := func() string { return ask(t, g, tokenGET("owner", "p", "repository:a:pull"), 200).Token }
		token := issue()
		g = guard(t, o)
		if _, err := may(g, bearer(token), "a", auth.Pull); err != nil {
			t.Errorf("after a restart: %v", err)
		}
		old, _ := g.Key()
		time.Sleep(30*24*time.Hour - 1)
		if err := g.RotateKeys(time.Now()); err != nil {
			t.Fatal(err)
		}
		if id, _ := g.Key(); id != old {
			t.Error("a key was replaced too early")
		}
		token = issue()
		time.Sleep(time.Nanosecond)
		if err := g.RotateKeys(time.Now()); err != nil {
			t.Fatal(err)
		}
		if id, _ := g.Key(); id == old || g.Keys() != 2 {
			t.Errorf("a key of 30 days signs; there are %d", g.Keys())
		}
		if _, err := may(guard(t, o), bearer(token), "a", auth.Pull); err != nil {
			t.Errorf("a token of the old key, after a restart: %v", err)
		}
		time.Sleep(48 * time.Hour)
		if err := g.RotateKeys(time.Now()); err != nil || g.Keys() != 1 {
			t.Errorf("%d keys, %v", g.Keys(), err)
		}
		for name, value := range records(t, dir).Records("auth/key/") {
			if id, _ := g.Key(); name != "auth/key/"+id || !bytes.Contains(value, []byte(`"seed"`)) {
				t.Errorf("%s: %s", name, value)
			}
		}
	})
}

// TestOnlyTheTokenOfAUserProvesAPassword: the cluster's alice may be another person than ours, and her token must not
// have what is made of our alice's password.
func TestOnlyTheTokenOfAUserProvesAPassword(t *testing.T) {
	g := guard(t, auth.Options{Dir: t.TempDir(), Htpasswd: htpasswd(t, "alice"), Certificate: shown, Anonymous: "pull",
		Reviewer: &reviewer{user: info(&auth.Identity{Name: "alice"})}})
	certificate := withCertificate("alice")
	certificate.URL.Path, certificate.URL.RawQuery = auth.TokenPath, "scope=repository:a:pull"
	secret, err := g.CreateRobot(t.Context(), robot("alice", "pull", "**"))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		r     *http.Request
		proof []byte
	}{
		"alice":              {tokenGET("alice", "alice's", "repository:a:pull"), g.Proof("alice")},
		"alice in a cluster": {tokenGET("x", clusterToken(`{}`), "repository:a:pull"), nil},
		"a certificate":      {certificate, nil},
		"a robot":            {tokenGET("alice", secret, "repository:a:pull"), nil},
		"without a login":    {tokenGET("", "", "repository:a:pull"), nil},
	} {
		w := httptest.NewRecorder()
		g.ServeToken(w, tt.r)
		var answer token
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != 200 {
			t.Fatalf("%s: %d %s", name, w.Code, w.Body)
		}
		var claims struct{ Proof []byte }
		b, err := base64.RawURLEncoding.DecodeString(strings.Split(answer.Token, ".")[1])
		if err = errors.Join(err, json.Unmarshal(b, &claims)); err != nil || !bytes.Equal(claims.Proof, tt.proof) {
			t.Errorf("%s: %s, %v", name, b, err)
		}
	}
}

func TestAnAccountWithTooManyGroups(t *testing.T) {
	r := &reviewer{user: info(account("a", "b"))}
	g := guard(t, auth.Options{Reviewer: r})
	password := clusterToken(`{}`)
	got := ask(t, g, tokenGET("x", password, "repository:a/b:pull"), 200)
	who, err := g.Identify(bearer(got.Token))
	if err != nil || who.Name != "system:serviceaccount:a:b" || len(who.Groups) != 3 || !who.Cluster {
		t.Errorf("%+v, %v", who, err)
	}
	for range 300 {
		r.user.Groups = append(r.user.Groups, strings.Repeat("g", 30))
	}
	ask(t, g, tokenGET("x", clusterToken(`{"sub":"2"}`)), 403)
	r.err = errors.New("connection refused")
	ask(t, g, tokenGET("x", clusterToken(`{"sub":"3"}`)), 503)
}

// TestTheTokenEndpointHasItsOwnPlaces: when they are taken, further requests for tokens are refused, and other requests
// go on.
func TestTheTokenEndpointHasItsOwnPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reviewer{slow: "slow", hold: make(chan struct{}), held: make(chan struct{}, auth.MaxTokenRequests)}
		g := guard(t, auth.Options{User: "u", Password: "p", Reviewer: r})
		var wg sync.WaitGroup
		for i := range auth.MaxTokenRequests {
			wg.Go(func() { ask(t, g, tokenGET("x", clusterToken(fmt.Sprintf(`{"sub":"slow %d"}`, i))), 200) })
		}
		synctest.Wait()
		if n := len(r.held); n != auth.MaxTokenRequests {
			t.Fatalf("%d requests are under way", n)
		}
		w := httptest.NewRecorder()
		g.ServeToken(w, tokenGET("u", "p"))
		if w.Code != 429 || w.Header().Get("Retry-After") != "1" || w.Header().
			Get("Content-Type") != "application/json" ||
			!strings.Contains(w.Body.String(), `{"errors":[{"code":"TOOMANYREQUESTS"`) {
			t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
		}
		if _, err := may(g, withLogin("u", "p"), "a", auth.Pull); err != nil {
			t.Errorf("a pull: %v", err)
		}
		close(r.hold)
		wg.Wait()
		ask(t, g, tokenGET("u", "p"), 200)
	})
}

// TestGuessesDoNotTakeAllPlacesOfTheTokenEndpoint: those that wait for a comparison are fewer than the places.
func TestGuessesDoNotTakeAllPlacesOfTheTokenEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice")})
		secret := create(t, g, robot("ci", "pull", "**"))
		hold := make(chan struct{})
		auth.SlowComparisons(t, func(_, _ []byte) error { <-hold; return bcrypt.ErrMismatchedHashAndPassword })
		var wg sync.WaitGroup
		for i := range 2 * auth.MaxTokenRequests {
			wg.Go(func() {
				r := from(tokenGET(fmt.Sprint("user", i), "guess"), fmt.Sprintf("10.0.%d.%d", i>>8, i&255))
				g.ServeToken(httptest.NewRecorder(), r)
			})
		}
		synctest.Wait()
		ask(t, g, tokenGET("x", secret, "repository:a:pull"), 200)
		close(hold)
		wg.Wait()
	})
}
