package auth_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"trow/registry/auth"
)

// TestCredentialsThatAreCutAreNotTaken: the part of them that can be decoded may be valid.
func TestCredentialsThatAreCutAreNotTaken(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Anonymous: "none"})
	whole := base64.StdEncoding.EncodeToString([]byte("u:p"))
	if _, err := may(g, request("Authorization", "Basic "+whole), "a", auth.Pull); err != nil {
		t.Error(err)
	}
	for _, end := range []string{"*", "****", "=", whole} {
		_, err := may(g, request("Authorization", "Basic "+whole+end), "a", auth.Pull)
		if !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("with %s behind them: %v", end, err)
		}
	}
}

// TestARuleOfARobotIsAboutThisOne, and about no other robot.
func TestARuleOfARobotIsAboutThisOne(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Rules: []auth.Rule{rule("robot:a", "none", "**")}})
	for name, want := range map[string]string{"a": "h", "b": "+"} {
		create(t, g, robot(name, "pull", "**"))
		who, err := g.Impersonate("robot:"+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := sign(g.Authorize(t.Context(), who, "x", auth.Pull)); got != want {
			t.Errorf("robot %s: %s, want %s", name, got, want)
		}
	}
	if got := (&auth.Identity{Name: "robot:of-a-log"}).Kind(); got != "robot" {
		t.Errorf("an identity with a robot's name is called %s", got)
	}
}

// TestAPullIsNotExplainedByThePermissionToPush: only to create may be answered by what allows to push.
func TestAPullIsNotExplainedByThePermissionToPush(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Accesses: verbs{"update"}, Reviewer: &reviewer{}})
	for a, want := range map[auth.Action]bool{auth.Pull: false, auth.Create: true, auth.Push: true,
		auth.Delete: false} {
		if e, err := g.Explain(t.Context(), account("a", "ci"), "a/app", a); err != nil || e.Allowed != want {
			t.Errorf("%s: %+v, %v", a, e, err)
		}
	}
}

