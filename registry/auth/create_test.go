package auth_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"

	"trow/registry/auth"
)

// TestPushIncludesCreate in rules, robots, levels and roles; create does not include push.
func TestPushIncludesCreate(t *testing.T) {
	g := guard(t, auth.Options{Rules: []auth.Rule{rule("user:alice", "push", "a"), rule("user:bob", "create", "a"),
		rule("user:carol", "none", "a"), rule("robot:all", "push create", "")},
		Htpasswd: htpasswd(t, "alice", "bob", "carol")})
	for _, row := range []struct{ name, actions string }{{"all", "create"}, {"none", "pull"}} {
		create(t, g, robot(row.name, row.actions, "a"))
	}
	for who, want := range map[string]string{"alice": "++", "bob": "+-", "carol": "--", "": "--", "robot:all": "+-",
		"robot:none": "--"} {
		i, err := g.Impersonate(who, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, a := range []auth.Action{auth.Create, auth.Push} {
			e, err := g.Explain(t.Context(), i, "a", a)
			if err != nil {
				t.Fatal(err)
			}
			got += map[bool]string{true: "+", false: "-"}[e.Allowed]
		}
		if got != want {
			t.Errorf("%s: %s, want %s", who, got, want)
		}
	}
	for level, want := range map[string]string{"none": "44", "pull": "44", "create": "+4", "push": "++"} {
		g := guard(t, auth.Options{Anonymous: level, User: "u", Password: "p"})
		got := ""
		for _, a := range []auth.Action{auth.Create, auth.Push} {
			_, err := may(g, request(), "a", a)
			got += sign(err)
			if createOnly := errors.Is(err, auth.ErrCreateOnly); createOnly != (level == "create" && a == auth.Push) {
				t.Errorf("%s %s: %v", level, a, err)
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", level, got, want)
		}
	}
}

// TestScopesOfCreate: Docker's clients ask for pull and push, and get what may be done.
func TestScopesOfCreate(t *testing.T) {
	g := guard(t, auth.Options{Anonymous: "create", User: "u", Password: "p"})
	for asked, want := range map[string]string{
		"repository:a:pull,push":        "repository:a:pull,create",
		"repository:a:push,create,pull": "repository:a:create,pull",
		"repository:a:*":                "repository:a:pull,create",
		"repository:a:create":           "repository:a:create",
		"repository:a:delete":           "",
	} {
		if got := ask(t, g, tokenGET("", "", asked), 200).Scope; got != want {
			t.Errorf("%s: %q, want %q", asked, got, want)
		}
		with := strings.NewReplacer("pull,create", "pull,push", "create,pull", "push,create,pull").Replace(want)
		if got := ask(t, g, tokenGET("u", "p", asked), 200).Scope; want != "" && !strings.HasPrefix(got, with) {
			t.Errorf("%s, with a login: %q, want %q", asked, got, with)
		}
	}
	narrow := ask(t, g, tokenGET("u", "p", "repository:a:create"), 200).Token
	if _, err := may(g, bearer(narrow), "a", auth.Push); !errors.Is(err, auth.ErrCreateOnly) ||
		!errors.Is(err, auth.ErrUnauthorized) {
		t.Errorf("a token of a user for create alone: %v", err)
	}
}

// verbs is a Kubernetes API that allows some verbs.
type verbs []string

func (v verbs) Access(_ context.Context, _ authenticationv1.UserInfo, verb, _, _ string) (bool, string, error) {
	return slices.Contains(v, verb), "RBAC", nil
}

// TestRolesOfCreate: the verb create is enough to create, and so is update, which roles have from before.
func TestRolesOfCreate(t *testing.T) {
	for _, row := range []struct {
		allowed verbs
		want    string
	}{{verbs{"create"}, "+-"}, {verbs{"update"}, "++"}, {verbs{"get"}, "--"}} {
		g := guard(t, auth.Options{User: "u", Password: "p", Accesses: row.allowed, Reviewer: &reviewer{}})
		got := ""
		for _, a := range []auth.Action{auth.Create, auth.Push} {
			got += sign(g.Authorize(t.Context(), account("a", "ci"), "a/app", a))
		}
		if e, err := g.Explain(t.Context(), account("a", "ci"), "a/app", auth.Create); err != nil ||
			e.Allowed != (row.want[0] == '+') {
			t.Errorf("%v: %+v, %v", row.allowed, e, err)
		}
		if got != row.want {
			t.Errorf("%v: %s, want %s", row.allowed, got, row.want)
		}
	}
}
