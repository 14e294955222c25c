package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"
)

// users are those who can log in with a password. A set never changes, but for the memory of what was verified.
type users struct {
	list  map[string]user
	dummy user // stands in for those who do not exist
	cost  int  // the highest of all
	known *known
}

// user has a password.
type user struct {
	who  *Identity
	hash []byte // bcrypt
	cost int
	long bool // of the password's SHA-256
}

const (
	// maxCost bounds what a login may take: 14 is a second.
	maxCost = 14
	// maxUserName is far beyond what people type.
	maxUserName = 255
)

// ownCost makes a comparison take about 60 ms. Tests lower it.
var ownCost = bcrypt.DefaultCost

// newUsers puts together the user of the settings, if there is one, and those of a htpasswd file.
func newUsers(owner *user, htpasswd []byte) (*users, error) {
	u := &users{list: map[string]user{}, cost: bcrypt.MinCost, known: newKnown()}
	if err := u.read(htpasswd); err != nil {
		return nil, err
	}
	if owner != nil {
		if _, ok := u.list[owner.who.Name]; ok {
			return nil, fmt.Errorf("user %q is the one of the setting user as well; take one of the two away", owner.who.Name)
		}
		u.list[owner.who.Name] = *owner
		u.cost = max(u.cost, owner.cost)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), u.cost)
	u.dummy = user{hash: hash, cost: u.cost}
	return u, err
}

// newOwner hashes the password of the user who may do everything, and forgets it. nil: there is none.
func newOwner(name, password string) (*user, error) {
	switch {
	case name == "" && password != "":
		return nil, fmt.Errorf("a password needs a user")
	case name == "":
		return nil, nil
	case password == "":
		return nil, fmt.Errorf("user %q needs a password", name)
	}
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("user %q: %w", name, err)
	}
	hash, err := bcrypt.GenerateFromPassword(prehash(password), ownCost)
	return &user{who: &Identity{Name: name, owner: true}, hash: hash, cost: ownCost, long: true}, err
}

// checkName checks a user's name. RFC 7617 cannot carry a colon, and control characters have no place in a log.
func checkName(name string) error {
	switch {
	case name == "" || len(name) > maxUserName || !utf8.ValidString(name):
		return fmt.Errorf("a name has 1 to %d bytes of UTF-8", maxUserName)
	case strings.ContainsFunc(name, func(c rune) bool { return c == ':' || c < ' ' || c == 0x7f }):
		return fmt.Errorf("a name has no colon and no control characters")
	}
	return nil
}

// read reads the lines of a htpasswd file: name:hash. Empty lines and comments are left out.
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
			err = fmt.Errorf("user %q is there already", name)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		u.list[name] = user{who: &Identity{Name: name}, hash: []byte(hash), cost: cost}
		u.cost = max(u.cost, cost)
	}
	return nil
}

// checkHash takes bcrypt alone: the other kinds that htpasswd files may have can be guessed by the million.
func checkHash(hash string) (cost int, err error) {
	const length = 60
	prefix := len(hash) > 3 && (hash[:4] == "$2y$" || hash[:4] == "$2b$" || hash[:4] == "$2a$")
	if !prefix || len(hash) != length {
		return 0, fmt.Errorf("it is not name:hash with a bcrypt hash; make it with htpasswd -B")
	}
	cost, err = bcrypt.Cost([]byte(hash))
	switch {
	case err != nil:
		return 0, fmt.Errorf("its bcrypt hash cannot be used: %w", err)
	case cost > maxCost:
		return 0, fmt.Errorf("its bcrypt cost is %d, and a login would take too long; at most %d", cost, maxCost)
	}
	return cost, nil
}

// prehash makes passwords of any length and content fit for bcrypt, which reads 72 bytes up to a NUL.
func prehash(password string) []byte {
	sum := sha256.Sum256([]byte(password))
	return base64.StdEncoding.AppendEncode(nil, sum[:])
}

// compare is bcrypt's comparison. Tests count the calls.
var compare = bcrypt.CompareHashAndPassword

// check compares a password, at the same price for everybody: with one who does not exist the dummy is compared, and a
// cheaper hash is made up for. A comparison of cost c takes twice that of c-1, so one of each cost from c to the highest
// less one fills the gap.
func (u *users) check(name, password string) (*Identity, bool) {
	this, exists := u.list[name]
	if !exists {
		this = u.dummy
	}
	given := []byte(password)
	if this.long {
		given = prehash(password)
	}
	right := compare(this.hash, given) == nil && exists
	for c := this.cost; c < u.cost; c++ {
		_ = compare(filler(c), given) // wrong, whatever was given: nobody knows its password
	}
	return this.who, right
}

// filler is a well-formed hash of that cost.
func filler(cost int) []byte {
	return fmt.Appendf(nil, "$2a$%02d$%s", cost, strings.Repeat(".", 53))
}

// login verifies credentials that are not known.
func (u *users) login(key [32]byte, name, password string, now time.Time) (*Identity, bool) {
	if p, ok := u.known.get(key, now); ok { // verified while this one waited
		return p.who, true
	}
	who, ok := u.check(name, password)
	if ok {
		u.known.put(key, proof{who: who}, now)
	}
	return who, ok
}
