package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	lru "github.com/hashicorp/golang-lru/v2"

	"trow/registry/namespace"
)

// This file is about requests that are meant for another registry, of which this one is a mirror, and about the
// repositories below f/, which hold the content of other registries.
//
// Clients may send such a request with the credentials that they have for the other registry: containerd does so for
// docker.io. So credentials that are not valid here count as none. They are not logged, are not sent to the Kubernetes
// API, and are checked under a throttle of their own, so that they do not block logins. The realm in the challenge has
// the namespace, so that the request to the token endpoint is recognized as well.

// namespaceKey is the key of the mark that ForNamespace makes.
type namespaceKey struct{}

// ForNamespace marks a request as meant for another registry, whose host is in the canonical form of package namespace.
func ForNamespace(ctx context.Context, host string) context.Context {
	return context.WithValue(ctx, namespaceKey{}, host)
}

// namespaceOf returns the registry that a request is meant for; empty: this one.
func namespaceOf(ctx context.Context) string {
	host, _ := ctx.Value(namespaceKey{}).(string)
	return host
}

// realmQuery returns what follows the token endpoint in the realm for a request.
func realmQuery(r *http.Request) string {
	if host := namespaceOf(r.Context()); host != "" {
		return "?ns=" + url.QueryEscape(host)
	}
	return ""
}

// forToken returns a request to the token endpoint with the mark of [ForNamespace] if its Host, or the ns of its realm,
// names another registry.
func (g *Guard) forToken(r *http.Request) *http.Request {
	host, ok := g.options.Namespaces.Site(r.Host)
	if !ok {
		var err error
		if host, err = namespace.Host(r.URL.Query().Get("ns")); err != nil {
			return r
		}
	}
	return r.WithContext(ForNamespace(r.Context(), host))
}

// renamed returns the names here that a scope's repository may have. Docker asks for a token with the name in the path
// that it uses, whatever the challenge says. At a host that stands for another registry, that is not the local name. It
// may be another spelling below f/, such as f/docker.io/nginx; what that means only a request can say, because a
// repository of an earlier version may have exactly that name.
func (g *Guard) renamed(r *http.Request, repo string) []string {
	names := g.options.Namespaces
	if upstream, ok := names.Site(r.Host); ok {
		if here, err := names.Here(upstream, repo); err == nil {
			return []string{here}
		}
	}
	if n, ok := names.Upstream(repo); ok {
		if local, err := names.Local(n); err == nil && local != repo {
			return []string{repo, local}
		}
	}
	return []string{repo}
}

// maxStrangers bounds the remembered credentials, because clients can send any number.
const maxStrangers = 4096

// strangers remembers keys of credentials, on requests for other registries, that are not valid here, until the users
// change: a node sends them with each pull, and a comparison with the hash of a password takes long by design.
type strangers struct {
	*lru.Cache[[32]byte, struct{}]
}

func newStrangers() strangers {
	c, err := lru.New[[32]byte, struct{}](maxStrangers)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return strangers{c}
}

// stranger returns the identity of a request for another registry whose credentials are not valid here, or could not be
// compared because too many were: that of the certificate of its connection, or anonymous. Errors: any other err.
func (g *Guard) stranger(r *http.Request, err error) (*Identity, error) {
	if errors.Is(err, ErrUnauthorized) || errors.Is(err, ErrBusy) {
		return g.certified(r), nil
	}
	return nil, err
}

// errForeign refuses a token of another issuer on a request for another registry: it is not sent to the Kubernetes API.
var errForeign = fmt.Errorf("%w: not a token of this registry", ErrUnauthorized)

// guarded reports whether an action on a repository needs [Mirror].
func guarded(repo string, a Action) bool {
	return a == Mirror || namespace.Within(repo) && (a == Push || a == Create || a == Delete)
}

// judgeMirror decides who may change repositories below f/. Requests with ?ns= are answered from there, so such a
// change can replace images for the whole cluster. So no right to push is enough, not even that of the user who may do
// everything: a rule, or the robot's own actions, must name mirror.
func (p *Policy) judgeMirror(who *Identity, repo string) Verdict {
	switch {
	case who.socket:
		return Verdict{Allowed: true, on: onSocket}
	case who.Anonymous():
		return Verdict{on: onMirror}
	case who.robot != nil && !who.robot.may(repo, Mirror):
		return Verdict{on: onRobot}
	}
	for i := range p.rules {
		if p.rules[i].decides(who, repo, Mirror) {
			return Verdict{Allowed: !p.rules[i].forbids, Rule: i + 1, on: onRule}
		}
	}
	if who.robot != nil {
		return Verdict{Allowed: true, on: onRobot}
	}
	return Verdict{on: onMirror}
}

// Readers returns who may read a repository below f/, and the upstream by which that is decided. ok is false if the
// repository has no upstream; then the rules decide. It is called for each decision, and must not block.
type Readers func(repo string) (who Who, upstream string, ok bool)

// readers is Readers for any repository; ok is false for one that is not below f/.
func (p *Policy) readers(repo string) (who Who, upstream string, ok bool) {
	if p.Readers == nil || !namespace.Within(repo) {
		return nil, "", false
	}
	return p.Readers(repo)
}

// judgeRead decides who may read held content of an upstream. Only readers can allow it: an upstream with a login may
// have private content, and a rule that lets everybody pull from everywhere is not meant for that. A rule that forbids
// still does, and so do the actions of a robot that do not include pull.
func (p *Policy) judgeRead(who *Identity, repo string, readers Who, upstream string) Verdict {
	switch {
	case who.owner:
		return Verdict{Allowed: true, on: onOwner}
	case who.socket:
		return Verdict{Allowed: true, on: onSocket}
	case who.robot != nil && !who.robot.may(repo, Pull):
		return Verdict{on: onRobot}
	}
	for i := range p.rules {
		if p.rules[i].decides(who, repo, Pull) {
			if p.rules[i].forbids {
				return Verdict{Rule: i + 1, on: onRule}
			}
			break
		}
	}
	return Verdict{Allowed: readers.Match(who), on: onReaders, upstream: upstream}
}

// mirrorable reports whether a rule or a robot permits changes below f/, so that a challenge can lead to a login that
// may.
func (s *state) mirrorable() bool {
	for _, r := range s.policy.rules {
		if !r.forbids && includes(r.may, Mirror) {
			return true
		}
	}
	for _, r := range s.robots.byName {
		if includes(r.Actions, Mirror) {
			return true
		}
	}
	return false
}

// whyMirror explains a refusal of judgeMirror.
const whyMirror = "repositories below f/ hold what other registries hold, for all who pull from those through this " +
	"one; only trow import, and identities that a rule gives mirror, may write there"

// deniedMirror returns the error for a change below f/ that judgeMirror does not allow.
func deniedMirror(who *Identity, repo string, a Action) error {
	return fmt.Errorf("%w: %s may not %s to %.255s: %s; push to another repository", ErrDenied, who.Label(), a, repo,
		whyMirror)
}
