// Package auth decides who may do what in the registry.
//
// # Words
//
//   - identity: who a request comes from, as far as it proves that: a user, a robot, an account of the cluster, the holder
//     of a certificate, or nobody (anonymous).
//   - user: the one of the settings, who may do everything, and those of the htpasswd file.
//   - robot: a secret with a name, for a machine. It may do what it was made for, until it ends or is revoked.
//   - action: what is to be done to a repository: pull, push, delete; or to the registry: list the catalog, administer
//     it, see its metrics; or just log in.
//   - rule: says what somebody may do to some repositories.
//   - token: what the token endpoint gives in exchange for credentials, or for none (a JWT, signed with Ed25519). Its
//     scopes say what it is good for.
//   - challenge: the WWW-Authenticate that tells a client where to get a token.
//
// # Invariants
//
//  1. A decision is made before a request's body is read, and it costs next to nothing for a credential that was
//     verified before.
//  2. Secrets are neither logged nor kept in clear. Comparing them takes the same time whether the user exists or not.
//  3. A request with a token may do what the rules of now and the token's scopes allow, both. So a new rule counts at
//     once, and so does that a user or a robot has gone; a password that has changed and an account of the cluster that
//     has gone count when the tokens end that were given for them, after 5 minutes at the latest.
//  4. Whoever may not pull from a repository is not told whether it exists.
//  5. Rules are read from top to bottom; the first that names the identity, the repository and the action decides
//     ("may: none" names every action, and forbids). What none decides is denied, once there is a rule.
//  6. A robot's rights are its own: a rule can take from them, and never adds to them.
//  7. A file that has become bad changes nothing but the log.
//  8. Users, robots, accounts of the cluster and certificates are different people, whatever their names.
//
// # What it does not do
//
// It does not know what a repository holds. It does not guard the webhook: who may ask for verdicts package admission
// decides. It gives no refresh tokens: they would be a second password, one that outlives a change of the first and that
// nobody lists. Whoever wants a secret that can be revoked makes a robot; its secret is taken as a refresh token as well.
package auth

import (
	"context"
	"errors"
	"net/http"
	"strings"
)

// Action is what a request wants to do.
type Action string

// The actions. Cancelling an upload belongs to Push, as pushing clients do it. Catalog, Admin and Metrics are about
// no repository.
const (
	Login   Action = "login" // GET /v2/: tells a client whether to bring credentials
	Pull    Action = "pull"
	Push    Action = "push"
	Delete  Action = "delete"
	Catalog Action = "catalog"
	Admin   Action = "admin"
	Metrics Action = "metrics"
)

// Whole tells whether an action is about the registry and not about a repository.
func (a Action) Whole() bool { return a == Catalog || a == Admin || a == Metrics }

// Errors of an Authorizer, wrapped with a reason that the client is told.
var (
	// ErrUnauthorized: the request must bring (other) credentials; ask for them with Authorizer.Challenge.
	ErrUnauthorized = errors.New("authentication required")
	// ErrDenied: no credentials would help this identity.
	ErrDenied = errors.New("requested access to the resource is denied")
	// ErrHidden: the identity may not know whether this repository is there; the answer is as if it were not.
	ErrHidden = errors.New("the repository is not for this identity")
	// ErrBusy: too many are logging in at once; try again in a moment.
	ErrBusy = errors.New("too many are logging in at once; try again in a moment")
	// ErrUnavailable: whoever could tell (the Kubernetes API) does not answer; try again in a moment.
	ErrUnavailable = errors.New("who this is cannot be told at the moment; try again")
)

// Why a token was not taken, for the challenge. All are an ErrUnauthorized.
var (
	errBadToken = &tokenError{"invalid_token", "the token is not valid (any more); get another one"}
	errScope    = &tokenError{"insufficient_scope", "the token is not good for this; get one for the scope that is needed"}
	errLogin    = &tokenError{"insufficient_scope", "log in; without a login this is not allowed"}
)

