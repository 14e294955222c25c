package auth

import (
	"context"
	"fmt"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
)

// Reviewer asks the Kubernetes API whose a token is (TokenReview). It is called for each request with such a token, so
// it must remember its answers for a while, and it must keep unknown tokens from delaying known ones: there is no
// cache and no queue in front of it.
type Reviewer interface {
	// Review returns the account that a token belongs to. ok is false if the API does not accept the token; then why is
	// the reason, for the log. Errors: the API is unavailable.
	Review(ctx context.Context, token string) (user authenticationv1.UserInfo, ok bool, why string, err error)
}

// AccessReviewer asks the Kubernetes API what an account may do (SubjectAccessReview). It is called for each request
// that no rule decides, so it must remember its answers for a while.
type AccessReviewer interface {
	// Access reports whether user may do verb, and the reason. verb is one of RBAC: get (pull), create, update (push),
	// delete, list (catalog), admin or metrics. namespace and repository are the first element of the repository's
	// name and the rest; a name of one element has no namespace. Errors: the API is unavailable.
	Access(ctx context.Context, user authenticationv1.UserInfo, verb, namespace, repository string) (
		allowed bool, reason string, err error)
}

// account returns the identity of the account that a token of the cluster belongs to. Errors: ErrUnauthorized,
// ErrUnavailable, that of ctx.
func (g *Guard) account(ctx context.Context, token string) (*Identity, error) {
	user, ok, why, err := g.options.Reviewer.Review(ctx, token)
	switch {
	case err != nil && ctx.Err() != nil: // the client disconnected, which says nothing about the API
		return nil, context.Cause(ctx)
	case err != nil: // the Reviewer has logged it, as it logs refusals: it knows how often
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	case !ok:
		return nil, fmt.Errorf("%w: %s", errWrong, why)
	// The API must not hand out the names of other kinds of identities (invariant 8).
	case user.Username == "", strings.HasPrefix(user.Username, robotPrefix), strings.HasPrefix(user.Username, certPrefix):
		return nil, errWrong
	}
	return &Identity{Name: user.Username, Groups: user.Groups, Cluster: true}, nil
}
