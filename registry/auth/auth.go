// Package auth decides who may do what in the registry.
//
// # Words
//
//   - identity: what a request has proved about its sender: a user, a robot, an account of the cluster, the holder of a
//     certificate, a client of the administration socket, or nothing (anonymous).
//   - user: the user of the settings, who may do everything, and those of the htpasswd file.
//   - robot: a named secret for a machine. It may do what it was created for, until it expires or is revoked.
//   - action: what a request does to a repository: pull, create, push, delete, mirror; or to the registry: list the
//     catalog, administer it, read its metrics; or only log in. To create is to push what is new: it changes nothing
//     that others may run. Push includes create. To mirror is to push and to delete below f/, where the content of
//     other registries lies (package namespace); no other action includes it.
//   - rule: states what some identities may do to some repositories.
//   - token: what the token endpoint issues in exchange for credentials, or for none (a JWT, signed with Ed25519). Its
//     scopes limit what it can be used for.
//   - challenge: the WWW-Authenticate header that tells a client where to get a token.
//
// # Invariants
//
//  1. A decision is made before a request's body is read. It is cheap for credentials that were verified before.
//  2. Secrets are neither logged nor kept in clear. Comparing them takes the same time whether the user exists or not.
//  3. A request with a token may do what both the current rules and the token's scopes allow. So a new rule takes
//     effect at once, and so does the removal of a user or robot. After the change of a password, or the deletion of an
//     account of the cluster, the tokens that were issued before are accepted until they expire, after 5 minutes at the
//     latest.
//  4. An identity that may not pull from a repository does not learn whether it exists.
//  5. Rules are read from top to bottom; the first one that matches the identity, the repository and the action decides
//     ("may: none" matches every action, and forbids it). If there are rules and none decides, the action is denied.
//  6. A robot's rights are its own: a rule can restrict them, and never extends them.
//  7. A file that has become invalid changes nothing; the error is logged.
//  8. Users, robots, accounts of the cluster and certificates are different identities, even if they have the same
//     name.
//  9. The answers of the Kubernetes API are not remembered here, because the [Reviewer] remembers them.
//
// # What it does not do
//
// It does not know what a repository holds. It does not guard the webhook: package admission decides who may ask for
// verdicts. It issues no refresh tokens: they would be a second password, which outlives a change of the first and
// which is listed nowhere. For a secret that can be revoked, create a robot; its secret is accepted as a refresh token
// as well.
package auth

import (
	"context"
	"errors"
	"net/http"
	"strings"
)

// Action is what a request wants to do.
type Action string

// The actions. Cancelling an upload belongs to Push, because pushing clients do it. Catalog, Admin and Metrics are not
// about a repository.
const (
	Login   Action = "login" // GET /v2/, from which a client learns whether it needs credentials
	Pull    Action = "pull"
	Create  Action = "create" // push blobs, manifests and new tags; not move a tag
	Push    Action = "push"
	Delete  Action = "delete"
	Catalog Action = "catalog"
	Admin   Action = "admin"
	Metrics Action = "metrics"
	// Mirror is to push to and delete from repositories below f/, where nothing else permits that; see judgeMirror.
	Mirror Action = "mirror"
)

// Whole reports whether an action is about the registry and not about a repository.
func (a Action) Whole() bool { return a == Catalog || a == Admin || a == Metrics }

// Errors of an Authorizer, wrapped with a reason that the client may see.
var (
	// ErrUnauthorized: the request must bring (other) credentials; ask for them with Authorizer.Challenge.
	ErrUnauthorized = errors.New("authentication required")
	// ErrDenied: no credentials would help this identity.
	ErrDenied = errors.New("requested access to the resource is denied")
	// ErrCreateOnly: the identity may create, and may not push. It comes together with ErrUnauthorized, if a login is
	// worth a try, or with ErrDenied.
	ErrCreateOnly = errors.New("may create, and not move")
	// ErrHidden: the identity may not know whether this repository exists; answer as if it did not.
	ErrHidden = errors.New("repository not visible to this identity")
	// ErrBusy: too many clients are logging in at once; the client should retry.
	ErrBusy = errors.New("too many logins at once; retry")
	// ErrUnavailable: the Kubernetes API does not answer; the client should retry.
	ErrUnavailable = errors.New("cannot verify credentials right now; retry")
)