// TestTheAPIIsNotAskedWhereARuleDecides, neither to explain nor for a list; and not where there is none.
func TestTheAPIIsNotAskedWhereARuleDecides(t *testing.T) {
	ci := account("team-a", "ci")
	for name, api := range map[string]*accesses{"an API": {}, "none": nil} {
		o := auth.Options{User: "u", Password: "p", Rules: []auth.Rule{rule("namespace:team-a", "pull", "team-a/**")}}
		if api != nil {
			o.Accesses = api
		}
		g := guard(t, o)
		if e, err := g.Explain(t.Context(), ci, "team-a/app", auth.Pull); err != nil || !e.Allowed {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
		if !reads(t, g, ci)("team-a/app") {
			t.Errorf("%s: it is not readable", name)
		}
		if api != nil && len(api.asked) > 0 {
			t.Errorf("asked %q", api.asked)
		}
		if e, err := g.Explain(t.Context(), auth.Named("mallory", nil), "team-a/app", auth.Pull); err != nil ||
			e.Allowed {
			t.Errorf("%s: a user: %+v, %v", name, e, err)
		}
		if api == nil {
			if e, err := g.Explain(t.Context(), ci, "team-b/app", auth.Pull); err != nil || e.Allowed {
				t.Errorf("%s: %+v, %v", name, e, err)
			}
			if reads(t, g, ci)("team-b/app") {
				t.Errorf("%s: what no rule allows is readable", name)
			}
		}
	}
}

// TestTheWayIntoARegistryWithoutUsers: a loopback host helps only where the listener is a loopback one, for what the
// setting anonymous allows there.
func TestTheWayIntoARegistryWithoutUsers(t *testing.T) {
	for _, row := range []struct {
		o    auth.Options
		a    auth.Action
		here bool
	}{
		{auth.Options{Anonymous: "push", Loopback: true}, auth.Delete, true},
		{auth.Options{Anonymous: "push", Loopback: true}, auth.Push, true},
		{auth.Options{Anonymous: "push", Loopback: true}, auth.Create, false},
		{auth.Options{Anonymous: "push", Loopback: true}, auth.Pull, false},
		{auth.Options{Anonymous: "push"}, auth.Delete, false},
		{auth.Options{Anonymous: "create"}, auth.Push, false},
		{auth.Options{Anonymous: "pull", Loopback: true}, auth.Push, false},
	} {
		text := guard(t, row.o).WayIn("a", row.a)
		got := strings.HasPrefix(text, "on this machine")
		if got != row.here || !strings.Contains(text, "token create NAME") {
			t.Errorf("%+v, %s: %s", row.o, row.a, text)
		}
	}
}

// TestHostsAndAddressesThatAreCut.
func TestHostsAndAddressesThatAreCut(t *testing.T) {
	for host, want := range map[string]bool{"[::1]:80": true, "[::1]": true, "[::1:80": false, "[::1": false,
		"::1]": false, "[x]": false, "[10.0.0.1]:80": false, "[10.0.0.1:80": false} {
		if got := auth.ValidHost(host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
	for _, proxy := range []string{"::ffff:10.0.0.1", "::ffff:10.0.0.0/120", "fe80::1%eth0", "10.0.0.0/33", "x"} {
		_, err := load(t, "", "--trusted-proxies="+proxy)
		if err == nil || !strings.Contains(err.Error(), "trusted-proxies") {
			t.Errorf("%s: %v", proxy, err)
		}
	}
	for url, want := range map[string]string{"": "", "https://example.com": "", "https://example.com/a/b": "/a/b"} {
		if got := (&auth.Options{PublicURL: url}).Prefix(); got != want {
			t.Errorf("%q has the prefix %q, want %q", url, got, want)
		}
	}
}

// TestSubjectsThatAreCut name no account.
func TestSubjectsThatAreCut(t *testing.T) {
	for _, who := range []string{"serviceaccount:", "serviceaccount:a", "serviceaccount:a/", "serviceaccount:/b",
		"serviceaccount:/"} {
		if _, err := auth.Compile([]auth.Rule{rule(who, "pull", "**")}, auth.PolicyOptions{}); err == nil {
			t.Errorf("%s was accepted", who)
		}
	}
}

// TestALongNameIsNoGuess: nothing is remembered of what no user can have, nor where there are none.
func TestALongNameIsNoGuess(t *testing.T) {
	users := guard(t, auth.Options{User: "u", Password: "p"})
	robots := guard(t, auth.Options{Anonymous: "pull"})
	create(t, robots, robot("ci", "pull", "**"))
	for _, g := range []*auth.Guard{users, robots} {
		work := auth.CountComparisons(t)
		if _, err := may(g, withLogin(strings.Repeat("u", 256), "p"), "a", auth.Push); !errors.Is(err,
			auth.ErrUnauthorized) {
			t.Errorf("a long name: %v", err)
		}
		if pairs, addresses := g.Scores(); pairs != 0 || addresses != 0 || work() != 0 {
			t.Errorf("%d names and %d addresses are remembered", pairs, addresses)
		}
	}
	if _, err := may(robots, withLogin("u", "p"), "a", auth.Push); !errors.Is(err, auth.ErrUnauthorized) {
		t.Errorf("a user where there are none: %v", err)
	}
	if pairs, _ := robots.Scores(); pairs != 0 {
		t.Errorf("%d names are remembered where there are no users", pairs)
	}
}

// TestDamagedFilesOfTheGuard: keys are made anew, and robots are refused, because nothing else knows them.
func TestDamagedFilesOfTheGuard(t *testing.T) {
	seed := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for _, bad := range []string{fmt.Sprintf(`[{"id":"","seed":%q}]`, seed), `[{"id":"x","seed":"AA=="}]`,
		fmt.Sprintf(`[{"id":"x","seed":%q}`, seed), fmt.Sprintf(`[{"id":"x","seed":%q},{"id":7}]`, seed)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "token-keys.json"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		g := guard(t, auth.Options{Dir: dir, User: "u", Password: "p"})
		if id, _ := g.Key(); id == "" || id == "x" || g.Keys() != 1 {
			t.Errorf("%s: the key %q of %d signs", bad, id, g.Keys())
		}
	}
	zeros := strings.Repeat("0", 66)
	for _, sum := range []string{"", "zz", zeros[:62], zeros, zeros[:64] + "z"} {
		dir := t.TempDir()
		content := fmt.Sprintf(`[{"name":"ci","actions":["pull"],"repositories":["**"],"sha256":%q}]`, sum)
		if err := os.WriteFile(filepath.Join(dir, "robots.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := start(t, auth.Options{Dir: dir, User: "u", Password: "p"})
		if err == nil || !strings.Contains(err.Error(), `robot "ci": invalid sha256`) {
			t.Errorf("%q: %v", sum, err)
		}
	}
}

// TestAPrivateUserIsTheSame: a user has the same rights from everywhere, and is the same identity.
func TestAPrivateUserIsTheSame(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Anonymous: "push", Loopback: true})
	var all []*auth.Identity
	for _, host := range []string{"localhost:8443", "example.com"} {
		r := withLogin("u", "p")
		r.Host = host
		who, err := g.Identify(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, who)
	}
	if all[0] != all[1] {
		t.Error("from this machine, a user is another identity")
	}
}

// TestTheOwnerReadsEverythingWhateverTheRulesSay, without being asked about each repository.
func TestTheOwnerReadsEverythingWhateverTheRulesSay(t *testing.T) {
	g := guard(t, auth.Options{User: "u", Password: "p", Rules: []auth.Rule{rule("*", "none", "**")}})
	who, err := g.Identify(withLogin("u", "p"))
	if err != nil || g.Readable(t.Context(), who) != nil {
		t.Errorf("the owner is asked about each repository: %v", err)
	}
}
