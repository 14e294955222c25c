package auth

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// issuer is who signs our tokens. No cluster calls itself so.
	issuer = "trow"
	// tokenLife is how long a token is good for: a request that began in time is finished, however long it takes.
	tokenLife = 5 * time.Minute
	// leeway is what clocks may differ by; the only one is ours, which somebody may have put right.
	leeway = 5 * time.Second
	// maxToken bounds a token: half of it is what the access may take, the rest is for an account's groups.
	maxToken = 8 << 10
	// maxAccess bounds the scopes in a token, in bytes of JSON.
	maxAccess = 3 << 10
)

// access is what a token is good for, as Docker's token specification has it.
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []Action `json:"actions"`
}

// claims are what a token says.
type claims struct {
	jwt.RegisteredClaims
	Robot   string   `json:"robot,omitempty"`   // which of that name
	Cluster bool     `json:"cluster,omitempty"` // an account of the cluster
	Groups  []string `json:"groups,omitempty"`  // its groups
	Cert    bool     `json:"cert,omitempty"`    // the holder of a certificate
	Orgs    []string `json:"orgs,omitempty"`    // its organizations
	Access  []access `json:"access"`
}

// grant is what a token is good for.
type grant struct {
	repos   map[string][]Action
	catalog bool
}

func (g *grant) has(repo string, a Action) bool {
	switch a {
	case Catalog:
		return g.catalog
	case Admin, Metrics: // no scope is for that
		return false
	}
	return slices.Contains(g.repos[repo], a)
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

// errTooMany: a token that would not fit into a header.
var errTooMany = errors.New("the account is in too many groups for a token; use Basic credentials")

// issue makes a token for who, good at that host, and says when it ends.
func (s *state) issue(who *Identity, host string, all []access, now time.Time) (token string, ends time.Time, err error) {
	key := &s.keys[len(s.keys)-1]
	ends = now.Add(tokenLife)
	c := claims{RegisteredClaims: jwt.RegisteredClaims{Issuer: issuer, Subject: who.Name, Audience: jwt.ClaimStrings{host}},
		Cluster: who.Cluster, Groups: who.Groups, Cert: who.cert, Orgs: who.orgs, Access: all}
	if r := who.robot; r != nil {
		c.Robot = r.id
		if !r.Expires.IsZero() && r.Expires.Before(ends) {
			ends = r.Expires
		}
	}
	c.IssuedAt, c.NotBefore, c.ExpiresAt = jwt.NewNumericDate(now), jwt.NewNumericDate(now), jwt.NewNumericDate(ends)
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
	t.Header["kid"] = key.ID
	if token, err = t.SignedString(key.private()); err == nil && len(token) > maxToken {
		err = errTooMany
	}
	return token, ends, err
}

// parser takes what we sign, and nothing else.
var parser = jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithIssuer(issuer),
	jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(leeway), jwt.WithStrictDecoding())

// verify tells what a token of ours proves.
func (s *state) verify(token string, now time.Time) (proof, error) {
	var c claims
	_, err := parser.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) {
		for i := range s.keys {
			if s.keys[i].ID == t.Header["kid"] {
				return s.keys[i].private().Public().(ed25519.PublicKey), nil
			}
		}
		return nil, errBadToken
	})
	if err != nil || len(c.Audience) != 1 {
		return proof{}, errBadToken
	}
	who, err := s.holder(&c, now)
	if err != nil {
		return proof{}, err
	}
	who.grant = grantOf(c.Access)
	return proof{who: who, aud: c.Audience[0], until: c.ExpiresAt.Time}, nil
}

// holder finds whom a token was given to. Who has gone since has nothing of it.
func (s *state) holder(c *claims, now time.Time) (*Identity, error) {
	switch {
	case c.Subject == "":
		return &Identity{}, nil
	case c.Cluster:
		return &Identity{Name: c.Subject, Groups: c.Groups, Cluster: true}, nil
	case c.Cert:
		return &Identity{Name: c.Subject, cert: true, orgs: c.Orgs}, nil
	case c.Robot != "":
		name, _ := strings.CutPrefix(c.Subject, robotPrefix)
		if r := s.robots.byName[name]; r != nil && r.id == c.Robot && !r.ended(now) {
			who := *r.who
			return &who, nil
		}
	default:
		if u, ok := s.users.list[c.Subject]; ok {
			who := *u.who
			return &who, nil
		}
	}
	return nil, errBadToken
}

// foreign tells whether a password is a token that somebody else has signed: three parts, the middle one an object whose
// issuer we are not.
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
