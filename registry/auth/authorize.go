package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
)

// Authorize implements Authorizer.
func (g *Guard) Authorize(ctx context.Context, who *Identity, repo string, a Action) error {
	if who == Socket {
		return nil
	}
	s := g.state.Load()
	if who.Unlimited() {
		return nil
	}
	if a == Login {
		// Clients take this answer for the whole registry: after a 200 they never send credentials.
		if who.Anonymous() && who.grant == nil && s.challenges(who) {
			return ErrUnauthorized
		}
		return nil
	}
	err := g.decide(ctx, s, who, repo, a)
	if a == Push && (errors.Is(err, ErrUnauthorized) || errors.Is(err, ErrDenied)) {
		return g.orCreate(ctx, s, who, repo, err)
	}
	return err
}

// decide is Authorize for the identities that have limits, for any action but Login.
func (g *Guard) decide(ctx context.Context, s *state, who *Identity, repo string, a Action) error {
	allowed, err := g.allows(ctx, s, who, repo, a)
	switch {
	case err != nil:
		return err
	case !allowed && guarded(repo, a) && !(who.Anonymous() && s.logins && s.mirrorable()):
		return deniedMirror(who, repo, a) // a login would not help
	case allowed && who.grant != nil && !who.grant.has(repo, a):
		return errScope
	case allowed:
		return nil
	case who.Anonymous() && !s.logins:
		return fmt.Errorf("%w: %s needs a login, and the registry has no users; %s", ErrDenied, a, g.wayIn(repo, a))
	case who.Anonymous() && who.grant != nil:
		return errLogin
	case who.Anonymous():
		return ErrUnauthorized
	case a == Pull:
		return ErrHidden
	}
	return fmt.Errorf("%w: %s may not %s here", ErrDenied, who.Name, a)
}

// allows reports whether who may do that. It asks the Kubernetes API if nothing else decides.
func (g *Guard) allows(ctx context.Context, s *state, who *Identity, repo string, a Action) (bool, error) {
	v := s.policy.Judge(who, repo, a)
	if v.on != onNothing || g.options.Accesses == nil || !who.Cluster {
		return v.Allowed, nil
	}
	allowed, _, err := g.ask(ctx, who, repo, a)
	if a == Create && err == nil && !allowed { // push includes it, and roles from before there was create have update
		allowed, _, err = g.ask(ctx, who, repo, Push)
	}
	return allowed, err
}

// verbs are what the actions are called in RBAC.
var verbs = map[Action]string{
	Pull: "get", Create: "create", Push: "update", Delete: "delete", Catalog: "list", Admin: "admin",
	Metrics: "metrics"}

// ask asks the Kubernetes API. who must be an account of the cluster: a user of ours may have the same name as another
// person there. Errors: ErrUnavailable, that of ctx.
func (g *Guard) ask(ctx context.Context, who *Identity, repo string, a Action) (
	allowed bool, reason string, err error) {
	namespace, name, ok := strings.Cut(repo, "/")
	if !ok {
		namespace, name = "", repo
	}
	user := authenticationv1.UserInfo{Username: who.Name, Groups: who.Groups}
	allowed, reason, err = g.options.Accesses.Access(ctx, user, verbs[a], namespace, name)
	switch {
	case err != nil && ctx.Err() != nil:
		return false, "", context.Cause(ctx)
	case err != nil:
		return false, "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return allowed, reason, nil
}

// Protect returns a handler that passes on the requests of identities that may do an action to the registry as a whole,
// and refuses others. It asks clients without a login for one.
func (g *Guard) Protect(a Action, next http.Handler) http.Handler {
	refuse := func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "cross-origin request refused", http.StatusForbidden)
	}
	// A browser that has logged in must not do what a page of another site tells it to.
	same := http.NewCrossOriginProtection()
	same.SetDenyHandler(http.HandlerFunc(refuse))
	return same.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := g.Identify(r)
		if err == nil {
			g.options.Annotate(r.Context(), "user", who.Name)
			if err = g.Authorize(r.Context(), who, "", a); err != nil {
				g.refused(r, who, a, err)
			}
		}
		if err == nil {
			next.ServeHTTP(w, r)
			return
		}
		message, status := err.Error(), statusOf(err)
		switch status {
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", basicChallenge)
		case http.StatusServiceUnavailable:
			message = ErrUnavailable.Error() // the cause is for the log
			w.Header().Set("Retry-After", "1")
		case http.StatusTooManyRequests:
			w.Header().Set("Retry-After", "1")
		}
		http.Error(w, message, status)
	}))
}

// Permits reports whether the sender of a request may do an action to the registry as a whole. Unlike [Guard.Protect]
// it does not ask for a login: it is for what is left out of an answer.
func (g *Guard) Permits(r *http.Request, a Action) bool {
	who, err := g.Identify(r)
	return err == nil && g.Authorize(r.Context(), who, "", a) == nil
}

// statusOf returns what an error means in HTTP, outside of the distribution API.
func statusOf(err error) int {
	switch {
	case errors.Is(err, ErrUnauthorized):
		return http.StatusUnauthorized
	case errors.Is(err, ErrBusy), errors.Is(err, errTokenRequests):
		return http.StatusTooManyRequests
	case errors.Is(err, ErrDenied), errors.Is(err, ErrHidden):
		return http.StatusForbidden
	}
	return http.StatusServiceUnavailable
}
