package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/http"
	"sync/atomic"

	"golang.org/x/crypto/bcrypt"
)

// Level says what may be done without a login. A higher one includes the lower ones.
type Level int

// The levels.
const (
	None Level = iota
	ReadOnly
	ReadWrite
)

// ParseLevel understands none, pull and push.
func ParseLevel(s string) (Level, error) {
	switch s {
	case "none":
		return None, nil
	case "pull":
		return ReadOnly, nil
	case "push":
		return ReadWrite, nil
	}
	return None, fmt.Errorf("%.40q is none of none, pull, push", s)
}

// Basic is the first lock: one user with a password (RFC 7617), and a level for everybody else.
type Basic struct {
	user            string
	hash            []byte // bcrypt; nil: there is no user
	anonymous       Level
	anonymousDelete bool

	secret   []byte                 // keys the memory of what was verified
	verified atomic.Pointer[[]byte] // MAC of the credentials that bcrypt has accepted
	turns    chan struct{}          // bounds the bcrypt comparisons at once
}

// BasicOptions are what a Basic is made of.
type BasicOptions struct {
	User, Password  string // no user: nobody can log in
	Anonymous       Level
	AnonymousDelete bool // deleting needs no login where pushing needs none; for loopback listeners
}

// NewBasic hashes the password and forgets it. Errors: a password without a user or the reverse, a colon in
// the user's name (RFC 7617 cannot carry it), a level that leaves nobody in.
func NewBasic(o BasicOptions) (*Basic, error) {
	b := &Basic{user: o.User, anonymous: o.Anonymous, anonymousDelete: o.AnonymousDelete,
		secret: make([]byte, 32), turns: make(chan struct{}, 1)}
	rand.Read(b.secret) // never fails
	switch {
	case o.User == "" && o.Password != "":
		return nil, fmt.Errorf("a password needs a user")
	case o.User != "" && o.Password == "":
		return nil, fmt.Errorf("user %q needs a password", o.User)
	case o.User == "" && o.Anonymous == None:
		return nil, fmt.Errorf("nothing is allowed without a login, and there is no user who could log in")
	case o.User == "":
		return b, nil
	}
	for _, c := range o.User {
		if c == ':' || c < ' ' {
			return nil, fmt.Errorf("user %q: a name has no colon and no control characters", o.User)
		}
	}
	var err error
	b.hash, err = bcrypt.GenerateFromPassword(prehash(o.Password), cost)
	return b, err
}

// cost makes a comparison take about 60 ms. Tests lower it.
var cost = bcrypt.DefaultCost

// prehash makes passwords of any length and content fit for bcrypt, which reads 72 bytes up to a NUL.
func prehash(password string) []byte {
	sum := sha256.Sum256([]byte(password))
	return base64.StdEncoding.AppendEncode(nil, sum[:])
}

// Challenge implements Authorizer.
func (b *Basic) Challenge(*http.Request, string, Action) string {
	return `Basic realm="trow", charset="UTF-8"`
}

// Authorize implements Authorizer.
func (b *Basic) Authorize(r *http.Request, _ string, a Action) (string, error) {
	if b.hash == nil {
		return "", b.open(a)
	}
	if len(r.Header["Authorization"]) > 1 { // which one counts would depend on who reads it
		return "", fmt.Errorf("%w: more than one Authorization header", ErrUnauthorized)
	}
	user, password, given := r.BasicAuth()
	if !given {
		if r.Header.Get("Authorization") != "" {
			return "", fmt.Errorf("%w: only Basic credentials are understood", ErrUnauthorized)
		}
		return "", b.anonymously(a)
	}
	if !b.verify(r, user, password) {
		return "", fmt.Errorf("%w: user or password is wrong", ErrUnauthorized)
	}
	return user, nil
}

// open decides where there is no user: credentials, which some clients send all the same, mean nothing.
func (b *Basic) open(a Action) error {
	if err := b.anonymously(a); err != nil && a != Login {
		return fmt.Errorf("%w: %s needs a login, and the registry has no user (start it with --user)", ErrDenied, a)
	}
	return nil
}

// anonymously decides for a request without credentials.
func (b *Basic) anonymously(a Action) error {
	switch {
	case a == Pull && b.anonymous >= ReadOnly,
		a == Catalog && b.anonymous >= ReadOnly,
		a == Push && b.anonymous >= ReadWrite,
		a == Delete && b.anonymous >= ReadWrite && b.anonymousDelete:
		return nil
	}
	// Login as well: clients take the answer to GET /v2/ for the whole registry, and those that are told 200
	// never bring credentials again.
	return ErrUnauthorized
}

// verify compares credentials. Those that bcrypt has accepted once are recognized by their MAC; others cost
// its full price, one at a time, so that guessing is slow and does not take the processor.
func (b *Basic) verify(r *http.Request, user, password string) bool {
	mac := b.mac(user, password)
	if known := b.verified.Load(); known != nil && hmac.Equal(*known, mac) {
		return true
	}
	select {
	case b.turns <- struct{}{}:
		defer func() { <-b.turns }()
	case <-r.Context().Done():
		return false
	}
	userOK := subtle.ConstantTimeCompare([]byte(user), []byte(b.user)) == 1
	passwordOK := bcrypt.CompareHashAndPassword(b.hash, prehash(password)) == nil
	if userOK && passwordOK {
		b.verified.Store(&mac)
	}
	return userOK && passwordOK
}

func (b *Basic) mac(user, password string) []byte {
	h := hmac.New(sha256.New, b.secret)
	fmt.Fprintf(h, "%d:%s%s", len(user), user, password)
	return h.Sum(nil)
}
