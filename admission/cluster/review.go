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
	"github.com/rs/zerolog"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/manifests/kube"
)

// Repositories are objects of this group and resource in rules of RBAC, although no such objects exist.
const (
	AccessGroup    = "trow.io"
	AccessResource = "repositories"
)

const (
	// maxToken bounds a token; ServiceAccount tokens have about 1 KiB.
	maxToken = 16 << 10
	// identityLife is how long an identity is believed after the question was sent: an account, or the pod that its
	// token is bound to, may be deleted at any time.
	identityLife = time.Minute
	// accessLife is how long a permission is believed.
	accessLife = 30 * time.Second
	// refusalLife is how long a refusal is believed. It is short because users try again once they got access.
	refusalLife = 10 * time.Second
	// staleLife is how long identities and permissions are believed while the API server does not answer.
	staleLife = time.Hour
)

// ErrUnavailable means that the API server did not answer a review.
var ErrUnavailable = errors.New("no answer from the Kubernetes API")

// Reviewer asks the API server who a token belongs to, and what an identity may do. It caches answers: identities for a
// minute, permissions for 30 seconds, refusals for 10 seconds; while the API server does not answer, identities and
// permissions for an hour. No answer outlives its token. It logs refused tokens and failed questions. Make one with
// [Open] or [NewReviewer]. It is safe for concurrent use.
type Reviewer struct {
	client     *kube.Client
	audience   string
	log        zerolog.Logger
	identities *cache[identity]
	accesses   *cache[access]
}

// identity is the owner of a token, or why the token is refused.
type identity struct {
	user authenticationv1.UserInfo
	why  string // empty: the token is accepted
}

// access says whether an action is allowed, and why.
type access struct {
	allowed bool
	reason  string
}

// NewReviewer makes a Reviewer for tokens of this audience. The client needs the right to create TokenReviews, and for
// Access SubjectAccessReviews.
func NewReviewer(client *kube.Client, audience string, log zerolog.Logger) *Reviewer {
	return &Reviewer{client: client, audience: audience, log: log,
		identities: newCache[identity](), accesses: newCache[access]()}
}

// Review returns the owner of a token. ok is false if the token is refused; why has the reason, without any part of the
// token. It waits for its turn before it asks about a token of which it has no good answer, and calls done with the
// result; turn may be nil. Errors: ErrUnavailable; that of turn, unchanged.
func (r *Reviewer) Review(ctx context.Context, token string,
	turn func(context.Context) (done func(ok bool, err error), err error)) (
	user authenticationv1.UserInfo, ok bool, why string, err error) {
	key := r.identities.key(token)
	claims, why := readClaims(token)
	if why == "" && !time.Now().Before(claims.end()) {
		why = "it has expired"
	}
	// A token for another service is not for us to show around, also if the API server would not accept it.
	if why == "" && len(claims.Audience) > 0 && !slices.Contains(claims.Audience, r.audience) {
		why = r.otherAudience()
	}
	if why != "" {
		// It is cached, although there was no question to ask, so that a client that tries again does not flood the
		// log.
		if r.identities.refuse(key, identity{why: why}, refusalLife) {
			r.logRefusal(why)
		}
		return user, false, why, nil
	}
	id, err := r.identities.get(ctx, key, turn, func(ctx context.Context) (answer[identity], error) {
		return r.review(ctx, token, claims)
	})
	if busy := (turnError{}); errors.As(err, &busy) {
		return user, false, "", busy.error
	}
	if err != nil {
		return user, false, "", r.unavailable(ctx, r.identities.warningDue, err, token, "cannot review token")
	}
	return id.user, id.why == "", id.why, nil
}

// review is Review without the cache.
func (r *Reviewer) review(ctx context.Context, token string, claims claims) (answer[identity], error) {
	// Lifetimes count from before the question: the account may be deleted while the answer is on its way.
	now := time.Now()
	question := &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{r.audience}}}
	reply, err := r.client.TokenReviews.Create(ctx, question, metav1.CreateOptions{})
	if err != nil {
		return answer[identity]{}, err
	}
	why, status := "", reply.Status
	switch {
	case !status.Authenticated && !slices.Contains(claims.Audience, r.audience):
		why = r.otherAudience()
	case !status.Authenticated:
		why = "the cluster does not know it, or its ServiceAccount or pod was deleted"
	case !slices.Contains(status.Audiences, r.audience): // an authenticator that ignores audiences returns none
		why = "the cluster does not confirm that it was issued for the audience " + r.audience
	case status.User.Username == "":
		why = "the cluster has no name for its owner"
	}
	if why != "" {
		r.logRefusal(why)
		return answer[identity]{value: identity{why: why}, fresh: time.Now().Add(refusalLife)}, nil
	}
	return answer[identity]{value: identity{user: status.User}, good: true,
		fresh: earlier(now.Add(identityLife), claims.end()), stale: earlier(now.Add(staleLife), claims.end())}, nil
}

