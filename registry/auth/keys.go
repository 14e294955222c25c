package auth

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"trow/storage/files"
)

const (
	// keyLife is how long a key signs.
	keyLife = 30 * 24 * time.Hour
	// keyOverlap is how long tokens of a key are accepted after it has been replaced: by then they have expired, even if a
	// clock was corrected.
	keyOverlap = 2 * maxTokenLife
)

// signingKey is a key as it is stored.
type signingKey struct {
	ID   string    `json:"id"`
	Made time.Time `json:"made"`
	Seed []byte    `json:"seed"`
}

func (k *signingKey) private() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(k.Seed) }

func (k *signingKey) valid() bool { return len(k.Seed) == ed25519.SeedSize && k.ID != "" }

// keyring holds the key that signs, last, and before it the one whose tokens may not have expired. It never changes.
type keyring []signingKey

// readKeys reads the keys. A file that cannot be decoded counts as empty: clients get new tokens automatically, so that
// nothing is lost.
func readKeys(root *os.Root) (keyring, error) {
	b, err := files.ReadIn(root, keysFile, files.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("token keys: %w", err)
	}
	var ring keyring
	if json.Unmarshal(b, &ring) != nil || slices.ContainsFunc(ring, func(k signingKey) bool { return !k.valid() }) {
		return nil, nil
	}
	return ring, nil
}

// rotated returns the keyring as it should be at that time, and whether it differs from r.
func (r keyring) rotated(now time.Time) (keyring, bool) {
	// A key that is younger than keyLife signs, unless the clock was set back behind its creation by more than the
	// overlap.
	if n := len(r); n > 0 && now.Sub(r[n-1].Made) < keyLife && now.After(r[n-1].Made.Add(-keyOverlap)) {
		if n == 1 || now.Sub(r[n-1].Made) < keyOverlap {
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

// rotateKeys adds a signing key when the current one is 30 days old, and drops the one before it after the overlap.
func (g *Guard) rotateKeys(now time.Time) error {
	return g.change(func(s *state) error {
		next, changed := s.keys.rotated(now)
		if !changed {
			return nil
		}
		b, err := json.MarshalIndent(next, "", "  ")
		if err == nil {
			// The key is durable before it signs, or the tokens that it signs would be invalid after a crash.
			err = g.keepKeys(append(b, '\n'))
		}
		if err != nil {
			return fmt.Errorf("token keys: %w", err)
		}
		s.keys = next
		return nil
	})
}
