package auth_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"

	"trow/registry/auth"
)

// roles is a Kubernetes API that allows to get some objects, by namespace/name; a part that is empty stands for all.
type roles struct {
	allowed map[string]bool
	asked   int
	err     error
}

func (r *roles) Access(_ context.Context, _ authenticationv1.UserInfo, verb, namespace, name string) (bool, string,
	error) {
	r.asked++
	return verb == "get" && r.allowed[namespace+"/"+name], "RBAC", r.err
}

// reads returns whether who may pull from a repository, as lists ask it.
func reads(t *testing.T, g *auth.Guard, who *auth.Identity) func(repo string) bool {
	readable := g.Readable(t.Context(), who)
	return func(repo string) bool {
		ok, err := readable(repo)
		if err != nil {
			t.Error(err)
		}
		return ok
	}
}

// TestAListAsksFewQuestions: there was one for each repository.
func TestAListAsksFewQuestions(t *testing.T) {
	const namespaces, repos = 5, 100
	who := account("team-a", "ci")
	for what, row := range map[string]struct {
		allowed                map[string]bool
		asked, known, readable int
	}{
		"a role for everything":  {map[string]bool{"/": true}, 1, namespaces * repos, namespaces * repos},
		"a role for a namespace": {map[string]bool{"/": false, "n0/": true}, 100, repos + 97, repos},
		"roles for repositories": {map[string]bool{"n0/7": true, "n0/99": true}, 100, 98, 1},
	} {
		r := &roles{allowed: row.allowed}
		g := guard(t, auth.Options{User: "u", Password: "p", Accesses: r, Reviewer: &reviewer{}})
		readable := g.Readable(t.Context(), who)
		known, allowed := 0, 0
		for i := range namespaces * repos {
			ok, err := readable(fmt.Sprintf("n%d/%d", i/repos, i%repos))
			if ok {
				allowed++
			}
			if err == nil {
				known++
			} else if !errors.Is(err, auth.ErrSpent) {
				t.Fatal(err)
			}
		}
		if r.asked != row.asked || known != row.known || allowed != row.readable {
			t.Errorf("%s: %d questions, %d answers, %d readable; want %d, %d, %d", what, r.asked, known, allowed,
				row.asked, row.known, row.readable)
		}
	}
	r := &roles{err: errors.New("connection refused")}
	g := guard(t, auth.Options{User: "u", Password: "p", Accesses: r, Reviewer: &reviewer{}})
	if _, err := g.Readable(t.Context(), who)("a/b"); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("the API is away: %v", err)
	}
}