func (r *Reviewer) otherAudience() string {
	return fmt.Sprintf("it was not issued for the audience %s (kubectl create token NAME --audience=%s)", r.audience,
		r.audience)
}

// Access reports whether an identity may do something to a repository, and the reason, for people. It asks whether the
// verb (get to pull, update to push, delete) is allowed on the object of this name and namespace, of resource
// repositories in group trow.io. Without a namespace the object is cluster-wide; without a name it is all of them.
// Error: ErrUnavailable.
func (r *Reviewer) Access(ctx context.Context, user authenticationv1.UserInfo, verb, namespace, repository string) (
	allowed bool, reason string, err error) {
	who, err := json.Marshal(user)
	if err != nil {
		return false, "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	key := r.accesses.key(string(who), verb, namespace, repository)
	a, err := r.accesses.get(ctx, key, nil, func(ctx context.Context) (answer[access], error) {
		return r.access(ctx, user, verb, namespace, repository)
	})
	if err != nil {
		return false, "", r.unavailable(ctx, r.accesses.warningDue, err, "", "cannot review access")
	}
	return a.allowed, a.reason, nil
}

// access is Access without the cache.
func (r *Reviewer) access(ctx context.Context, user authenticationv1.UserInfo, verb, namespace, name string) (
	answer[access], error) {
	now := time.Now()
	question := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: map[string]authorizationv1.ExtraValue{},
		ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: verb,
			Group: AccessGroup, Version: "*", Resource: AccessResource, Name: name}}}
	for key, values := range user.Extra {
		question.Spec.Extra[key] = authorizationv1.ExtraValue(values)
	}
	reply, err := r.client.SubjectAccessReviews.Create(ctx, question, metav1.CreateOptions{})
	if err != nil {
		return answer[access]{}, err
	}
	status := reply.Status
	if status.Allowed && !status.Denied {
		return answer[access]{value: access{true, status.Reason}, good: true,
			fresh: now.Add(accessLife), stale: now.Add(staleLife)}, nil
	}
	return answer[access]{value: access{false, refusal(user.Username, verb, namespace, name, status.Reason)},
		fresh: time.Now().Add(refusalLife)}, nil
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

func (r *Reviewer) logRefusal(why string) {
	r.log.Info().Str(zerolog.ErrorFieldName, why).Msg("ServiceAccount token refused")
}

// unavailable returns why there is no answer, and logs it with this message if due says so.
func (r *Reviewer) unavailable(ctx context.Context, due func() bool, err error, token, message string) error {
	err = reasonOf(err, token)
	// That a client has gone says nothing about the API server.
	if ctx.Err() == nil && due() {
		r.log.Warn().Err(err).Msg(message)
	}
	return err
}

// reasonOf turns an error of the client into ErrUnavailable. The API server may repeat the question, with the token, in
// its message, so only the code of a status is passed on.
func reasonOf(err error, token string) error {
	var status apierrors.APIStatus
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w: the server has no right to ask; apply the manifest again, made by trow manifest with "+
			"the same settings (its ClusterRole)", ErrUnavailable)
	case errors.As(err, &status):
		return fmt.Errorf("%w: it answered %d %s", ErrUnavailable, status.Status().Code, status.Status().Reason)
	}
	text := err.Error()
	if token != "" {
		text = strings.ReplaceAll(text, token, "(the token)")
	}
	return fmt.Errorf("%w: %.300s", ErrUnavailable, text)
}

// far is the life of a token that names no end: longer than any answer is cached.
const far = 24 * time.Hour

// claims are what a token says about itself (RFC 7519). They are not verified here, so they may shorten the use of an
// answer, but never lengthen it.
type claims struct{ jwt.RegisteredClaims }

// readClaims returns the claims of a token, or why it has none. A text that is not a JWT is not sent to the API server:
// an authenticator for other tokens ignores audiences.
func readClaims(token string) (c claims, why string) {
	if len(token) > maxToken {
		return c, fmt.Sprintf("it has more than %d bytes", maxToken)
	}
	if _, _, err := jwt.NewParser().ParseUnverified(token, &c); err != nil {
		return c, "it is not a JWT, as ServiceAccount tokens are"
	}
	return c, ""
}

// end returns when the token expires.
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
