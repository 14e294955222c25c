package auth

import (
	"errors"
	"fmt"
	"net/http"

	"trow/registry/audit"
)

// loginError is a failed login of a user who exists.
type loginError struct {
	user string
	error
}

func (e *loginError) Unwrap() error { return e.error }

// wrong returns the error for a wrong password. It drops a name that no user has: it may be a password.
func (s *state) wrong(name, password string) error {
	err := errWrong
	if why := CheckPassword(password); why != nil { // for each name, so that it does not reveal who is a user
		err = fmt.Errorf("%w; for users of the htpasswd file: %w", errWrong, why)
	}
	if _, exists := s.users.list[name]; exists {
		return &loginError{name, err}
	}
	return err
}

// loginFailed records in the audit log that credentials were not accepted. The reasons are sentences of this package,
// and contain nothing of what the client sent.
func (g *Guard) loginFailed(r *http.Request, err error) {
	if !errors.Is(err, ErrUnauthorized) && !errors.Is(err, ErrBusy) {
		return // the credentials could not be verified, or the client disconnected
	}
	e := audit.Event{What: audit.Login, Outcome: audit.Failed, Kind: "unknown", From: audit.From(r.RemoteAddr),
		Reason: err.Error()}
	if known := (*loginError)(nil); errors.As(err, &known) {
		e.User, e.Kind = known.user, "user"
	}
	g.options.Audit(r.Context(), e)
}

// refused records in the audit log that an action on the registry as a whole was denied. A request without credentials
// that is asked for some is not worth a line.
func (g *Guard) refused(r *http.Request, who *Identity, a Action, err error) {
	if !errors.Is(err, ErrDenied) && (who.Anonymous() || !errors.Is(err, ErrUnauthorized)) {
		return
	}
	g.options.Audit(r.Context(), audit.Event{What: audit.Request, Outcome: audit.Denied, User: who.Name,
		Kind: who.Kind(),
		From: audit.From(r.RemoteAddr), Action: string(a), Reason: err.Error()})
}
