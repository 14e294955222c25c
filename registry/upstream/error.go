package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"

	"trow/registry/client"
	"trow/registry/ocierror"
)

// The kinds of errors. Each Error is one of them, for errors.Is.
var (
	// ErrNotFound: every endpoint answers that it does not have the content.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized: the upstream requires a login, or another one.
	ErrUnauthorized = errors.New("the upstream gives it only to another login")
	// ErrUnavailable: the upstream could not answer. Try again after Error.Retry.
	ErrUnavailable = errors.New("the upstream cannot be asked now")
	// ErrRefused: the settings or this version do not permit it, or the upstream refuses the request as such (4xx).
	ErrRefused = errors.New("refused")
	// ErrTooLarge: the content has more bytes than are accepted.
	ErrTooLarge = errors.New("too large")
	// ErrDamaged: the upstream sends something else than the content.
	ErrDamaged = errors.New("damaged")
)

// Error is the error of a request to an upstream. Its text has no credentials, and of what an upstream has sent only
// known error codes: other text might repeat the credentials of the request. So it is safe to show to a client. What of
// the cause is for the log says [Explained].
type Error struct {
	Kind   error         // one of the kinds
	Host   string        // of the upstream
	Repo   string        // there
	Ref    string        // a tag or a digest
	Reason string        // details; may be empty
	Retry  time.Duration // with ErrUnavailable: after which a retry may succeed; 0: not known
	Cause  error         // may be nil
}

func (e *Error) Error() string {
	text := e.Kind.Error()
	if e.Ref != "" {
		text = fmt.Sprintf("%.140s: %s", e.Ref, text)
	}
	if e.Host != "" {
		separator := " "
		if e.Ref == "" {
			separator = ": "
		}
		name := e.Host
		if e.Repo != "" {
			name += "/" + e.Repo
		}
		text = fmt.Sprintf("%.511s%s%s", name, separator, text)
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

// Explained returns an error with a text that says more than that of its [Error], where that is known: why an endpoint
// cannot be reached, or its login cannot be read. It is for the log and for those who administer the server, because it
// may name addresses, files and commands. It has no credentials.
func Explained(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	why := why(e.Cause)
	if why == "" {
		return err
	}
	return &explained{err, why}
}

type explained struct {
	error
	why string
}

func (e *explained) Error() string { return e.error.Error() + ": " + e.why }
func (e *explained) Unwrap() error { return e.error }

// why returns the text of the cause of an Error; empty if it might repeat what an upstream has sent, but for the names
// in its certificate.
func why(cause error) string {
	var text string
	address, isAddress := errors.AsType[*AddressError](cause)
	login, isLogin := errors.AsType[*client.LoginError](cause)
	certificate, isCertificate := errors.AsType[*tls.CertificateVerificationError](cause)
	connection, isConnection := errors.AsType[*net.OpError](cause)
	switch {
	case isAddress:
		text = address.Error()
	case errors.Is(cause, errProxy):
		text = errProxy.Error()
	case isLogin:
		text = login.Error()
	case isCertificate:
		text = certificate.Error() + "; ca-file: of its entry of upstreams names a CA of its own"
	case isConnection:
		text = connection.Error()
	case errors.Is(cause, http.ErrSchemeMismatch):
		text = http.ErrSchemeMismatch.Error()
	case errors.Is(cause, io.EOF), errors.Is(cause, io.ErrUnexpectedEOF):
		text = "it closed the connection"
	}
	return strings.Map(func(r rune) rune { // a certificate may have any names
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
}

// RetryAfter returns the time after which a retry may succeed, at least a second. It reports false if the error is not
// of the kind ErrUnavailable.
func RetryAfter(err error) (time.Duration, bool) {
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Kind != ErrUnavailable {
		return 0, false
	}
	return max(e.Retry, time.Second), true
}

// failed returns the Error for a request that got no answer of the endpoint.
func failed(err error) *Error {
	e := &Error{Kind: ErrUnavailable, Cause: err}
	address, isAddress := errors.AsType[*AddressError](err)
	answer, isAnswer := errors.AsType[*client.Error](err)
	realm, isRealm := errors.AsType[*realmError](err)
	_, isLogin := errors.AsType[*client.LoginError](err)
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
	case isAnswer: // of the token server, or the library found no login
		if e = answered(answer); e.Kind != ErrUnauthorized {
			e.Kind, e.Reason = ErrUnavailable, "the token server answers "+e.Reason
		}
	case isLogin:
		e.Reason = "its login cannot be read"
	case errors.Is(err, context.DeadlineExceeded):
		e.Reason = "it did not answer in time"
	default:
		e.Reason = "the connection failed"
	}
	return e
}

// answered returns the Error for an answer that is not a success.
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

// known are the error codes that the text of an Error may repeat.
var known = map[ocierror.Code]bool{ocierror.Denied: true, ocierror.Unauthorized: true, ocierror.NameInvalid: true,
	ocierror.TooManyRequests: true, ocierror.Unsupported: true, ocierror.Unavailable: true}
