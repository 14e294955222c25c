package auth

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// issuer is the issuer of our tokens. Clusters have URLs as issuers.
	issuer = "trow"
	// tokenLife is how long a token is valid. A request that started in time is finished, however long it takes.
	tokenLife = 5 * time.Minute
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
// the robot.
func (s *state) issue(who *Identity, host string, all []access, now time.Time) (
	token string, expires time.Time, err error) {
	key := &s.keys[len(s.keys)-1]
	expires = now.Add(tokenLife)
	c := claims{Cluster: who.Cluster, Groups: who.Groups, Cert: who.cert, Orgs: who.orgs, Access: all}
	c.Issuer, c.Subject, c.Audience = issuer, who.Name, jwt.ClaimStrings{host}
	if r := who.robot; r != nil {
		c.Robot = r.id
		if !r.Expires.IsZero() && r.Expires.Before(expires) {
			expires = r.Expires
		}
	}
	c.IssuedAt, c.NotBefore, c.ExpiresAt = jwt.NewNumericDate(now), jwt.NewNumericDate(now), jwt.NewNumericDate(expires)
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
	t.Header["kid"] = key.ID
	if token, err = t.SignedString(key.private()); err == nil && len(token) > maxToken {
		err = errGroups
	}
	return token, expires, err
}

// parser accepts tokens as we sign them, and no others.
var parser = jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithIssuer(issuer),
	jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(leeway), jwt.WithStrictDecoding())

// verify checks a token of ours and returns what it proves. Errors: errBadToken.
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
	who.grant = grantOf(c.Access) // who is a copy
	return proof{who: who, aud: c.Audience[0], until: c.ExpiresAt.Time}, nil
}

// holder returns the identity that a token was issued to, as a copy. Errors: the robot or user does not exist any more.
func (s *state) holder(c *claims, now time.Time) (*Identity, error) {
	switch {
	case c.Subject == "":
		return &Identity{}, nil // not anonymous itself, since it gets a grant
	case c.Cluster:
		return &Identity{Name: c.Subject, Groups: c.Groups, Cluster: true}, nil
	case c.Cert:
		return &Identity{Name: c.Subject, cert: true, orgs: c.Orgs}, nil
	case c.Robot != "":
		name, _ := strings.CutPrefix(c.Subject, robotPrefix)
		if r := s.robots.byName[name]; r != nil && r.id == c.Robot && !r.expired(now) {
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
