package auth

import (
	"crypto/sha256"
	"sync"
	"time"
)

// maxKnown bounds how many verified credentials are remembered; one takes about 200 bytes.
const maxKnown = 8192

// known remembers credentials that were verified, by their SHA-256. Safe for concurrent use.
type known struct {
	mu  sync.RWMutex
	all map[[32]byte]proof
}

// proof is what credentials have proved.
type proof struct {
	who   *Identity
	aud   string    // of a token: the host it is for
	until time.Time // zero: as long as it is remembered
}

func newKnown() *known { return &known{all: map[[32]byte]proof{}} }

// get returns what is known at that time.
func (k *known) get(key [32]byte, now time.Time) (proof, bool) {
	k.mu.RLock()
	p, ok := k.all[key]
	k.mu.RUnlock()
	return p, ok && (p.until.IsZero() || now.Before(p.until))
}

// put remembers. When there is no room, what has ended goes, of a few that it looks at, and if none has, one of them.
func (k *known) put(key [32]byte, p proof, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	makeRoom(k.all, maxKnown, func(o proof) bool { return !o.until.IsZero() && !now.Before(o.until) }, func(proof) bool { return true })
	k.all[key] = p
}

// makeRoom makes a map smaller than most. It looks at a few entries, which Go chooses anew each time, so that a full map
// costs no more than another.
func makeRoom[K comparable, V any](all map[K]V, most int, ended, expendable func(V) bool) {
	if len(all) < most {
		return
	}
	const few = 16
	n := 0
	for key, v := range all {
		if n++; ended(v) || len(all) >= most && n > few && expendable(v) {
			delete(all, key)
		}
		if n > few && len(all) < most {
			return
		}
	}
}

// sumOf is the key of credentials. The secret, of this process alone, keeps a dump of the memory from being a list of
// plain hashes of passwords.
func sumOf(secret *[32]byte, credentials string) [32]byte {
	var room [1024]byte
	return sha256.Sum256(append(append(room[:0], secret[:]...), credentials...))
}
