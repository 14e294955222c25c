package auth

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"
)

// users can log in with a password. A set never changes, except for what it remembers of verified credentials.
type users struct {
	list  map[string]user
	dummy user // compared in place of users who do not exist
	cost  int  // the highest of all users
	known known
	// strangers are credentials for other registries, as they were sent on requests for those.
	strangers strangers
}

// user has a password.
type user struct {
	who  *Identity
	hash []byte // bcrypt
	cost int
	long bool     // the hash is of the password's SHA-256
	mark [32]byte // changes with the password, and only with it or its hash in the file
}

// proof says in a token that it was issued for the user's password, so that no token outlives that. Without the key
// nothing can be learned from it.
func (u *user) proof(key *signingKey) []byte {
	h := hmac.New(sha256.New, key.Seed)
	h.Write(u.mark[:])
	return h.Sum(nil)[:16]
}

const (
	// maxCost bounds how long a login takes: with 14 it takes a second.
	maxCost = 14
	// maxUserName is far above the length of names that people type.
	maxUserName = 255
)

// ownCost makes a comparison take about 60 ms. Tests lower it.
var ownCost = bcrypt.DefaultCost

// newUsers returns the user of the settings, if there is one, and those of a htpasswd file.
func newUsers(owner *user, htpasswd []byte) (*users, error) {
	u := &users{list: map[string]user{}, cost: bcrypt.MinCost, known: newKnown(),
		strangers: newStrangers()}
	if err := u.read(htpasswd); err != nil {
		return nil, err
	}
	if owner != nil {
		if _, ok := u.list[owner.who.Name]; ok {
			return nil, fmt.Errorf("user %q is also the one of the setting user; remove one of the two", owner.who.Name)
		}
		u.list[owner.who.Name] = *owner
		u.cost = max(u.cost, owner.cost)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), u.cost)
	u.dummy = user{hash: hash, cost: u.cost}
	return u, err
}

// newOwner returns the user who may do everything; it does not keep the password. nil: there is no such user.
func newOwner(name, password string) (*user, error) {
	switch {
	case name == "" && password != "":
		return nil, fmt.Errorf("missing; a password is set, and needs a user")
	case name == "":
		return nil, nil
	case password == "":
		return nil, fmt.Errorf("%q needs a password; set password-file", name)
	}
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	hash, err := bcrypt.GenerateFromPassword(prehash(password), ownCost)
	return &user{who: &Identity{Name: name, owner: true}, hash: hash, cost: ownCost, long: true,
		mark: sha256.Sum256([]byte(password))}, err
}

// checkName validates a user's name. Basic credentials (RFC 7617) cannot contain a colon, and control characters must
// not get into a log.
func checkName(name string) error {
	switch {
	case name == "" || len(name) > maxUserName || !utf8.ValidString(name):
		return fmt.Errorf("invalid name; want 1 to %d bytes of UTF-8", maxUserName)
	case strings.ContainsFunc(name, func(c rune) bool { return c == ':' || c < ' ' || c == 0x7f }):
		return fmt.Errorf("invalid name; want no colon and no control characters")
	}
	return nil
}

// read reads the lines of a htpasswd file: name:hash. It skips empty lines and comments.
func (u *users) read(content []byte) error {
	number := 0
	for line := range bytes.Lines(content) {
		number++
		text := strings.TrimRight(string(line), "\r\n")
		if strings.TrimSpace(text) == "" || strings.HasPrefix(text, "#") {
			continue
		}
		name, hash, _ := strings.Cut(text, ":")
		cost, err := checkHash(hash)
		if err == nil {
			err = checkName(name)
		}
		if _, twice := u.list[name]; err == nil && twice {
			err = fmt.Errorf("user %q appears twice", name)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		u.list[name] = user{who: &Identity{Name: name}, hash: []byte(hash), cost: cost,
			mark: sha256.Sum256([]byte(hash))}
		u.cost = max(u.cost, cost)
	}
	return nil
}

// checkHash accepts only bcrypt: passwords with other kinds of hashes can be guessed by the million.
func checkHash(hash string) (cost int, err error) {
	const length = 60
	prefix := len(hash) > 3 && (hash[:4] == "$2y$" || hash[:4] == "$2b$" || hash[:4] == "$2a$")
	if !prefix || len(hash) != length {
		return 0, fmt.Errorf("want name:hash with a bcrypt hash, as htpasswd -B writes it")
	}
	cost, err = bcrypt.Cost([]byte(hash))
	switch {
	case err != nil:
		return 0, fmt.Errorf("invalid bcrypt hash: %w", err)
	case cost > maxCost:
		return 0, fmt.Errorf("bcrypt cost %d is too high, because a login would take too long; want at most %d", cost,
			maxCost)
	}
	return cost, nil
}

// CheckPassword reports why bcrypt cannot tell a password from others: it reads 72 bytes, and repeats shorter ones
// after a NUL, so that a NUL byte has many equals. It is about users of the htpasswd file; the user of the settings may
// have any password, see prehash.
func CheckPassword(password string) error {
	const max = 72
	switch {
	case len(password) > max:
		return fmt.Errorf("a password of more than %d bytes is not accepted, because bcrypt ignores the rest; choose "+
			"a shorter one", max)
	case strings.Contains(password, "\x00"):
		return errors.New("a password with a NUL byte is not accepted, because bcrypt ends there; choose another")
	}
	return nil
}

// prehash turns passwords of any length and content into input for bcrypt, which reads 72 bytes up to a NUL.
func prehash(password string) []byte {
	sum := sha256.Sum256([]byte(password))
	return base64.StdEncoding.AppendEncode(nil, sum[:])
}

// compare is bcrypt's comparison. Tests replace it, to count the calls.
var compare = bcrypt.CompareHashAndPassword

// check compares a password. It takes the same time for each user, so that the time reveals nothing: for a user who
// does not exist it compares the dummy, and for a cheap hash it makes further comparisons. A comparison of cost c takes
// twice as long as one of cost c-1, so one of each cost from c up to, but not including, the highest fills the gap.
func (u *users) check(name, password string) (*Identity, bool) {
	this, exists := u.list[name]
	if !exists {
		this = u.dummy
	}
	given := []byte(password)
	if this.long {
		given = prehash(password)
	}
	// The comparison comes first, so that the time does not reveal whether the hash is of the password itself.
	right := compare(this.hash, given) == nil && exists && (this.long || CheckPassword(password) == nil)
	for c := this.cost; c < u.cost; c++ {
		_ = compare(filler(c), given) // always fails: no password has this hash
	}
	return this.who, right
}

// filler returns a well-formed hash of that cost.
func filler(cost int) []byte {
	return fmt.Appendf(nil, "$2a$%02d$%s", cost, strings.Repeat(".", 53))
}

// login verifies credentials that are not known. The caller has waited for its turn to compare.
func (u *users) login(key [32]byte, name, password string, now time.Time) (*Identity, bool) {
	if p, ok := u.known.get(key, now); ok { // verified while this request waited
		return p.who, true
	}
	who, ok := u.check(name, password)
	if ok {
		u.known.Add(key, proof{who: who})
	}
	return who, ok
}
