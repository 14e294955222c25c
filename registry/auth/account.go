package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
)

// Reviewer asks the Kubernetes API whose a token is (TokenReview). It is called for each request with such a token, so
// it must remember its answers for a while, and it must keep unknown tokens from delaying known ones: there is no
// cache in front of it, and a queue only for tokens that it does not know, which it enters by turn.
type Reviewer interface {
	// Review returns the account that a token belongs to. ok is false if the API does not accept the token; then why is
	// the reason, for the log. It calls turn before it asks the API about a token of which it has no good answer, and
	// done with the result after that; err means that there was no answer. Errors: the API is unavailable; that of
	// turn, unchanged.
	Review(ctx context.Context, token string, turn func(context.Context) (done func(ok bool, err error), err error)) (
		user authenticationv1.UserInfo, ok bool, why string, err error)
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

// account returns the identity of the account that a token of the cluster belongs to; from is the address of the
// client. Errors: ErrUnauthorized, ErrBusy, ErrUnavailable, that of ctx.
func (g *Guard) account(ctx context.Context, from netip.Addr, token string) (*Identity, error) {
	user, ok, why, err := g.options.Reviewer.Review(ctx, token, g.reviewTurn(from, token))
	switch {
	case err != nil && ctx.Err() != nil: // the client disconnected, which says nothing about the API
		return nil, context.Cause(ctx)
	case errors.Is(err, ErrBusy):
		return nil, err
	case err != nil: // the Reviewer has logged it, as it logs refusals: it knows how often
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	case !ok:
		return nil, fmt.Errorf("%w: %s", errWrong, why)
	// The API must not hand out the names of other kinds of identities (invariant 8).
	case user.Username == "", strings.HasPrefix(user.Username, robotPrefix),
		strings.HasPrefix(user.Username, certPrefix):
		return nil, errWrong
	}
	return &Identity{Name: user.Username, Groups: user.Groups, Cluster: true}, nil
}

// reviewTurn returns the function that waits until the API may be asked about a token from an address. Errors of that:
// ErrBusy.
func (g *Guard) reviewTurn(from netip.Addr, token string) func(context.Context) (func(bool, error), error) {
	return func(ctx context.Context) (func(bool, error), error) {
		sum := sumOf(&g.secret, schemeBearer, token)
		done, err := g.reviews.enter(ctx, string(sum[:]), from)
		if err != nil { // also if ctx is done: then the turn did not come in time
			return nil, ErrBusy
		}
		return func(ok bool, err error) {
			switch {
			case err != nil:
				done(notVerified)
			case ok:
				done(wasRight)
			default:
				done(wasWrong)
			}
		}, nil
	}
}
