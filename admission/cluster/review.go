package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Audience is for whom ServiceAccounts' tokens have to be made, unless the settings say otherwise: a token that is
// made for somebody else, the API server say, is of no use here, and one for here is of no use elsewhere.
const Audience = "trow"

// What the API server is asked about repositories: the rules of RBAC name them as if they were objects.
const (
	AccessGroup    = "trow.io"
	AccessResource = "repositories"
)

const (
	// maxToken bounds a token; ServiceAccounts' have about 1 KiB.
	maxToken = 16 << 10
	// identityLife is how long an identity holds, within the life of its token: an account, or the pod that its token
	// is bound to, may be deleted at any time.
	identityLife = time.Minute
	// accessLife is how long a permission holds.
	accessLife = 30 * time.Second
	// refusalLife is how long a refusal holds: whoever has just been let in by somebody does not want to wait.
	refusalLife = 10 * time.Second
	// staleLife is how long both hold while the API server cannot be asked, within the life of the token.
	staleLife = time.Hour
)

// ErrToken is a token that says nobody's name: the error says why, and never has any of the token in it.
var ErrToken = errors.New("the token is not valid here")

// ErrUnavailable: whether a token is valid, or something allowed, cannot be told now.
var ErrUnavailable = errors.New("the Kubernetes API server cannot be asked")

// Reviewer asks the API server whose a token is, and what somebody may do. It keeps answers for a while; while the
// server does not answer, those it has given for an hour at most. Make one with [NewReviewer]. Safe for concurrent use.
type Reviewer struct {
	client     Client
	audience   string
	identities *memory[identity]
	accesses   *memory[access]
}

// identity is whose a token is, or why it is nobody's.
type identity struct {
	user authenticationv1.UserInfo
	err  error
}

// access is whether something is allowed, and why.
type access struct {
	allowed bool
	reason  string
}

// NewReviewer makes a Reviewer for tokens of this audience. Its client has to be allowed to create TokenReviews, and
// for Access SubjectAccessReviews.
func NewReviewer(client Client, audience string) *Reviewer {
	return &Reviewer{client: client, audience: audience, identities: newMemory[identity](), accesses: newMemory[access]()}
}

// Review returns whose a token is. Errors: ErrToken, ErrUnavailable.
func (r *Reviewer) Review(ctx context.Context, token string) (authenticationv1.UserInfo, error) {
	claims, err := readClaims(token)
	switch {
	case err != nil:
		return authenticationv1.UserInfo{}, fmt.Errorf("%w: %w", ErrToken, err)
	case !time.Now().Before(claims.end()):
		return authenticationv1.UserInfo{}, fmt.Errorf("%w: it has expired", ErrToken)
	}
	id, err := r.identities.get(ctx, r.identities.key(token), func(ctx context.Context) (answer[identity], error) {
		return r.review(ctx, token, claims)
	})
	if err != nil {
		return authenticationv1.UserInfo{}, unavailable(err, token)
	}
	return id.user, id.err
}

// review is Review without memory.
func (r *Reviewer) review(ctx context.Context, token string, claims claims) (answer[identity], error) {
	asked := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{r.audience}}}
	said, err := r.client.TokenReviews.Create(ctx, asked, metav1.CreateOptions{})
	if err != nil {
		return answer[identity]{}, err
	}
	refuse := func(format string, args ...any) (answer[identity], error) {
		err := fmt.Errorf("%w: "+format, append([]any{ErrToken}, args...)...)
		return answer[identity]{value: identity{err: err}, fresh: time.Now().Add(refusalLife)}, nil
	}
	status := said.Status
	switch {
	case !status.Authenticated && !slices.Contains(claims.Audience, r.audience):
		return refuse("it is not made for the audience %s (kubectl create token NAME --audience=%s)", r.audience, r.audience)
	case !status.Authenticated:
		return refuse("the cluster does not know it, or what it belonged to is deleted")
	case !slices.Contains(status.Audiences, r.audience): // an authenticator that does not heed audiences names none
		return refuse("the cluster does not say that it is made for the audience %s", r.audience)
	case status.User.Username == "":
		return refuse("the cluster has no name for it")
	}
	now := time.Now()
	return answer[identity]{value: identity{user: status.User}, good: true,
		fresh: earlier(now.Add(identityLife), claims.end()), stale: earlier(now.Add(staleLife), claims.end())}, nil
}

