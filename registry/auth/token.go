package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// issuer is the issuer of our tokens. Clusters have URLs as issuers.
	issuer = "trow"
	// tokenLife and pushTokenLife are the defaults of the settings. A request that started in time is finished, however
	// long it takes. But some clients get a token before they send a layer, and a proxy in between may keep the layer
	// until it has all of it: then the request starts when the token is old.
	tokenLife     = 5 * time.Minute
	pushTokenLife = time.Hour
	// minTokenLife is what clients assume (Docker's token specification); maxTokenLife is what keyOverlap allows.
	minTokenLife = time.Minute
	maxTokenLife = 24 * time.Hour
	// leeway is by how much clocks may differ. There is only one, ours, but it may have been corrected.
	leeway = 5 * time.Second
	// maxToken bounds a token. Scopes may take half of it, the groups of an account the rest.
	maxToken = 8 << 10
	// maxAccess bounds the scopes in a token, in bytes of JSON.
	maxAccess = 3 << 10
)

// access is a scope of a token, in the form of Docker's token specification.
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []Action `json:"actions"`
}

// claims are the content of a token.
type claims struct {
	jwt.RegisteredClaims
	Robot   string   `json:"robot,omitempty"`   // the robot's id
	Cluster bool     `json:"cluster,omitempty"` // the subject is an account of the cluster
	Groups  []string `json:"groups,omitempty"`  // the account's groups
	Cert    bool     `json:"cert,omitempty"`    // the subject is the holder of a certificate
	Orgs    []string `json:"orgs,omitempty"`    // the certificate's organizations
	Access  []access `json:"access"`
	Proof   []byte   `json:"proof,omitempty"` // of the user's password: see user.proof
}

// grant is what the scopes of a token allow.
type grant struct {
	repos   map[string][]Action
	catalog bool
}

// has reports whether one of the scopes allows that.
func (g *grant) has(repo string, a Action) bool {
	switch a {
	case Catalog:
		return g.catalog
	case Admin, Metrics: // there is no scope for these
		return false
	}
	return includes(g.repos[repo], a)
}

func grantOf(all []access) *grant {
	g := &grant{repos: map[string][]Action{}}
	for _, a := range all {
		switch a.Type {
		case "repository":
			g.repos[a.Name] = append(g.repos[a.Name], a.Actions...)
		case "registry":
			g.catalog = g.catalog || a.Name == "catalog"
		}
	}
	return g
}

// errGroups: the token would not fit into a header.
var errGroups = errors.New("the account has too many groups for a token; use Basic credentials")

// issue makes a token for who, valid at that host, and returns when it expires. A robot's token expires no later than
// the robot. Errors: errGroups; ErrUnavailable without a key.
func (s *state) issue(who *Identity, host string, all []access, now time.Time) (
	token string, expires time.Time, err error) {
	key := s.keys.signer(now)
	if key == nil { // it is made when the records are loaded; where that failed, the log says why
		return "", expires, fmt.Errorf("%w: there is no key to sign tokens with", ErrUnavailable)
	}
	expires = now.Add(s.life(who, all))
	c := claims{Cluster: who.Cluster, Groups: who.Groups, Cert: who.cert, Orgs: who.orgs, Access: all}
	c.Issuer, c.Subject, c.Audience = issuer, who.Name, jwt.ClaimStrings{host}
	if r := who.robot; r != nil {
		c.Robot = r.id
		if !r.Expires.IsZero() && r.Expires.Before(expires) {
			expires = r.Expires
		}
	} else if u, ok := s.users.list[who.Name]; ok && !who.Cluster && !who.cert {
		c.Proof = u.proof(key)
	}
	c.IssuedAt, c.NotBefore, c.ExpiresAt = jwt.NewNumericDate(now), jwt.NewNumericDate(now), jwt.NewNumericDate(expires)
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
	t.Header["kid"] = key.ID
	if token, err = t.SignedString(key.private()); err == nil && len(token) > maxToken {
		err = errGroups
	}
	return token, expires, err
}

