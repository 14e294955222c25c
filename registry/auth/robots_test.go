package auth_test

import (
	"errors"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"trow/registry/auth"
)

func robot(name, actions, repositories string) auth.Robot {
	all, err := auth.ParseActions(strings.Split(actions, ","))
	if err != nil {
		panic(err)
	}
	return auth.Robot{Name: name, Actions: all, Repositories: strings.Fields(repositories)}
}

func create(t testing.TB, g *auth.Guard, r auth.Robot) string {
	t.Helper()
	secret, err := g.CreateRobot(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func TestARobotMayDoWhatItWasCreatedForAndNoMore(t *testing.T) {
	dir := t.TempDir()
	o := auth.Options{Dir: dir, User: "owner", Password: "p", Anonymous: "pull"}
	g := guard(t, o)
	secret := create(t, g, robot("ci", "pull,push", "team/** shared"))
	if !regexp.MustCompile(`^trow_[A-Z2-7]{52}$`).MatchString(secret) {
		t.Errorf("the secret is %s", secret)
	}
	n := 0
	for name, value := range records(t, dir).Records("auth/robot/") {
		if n++; name != "auth/robot/ci" || strings.Contains(string(value), secret[5:]) {
			t.Errorf("the record %s has the secret: %s", name, value)
		}
	}
	if n != 1 {
		t.Errorf("there are %d records", n)
	}
	for range 2 { // and after a restart
		for _, r := range []func() (string, string){func() (string, string) { return "any", secret },
			func() (string, string) { return "", secret }} {
			user, password := r()
			for _, row := range []struct {
				repo string
				a    auth.Action
				want string
			}{{"team/a", auth.Push, "+"}, {"shared", auth.Pull, "+"}, {"other", auth.Pull, "h"},
				{"team/a", auth.Delete, "-"},
				{"", auth.Catalog, "-"}, {"", auth.Admin, "-"}, {"", auth.Login, "+"}} {
				name, err := may(g, withLogin(user, password), row.repo, row.a)
				if name != "robot:ci" || sign(err) != row.want {
					t.Errorf("%s %s: %s, %v", row.a, row.repo, name, err)
				}
				if _, err := may(g, request("Authorization", "Bearer "+secret), row.repo,
					row.a); sign(err) != row.want {
					t.Errorf("as a bearer, %s %s: %v", row.a, row.repo, err)
				}
			}
		}
		g = guard(t, o)
	}
}

func TestRulesRestrictARobotAndNeverExtendIt(t *testing.T) {
	g := guard(t, auth.Options{User: "owner", Password: "p", Rules: []auth.Rule{
		rule("*", "pull push", "open"), rule("robot:ci", "none", "team/secret"), rule("*", "none", "closed"),
		rule("user:robot:ci", "none", ""), rule("authenticated", "delete", "team/**"),
	}})
	secret := create(t, g, robot("ci", "pull,push", "team/** closed"))
	for _, row := range []struct {
		repo string
		a    auth.Action
		want string
	}{{"team/a", auth.Push, "+"}, {"team/secret", auth.Pull, "h"}, {"closed", auth.Push, "-"}, {"open", auth.Pull, "h"},
		{"team/a", auth.Delete, "-"}} {
		if _, err := may(g, withLogin("x", secret), row.repo, row.a); sign(err) != row.want {
			t.Errorf("%s %s: %v, want %s", row.a, row.repo, err, row.want)
		}
	}
}

func TestARobotExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guard(t, auth.Options{User: "owner", Password: "p"})
		r := robot("short", "pull", "**")
		r.Expires = time.Now().Add(2 * time.Minute)
		secret := create(t, g, r)
		got := ask(t, g, tokenGET("x", secret, "repository:a:pull"), 200)
		if got.ExpiresIn > 120 {
			t.Errorf("a token outlives its robot: %d s", got.ExpiresIn)
		}
		for _, req := range []func() error{
			func() error { _, err := g.Identify(withLogin("x", secret)); return err },
			func() error { _, err := g.Identify(bearer(got.Token)); return err },
		} {
			if err := req(); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(2*time.Minute + time.Second)
		if _, err := g.Identify(withLogin("x", secret)); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("after its end: %v", err)
		}
		if _, err := g.Identify(bearer(got.Token)); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("its token after its end: %v", err)
		}
		if len(g.Robots(t.Context())) != 1 {
			t.Error("an expired robot is no longer listed")
		}
	})
}

