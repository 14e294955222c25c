package auth

import (
	"errors"
	"net/http"

	"trow/registry/audit"
)

// loginError is a login that failed for a user who exists.
type loginError struct{ user string }

func (e *loginError) Error() string { return errWrong.Error() }

func (e *loginError) Unwrap() error { return errWrong }

// wrong is the error of a wrong password. A name that nobody has is forgotten: it may be a password.
func (s *state) wrong(name string) error {
	if _, exists := s.users.list[name]; exists {
		return &loginError{name}
	}
	return errWrong
}

// loginFailed writes down that credentials were not taken. The reasons are sentences of ours, with nothing of what was
// given.
func (g *Guard) loginFailed(r *http.Request, err error) {
	if !errors.Is(err, ErrUnauthorized) && !errors.Is(err, ErrBusy) {
		return // it cannot be told whose they are, or nobody listens any more
	}
	e := audit.Event{What: audit.Login, Outcome: audit.Failed, Kind: "unknown", From: audit.From(r.RemoteAddr), Reason: err.Error()}
	if known := (*loginError)(nil); errors.As(err, &known) {
		e.User, e.Kind = known.user, "user"
	}
	g.options.Audit(r.Context(), e)
}

// refused writes down that somebody may not do something to the registry as a whole. Who brings no credentials is asked
// for some, which is nothing to write down.
func (g *Guard) refused(r *http.Request, who *Identity, a Action, err error) {
	if !errors.Is(err, ErrDenied) && (who.Anonymous() || !errors.Is(err, ErrUnauthorized)) {
		return
	}
	g.options.Audit(r.Context(), audit.Event{What: audit.Request, Outcome: audit.Denied, User: who.Name, Kind: who.Kind(),
		From: audit.From(r.RemoteAddr), Action: string(a), Reason: err.Error()})
}