// Access returns whether somebody may do something to a repository, and a reason for people. It asks whether the verb
// (get to pull, update to push, delete) is allowed on the object of this name and namespace, of resource repositories
// of group trow.io. No such object need exist; without a namespace it is the whole cluster's, without a name it is all
// of them. Error: ErrUnavailable.
func (r *Reviewer) Access(ctx context.Context, user authenticationv1.UserInfo, verb, namespace, name string) (bool, string, error) {
	who, err := json.Marshal(user)
	if err != nil {
		return false, "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	a, err := r.accesses.get(ctx, r.accesses.key(string(who), verb, namespace, name), func(ctx context.Context) (answer[access], error) {
		return r.access(ctx, user, verb, namespace, name)
	})
	if err != nil {
		return false, "", unavailable(err, "")
	}
	return a.allowed, a.reason, nil
}

// access is Access without memory.
func (r *Reviewer) access(ctx context.Context, user authenticationv1.UserInfo, verb, namespace, name string) (answer[access], error) {
	asked := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: map[string]authorizationv1.ExtraValue{},
		ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: verb,
			Group: AccessGroup, Version: "*", Resource: AccessResource, Name: name}}}
	for key, values := range user.Extra {
		asked.Spec.Extra[key] = authorizationv1.ExtraValue(values)
	}
	said, err := r.client.SubjectAccessReviews.Create(ctx, asked, metav1.CreateOptions{})
	if err != nil {
		return answer[access]{}, err
	}
	now, status := time.Now(), said.Status
	if status.Allowed && !status.Denied {
		return answer[access]{value: access{true, status.Reason}, good: true, fresh: now.Add(accessLife), stale: now.Add(staleLife)}, nil
	}
	return answer[access]{value: access{false, refusal(user.Username, verb, namespace, name, status.Reason)}, fresh: now.Add(refusalLife)}, nil
}

// refusal says what is not allowed, in the words that a rule of RBAC would need.
func refusal(user, verb, namespace, name, why string) string {
	text := fmt.Sprintf("%s may not %s %s.%s", user, verb, AccessResource, AccessGroup)
	if name != "" {
		text += fmt.Sprintf(" %q", name)
	}
	if namespace != "" {
		text += fmt.Sprintf(" in namespace %q", namespace)
	}
	if why != "" {
		text += ": " + why
	}
	return text
}

// unavailable says why there is no answer. The API server may repeat the question in its own, so only the code of that
// is told.
func unavailable(err error, token string) error {
	var status apierrors.APIStatus
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w: this server may not; apply the manifest again that trow manifest makes with the same settings (its ClusterRole)", ErrUnavailable)
	case errors.As(err, &status):
		return fmt.Errorf("%w: it answers %d %s", ErrUnavailable, status.Status().Code, status.Status().Reason)
	}
	text := err.Error()
	if token != "" {
		text = strings.ReplaceAll(text, token, "(the token)")
	}
	return fmt.Errorf("%w: %.300s", ErrUnavailable, text)
}

// far is the end of a token that names none: no answer is kept for that long.
const far = 24 * time.Hour

// claims are what a token says of itself (RFC 7519). Nobody has verified them: they may make its use shorter, never
// longer.
type claims struct{ jwt.RegisteredClaims }

// readClaims reads a token's claims. What is no JWT is not worth a question: an authenticator that is not about JWTs
// knows no audiences.
func readClaims(token string) (c claims, err error) {
	if len(token) > maxToken {
		return c, fmt.Errorf("it has more than %d bytes", maxToken)
	}
	if _, _, err := jwt.NewParser().ParseUnverified(token, &c); err != nil {
		return c, errors.New("it is no JWT, as ServiceAccounts have them")
	}
	return c, nil
}

// end is when the token ends.
func (c claims) end() time.Time {
	if c.ExpiresAt == nil {
		return time.Now().Add(far)
	}
	return c.ExpiresAt.Time
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
