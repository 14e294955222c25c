package auth_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"trow/registry/auth"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

func request(headers ...string) *http.Request {
	r := httptest.NewRequest("GET", "/v2/", nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func withLogin(user, password string) *http.Request {
	r := request()
	r.SetBasicAuth(user, password)
	return r
}

// indexes are the records of Guards, by directory: a Guard in the directory of another one is that one after a restart.
var indexes sync.Map

// records returns the records of a directory.
func records(t testing.TB, dir string) *storage.Index {
	t.Helper()
	if x, ok := indexes.Load(dir); ok {
		return x.(*storage.Index)
	}
	x := storagetest.OpenIndex(t, memory.NewJournal())
	indexes.Store(dir, x)
	return x
}

// guard makes a Guard in its own directory unless the options name one. Without rules its default of anonymous is none.
func guard(t testing.TB, o auth.Options) *auth.Guard {
	t.Helper()
	if o.Anonymous == "" && len(o.Rules) == 0 {
		o.Anonymous = "none"
	}
	return byDefault(t, o)
}

// byDefault is guard, with the default of anonymous.
func byDefault(t testing.TB, o auth.Options) *auth.Guard {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	g, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// start makes a Guard and gives it its records.
func start(t testing.TB, o auth.Options) (*auth.Guard, error) {
	t.Helper()
	g, err := auth.New(o)
	if err == nil {
		err = g.Load(t.Context(), records(t, o.Dir), nil)
	}
	return g, err
}

// may identifies and authorizes.
func may(g *auth.Guard, r *http.Request, repo string, a auth.Action) (string, error) {
	who, err := g.Identify(r)
	if err != nil {
		return "", err
	}
	return who.Name, g.Authorize(r.Context(), who, repo, a)
}

// sign returns a decision as one character.
func sign(err error) string {
	switch {
	case err == nil:
		return "+"
	case errors.Is(err, auth.ErrUnauthorized):
		return "4"
	case errors.Is(err, auth.ErrDenied):
		return "-"
	case errors.Is(err, auth.ErrHidden):
		return "h"
	case errors.Is(err, auth.ErrUnavailable):
		return "u"
	}
	return "?"
}

// htpasswd writes a file of users whose passwords are their names and "'s".
func htpasswd(t testing.TB, names ...string) string {
	t.Helper()
	var b strings.Builder
	for _, name := range names {
		b.WriteString(line(t, name, name+"'s", bcrypt.MinCost) + "\n")
	}
	path := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func line(t testing.TB, name, password string, cost int) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	if err != nil {
		t.Fatal(err)
	}
	return name + ":" + string(hash)
}

func TestWhatMayBeDoneWithoutALogin(t *testing.T) {
	all := []auth.Action{auth.Login, auth.Pull, auth.Catalog, auth.Push, auth.Delete, auth.Admin}
	for _, row := range []struct {
		name string
		o    auth.Options
		want string // for each action, see sign
	}{
		{"no user, push", auth.Options{Anonymous: "push"}, "++++--"},
		{"no user, push, loopback", auth.Options{Anonymous: "push", Loopback: true}, "+++++-"},
		{"no user, pull", auth.Options{Anonymous: "pull"}, "+++---"},
		{"no user, pull, loopback", auth.Options{Anonymous: "pull", Loopback: true}, "+++---"},
		{"user, push", auth.Options{User: "u", Password: "p", Anonymous: "push"}, "4+++44"},
		{"user, pull", auth.Options{User: "u", Password: "p", Anonymous: "pull"}, "4++444"},
		{"user, none", auth.Options{User: "u", Password: "p"}, "444444"},
		{"rules without users", auth.Options{Rules: []auth.Rule{{Who: []string{"*"}, May: []string{"pull"},
			Repositories: []string{"repo"}}}}, "++----"},
	} {
		g := guard(t, row.o)
		got := ""
		for _, a := range all {
			user, err := may(g, private(), "repo", a)
			if user != "" {
				t.Errorf("%s, %s: anonymous is called %q", row.name, a, user)
			}
			got += sign(err)
		}
		if got != row.want {
			t.Errorf("%s: %s for %v, want %s", row.name, got, all, row.want)
		}
		if row.o.User != "" {
			for _, a := range all {
				if user, err := may(g, withLogin("u", "p"), "repo", a); user != "u" || err != nil {
					t.Errorf("%s, %s with a login: %q, %v", row.name, a, user, err)
				}
			}
		}
	}
}

func TestWhatUsersMayDoWithoutRules(t *testing.T) {
	g := guard(t, auth.Options{User: "owner", Password: "p", Htpasswd: htpasswd(t, "alice")})
	for a, want := range map[auth.Action]string{auth.Login: "+", auth.Pull: "+", auth.Push: "+", auth.Delete: "+",
		auth.Catalog: "+", auth.Admin: "-"} {
		if _, err := may(g, withLogin("alice", "alice's"), "repo", a); sign(err) != want {
			t.Errorf("alice, %s: %v", a, err)
		}
		if _, err := may(g, withLogin("owner", "p"), "repo", a); err != nil {
			t.Errorf("owner, %s: %v", a, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	long := strings.Repeat("x", 100)
	for _, password := range []string{"p", "p:q::", "pässwörd ☃", long, "nul\x00after", " spaces ", "trow_", "a.b.c"} {
		g := guard(t, auth.Options{User: "üser", Password: password})
		for range 2 { // by bcrypt, then from memory
			if _, err := may(g, withLogin("üser", password), "", auth.Push); err != nil {
				t.Errorf("%q: %v", password, err)
			}
		}
		for _, wrong := range []*http.Request{withLogin("üser", password+"x"), withLogin("other", password),
			withLogin("", password), withLogin("üser"+password, "")} {
			if _, err := may(g, wrong, "", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
				t.Errorf("%q: a wrong login gives %v", password, err)
			}
		}
	}
	g := guard(t, auth.Options{User: "u", Password: long})
	if _, err := may(g, withLogin("u", long[:72]), "", auth.Pull); err == nil {
		t.Error("the first 72 bytes of a longer password are enough")
	}
	g = guard(t, auth.Options{User: "u", Password: "nul\x00a"})
	if _, err := may(g, withLogin("u", "nul\x00b"), "", auth.Pull); err == nil {
		t.Error("what follows a NUL does not count")
	}
}

func TestInvalidAuthorizationHeaders(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Anonymous: "push"})
	for name, r := range map[string]*http.Request{
		"a made-up token": request("Authorization", "Bearer x"),
		"an empty token":  request("Authorization", "Bearer "),
		"invalid base64":  request("Authorization", "Basic !!!"),
		"nothing":         request("Authorization", "Basic"),
		"an empty header": request("Authorization", ""),
		"no colon":        request("Authorization", "Basic dXA="),
		"several headers": request("Authorization", "Basic dTpw", "Authorization", "Basic dTpw"),
		"another scheme":  request("Authorization", "Digest username=u"),
		"control characters": request("Authorization",
			"Basic "+base64.StdEncoding.EncodeToString([]byte("u\r\nx:p\x00"))),
		"an oversized header": request("Authorization", "Basic "+strings.Repeat("A", 60<<10)),
		"an oversized token":  request("Authorization", "Bearer "+strings.Repeat("A", auth.MaxToken+1)),
		"an oversized user":   withLogin(strings.Repeat("u", 300), "p"),
		"a made-up secret":    request("Authorization", "Bearer trow_"+strings.Repeat("A", 52)),
	} {
		if _, err := may(g, r, "repo", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Where there are no users, clients may send any credentials.
	g = guard(t, auth.Options{Anonymous: "push"})
	for _, r := range []*http.Request{withLogin("some", "body"), request("Authorization", "Bearer x"),
		request("Authorization", "a", "Authorization", "b")} {
		if _, err := may(g, r, "repo", auth.Push); err != nil {
			t.Error(err)
		}
	}
}

func TestInvalidOptions(t *testing.T) {
	for _, o := range []auth.Options{
		{Password: "p", Anonymous: "push"},
		{User: "u", Anonymous: "push"},
		{Anonymous: "none"},
		{Anonymous: "delete"},
		{User: "a:b", Password: "p"},
		{User: "a\nb", Password: "p"},
		{User: "a\xffb", Password: "p"},
		{User: "u", Password: "p", Htpasswd: htpasswd(t, "u")},
		{Htpasswd: "/nowhere"},
		{Htpasswd: t.TempDir()},
		{Anonymous: "push", PublicURL: "registry.example.org"},
		{Anonymous: "push", PublicURL: "https://u:p@registry.example.org"},
		{Anonymous: "push", PublicURL: "https://registry.example.org/path?query"},
		{Anonymous: "push", PublicURL: "ftp://registry.example.org"},
		{Anonymous: "push", PublicURL: "https://a b"},
		{Rules: []auth.Rule{{}}},
		{Rules: []auth.Rule{rule("*", "pull", "")}, Anonymous: "pull"},
	} {
		o.Dir = t.TempDir()
		if _, err := start(t, o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

func TestLevels(t *testing.T) {
	for s, want := range map[string]auth.Level{"none": auth.None, "pull": auth.ReadOnly, "push": auth.ReadWrite} {
		if got, err := auth.ParseLevel(s); got != want || err != nil {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	if _, err := auth.ParseLevel("delete"); err == nil {
		t.Error("delete is a level")
	}
}

// TestACancelledRequestDoesNotWait for a password comparison.
func TestACancelledRequestDoesNotWait(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p"})
	ctx, cancel := context.WithCancel(t.Context())
	const lanes = 2 // passwords are compared at two places; both must be taken, or the third request need not wait
	hold, held := make(chan struct{}), make(chan struct{}, lanes+1)
	auth.SlowComparisons(t, func(_, _ []byte) error { held <- struct{}{}; <-hold; return nil })
	var wg sync.WaitGroup
	for i := range lanes {
		wg.Go(func() { _, _ = g.Identify(withLogin("u", fmt.Sprint(i))) })
	}
	for range lanes {
		<-held
	}
	wg.Go(func() {
		if _, err := g.Identify(withLogin("u", "other").WithContext(ctx)); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	cancel()
	time.AfterFunc(10*time.Millisecond, func() { close(hold) })
	wg.Wait()
}

func TestChallenges(t *testing.T) {
	basic := `Basic realm="trow", charset="UTF-8"`
	closed := guard(t, auth.Options{User: "u", Password: "p"})
	open := guard(t, auth.Options{User: "u", Password: "p", Anonymous: "pull"})
	public := guard(t, auth.Options{User: "u", Password: "p",
		Rules: []auth.Rule{{Who: []string{"*"}, May: []string{"pull"}, Repositories: []string{"public/**"}}}})
	forbidden := guard(t, auth.Options{User: "u", Password: "p",
		Rules: []auth.Rule{{Who: []string{"*"}, May: []string{"none"}}}})
	r := httptest.NewRequest("GET", "https://registry.example.org:5000/v2/", nil)
	bearer := `Bearer realm="https://registry.example.org:5000/token",service="registry.example.org:5000"`
	for _, row := range []struct {
		g    *auth.Guard
		repo string
		a    auth.Action
		want []string
	}{
		{closed, "", auth.Login, []string{bearer, basic}},
		{forbidden, "", auth.Login, []string{bearer, basic}},
		{open, "", auth.Login, []string{bearer}}, // or Docker could not pull without a login
		{public, "", auth.Login, []string{bearer}},
		{open, "a/b", auth.Pull, []string{bearer + `,scope="repository:a/b:pull"`, basic}},
		{open, "a/b", auth.Push, []string{bearer + `,scope="repository:a/b:pull,push"`, basic}},
		{open, "a/b", auth.Delete, []string{bearer + `,scope="repository:a/b:delete"`, basic}},
		{open, "", auth.Catalog, []string{bearer + `,scope="registry:catalog:*"`, basic}},
	} {
		got := row.g.Challenge(r, row.repo, row.a, auth.ErrUnauthorized)
		if !slices.Equal(got, row.want) {
			t.Errorf("%s %s: %q, want %q", row.a, row.repo, got, row.want)
		}
	}
}

// TestAPathOfPublicURLIsPartOfTheRealm: the token endpoint is below it as well.
func TestAPathOfPublicURLIsPartOfTheRealm(t *testing.T) {
	o := auth.Options{User: "u", Password: "p", PublicURL: "https://registry.example/some/path/"}
	if err := o.Validate(); err != nil || o.Prefix() != "/some/path" {
		t.Errorf("%q, %v", o.Prefix(), err)
	}
	got := guard(t, o).Challenge(httptest.NewRequest("GET", "/v2/", nil), "", auth.Login, auth.ErrUnauthorized)
	if want := `Bearer realm="https://registry.example/some/path/token",service="registry.example"`; got[0] != want {
		t.Errorf("%s", got[0])
	}
}

// TestHostHeaderGames: the Host header is repeated in the challenge, so only a valid host is.
func TestHostHeaderGames(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Name: "trow.kube-public:31000"})
	for host, want := range map[string]string{
		"registry.example.org":      "registry.example.org",
		"Registry.Example.ORG:5000": "registry.example.org:5000",
		"127.0.0.1:31000":           "127.0.0.1:31000",
		"[::1]:8443":                "[::1]:8443",
		"[fe80::1]":                 "[fe80::1]",
		"under_score-1.test":        "under_score-1.test",
		strings.Repeat("a", 255):    strings.Repeat("a", 255),
		strings.Repeat("a", 256):    "",
		"":                          "",
		"evil.org/path":             "",
		"evil.org@registry":         "",
		"user:pass@evil.org":        "",
		`evil.org",service="x`:      "",
		"evil.org registry":         "",
		"evil.org\r\nX: y":          "",
		"evil.org?x=":               "",
		"evil.org#":                 "",
		"evil.org\\x":               "",
		"evil.org:":                 "",
		"evil.org:0":                "",
		"evil.org:99999":            "",
		"evil.org:-1":               "",
		"evil.org:80:81":            "",
		"::1":                       "",
		"[::1":                      "",
		"[::1]x":                    "",
		"[fe80::1%25eth0]":          "",
		"[127.0.0.1]":               "",
		"exämple.org":               "",
		":8080":                     "",
	} {
		r := request("X-Forwarded-Host", "evil.org", "X-Forwarded-Proto", "https", "Forwarded",
			"host=evil.org;proto=https")
		r.Host = host
		if want == "" {
			want = "trow.kube-public:31000"
		}
		if scheme, got := g.Base(r); got != want || scheme != "http" {
			t.Errorf("Host %.60q: %s %.60q, want %.60q", host, scheme, got, want)
		}
	}
	g = guard(t, auth.Options{User: "u", Password: "p", PublicURL: "https://Public.example.org/"})
	if c := g.Challenge(request(), "", auth.Login, nil); !strings.HasPrefix(c[0],
		`Bearer realm="https://public.example.org/token",service="public.example.org"`) {
		t.Errorf("%q", c)
	}
	g = guard(t, auth.Options{User: "u", Password: "p", Name: "not a host"})
	r := request()
	r.Host = "/"
	if _, host := g.Base(r); host != "localhost" {
		t.Error(host)
	}
}

func TestProtect(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Htpasswd: htpasswd(t, "alice")})
	h := g.Protect(auth.Admin, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	cross := withLogin("u", "p")
	cross.Method = "POST"
	cross.Header.Set("Sec-Fetch-Site", "cross-site")
	for name, row := range map[string]struct {
		r    *http.Request
		want int
	}{
		"no login":                 {request(), 401},
		"a wrong password":         {withLogin("u", "x"), 401},
		"a user without the right": {withLogin("alice", "alice's"), 403},
		"the owner":                {withLogin("u", "p"), 204},
		"another origin":           {cross, 403},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, row.r)
		asked := w.Header().Get("WWW-Authenticate") == `Basic realm="trow", charset="UTF-8"`
		if w.Code != row.want || (row.want == 401) != asked {
			t.Errorf("%s: %d %v %s", name, w.Code, w.Header(), w.Body)
		}
	}
	open := guard(t, auth.Options{Anonymous: "push", Loopback: true})
	w := httptest.NewRecorder()
	open.Protect(auth.Admin, http.NotFoundHandler()).ServeHTTP(w, request())
	if w.Code != 403 {
		t.Errorf("without any user: %d", w.Code)
	}
}
