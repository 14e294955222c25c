package auth_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"
	authenticationv1 "k8s.io/api/authentication/v1"

	"trow/registry/auth"
)

// The tests of this file stand on both sides of each bound: the last value that is accepted, and the first that is not.

func TestTheCharactersOfHosts(t *testing.T) {
	for host, want := range map[string]bool{
		"azAZ09._-": true, "a:80": true, "a:1": true, "a:65535": true, "[::1]:1": true,
		"a:65536": false, "a`": false, "a{": false, "a@": false, "a[": false, "a/": false, "a;": false,
	} {
		if got := auth.ValidHost(host); got != want {
			t.Errorf("%q: %v, want %v", host, got, want)
		}
	}
}

func TestTheCharactersOfThePathOfPublicURL(t *testing.T) {
	for path, want := range map[string]bool{
		"/azAZ09._~-": true, "/a/b.c": true, "/a..b": true,
		"/a/":   true, // a slash at the end is ignored
		"/a//b": false, "/.": false, "/a/..": false, "/...": false, "/a`": false, "/a{": false, "/a@": false,
		"/a[":  false,
		"/a;b": false, "/a%2Fb": false,
	} {
		o := auth.Options{PublicURL: "https://r.example" + path}
		if err := o.Validate(); (err == nil) != want {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

func TestTheLengthsOfNames(t *testing.T) {
	long := strings.Repeat("a", 255)
	file := filepath.Join(t.TempDir(), "htpasswd")
	write(t, file, line(t, long, "p", bcrypt.MinCost), line(t, "a name", "p", bcrypt.MinCost))
	g := guard(t, auth.Options{Htpasswd: file, Certificate: shown})
	for _, name := range []string{long, "a name"} {
		if user, err := may(g, withLogin(name, "p"), "a", auth.Push); user != name || err != nil {
			t.Errorf("%.10s: %.10q, %v", name, user, err)
		}
		if user, err := may(g, withCertificate(name), "a", auth.Pull); user != "cert:"+name || err != nil {
			t.Errorf("the certificate of %.10s: %.10q, %v", name, user, err)
		}
	}
	for _, name := range []string{"a\x1f", "a\x7f", "a\x00"} {
		if user, err := g.Identify(withCertificate(name)); err != nil || !user.Anonymous() {
			t.Errorf("the certificate of %q: %+v, %v", name, user, err)
		}
		if _, err := auth.New(auth.Options{Dir: t.TempDir(), User: name, Password: "p"}); err == nil {
			t.Errorf("the user %q is accepted", name)
		}
	}
	for name, want := range map[string]bool{strings.Repeat("a", 63): true, "az09._-": true, "a`": false, "a{": false,
		"a/": false, "a;": false} {
		if _, err := g.CreateRobot(t.Context(), robot(name, "pull", "**")); (err == nil) != want {
			t.Errorf("the robot %.10s: %v, want %v", name, err, want)
		}
	}
}

// TestTheLengthOfCredentials: what is longer is not even decoded.
func TestTheLengthOfCredentials(t *testing.T) {
	header := strings.Repeat("p", (auth.MaxHeader-len("Basic "))/4*3-len("u:"))
	if r := withLogin("u", header); len(r.Header.Get("Authorization")) != auth.MaxHeader {
		t.Fatalf("a header of %d bytes, want %d", len(r.Header.Get("Authorization")), auth.MaxHeader)
	}
	g := guard(t, auth.Options{User: "u", Password: header})
	if _, err := g.Identify(withLogin("u", header)); err != nil {
		t.Errorf("the longest header: %v", err)
	}
	form := func(password string) *http.Request {
		return tokenPOST(url.Values{"grant_type": {"password"}, "username": {"u"}, "password": {password}})
	}
	longest := strings.Repeat("p", auth.MaxHeader-len("u"))
	ask(t, guard(t, auth.Options{User: "u", Password: longest}), form(longest), 200)
	ask(t, guard(t, auth.Options{User: "u", Password: longest + "p"}), form(longest+"p"), 401)

	r := &reviewer{}
	g = guard(t, auth.Options{User: "u", Password: "p", Reviewer: r})
	// A cluster's token of that length: its signature fills what is left.
	token := clusterToken(`{"iss":"https://kube"}`)
	token += strings.Repeat("A", auth.MaxToken-len(token))
	for _, req := range []*http.Request{bearer(token), withLogin("x", token)} {
		if who, err := g.Identify(req); err != nil || !who.Cluster {
			t.Errorf("the longest token: %+v, %v", who, err)
		}
	}
	asked := r.asked.Load()
	for _, req := range []*http.Request{bearer(token + "A"), withLogin("x", token+"A")} {
		if _, err := g.Identify(req); !errors.Is(err, auth.ErrUnauthorized) || r.asked.Load() != asked {
			t.Errorf("a token that is too long: %v", err)
		}
	}
}

// TestTheLengthOfATokenThatIsIssued: a longer one would not be accepted. Base64 has no text of 4n+1 characters, so with
// the ids of our keys, of eight, the longest token is one shorter than the bound; with those of nine it reaches it.
func TestTheLengthOfATokenThatIsIssued(t *testing.T) {
	for id, want := range map[string]int{"12345678": auth.MaxToken - 1, "123456789": auth.MaxToken} {
		dir, r := t.TempDir(), &reviewer{user: info(account("a", "b"))}
		key := fmt.Sprintf(`[{"id":%q,"made":%q,"seed":%q}]`, id, time.Now().Format(time.RFC3339),
			base64.StdEncoding.EncodeToString(make([]byte, ed25519.SeedSize)))
		if err := os.WriteFile(filepath.Join(dir, "token-keys.json"), []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
		g := guard(t, auth.Options{Dir: dir, Reviewer: r})
		issue := func(group int) (token string, status int) {
			r.user.Groups = []string{strings.Repeat("g", group)}
			w := httptest.NewRecorder()
			g.ServeToken(w, tokenGET("x", clusterToken(`{}`), "repository:a:pull"))
			var answer struct{ Token string }
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
				t.Fatal(err)
			}
			return answer.Token, w.Code
		}
		short, _ := issue(1)
		longest, n := short, (auth.MaxToken-len(short))/4*3-3 // three bytes are four of base64
		for {
			next, status := issue(n)
			if status != 200 {
				break
			}
			longest, n = next, n+1
		}
		if len(longest) != want {
			t.Errorf("with the key %s, the longest token has %d bytes, want %d", id, len(longest), want)
		}
		if _, err := may(g, bearer(longest), "a", auth.Pull); err != nil {
			t.Errorf("the longest token: %v", err)
		}
	}
}

func TestTheNumberOfScopes(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p"})
	scopes := func(n int, format string) (texts []string) {
		for i := range n {
			texts = append(texts, fmt.Sprintf(format, i))
		}
		return texts
	}
	for _, row := range []struct {
		name string
		ask  []string
		want int
	}{
		// 64 are considered, of which the last three here can be granted.
		{"64 scopes", append(scopes(61, "x:%d:y"), scopes(3, "repository:%d:pull")...), 3},
		{"65 scopes", append(scopes(62, "x:%d:y"), scopes(3, "repository:%d:pull")...), 2},
		// Of names of 128 bytes, 3 KiB hold 16: each counts 64 more.
		{"16 long names", scopes(16, "repository:"+strings.Repeat("a", 126)+"%02d:pull"), 16},
		{"17 long names", scopes(17, "repository:"+strings.Repeat("a", 126)+"%02d:pull"), 16},
	} {
		got := ask(t, g, tokenGET("u", "p", strings.Join(row.ask, " ")), 200).Scope
		if n := strings.Count(got, "repository:"); n != row.want {
			t.Errorf("%s: %d are granted, want %d", row.name, n, row.want)
		}
	}
	if got := ask(t, g, tokenGET("u", "p", "repository:az09._-/x:pull"), 200).
		Scope; got != "repository:az09._-/x:pull" {
		t.Errorf("%q", got)
	}
	for _, name := range []string{"a`", "a{", "a;", "A", "Z"} {
		if got := ask(t, g, tokenGET("u", "p", "repository:"+name+":pull"), 200).Scope; got != "" {
			t.Errorf("%q", got)
		}
	}
}

// TestTheNumberOfRobots: the file is bounded.
func TestTheNumberOfRobots(t *testing.T) {
	dir := t.TempDir()
	o := auth.Options{Dir: dir, User: "u", Password: "p"}
	type stored struct {
		auth.Robot
		SHA256 string `json:"sha256"`
	}
	var all []stored
	for i := range auth.MaxRobots - 1 {
		all = append(all, stored{robot(fmt.Sprint("r", i), "pull", "a"), fmt.Sprintf("%064x", i)})
	}
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "robots.json"), string(text))
	g := guard(t, o)
	create(t, g, robot("last", "pull", "a"))
	if secret, err := g.CreateRobot(t.Context(), robot("more", "pull", "a")); err == nil || secret != "" ||
		!strings.Contains(err.Error(), "10000 robots already") {
		t.Errorf("one more than the limit: %v", err)
	}
	if _, err := g.ReplaceRobot(t.Context(), robot("last", "push", "a")); err != nil {
		t.Errorf("a replacement at the limit: %v", err)
	}
}

// TestWhenKeysChange, to the nanosecond.
func TestWhenKeysChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		g := guard(t, auth.Options{User: "u", Password: "p"})
		made := time.Now()
		first, _ := g.Key()
		at := func(after time.Duration, keys int) (id string) {
			t.Helper()
			if err := g.RotateKeys(made.Add(after)); err != nil || g.Keys() != keys {
				t.Errorf("after %v: %d keys, want %d: %v", after, g.Keys(), keys, err)
			}
			id, _ = g.KeyAt(made.Add(after))
			return id
		}
		// A clock that was set back by less than the overlap.
		if id := at(-2*day+1, 1); id != first {
			t.Error("the key changed although the clock was corrected by less than the overlap")
		}
		if id := at(30*day-1, 1); id != first {
			t.Error("the key changed before 30 days")
		}
		second := at(30*day, 2)
		if second == first {
			t.Error("the key did not change after 30 days")
		}
		at(32*day-1, 2)
		if id := at(32*day, 1); id != second {
			t.Error("the wrong key was dropped after the overlap")
		}
		// A key that was made in the future signs nothing: its tokens might outlive it.
		if id := at(28*day, 2); id == second {
			t.Error("the key did not change although the clock was set back by the overlap")
		}
	})
}

