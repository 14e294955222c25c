package admission

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
)

// Callers let only those call the webhook who prove that they are the API server: by a certificate, or by a token that
// the API server's kubeconfig for webhooks has; either is enough. Without it everybody may ask for a verdict, which
// tells what the registry holds and what is allowed.
type Callers struct {
	// Certificate returns the certificate of the API server's CA that a request's connection has shown, verified and
	// good at the moment; nil: none. Optional.
	Certificate func(*http.Request) *x509.Certificate
	// Names are the common names that certificates may have. Empty: any.
	Names []string
	// Refused is told of who is not let in. Optional.
	Refused func(*http.Request, string)

	token atomic.Pointer[[sha256.Size]byte]
}

// SetToken takes over a token, of at least 16 characters on a line, from what its file has. Errors: what is none; then
// the one before stays.
func (c *Callers) SetToken(content []byte) error {
	const least = 16
	token := bytes.TrimSpace(content)
	if len(token) < least || bytes.ContainsAny(token, " \t\r\n") {
		return fmt.Errorf("the file has one line: a token of at least %d characters (openssl rand -hex 32)", least)
	}
	sum := sha256.Sum256(token)
	c.token.Store(&sum)
	return nil
}

// Why somebody is not let in.
var (
	errNoCredentials = errors.New("this webhook is for the API server, which proves itself by a certificate or a token (kubeConfigFile of its AdmissionConfiguration)")
	errBadToken      = errors.New("the token is not the webhook's")
	errOtherName     = errors.New("the certificate is not for the webhook's caller (setting validate-client-names)")
)

// Protect lets the API server through to next. Others are answered 401, or 403 if their certificate is for somebody else.
func (c *Callers) Protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := c.check(r)
		if err == nil {
			next.ServeHTTP(w, r)
			return
		}
		if c.Refused != nil {
			c.Refused(r, err.Error())
		}
		status := http.StatusUnauthorized
		if errors.Is(err, errOtherName) {
			status = http.StatusForbidden
		} else {
			w.Header().Set("WWW-Authenticate", `Bearer realm="trow webhook"`)
		}
		http.Error(w, err.Error(), status)
	})
}

func (c *Callers) check(r *http.Request) error {
	err := errNoCredentials
	if c.Certificate != nil {
		if cert := c.Certificate(r); cert != nil {
			if len(c.Names) == 0 || slices.Contains(c.Names, cert.Subject.CommonName) {
				return nil
			}
			err = errOtherName
		}
	}
	want, given := c.token.Load(), r.Header["Authorization"]
	if want == nil || len(given) != 1 {
		return err
	}
	scheme, token, _ := strings.Cut(given[0], " ")
	sum := sha256.Sum256([]byte(strings.TrimSpace(token)))
	if subtle.ConstantTimeCompare(sum[:], want[:]) == 1 && strings.EqualFold(scheme, "Bearer") {
		return nil
	}
	return errBadToken
}
