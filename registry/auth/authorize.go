package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Authorize implements Authorizer.
func (g *Guard) Authorize(ctx context.Context, who *Identity, repo string, a Action) error {
	if who == Socket {
		return nil
	}
	s := g.state.Load()
	if a == Login {
		if s.asks && who == nobody { // clients take the answer for the whole registry: told 200, they bring no credentials
			return ErrUnauthorized
		}
		return nil
	}
	allowed, err := g.allows(ctx, s, who, repo, a)
	switch {
	case err != nil:
		return err
	case allowed && who.grant != nil && !who.grant.has(repo, a):
		return errScope
	case allowed:
		return nil
	case who.Anonymous() && !s.logins:
		return fmt.Errorf("%w: %s needs a login, and the registry has no user (start it with --user)", ErrDenied, a)
	case who.Anonymous() && who.grant != nil:
		return errLogin
	case who.Anonymous():
		return ErrUnauthorized
	case a == Pull:
		return ErrHidden
	}
	return fmt.Errorf("%w: %s may not %s here", ErrDenied, who.Name, a)
}

// allows judges, and asks the Kubernetes API if nothing else decides.
func (g *Guard) allows(ctx context.Context, s *state, who *Identity, repo string, a Action) (bool, error) {
	v := s.policy.Judge(who, repo, a)
	if v.on != onNothing || g.options.Accesses == nil || !who.Cluster {
		return v.Allowed, nil
	}
	allowed, _, err := g.ask(ctx, who, repo, a)
	return allowed, err
}

// ask asks the Kubernetes API. Only its own identities: a user of ours may have the name of another of the cluster's.
func (g *Guard) ask(ctx context.Context, who *Identity, repo string, a Action) (allowed bool, reason string, err error) {
	verb := map[Action]string{Pull: "get", Push: "update", Delete: "delete", Catalog: "list", Admin: "admin", Metrics: "metrics"}[a]
	namespace, name, ok := strings.Cut(repo, "/")
	if !ok {
		namespace, name = "", repo
	}
	return g.options.Accesses.Access(ctx, *who, verb, namespace, name)
}

// Readable implements Authorizer.
func (g *Guard) Readable(ctx context.Context, who *Identity) func(repo string) bool {
	s := g.state.Load()
	if who == Socket || s.policy.readsAll(who) {
		return nil
	}
	return func(repo string) bool {
		ok, err := g.allows(ctx, s, who, repo, Pull)
		return ok && err == nil
	}
}

// Protect lets only those in who may do something to the registry as a whole. Whoever has no login is asked for one.
func (g *Guard) Protect(a Action, next http.Handler) http.Handler {
	refuse := func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "this needs another origin", http.StatusForbidden)
	}
	same := http.NewCrossOriginProtection() // a browser that has logged in must not do what another page wants
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
		status := statusOf(err)
		switch status {
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", basicChallenge)
		case http.StatusServiceUnavailable, http.StatusTooManyRequests:
			w.Header().Set("Retry-After", "1")
		}
		http.Error(w, err.Error(), status)
	}))
}

// statusOf is what an error means in HTTP, outside of the distribution API.
func statusOf(err error) int {
	switch {
	case errors.Is(err, ErrUnauthorized):
		return http.StatusUnauthorized
	case errors.Is(err, ErrBusy):
		return http.StatusTooManyRequests
	case errors.Is(err, ErrDenied), errors.Is(err, ErrHidden):
		return http.StatusForbidden
	}
	return http.StatusServiceUnavailable
}
