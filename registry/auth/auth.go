// Package auth decides who may do what in the registry.
//
// # Words
//
//   - identity: who a request comes from, as far as it proves that; empty for anonymous.
//   - action: what is to be done to a repository: pull, push, delete; or list the catalog; or just log in.
//
// # Invariants
//
// A decision is made before a request's body is read, and it costs next to nothing for a credential that was
// verified before. Secrets are neither logged nor kept in clear; comparing them takes the same time whether
// the user exists or not.
//
// # What it does not do
//
// It does not know what a repository holds. It does not guard the webhook: a verdict reads no secret.
package auth

import (
	"errors"
	"net/http"
)

// Action is what a request wants to do.
type Action string

// The actions. Cancelling an upload belongs to Push, as pushing clients do it.
const (
	Login   Action = "login" // GET /v2/: tells a client whether to bring credentials
	Pull    Action = "pull"
	Push    Action = "push"
	Delete  Action = "delete"
	Catalog Action = "catalog"
)

// ErrUnauthorized: the request must bring (other) credentials; ask for them with Authorizer.Challenge.
var ErrUnauthorized = errors.New("authentication required")

// ErrDenied: no credentials would help this identity.
var ErrDenied = errors.New("requested access to the resource is denied")

// Authorizer decides whether a request may do an action to a repository (empty for Login and Catalog).
// Implementations are safe for concurrent use.
type Authorizer interface {
	// Authorize returns the identity. Errors: ErrUnauthorized, ErrDenied, wrapped with a reason that the
	// client is told.
	Authorize(r *http.Request, repo string, a Action) (user string, err error)
	// Challenge is the value of WWW-Authenticate that goes with ErrUnauthorized (RFC 9110, section 11.6.1).
	Challenge(r *http.Request, repo string, a Action) string
}