func TestTheBoundsOfHashesAndPasswords(t *testing.T) {
	hash := strings.TrimPrefix(line(t, "x", "p", bcrypt.MinCost), "x:")
	for cost, want := range map[string]bool{"$04$": true, "$14$": true, "$15$": false} {
		if _, err := auth.CheckHash(strings.Replace(hash, "$04$", cost, 1)); (err == nil) != want {
			t.Errorf("%s: %v", cost, err)
		}
	}
	for prefix, want := range map[string]bool{"$2a$": true, "$2b$": true, "$2y$": true, "$2x$": false, "$2c$": false} {
		if _, err := auth.CheckHash(prefix + hash[4:]); (err == nil) != want {
			t.Errorf("%s: %v", prefix, err)
		}
	}
	for n := range 5 {
		if _, err := auth.CheckHash(hash[:n]); err == nil {
			t.Errorf("%q is accepted", hash[:n])
		}
	}
	for n, want := range map[int]bool{72: true, 73: false} {
		if err := auth.CheckPassword(strings.Repeat("p", n)); (err == nil) != want {
			t.Errorf("a password of %d bytes: %v", n, err)
		}
	}
}

func TestTheBoundsOfLifetimes(t *testing.T) {
	for life, want := range map[time.Duration]bool{time.Minute: true, time.Minute - 1: false, 24 * time.Hour: true,
		24*time.Hour + 1: false} {
		for _, o := range []auth.Options{{TokenLifetime: life}, {PushTokenLifetime: life}} {
			if err := o.Validate(); (err == nil) != want {
				t.Errorf("%v: %v", life, err)
			}
		}
	}
}

