package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
)

// createOnly is an ErrCreateOnly: its text is the remedy, which follows what the registry says of the tag.
type createOnly struct {
	kind   error // ErrUnauthorized or ErrDenied
	remedy string
}

func (e *createOnly) Error() string { return e.remedy }

func (e *createOnly) Unwrap() []error { return []error{ErrCreateOnly, e.kind} }

// orCreate returns the error for an identity that may not push, for the reason err: ErrCreateOnly if it may create.
func (g *Guard) orCreate(ctx context.Context, s *state, who *Identity, repo string, err error) error {
	cerr := g.decide(ctx, s, who, repo, Create)
	switch {
	case cerr == nil:
	case errors.Is(cerr, ErrUnauthorized), errors.Is(cerr, ErrDenied):
		if errors.Is(cerr, errScope) { // a token with more scopes would do, and a login is not needed
			return cerr
		}
		return err
	default: // the Kubernetes API is unavailable, or the client has disconnected
		return cerr
	}
	switch {
	case who.Anonymous() && !s.logins:
		return &createOnly{ErrDenied, "the registry has no users; " + g.wayIn(repo, Push)}
	case errors.Is(err, errScope):
		return &createOnly{errScope, "the token's scope lacks push; get a new one"}
	case who.Anonymous() && who.grant == nil:
		// Some clients send credentials only when they are asked for some.
		return &createOnly{ErrUnauthorized, "log in as a user or robot that may push"}
	case who.Anonymous():
		// The client was asked for credentials, and got a token without any. It would take another challenge for an
		// expired token, and try again.
		return &createOnly{ErrDenied, "log in (docker login) as a user or robot that may push"}
	}
	return &createOnly{ErrDenied, who.Name + " may create here, but not push"}
}

// wayIn says how a registry without users gets one that may do a to repo.
func (g *Guard) wayIn(repo string, a Action) string {
	actions, where := string(a), ""
	switch a {
	case Create, Push:
		actions = "pull," + actions
	case Delete: // people who clean up also push
		actions = "pull,push,delete"
	}
	p := g.state.Load().policy
	if g.options.Loopback && (a == Push || a == Delete) && (p.Private || p.Anonymous >= ReadWrite) {
		where = "on this machine, use a loopback host and neither a proxy nor the setting public-url; or "
	}
	return where + fmt.Sprintf("create a login with: %s token create NAME --repository %s --actions %s; or start the "+
		"registry with --user", cmp.Or(g.options.Program, "trow"), cmp.Or(repo, "'**'"), actions)
}
