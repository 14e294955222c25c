package auth_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"

	"trow/registry/auth"
)

// account returns the identity of a service account.
func account(namespace, name string, groups ...string) *auth.Identity {
	return &auth.Identity{Name: "system:serviceaccount:" + namespace + ":" + name, Cluster: true,
		Groups: append(groups, "system:serviceaccounts", "system:serviceaccounts:"+namespace, "system:authenticated")}
}

func policy(t *testing.T, o auth.PolicyOptions, rules ...auth.Rule) *auth.Policy {
	t.Helper()
	p, err := auth.Compile(rules, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func rule(who, may, repositories string) auth.Rule {
	return auth.Rule{Who: strings.Fields(who), May: strings.Fields(may), Repositories: strings.Fields(repositories)}
}

func TestTheFirstRuleThatMatchesDecides(t *testing.T) {
	p := policy(t, auth.PolicyOptions{Anonymous: auth.ReadWrite, Private: true},
		rule("user:mallory", "none", ""),
		rule("*", "pull", "*/public public/**"),
		rule("user:alice group:devs", "pull push", "team-a/**"),
		rule("namespace:team-b", "none", "team-a/secret"),
		rule("serviceaccount:team-b/ci", "pull push delete", "team-b/**"),
		rule("namespace:team-b", "pull", "team-?/**"),
		rule("authenticated", "catalog", ""),
		rule("user:root", "admin delete", "**"),
		rule("anonymous", "none", "**"),
		rule("user:bob", "push", "bob/app"),
		rule("user:bob", "none", "bob/**"),
		rule("user:bob", "pull delete", "bob/**"),
		rule("user:oidc:dave", "push", "dave"),
	)
	anonymous, alice, bob, root := auth.Named("", nil), auth.Named("alice", nil), auth.Named("bob", nil),
		auth.Named("root", nil)
	for _, row := range []struct {
		name string
		who  *auth.Identity
		a    auth.Action
		repo string
		rule int // negative: it forbids; 0: no rule decides, which denies
	}{
		{"forbidden before it is allowed to all", auth.Named("mallory", nil), auth.Pull, "team-a/public", -1},
		{"a rule about all repositories forbids the catalog", auth.Named("mallory", nil), auth.Catalog, "", -1},
		{"all identities", anonymous, auth.Pull, "team-a/public", 2},
		{"all identities, at any depth", anonymous, auth.Pull, "public/a/b", 2},
		{"a pattern matches the entire name", anonymous, auth.Pull, "a/b/public", -9},
		{"a user", alice, auth.Push, "team-a/app", 3},
		{"a rule without the action does not decide", alice, auth.Delete, "team-a/app", 0},
		{"nor does one without the repository", alice, auth.Pull, "team-b/app", 0},
		{"a group", auth.Named("carol", []string{"devs"}), auth.Push, "team-a/app", 3},
		{"a group of another name", auth.Named("carol", []string{"devs2"}), auth.Push, "team-a/app", 0},
		{"a service account", account("team-b", "ci"), auth.Delete, "team-b/app", 5},
		{"another of its namespace", account("team-b", "web"), auth.Delete, "team-b/app", 0},
		{"a namespace", account("team-b", "web"), auth.Pull, "team-a/app", 6},
		{"an exception to a later rule", account("team-b", "web"), auth.Pull, "team-a/secret", -4},
		{"a namespace of a longer name", account("team-bc", "web"), auth.Pull, "team-a/app", 0},
		{"a user with the name of an account of the cluster", &auth.Identity{Name: "system:serviceaccount:team-b:ci"},
			auth.Pull, "team-b/app", 0},
		{"the catalog", alice, auth.Catalog, "", 7},
		{"an exception does not forbid the catalog", account("team-b", "web"), auth.Catalog, "", 7},
		{"administration", root, auth.Admin, "", 8},
		{"administration, by another user", alice, auth.Admin, "", 0},
		{"anonymous", anonymous, auth.Catalog, "", -9},
		{"push before an exception", bob, auth.Push, "bob/app", 10},
		{"the exception", bob, auth.Pull, "bob/app", -11},
		{"a later rule does not decide", bob, auth.Delete, "bob/app", -11},
		{"a user of the cluster", auth.Named("oidc:dave", nil), auth.Push, "dave", 13},
		{"a user of the cluster with the name of one of ours", &auth.Identity{Name: "alice", Cluster: true}, auth.Push,
			"team-a/app", 0},
		{"the setting anonymous does not decide beside rules", bob, auth.Push, "other", 0},
	} {
		got := p.Judge(row.who, row.repo, row.a)
		if want := max(row.rule, -row.rule); got.Rule != want || got.Allowed != (row.rule > 0) {
			t.Errorf("%s: %+v, want rule %d", row.name, got, row.rule)
		}
	}
}

func TestInvalidRules(t *testing.T) {
	for want, r := range map[string]auth.Rule{
		"who: at least one": rule("", "pull", "**"),
		"who: \"alice\"":    rule("alice", "pull", "**"),
		"who: \"user:\"":    rule("user:", "pull", "**"),
		"NAMESPACE/NAME":    rule("serviceaccount:ci", "pull", "**"),
		"want one of user:": rule("role:x", "pull", "**"),
		"may: at least one": rule("*", "", "**"),
		"may: \"login\"":    rule("*", "login", "**"),
		"may: \"none\"":     rule("*", "pull none", "**"),
		"may: \"*\"":        rule("*", "*", "**"),
		"not a valid patt":  rule("*", "pull", "a:b"),
		"valid regular exp": rule("*", "pull", "/(/"),
	} {
		_, err := auth.Compile([]auth.Rule{rule("*", "pull", "**"), r}, auth.PolicyOptions{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "rules: rule 2: ") {
			t.Errorf("%+v: %v, want %s", r, err, want)
		}
	}
}

func TestExplanations(t *testing.T) {
	p := policy(t, auth.PolicyOptions{}, rule("user:alice serviceaccount:a/ci", "pull push", "a/** b"),
		rule("*", "none", "secret"), rule("authenticated", "catalog", ""))
	none := policy(t, auth.PolicyOptions{Anonymous: auth.ReadOnly})
	creates := policy(t, auth.PolicyOptions{Anonymous: auth.CreateOnly, Private: true})
	pushes := policy(t, auth.PolicyOptions{Anonymous: auth.ReadWrite, Private: true})
	const setting = "there are no rules, and the setting anonymous decides for clients without a login"
	const private = "there are no rules, and clients without a login may do that where the registry listens on a " +
		"loopback address, and the request has a loopback Host and has not come through a proxy"
	for _, row := range []struct {
		p    *auth.Policy
		who  *auth.Identity
		repo string
		a    auth.Action
		want string
	}{
		{p, auth.Named("alice", nil), "a/x", auth.Push,
			"rule 1 decides: user:alice, serviceaccount:a/ci may pull, push in a/**, b"},
		{p, auth.Named("", nil), "secret", auth.Push, "rule 2 decides: * may nothing in secret"},
		{p, auth.Named("x", nil), "", auth.Catalog, "rule 3 decides: authenticated may catalog in all repositories"},
		{p, auth.Named("x", nil), "x", auth.Pull, "none of the 3 rules allows it"},
		{p, auth.Owner("x"), "x", auth.Pull, "the user of the setting user may do everything"},
		{none, auth.Named("", nil), "x", auth.Pull, setting},
		{creates, auth.Named("", nil), "x", auth.Create, setting},
		{creates, auth.Named("", nil), "x", auth.Push, private},
		{creates, auth.Named("", nil), "x", auth.Delete, private},
		{pushes, auth.Named("", nil), "x", auth.Push, setting},
		{pushes, auth.Named("", nil), "x", auth.Delete, private},
		{none, auth.Named("x", nil), "x", auth.Push,
			"there are no rules: users may do everything but administer the registry, " +
				"and accounts of the cluster and holders of certificates may pull"},
	} {
		if got := row.p.Explain(row.who, row.repo, row.a); got.Why != row.want {
			t.Errorf("%s, want %s", got.Why, row.want)
		}
	}
}

// accesses is a Kubernetes API that knows what its accounts may do.
type accesses struct {
	asked []string
	err   error
}

func (a *accesses) Access(_ context.Context, user authenticationv1.UserInfo, verb, namespace, repository string) (bool,
	string, error) {
	a.asked = append(a.asked, user.Username+" "+verb+" "+namespace+" "+repository)
	return namespace == "team-a" && verb != "delete", "RBAC says so", a.err
}

func TestTheClusterDecidesWhereNoRuleDoes(t *testing.T) {
	a := &accesses{}
	o := auth.Options{Htpasswd: htpasswd(t, "alice"), Accesses: a, Reviewer: &reviewer{}}
	check := func(g *auth.Guard, who *auth.Identity, repo string, action auth.Action, want string) {
		t.Helper()
		if got := sign(g.Authorize(t.Context(), who, repo, action)); got != want {
			t.Errorf("%s %s %s: %s, want %s", who.Name, action, repo, got, want)
		}
	}
	g := guard(t, o)
	ci := account("team-a", "ci")
	check(g, ci, "team-a/app/x", auth.Push, "+")
	check(g, ci, "team-a/app", auth.Delete, "-")
	check(g, ci, "team-b/app", auth.Pull, "h")
	check(g, ci, "app", auth.Pull, "h")
	check(g, ci, "", auth.Catalog, "-")
	if want := []string{ci.Name + " update team-a app/x", ci.Name + " delete team-a app", ci.Name + " get team-b app",
		ci.Name + " get  app", ci.Name + " list  "}; strings.Join(a.asked, "\n") != strings.Join(want, "\n") {
		t.Errorf("asked %q", a.asked)
	}
	a.asked = nil
	// a user of ours, whatever the user of that name in the cluster may do
	check(g, auth.Named("alice", nil), "team-a/app", auth.Push, "+")
	check(g, auth.Named("", nil), "team-a/app", auth.Push, "4")
	o.Rules = []auth.Rule{rule("namespace:team-a", "none", "team-a/secret"),
		rule("namespace:team-a", "pull", "team-b/app")}
	o.Dir = t.TempDir()
	g = guard(t, o)
	check(g, ci, "team-a/secret", auth.Pull, "h")
	check(g, ci, "team-b/app", auth.Pull, "+")
	check(g, auth.Named("alice", nil), "team-a/app", auth.Pull, "h")
	if len(a.asked) != 0 {
		t.Errorf("asked %q", a.asked)
	}
	check(g, ci, "team-a/app", auth.Pull, "+")
	if e, err := g.Explain(t.Context(), ci, "team-a/app", auth.Pull); err != nil || !e.Allowed ||
		e.Why != "no rule decides, and the Kubernetes API does: RBAC says so" {
		t.Errorf("%+v, %v", e, err)
	}
	readable := reads(t, g, ci)
	if !readable("team-a/app") || readable("team-a/secret") || readable("team-c/app") || !readable("team-b/app") {
		t.Error("what is readable is not what may be pulled")
	}
	a.err = errors.New("connection refused")
	check(g, ci, "team-a/app", auth.Pull, "u")
	if ok, err := g.Readable(t.Context(), ci)("team-a/app"); ok || !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("although access could not be reviewed: %v, %v", ok, err)
	}
}

func TestAnAccountOfTheClusterMayPullWithoutRules(t *testing.T) {
	g := guard(t, auth.Options{Reviewer: &reviewer{}})
	for a, want := range map[auth.Action]string{auth.Pull: "+", auth.Catalog: "+", auth.Push: "-", auth.Delete: "-",
		auth.Admin: "-"} {
		if err := g.Authorize(t.Context(), account("a", "b"), "repo", a); sign(err) != want {
			t.Errorf("%s: %v", a, err)
		}
	}
}

func TestRulesChangeWhileItRuns(t *testing.T) {
	g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice"), Rules: []auth.Rule{rule("user:alice", "pull", "a")}})
	alice := withLogin("alice", "alice's")
	if _, err := may(g, alice, "b", auth.Pull); !errors.Is(err, auth.ErrHidden) {
		t.Error(err)
	}
	if err := g.SetRules([]auth.Rule{rule("user:alice", "pull", "b")}, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := may(g, alice, "b", auth.Pull); err != nil {
		t.Error(err)
	}
	if err := g.SetRules([]auth.Rule{rule("alice", "pull", "a")}, ""); err == nil {
		t.Error("an invalid rule was accepted")
	}
	if _, err := may(g, alice, "b", auth.Pull); err != nil {
		t.Errorf("after an invalid rule: %v", err)
	}
}
