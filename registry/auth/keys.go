package auth

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"trow/storage"
)

const (
	// keyLife is how long a key signs.
	keyLife = 30 * 24 * time.Hour
	// keyOverlap is how long tokens of a key are accepted after it has been replaced: by then they have expired, even
	// if a clock was corrected.
	keyOverlap = 2 * maxTokenLife
	// maxKeyID bounds the id of a key in bytes.
	maxKeyID = 64
)

// signingKey is a key as it is stored.
type signingKey struct {
	ID   string    `json:"id"`
	Made time.Time `json:"made"`
	Seed []byte    `json:"seed"`

	record []byte // the value of its record; nil: it has none
}

func (k *signingKey) private() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(k.Seed) }

func (k *signingKey) valid() bool {
	return len(k.Seed) == ed25519.SeedSize && k.ID != "" && len(k.ID) <= maxKeyID &&
		!strings.ContainsFunc(k.ID, func(c rune) bool { return c <= ' ' || c >= 0x7f })
}

// usable reports whether a key signs at that time: it is young enough, and was not made so far in the future that
// tokens that it signs could outlive it, because the clock was set back.
func (k *signingKey) usable(now time.Time) bool {
	return now.Sub(k.Made) < keyLife && now.After(k.Made.Add(-keyOverlap))
}

func newKey(now time.Time) *signingKey {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed) // never fails
	return &signingKey{ID: rand.Text()[:8], Made: now.UTC(), Seed: seed}
}

func parseKey(id string, value []byte) (signingKey, error) {
	k := signingKey{record: value}
	if err := json.Unmarshal(value, &k); err != nil {
		return k, fmt.Errorf("key of tokens %q: %w", id, err)
	}
	if !k.valid() || k.ID != id {
		return k, fmt.Errorf("key of tokens %q: invalid record", id)
	}
	return k, nil
}

// keyring holds the keys whose tokens are accepted, the youngest last. It never changes. Replicas that renew a key at
// the same moment make one each: all of them accept both, and sign with the same one as soon as they know both.
type keyring []signingKey

// sorted puts the keys in their order, which is the same at all replicas.
func (r keyring) sorted() keyring {
	slices.SortFunc(r, func(a, b signingKey) int { return cmp.Or(a.Made.Compare(b.Made), cmp.Compare(a.ID, b.ID)) })
	return r
}

// signer returns the key that signs at that time, or nil.
func (r keyring) signer(now time.Time) *signingKey {
	for i := range r {
		if k := &r[len(r)-1-i]; k.usable(now) {
			return k
		}
	}
	return nil
}

// find returns the key with an id, or nil.
func (r keyring) find(id any) *signingKey {
	for i := range r {
		if r[i].ID == id {
			return &r[i]
		}
	}
	return nil
}

// rotateKeys adds a signing key when no present one may sign, and drops the others when it has signed alone for the
// overlap. Where nothing may be written, the new key is valid until the process ends: clients get new tokens then, as
// they do when theirs have expired.
func (g *Guard) rotateKeys(ctx context.Context, now time.Time) error {
	g.changes.Lock() // or this process would make two
	defer g.changes.Unlock()
	if g.options.ReadOnly {
		if g.current().keys.signer(now) == nil {
			g.mu.Lock()
			g.temporary = newKey(now)
			g.mu.Unlock()
			g.news.Add(1)
		}
		return nil
	}
	s, err := g.writable(ctx)
	if err != nil {
		return err
	}
	signer := s.keys.signer(now)
	if signer == nil {
		return g.addKey(ctx, s.records, newKey(now))
	}
	if now.Sub(signer.Made) < keyOverlap {
		return nil
	}
	for _, k := range s.keys {
		if k.ID == signer.ID {
			continue
		}
		err := s.records.SetRecord(ctx, keyRecord+k.ID, k.record, nil)
		if err != nil && !errors.Is(err, storage.ErrConflict) { // a conflict: another replica has dropped it
			return fmt.Errorf("token keys: %w", err)
		}
	}
	return nil
}

// addKey records a key. It is durable before it signs, or the tokens that it signs would be invalid after a crash, and
// at other replicas.
func (g *Guard) addKey(ctx context.Context, records Records, k *signingKey) error {
	value, err := json.Marshal(k)
	if err == nil {
		err = records.SetRecord(ctx, keyRecord+k.ID, nil, value)
	}
	if err != nil {
		return fmt.Errorf("token keys: %w", err)
	}
	return nil
}
