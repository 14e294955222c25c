package auth

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

const (
	// keyLife is how long a key signs.
	keyLife = 30 * 24 * time.Hour
	// keyRest is how long after that its tokens are taken: they have ended by then, whatever the clocks say.
	keyRest = 2 * tokenLife
)

// signingKey is a key, as it is kept.
type signingKey struct {
	ID   string    `json:"id"`
	Made time.Time `json:"made"`
	Seed []byte    `json:"seed"`
}

func (k *signingKey) private() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(k.Seed) }

// keyring has the key that signs, last, and before it those whose tokens may not have ended. It never changes.
type keyring []signingKey

// readKeys reads the keys. A file that cannot be understood counts as none: all it costs is that clients fetch new
// tokens, which they do by themselves.
func readKeys(path string) (keyring, error) {
	b, err := readFile(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the keys of tokens: %w", err)
	}
	var ring keyring
	if json.Unmarshal(b, &ring) != nil || slices.ContainsFunc(ring, func(k signingKey) bool { return len(k.Seed) != ed25519.SeedSize || k.ID == "" }) {
		return nil, nil
	}
	return ring, nil
}

// turned returns the ring as it should be at that time, and whether that is another one.
func (r keyring) turned(now time.Time) (keyring, bool) {
	if n := len(r); n > 0 && now.Sub(r[n-1].Made) < keyLife && now.After(r[n-1].Made.Add(-keyRest)) {
		if n == 1 || now.Sub(r[n-1].Made) < keyRest {
			return r, false
		}
		return r[n-1:], true
	}
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed) // never fails
	next := signingKey{ID: rand.Text()[:8], Made: now.UTC(), Seed: seed}
	if len(r) > 0 {
		return keyring{r[len(r)-1], next}, true
	}
	return keyring{next}, true
}

// turn does with the keys what is due.
func (g *Guard) turn(now time.Time) error {
	return g.change(func(s *state) error {
		next, changed := s.keys.turned(now)
		if !changed {
			return nil
		}
		b, err := json.MarshalIndent(next, "", "  ")
		if err == nil {
			err = save(g.path(keysFile), append(b, '\n'))
		}
		if err != nil {
			return fmt.Errorf("the keys of tokens: %w", err)
		}
		s.keys = next
		return nil
	})
}
