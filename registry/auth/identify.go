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

// maxHeader bounds an Authorization header: a token, encoded once more as a password.
const maxHeader = maxToken*4/3 + 1<<10

// Identify implements Authorizer. It is the one place where a request gets its identity. Credentials in its header count
// before a certificate.
func (g *Guard) Identify(r *http.Request) (*Identity, error) {
	if onSocket(r.Context()) {
		return Socket, nil
	}
	who, err := g.identify(r)
	if err != nil {
		g.loginFailed(r, err)
	}
	return who, err
}

func (g *Guard) identify(r *http.Request) (*Identity, error) {
	s := g.state.Load()
	if !s.logins { // credentials, which some clients send all the same, mean nothing
		return nobody, nil
	}
	given := r.Header["Authorization"]
	switch {
	case len(given) == 0:
		return g.certified(r), nil
	case len(given) > 1: // which one counts would depend on who reads it
		return nil, fmt.Errorf("%w: more than one Authorization header", ErrUnauthorized)
	case len(given[0]) > maxHeader:
		return nil, fmt.Errorf("%w: the Authorization header is too long", ErrUnauthorized)
	}
	scheme, rest, _ := strings.Cut(given[0], " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return g.bearer(r, s, strings.TrimLeft(rest, " "))
	case strings.EqualFold(scheme, "Basic"):
		return g.basic(r, s, strings.TrimLeft(rest, " "))
	}
	return nil, fmt.Errorf("%w: only Basic and Bearer credentials are understood", ErrUnauthorized)
}

// bearer takes a token of ours, a robot's secret, a token of the cluster.
func (g *Guard) bearer(r *http.Request, s *state, token string) (*Identity, error) {
	if len(token) > maxToken {
		return nil, errBadToken
	}
	now := time.Now()
	if robot := s.robots.find(token, now); robot != nil {
		return robot.who, nil
	}
	if g.reviewed != nil && foreign(token) {
		return g.reviewed.identity(r.Context(), token, now)
	}
	key := sumOf(&g.secret, token)
	p, ok := s.tokens.get(key, now)
	if !ok {
		var err error
		if p, err = s.verify(token, now); err != nil {
			return nil, err
		}
		s.tokens.put(key, p, now)
	}
	if p.aud == r.Host { // as it was when the token was made; otherwise it may still mean the same
		return p.who, nil
	}
	if _, host := g.base(r); p.aud != host {
		return nil, errBadToken
	}
	return p.who, nil
}

// basic takes a user's name and a password.
func (g *Guard) basic(r *http.Request, s *state, encoded string) (*Identity, error) {
	key := sumOf(&g.secret, encoded)
	if p, ok := s.users.known.get(key, time.Time{}); ok {
		return p.who, nil
	}
	if p, ok := s.tokens.get(key, time.Now()); ok {
		return p.who, nil
	}
	b, err := base64.StdEncoding.DecodeString(encoded)
	name, password, ok := strings.Cut(string(b), ":")
	if err != nil || !ok {
		return nil, fmt.Errorf("%w: these are no Basic credentials", ErrUnauthorized)
	}
	return g.password(r.Context(), s, Address(r), key, name, password)
}

// errWrong says nothing of which of the two it is.
var errWrong = fmt.Errorf("%w: user or password is wrong", ErrUnauthorized)

// password takes what is a secret by itself, whatever the name; or a user's.
func (g *Guard) password(ctx context.Context, s *state, from netip.Addr, key [32]byte, name, password string) (*Identity, error) {
	now := time.Now()
	if robot := s.robots.find(password, now); robot != nil {
		s.tokens.put(key, proof{who: robot.who, until: robot.Expires}, now)
		return robot.who, nil
	}
	if g.reviewed != nil && foreign(password) {
		return g.reviewed.identity(ctx, password, now)
	}
	if len(s.users.list) == 0 || len(name) > maxUserName {
		return nil, errWrong
	}
	done, err := g.throttle.enter(ctx, name, from)
	if err != nil {
		return nil, err
	}
	who, ok := s.users.login(key, name, password, now)
	done(ok)
	if !ok {
		return nil, s.wrong(name)
	}
	return who, nil
}