// life is how long a token for who with these scopes is valid. One with push lives longer: robots and users are looked
// up at each request, so that one who was removed is out at once. Of accounts of the cluster and holders of
// certificates, no more is known than what was true when the token was issued.
func (s *state) life(who *Identity, all []access) time.Duration {
	pushes := slices.ContainsFunc(all, func(a access) bool {
		return slices.Contains(a.Actions, Push) || slices.Contains(a.Actions, Create)
	})
	if pushes && !who.Cluster && !who.cert {
		return max(s.lives.push, s.lives.other)
	}
	return s.lives.other
}

// lives are the settings token-lifetime and push-token-lifetime.
type lives struct{ other, push time.Duration }

// parser accepts tokens as we sign them, and no others.
var parser = jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithIssuer(issuer),
	jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(leeway), jwt.WithStrictDecoding())

// verify checks a token that is not remembered and remembers what it proves. A key or robot that is not known is
// confirmed with the journal: another replica may have made it a moment ago. Errors: errBadToken, ErrUnavailable, that
// of ctx.
func (g *Guard) verify(ctx context.Context, s *state, key [sha256.Size]byte, token string, now time.Time) (
	proof, error) {
	p, err := s.verify(token, now)
	if errors.Is(err, errMiss) {
		if s, err = g.confirmed(ctx, s); err != nil {
			return proof{}, err
		}
		if p, err = s.verify(token, now); errors.Is(err, errMiss) {
			err = errBadToken
		}
	}
	if err != nil {
		return proof{}, err
	}
	s.tokens.Add(key, p)
	return p, nil
}

// errMiss: a token is of a key or a robot that is not known.
var errMiss = errors.New("unknown key or robot")

// verify checks a token of ours and returns what it proves. Errors: errBadToken, errMiss.
func (s *state) verify(token string, now time.Time) (proof, error) {
	var c claims
	var key *signingKey
	_, err := parser.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) {
		if key = s.keys.find(t.Header["kid"]); key == nil {
			return nil, errMiss
		}
		return key.private().Public().(ed25519.PublicKey), nil
	})
	if errors.Is(err, errMiss) {
		return proof{}, errMiss
	}
	if err != nil || len(c.Audience) != 1 {
		return proof{}, errBadToken
	}
	who, err := s.holder(&c, key, now)
	if err != nil {
		return proof{}, err
	}
	who.grant = grantOf(c.Access) // who is a copy
	return proof{who: who, aud: c.Audience[0], until: c.ExpiresAt.Time}, nil
}

// holder returns the identity that a token was issued to, as a copy. Errors: errMiss for a robot that does not exist,
// or that is another one of the same name; errBadToken: the robot has expired, or the user does not exist any more or
// has another password.
func (s *state) holder(c *claims, key *signingKey, now time.Time) (*Identity, error) {
	switch {
	case c.Subject == "":
		return &Identity{}, nil // not anonymous itself, since it gets a grant
	case c.Cluster:
		return &Identity{Name: c.Subject, Groups: c.Groups, Cluster: true}, nil
	case c.Cert:
		return &Identity{Name: c.Subject, cert: true, orgs: c.Orgs}, nil
	case c.Robot != "":
		name, _ := strings.CutPrefix(c.Subject, robotPrefix)
		r := s.robots.byName[name]
		if r == nil || r.id != c.Robot {
			return nil, errMiss
		}
		if !r.expired(now) {
			who := *r.who
			return &who, nil
		}
	default:
		if u, ok := s.users.list[c.Subject]; ok && hmac.Equal(c.Proof, u.proof(key)) {
			who := *u.who
			return &who, nil
		}
	}
	return nil, errBadToken
}

// foreign reports whether a password is a token of another issuer: three parts, of which the middle one is an object
// with another issuer than ours, or none.
func foreign(password string) bool {
	parts := strings.Split(password, ".")
	if len(password) > maxToken || len(parts) != 3 || parts[2] == "" {
		return false
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return false
	}
	var c struct {
		Issuer *string `json:"iss"`
	}
	return json.Unmarshal(b, &c) == nil && (c.Issuer == nil || *c.Issuer != issuer)
}