// down is a Kubernetes API that does not answer.
type down struct{ reviewer }

func (*down) Access(context.Context, authenticationv1.UserInfo, string, string, string) (bool, string, error) {
	return true, "", errors.New("no answer")
}

// TestAClientThatDisconnectsSaysNothingAboutTheAPI: it is neither allowed nor taken for an outage.
func TestAClientThatDisconnectsSaysNothingAboutTheAPI(t *testing.T) {
	d := &down{}
	d.err = errors.New("no answer")
	g := guard(t, auth.Options{User: "u", Password: "p", Reviewer: d, Accesses: d})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, row := range []struct {
		ctx  context.Context
		want error
	}{{gone, context.Canceled}, {t.Context(), auth.ErrUnavailable}} {
		who, err := g.Identify(bearer(clusterToken(`{}`)).WithContext(row.ctx))
		if who != nil || !errors.Is(err, row.want) || errors.Is(row.want, context.Canceled) &&
			errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("a login: %+v, %v, want %v", who, err, row.want)
		}
		for _, a := range []auth.Action{auth.Pull, auth.Create, auth.Push} {
			err := g.Authorize(row.ctx, account("a", "ci"), "a/app", a)
			if !errors.Is(err, row.want) || errors.Is(row.want, context.Canceled) &&
				errors.Is(err, auth.ErrUnavailable) {
				t.Errorf("%s: %v, want %v", a, err, row.want)
			}
		}
	}
}

