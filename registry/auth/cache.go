package auth

import (
	"crypto/sha256"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// maxKnown bounds how many verified credentials are remembered; one takes about 200 bytes.
const maxKnown = 8192

// known remembers verified credentials by their SHA-256; when it is full, it forgets those that were used least
// recently. Safe for concurrent use.
type known struct {
	*lru.Cache[[sha256.Size]byte, proof]
}

// proof is what credentials have proved.
type proof struct {
	who   *Identity
	aud   string    // of a token: the host that it is for
	until time.Time // zero: no end
}

func newKnown() known {
	c, err := lru.New[[sha256.Size]byte, proof](maxKnown)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return known{c}
}

// get returns what the credentials with this key have proved, unless it has expired.
func (k known) get(key [sha256.Size]byte, now time.Time) (proof, bool) {
	p, ok := k.Get(key)
	return p, ok && (p.until.IsZero() || now.Before(p.until))
}

// Schemes of credentials. They are part of a key, so that what was verified under one is unknown under the other: only
// [Guard.bearer] checks which host a token is for.
const (
	schemeBasic  = "Basic "
	schemeBearer = "Bearer "
)

// sumOf returns the key of credentials of a scheme. The secret exists in this process alone, so that a memory dump does
// not contain plain hashes of passwords.
func sumOf(secret *[32]byte, scheme, credentials string) [sha256.Size]byte {
	var room [1024]byte // usually large enough to avoid an allocation
	return sha256.Sum256(append(append(append(room[:0], secret[:]...), scheme...), credentials...))
}