// tokenError is an ErrUnauthorized that the challenge has a word for (RFC 6750, section 3.1). The message is told there
// between quotes; it has none itself, no backslash, and no comma, at which some clients split.
type tokenError struct{ code, message string }

func (e *tokenError) Error() string { return ErrUnauthorized.Error() + ": " + e.message }

func (e *tokenError) Unwrap() error { return ErrUnauthorized }

// Identity is who a request comes from. It is made by an Authorizer or a Reviewer alone, and never changes.
type Identity struct {
	// Name is empty for anonymous. Names of robots begin with "robot:", those of service accounts are
	// "system:serviceaccount:<namespace>:<name>", those of certificates begin with "cert:"; a user's has no colon.
	Name string
	// Groups are those that the Kubernetes API has told.
	Groups []string
	// Cluster: the Kubernetes API has vouched for the name. Reviewers set it.
	Cluster bool

	owner bool     // the user of the settings
	cert  bool     // a certificate has proved the name
	orgs  []string // its organizations
	robot *robot   // nil: it is none
	grant *grant   // what the token is good for; nil: there was none
	_     struct{} // so that others name the fields
}

// nobody is who brings no credentials.
var nobody = &Identity{}

// Anonymous tells whether the request has proved no name.
func (i *Identity) Anonymous() bool { return i.Name == "" }

// Kind is what an identity is: socket, anonymous, user, robot, cluster or certificate.
func (i *Identity) Kind() string {
	switch {
	case i == Socket:
		return "socket"
	case i.Anonymous():
		return "anonymous"
	case i.robot != nil || strings.HasPrefix(i.Name, robotPrefix):
		return "robot"
	case i.cert:
		return "certificate"
	case i.Cluster:
		return "cluster"
	}
	return "user"
}

// Authorizer decides whether a request may do an action to a repository. Implementations are safe for concurrent use.
type Authorizer interface {
	// Identify tells who a request comes from; it reads nothing but its headers. Errors: ErrUnauthorized, ErrBusy,
	// ErrUnavailable.
	Identify(r *http.Request) (*Identity, error)
	// Authorize tells whether who may do that; repo is empty for Login, Catalog, Admin and Metrics. Errors: ErrUnauthorized,
	// ErrDenied, ErrHidden (Pull alone), ErrUnavailable.
	Authorize(ctx context.Context, who *Identity, repo string, a Action) error
	// Readable tells from which repositories who may pull, whatever his token is good for. nil: from all.
	Readable(ctx context.Context, who *Identity) func(repo string) bool
	// Challenge is the value of WWW-Authenticate, of as many headers as it has elements, that goes with an
	// ErrUnauthorized (RFC 9110, section 11.6.1).
	Challenge(r *http.Request, repo string, a Action, err error) []string
}

// Reviewer asks the Kubernetes API whose a token is (TokenReview).
type Reviewer interface {
	// Review returns an identity with Cluster set. Errors: ErrUnauthorized, when the API does not know the token, or
	// it is for another audience; ErrUnavailable, when the API does not answer.
	Review(ctx context.Context, token string) (Identity, error)
}

// AccessReviewer asks the Kubernetes API what one of its identities may do (SubjectAccessReview).
type AccessReviewer interface {
	// Access is asked for each request that no rule decides, and so remembers its answers for a while. verb is that of
	// RBAC: get (pull), update (push), delete, list (catalog), or admin. namespace and repository are the repository's
	// first element and the rest; a name of one element is in no namespace. Errors: ErrUnavailable.
	Access(ctx context.Context, who Identity, verb, namespace, repository string) (allowed bool, reason string, err error)
}

// All lets everybody do everything: for those who could open the socket.
var All Authorizer = all{}

type all struct{}

func (all) Identify(*http.Request) (*Identity, error)                       { return nobody, nil }
func (all) Authorize(context.Context, *Identity, string, Action) error      { return nil }
func (all) Readable(context.Context, *Identity) func(string) bool           { return nil }
func (all) Challenge(_ *http.Request, _ string, _ Action, _ error) []string { return nil }
