package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"trow/registry/client"
	"trow/registry/ocierror"
)

// The kinds of errors. Each Error is one of them, for errors.Is.
var (
	// ErrNotFound: every endpoint says that it does not have it.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized: the upstream wants a login, or another one.
	ErrUnauthorized = errors.New("the upstream gives it only to another login")
	// ErrUnavailable: it is not known. Try again after Error.Retry.
	ErrUnavailable = errors.New("the upstream cannot be asked now")
	// ErrRefused: the settings, or this version, do not permit it.
	ErrRefused = errors.New("refused")
	// ErrTooLarge: it has more bytes than are accepted.
	ErrTooLarge = errors.New("too large")
	// ErrDamaged: what the upstream sends is not what it should be.
	ErrDamaged = errors.New("damaged")
)

// Error says why an upstream did not give what was asked for. Its text has no credentials, and nothing but an error's
// code of what an upstream has sent: that may repeat what it was asked with. It is safe to show to a client. The cause,
// for the log, may name addresses.
type Error struct {
	Kind   error         // one of the kinds
	Host   string        // of the upstream
	Repo   string        // there
	Ref    string        // a tag or a digest
	Reason string        // more than the kind says; may be empty
	Retry  time.Duration // with ErrUnavailable: after which it may be worth asking again
	Cause  error         // may be nil
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%.140s: %v", e.Ref, e.Kind)
	if e.Host != "" {
		text = fmt.Sprintf("%.255s/%.255s %s", e.Host, e.Repo, text)
	}
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// Unwrap returns the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

// RetryAfter returns after which time it may be worth asking again, and whether the error is of that kind.
func RetryAfter(err error) (time.Duration, bool) {
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Kind != ErrUnavailable {
		return 0, false
	}
	return max(e.Retry, time.Second), true
}

// failed makes an Error of what an endpoint did not answer.
func failed(err error) *Error {
	e := &Error{Kind: ErrUnavailable, Cause: err}
	address, isAddress := errors.AsType[*AddressError](err)
	answer, isAnswer := errors.AsType[*client.Error](err)
	realm, isRealm := errors.AsType[*realmError](err)
	switch {
	case isAddress:
		e.Kind = ErrRefused
		e.Reason = fmt.Sprintf("it leads to %.255s, which is not at an address of the Internet", address.Host)
	case isRealm:
		e.Kind, e.Reason = ErrRefused, realm.Error()
	case strings.Contains(err.Error(), "bearer realm"): // the library's own check, whose errors have no type
		e.Kind, e.Reason = ErrRefused, "it wants the login to be sent to a token server that is not https"
	case errors.Is(err, errRedirect):
		e.Kind, e.Reason = ErrRefused, errRedirect.Error()
	case isAnswer: // of the token server, or that there is no login
		if e = answered(answer); e.Kind != ErrUnauthorized {
			e.Kind, e.Reason = ErrUnavailable, "the token server answers "+e.Reason
		}
	case errors.Is(err, context.DeadlineExceeded):
		e.Reason = "it did not answer in time"
	default:
		e.Reason = "the connection failed"
	}
	return e
}

// answered makes an Error of an answer that is not a success.
func answered(a *client.Error) *Error {
	e := &Error{Kind: ErrUnavailable, Reason: fmt.Sprintf("%d %s", a.Status, http.StatusText(a.Status)), Cause: a}
	switch {
	case a.Status == http.StatusNotFound:
		e.Kind = ErrNotFound
	case a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden:
		e.Kind = ErrUnauthorized
	case a.Status == http.StatusTooManyRequests:
		e.Reason = "too many requests"
	case a.Status == http.StatusRequestEntityTooLarge:
		e.Kind = ErrTooLarge
	case a.Status >= 400 && a.Status < 500:
		e.Kind = ErrRefused
	}
	if known[a.Code] {
		e.Reason += " (" + string(a.Code) + ")"
	}
	return e
}

// known are the codes that are repeated.
var known = map[ocierror.Code]bool{ocierror.Denied: true, ocierror.Unauthorized: true, ocierror.NameInvalid: true,
	ocierror.TooManyRequests: true, ocierror.Unsupported: true, ocierror.Unavailable: true}