// Why a token was not accepted, for the challenge. Each is an ErrUnauthorized.
var (
	errBadToken = &tokenError{"invalid_token", "token is invalid or has expired; get a new one"}
	errScope    = &tokenError{"insufficient_scope", "token lacks the required scope"}
	errLogin    = &tokenError{"insufficient_scope", "login required"}
)

// tokenError is an ErrUnauthorized that the challenge has a word for (RFC 6750, section 3.1). The challenge contains
// the message in quotes, so it must not contain quotes, backslashes or commas, at which some clients split.
type tokenError struct{ code, message string }

func (e *tokenError) Error() string { return ErrUnauthorized.Error() + ": " + e.message }

func (e *tokenError) Unwrap() error { return ErrUnauthorized }

// Identity is the sender of a request. Only an Authorizer makes identities; they never change.
type Identity struct {
	// Name is empty for anonymous. Names of robots begin with "robot:", those of service accounts are
	// "system:serviceaccount:<namespace>:<name>", those of certificates begin with "cert:"; a user's has no colon.
	Name string
	// Groups are the groups that the Kubernetes API has reported.
	Groups []string
	// Cluster reports whether the Kubernetes API has vouched for the name.
	Cluster bool

	owner  bool     // the user of the settings
	socket bool     // a client of the administration socket
	local  bool     // the request is private, see Guard.private
	cert   bool     // a certificate has proved the name
	orgs   []string // the certificate's organizations
	robot  *robot   // nil: not a robot
	grant  *grant   // what the request's token can be used for; nil: it had no token
	_      struct{} // forces other packages to name the fields
}

// anonymous is the identity of requests without credentials.
var anonymous = &Identity{}

// Socket is the identity of the clients of the administration socket, which only the owner of the data directory can
// open. It may do everything, without limits; see [Identity.Unlimited].
var Socket = &Identity{socket: true}

// socketKey is the key of the mark that WithSocket makes.
type socketKey struct{}

// WithSocket marks the connections of the administration socket: a Guard identifies their requests as [Socket]. Use it
// in the ConnContext or BaseContext of the server that listens there, and nowhere else.
func WithSocket(ctx context.Context) context.Context {
	return context.WithValue(ctx, socketKey{}, true)
}

// bySocket reports whether a request has come through the administration socket.
func bySocket(ctx context.Context) bool { return ctx.Value(socketKey{}) != nil }

// Anonymous reports whether the request has proved nothing about its sender.
func (i *Identity) Anonymous() bool { return i.Name == "" && !i.socket }

// Unlimited reports whether no limit, no quota and no immutable tag restricts the identity, and whether it is served
// even when all places of max-requests are taken. That is so for [Socket] alone.
func (i *Identity) Unlimited() bool { return i.socket }

// Kind returns what an identity is: anonymous, user, robot, cluster, certificate or socket.
func (i *Identity) Kind() string {
	switch {
	case i.socket:
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

// Label is the name of an identity in records that people read, such as the history of a tag. It is never empty:
// identities without a name have that of their kind, in parentheses.
func (i *Identity) Label() string {
	if i.Name != "" {
		return i.Name
	}
	return "(" + i.Kind() + ")"
}

// Authorizer decides whether a request may do an action to a repository. Implementations are safe for concurrent use.
type Authorizer interface {
	// Identify returns the sender of a request; it reads nothing but the headers. Errors: ErrUnauthorized, ErrBusy,
	// ErrUnavailable.
	Identify(r *http.Request) (*Identity, error)
	// Authorize returns nil if who may do that; repo is empty for Login, Catalog, Admin and Metrics. Errors:
	// ErrUnauthorized, ErrDenied, ErrHidden (Pull alone), ErrCreateOnly (Push alone), ErrUnavailable.
	Authorize(ctx context.Context, who *Identity, repo string, a Action) error
	// Readable returns a function that reports from which repositories who may pull, whatever the scopes of its token
	// are. nil means: from all. It is for one request and one goroutine. Its errors: ErrSpent, after which the request
	// ends its list, ErrUnavailable.
	Readable(ctx context.Context, who *Identity) func(repo string) (bool, error)
	// Challenge returns the values of the WWW-Authenticate headers that go with an ErrUnauthorized, one header for each
	// (RFC 9110, section 11.6.1).
	Challenge(r *http.Request, repo string, a Action, err error) []string
}
