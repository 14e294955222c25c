package auth

import (
	"context"
	"errors"
	"strings"
)

// ErrSpent: no more may be asked about for one request; what is left belongs in the next one.
var ErrSpent = errors.New("too many questions to the Kubernetes API for one request")

// maxReviews bounds the questions to the Kubernetes API for one list, whether it has to answer them or they are
// remembered. At 5 ms each they take half a second.
const maxReviews = 100

// Readable implements Authorizer.
func (g *Guard) Readable(ctx context.Context, who *Identity) func(repo string) (bool, error) {
	s := g.state.Load()
	if who == Socket || s.policy.readsAll(who) {
		return nil
	}
	q := &questions{ctx: ctx, guard: g, state: s, who: who, answers: map[string]bool{}}
	return q.readable
}

// questions are what is asked for one list. They are not safe for concurrent use.
type questions struct {
	ctx     context.Context
	guard   *Guard
	state   *state
	who     *Identity
	answers map[string]bool // of the Kubernetes API
}

// readable reports whether who may pull from a repository. It asks about more than that one first, which RBAC can
// answer: who may get an object without a name, in all namespaces or in one, may get each object there, because no role
// takes a right away. So for most accounts one question is enough for all repositories, or for those of a namespace.
func (q *questions) readable(repo string) (bool, error) {
	v := q.state.policy.Judge(q.who, repo, Pull)
	if v.on != onNothing || q.guard.options.Accesses == nil || !q.who.Cluster {
		return v.Allowed, nil
	}
	about := []string{"", repo}
	if namespace, _, ok := strings.Cut(repo, "/"); ok {
		about = []string{"", namespace + "/", repo}
	}
	for _, what := range about {
		allowed, err := q.ask(what)
		if allowed || err != nil {
			return allowed, err
		}
	}
	return false, nil
}

// ask asks about a repository, a namespace with a slash, or everything. Errors: ErrSpent; those of Guard.ask.
func (q *questions) ask(what string) (allowed bool, err error) {
	allowed, known := q.answers[what]
	if known {
		return allowed, nil
	}
	if len(q.answers) >= maxReviews {
		return false, ErrSpent
	}
	if allowed, _, err = q.guard.ask(q.ctx, q.who, what, Pull); err != nil {
		return false, err
	}
	q.answers[what] = allowed
	return allowed, nil
}
