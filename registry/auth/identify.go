package auth

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// maxHeader bounds an Authorization header: a token that is encoded once more as a password.
const maxHeader = maxToken*4/3 + 1<<10

// Identify implements Authorizer. It is the only place where a request gets its identity. Credentials in the header
// take precedence over a certificate.
func (g *Guard) Identify(r *http.Request) (*Identity, error) {
	if bySocket(r.Context()) {
		return Socket, nil
	}
	who, err := g.identify(r)
	if err != nil && namespaceOf(r.Context()) != "" {
		who, err = g.stranger(r, err)
	}
	if err != nil {
		g.loginFailed(r, err)
		return who, err
	}
	return g.here(r, who), nil
}

func (g *Guard) identify(r *http.Request) (*Identity, error) {
	headers := r.Header["Authorization"]
	s := g.current()
	if !s.logins {
		var err error
		if s, err = g.anybody(r.Context(), s, len(headers) == 1 && robotic(headers[0])); err != nil {
			return nil, err
		}
	}
	if !s.logins { // no credentials are valid; some clients send some all the same
		return anonymous, nil
	}
	switch {
	case len(headers) == 0:
		return g.certified(r), nil
	case len(headers) > 1: // a proxy and we might choose different ones
		return nil, fmt.Errorf("%w: more than one Authorization header", ErrUnauthorized)
	case len(headers[0]) > maxHeader:
		return nil, fmt.Errorf("%w: the Authorization header is too long", ErrUnauthorized)
	}
	scheme, rest, _ := strings.Cut(headers[0], " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return g.bearer(r, s, strings.TrimLeft(rest, " "))
	case strings.EqualFold(scheme, "Basic"):
		return g.basic(r, s, strings.TrimLeft(rest, " "))
	}
	return nil, fmt.Errorf("%w: unknown scheme; want Basic or Bearer", ErrUnauthorized)
}

// bearer returns the identity of a token: one of ours, a robot's secret, or one of the cluster.
func (g *Guard) bearer(r *http.Request, s *state, token string) (*Identity, error) {
	if len(token) > maxToken {
		return nil, errBadToken
	}
	now := time.Now()
	robot, s, err := g.robot(r.Context(), s, token, now)
	if err != nil {
		return nil, err
	}
	if robot != nil {
		return robot.who, nil
	}
	if foreign(token) && namespaceOf(r.Context()) != "" {
		return nil, errForeign
	}
	if g.options.Reviewer != nil && foreign(token) {
		return g.account(r.Context(), Address(r), token)
	}
	key := sumOf(&g.secret, schemeBearer, token)
	p, ok := s.tokens.get(key, now)
	if !ok {
		if p, err = g.verify(r.Context(), s, key, token, now); err != nil {
			return nil, err
		}
	}
	// The token is for the host that the client named when it got it. Usually it is spelled in the same way now; if
	// not, it may still be the same host.
	if p.aud == r.Host {
		return p.who, nil
	}
	if _, host := g.base(r); p.aud != host {
		return nil, errBadToken
	}
	return p.who, nil
}

// basic returns the identity of a user name and a password.
func (g *Guard) basic(r *http.Request, s *state, encoded string) (*Identity, error) {
	key := sumOf(&g.secret, schemeBasic, encoded)
	if p, ok := s.users.known.get(key, time.Time{}); ok {
		return p.who, nil
	}
	if p, ok := s.tokens.get(key, time.Now()); ok {
		return p.who, nil
	}
	b, err := base64.StdEncoding.DecodeString(encoded)
	name, password, ok := strings.Cut(string(b), ":")
	if err != nil || !ok {
		return nil, fmt.Errorf("%w: invalid Basic credentials", ErrUnauthorized)
	}
	return g.password(r.Context(), s, Address(r), key, name, password)
}

// errWrong does not reveal which of the two is wrong.
var errWrong = fmt.Errorf("%w: user or password is wrong", ErrUnauthorized)

// password returns the identity of a password that is a secret by itself, with any user name, or else of the user.
func (g *Guard) password(ctx context.Context, s *state, from netip.Addr, key [32]byte, name, password string) (
	*Identity, error) {
	now := time.Now()
	robot, s, err := g.robot(ctx, s, password, now)
	if err != nil {
		return nil, err
	}
	if robot != nil {
		s.tokens.Add(key, proof{who: robot.who, until: robot.Expires})
		return robot.who, nil
	}
	elsewhere, throttle := namespaceOf(ctx) != "", g.throttle
	if elsewhere {
		if foreign(password) {
			return nil, errForeign
		}
		if s.users.strangers.Contains(key) {
			return nil, errWrong
		}
		throttle = g.elsewhere
	}
	if g.options.Reviewer != nil && foreign(password) {
		return g.account(ctx, from, password)
	}
	if len(s.users.list) == 0 || len(name) > maxUserName {
		return nil, errWrong
	}
	done, err := throttle.enter(ctx, name, from)
	if err != nil {
		return nil, err
	}
	who, ok := s.users.login(key, name, password, now)
	if ok {
		done(wasRight)
		return who, nil
	}
	if elsewhere {
		s.users.strangers.Add(key, struct{}{})
	}
	done(wasWrong)
	return nil, s.wrong(name, password)
}