func TestARevokedRobotIsInvalidAtOnce(t *testing.T) {
	g := guard(t, auth.Options{User: "owner", Password: "p"})
	secret := create(t, g, robot("ci", "pull", "**"))
	token := ask(t, g, tokenGET("x", secret, "repository:a:pull"), 200).Token
	if _, err := may(g, bearer(token), "a", auth.Pull); err != nil {
		t.Fatal(err)
	}
	if err := g.RevokeRobot(t.Context(), "ci"); err != nil {
		t.Fatal(err)
	}
	again := create(t, g, robot("ci", "pull", "**")) // a new robot of the same name
	for name, r := range map[string]error{"secret": second(g.Identify(withLogin("x", secret))),
		"token": second(g.Identify(bearer(token)))} {
		if !errors.Is(r, auth.ErrUnauthorized) {
			t.Errorf("its %s: %v", name, r)
		}
	}
	if _, err := g.Identify(withLogin("x", again)); err != nil {
		t.Error(err)
	}
	if err := g.RevokeRobot(t.Context(), "none"); err == nil {
		t.Error("a robot that does not exist was revoked")
	}
}

// TestARobotIsReplaced in one step: its secret and tokens become invalid, and those of others stay.
func TestARobotIsReplaced(t *testing.T) {
	g := guard(t, auth.Options{User: "owner", Password: "p"})
	secret, other := create(t, g, robot("ci", "pull", "**")), create(t, g, robot("other", "pull", "**"))
	token := ask(t, g, tokenGET("x", secret, "repository:a:pull"), 200).Token
	var last string
	for range 3 {
		var err error
		if last, err = g.ReplaceRobot(t.Context(), robot("ci", "push", "**")); err != nil {
			t.Fatal(err)
		}
	}
	for name, r := range map[string]error{"secret": second(g.Identify(withLogin("x", secret))),
		"token": second(g.Identify(bearer(token)))} {
		if !errors.Is(r, auth.ErrUnauthorized) {
			t.Errorf("the %s of before: %v", name, r)
		}
	}
	for _, s := range []string{last, other} {
		if _, err := g.Identify(withLogin("x", s)); err != nil {
			t.Error(err)
		}
	}
	if all := g.Robots(t.Context()); len(all) != 2 || !slices.Equal(all[0].Actions, []auth.Action{auth.Push}) {
		t.Errorf("%+v", all)
	}
	if _, err := g.ReplaceRobot(t.Context(), robot("new", "pull", "**")); err != nil { // there was none
		t.Error(err)
	}
	if _, err := g.ReplaceRobot(t.Context(), auth.Robot{Name: "ci"}); err == nil || len(g.Robots(t.Context())) != 3 {
		t.Errorf("an invalid robot: %v, %+v", err, g.Robots(t.Context()))
	}
}

func second[T any](_ T, err error) error { return err }

// TestARobotWhereEverythingIsOpen can log in, and no other client is asked to.
func TestARobotWhereEverythingIsOpen(t *testing.T) {
	g := guard(t, auth.Options{Anonymous: "push", Loopback: true})
	secret := create(t, g, robot("ci", "pull", "a"))
	if _, err := may(g, private(), "", auth.Login); err != nil {
		t.Errorf("login: %v", err)
	}
	if _, err := may(g, private(), "x", auth.Delete); err != nil {
		t.Errorf("anonymous: %v", err)
	}
	if user, err := may(g, withLogin("x", secret), "a", auth.Pull); user != "robot:ci" || err != nil {
		t.Errorf("%q, %v", user, err)
	}
	if _, err := may(g, withLogin("x", "y"), "a", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
		t.Errorf("a wrong login: %v", err)
	}
	far := guard(t, auth.Options{Anonymous: "push"})
	create(t, far, robot("ci", "delete", "a"))
	if _, err := may(far, request(), "", auth.Login); !errors.Is(err, auth.ErrUnauthorized) {
		t.Errorf("where deleting needs a login, clients are not asked for one: %v", err)
	}
}