// TestATokenWithoutALoginIsAskedForOne, in words that its client does not take for those about an expired token.
func TestATokenWithoutALoginIsAskedForOne(t *testing.T) {
	g := team(t)
	token := ask(t, g, tokenGET("", "", "repository:team/app:pull"), 200).Token
	for _, row := range []struct {
		r    *http.Request
		want string
	}{{bearer(token), `,error="insufficient_scope",error_description="login required"`},
		{request(), `service="example.com",scope="repository:team/app:pull"`}} {
		_, err := may(g, row.r, "team/app", auth.Pull)
		if c := g.Challenge(row.r, "team/app", auth.Pull, err); !strings.HasSuffix(c[0], row.want) {
			t.Errorf("%v: %s, want %s", err, c[0], row.want)
		}
	}
}

func TestPermits(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Htpasswd: htpasswd(t, "alice")})
	for _, row := range []struct {
		name string
		r    *http.Request
		want bool
	}{{"the owner", withLogin("u", "p"), true}, {"a user", withLogin("alice", "alice's"), false},
		{"no login", request(), false}, {"a wrong password", withLogin("u", "x"), false}} {
		if got := g.Permits(row.r, auth.Admin); got != row.want {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}

// TestWhatFailsForAnotherReasonIsNoGuess: of a token, the API's outage says nothing.
func TestWhatFailsForAnotherReasonIsNoGuess(t *testing.T) {
	turns := &turnTaker{}
	g := guard(t, auth.Options{Reviewer: turns})
	r := from(bearer(clusterToken(`{}`)), "10.0.0.1")
	for _, row := range []struct {
		ok   bool
		err  error
		want int // failures of the address
	}{{false, errors.New("no answer"), 0}, {true, errors.New("no answer"), 0}, {true, nil, 0}, {false, nil, 1}} {
		turns.ok, turns.err = row.ok, row.err
		_, _ = g.Identify(r)
		if n := g.ReviewFailures(auth.Address(r)); n != row.want {
			t.Errorf("%v, %v: %d failures, want %d", row.ok, row.err, n, row.want)
		}
	}
}

// turnTaker is a Reviewer that waits for its turn and reports a result.
type turnTaker struct {
	ok  bool
	err error
}

func (r *turnTaker) Review(ctx context.Context, _ string, enter turn) (
	user authenticationv1.UserInfo, ok bool, why string, err error) {
	done, err := enter(ctx)
	if err != nil {
		return user, false, "", err
	}
	done(r.ok, r.err)
	return info(account("a", "b")), r.ok, "unknown", r.err
}

// TestTheDelaysOfGuesses: three are free, then each waits twice as long as the one before, 4 seconds at most, until the
// last one is more than a quarter of an hour ago.
func TestTheDelaysOfGuesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice")})
		guess := func() time.Duration {
			begin := time.Now()
			if _, err := g.Identify(from(withLogin("alice", "wrong"), "10.0.0.1")); !errors.Is(err,
				auth.ErrUnauthorized) {
				t.Error(err)
			}
			return time.Since(begin)
		}
		const ms = time.Millisecond
		for i, want := range []time.Duration{0, 0, 0, 250 * ms, 500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 4000 * ms} {
			if d := guess(); d != want {
				t.Errorf("guess %d waits %v, want %v", i+1, d, want)
			}
		}
		time.Sleep(15 * time.Minute)
		if d := guess(); d != 4*time.Second {
			t.Errorf("after a quarter of an hour it waits %v", d)
		}
		time.Sleep(15*time.Minute + 1)
		if d := guess(); d != 0 {
			t.Errorf("after more than a quarter of an hour it waits %v", d)
		}
	})
}