func TestInvalidRobots(t *testing.T) {
	g := guard(t, auth.Options{User: "owner", Password: "p"})
	create(t, g, robot("ci", "pull", "**"))
	past := robot("past", "pull", "**")
	past.Expires = time.Now().Add(-time.Second)
	for _, r := range []auth.Robot{robot("", "pull", "**"), robot("A", "pull", "**"), robot("a:b", "pull", "**"),
		robot("a b", "pull", "**"), robot("ä", "pull", "**"),
		robot(strings.Repeat("a", 64), "pull", "**"), robot("x", "pull", ""), robot("x", "pull", "a:b"),
		robot("ci", "pull", "**"), past} {
		if secret, err := g.CreateRobot(t.Context(), r); err == nil || secret != "" {
			t.Errorf("%+v was created", r)
		}
	}
	if n := len(g.Robots(t.Context())); n != 1 {
		t.Errorf("there are %d", n)
	}
	// A damaged file is not replaced by an empty one: machines have the secrets.
	for _, bad := range []string{"", "{", `[{"name":"a","sha256":"x"}]`,
		`[{"name":"a","sha256":"` + strings.Repeat("00", 32) + `","repositories":["a:b"]}]`} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "robots.json"), bad)
		if _, err := start(t, auth.Options{Dir: dir, User: "owner", Password: "p"}); err == nil ||
			!strings.Contains(err.Error(), "robots.json") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestARobotThatCannotBeStored is not created: its secret would be invalid after a restart.
func TestARobotThatCannotBeStored(t *testing.T) {
	dir := t.TempDir()
	g := guard(t, auth.Options{Dir: dir, User: "owner", Password: "p"})
	records(t, dir).Close()
	if secret, err := g.CreateRobot(t.Context(), robot("ci", "pull", "**")); err == nil || secret != "" ||
		len(g.Robots(t.Context())) != 0 {
		t.Errorf("%q, %v", secret, err)
	}
}

// TestImpersonateByTheSettings: a name that is no user's got the answer of the rules, as if it was one.
func TestImpersonateByTheSettings(t *testing.T) {
	o := auth.Options{User: "owner", Htpasswd: htpasswd(t, "alice")}
	without, elsewhere, broken := o, o, o
	without.Htpasswd, elsewhere.Htpasswd = "", t.TempDir()+"/none"
	broken.Htpasswd = t.TempDir() + "/broken"
	write(t, broken.Htpasswd, "x")
	for _, row := range []struct {
		o      auth.Options
		name   string
		groups []string
		want   string // part of the error; "": none
	}{
		{o, "alice", nil, ""}, {o, "owner", nil, ""}, {o, "", nil, ""},
		{o, "mallory", nil, `user "mallory" does not exist`},
		{o, "mallory", []string{"devs"}, ""}, {o, "system:serviceaccount:a:b", nil, ""}, {o, "cert:x", nil, ""},
		{o, "robot:ci", nil, "only the server knows"},
		{without, "mallory", nil, ""}, {elsewhere, "mallory", nil, ""}, {broken, "mallory", nil, "htpasswd: "},
	} {
		who, err := row.o.Impersonate(row.name, row.groups)
		if row.want == "" && (err != nil || who.Name != row.name) ||
			row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%q %v: %v, %v; want %q", row.name, row.groups, who, err, row.want)
		}
	}
	policy, err := o.Policy()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"owner": true, "alice": false} {
		if who, err := o.Impersonate(name, nil); err != nil || policy.Explain(who, "", auth.Admin).Allowed != want {
			t.Errorf("%s may administer the registry: %v, %v", name, !want, err)
		}
	}
}

func TestImpersonate(t *testing.T) {
	g := guard(t, auth.Options{User: "owner", Password: "p", Htpasswd: htpasswd(t, "alice")})
	create(t, g, robot("ci", "pull", "a"))
	for name, want := range map[string]string{
		"owner": "everything", "alice": "users may", "": "anonymous", "robot:ci": "robot",
		"system:serviceaccount:a:b": "users may",
	} {
		who, err := g.Impersonate(name, nil)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := g.Explain(t.Context(), who, "a", auth.Pull); err != nil || !strings.Contains(e.Why, want) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	if _, err := g.Impersonate("robot:none", nil); err == nil {
		t.Error("a robot that does not exist can be impersonated")
	}
	if _, err := g.Impersonate("mallory", nil); err == nil ||
		!strings.Contains(err.Error(), `user "mallory" does not exist`) {
		t.Errorf("a user that does not exist: %v", err)
	}
	if _, err := g.Impersonate("mallory", []string{"devs"}); err != nil {
		t.Errorf("a user of the cluster: %v", err)
	}
}
