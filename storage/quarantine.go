package storage

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"
)

// Quarantine records that the bytes of d were found damaged or missing. No repo shows d any more, so that clients push
// it again, which heals it. It does nothing unless d is present. Errors: as Update.
func (x *Index) Quarantine(ctx context.Context, d digest.Digest, reason string) error {
	k := keyOf(d)
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		if x.present(k) {
			tx.set(kindQuarantined, string(k), quarantinedValue(reason, tx.now))
		}
		return nil
	})
}

// Quarantined reports whether d is present and its bytes were found damaged or missing.
func (x *Index) Quarantined(d digest.Digest) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.isQuarantined(keyOf(d))
}

// Damages returns what is quarantined, and why.
func (x *Index) Damages() map[digest.Digest]Damage {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := map[digest.Digest]Damage{}
	for k, v := range x.state.quarantined {
		if x.state.isQuarantined(k) {
			out[k.digest()] = v
		}
	}
	return out
}

// heal takes the mark off d, when its bytes are good again or d is no longer present. It looks at the mark alone: when
// a push heals d, no fact may make d present yet.
func (x *Index) heal(ctx context.Context, d digest.Digest) error {
	if !x.marked(keyOf(d)) {
		return nil
	}
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		if x.marked(keyOf(d)) {
			tx.set(kindQuarantined, string(keyOf(d)), nil)
		}
		return nil
	})
}

// marked reports whether k has the mark of quarantine, present or not.
func (x *Index) marked(k key) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, yes := x.state.quarantined[k]
	return yes
}

// healAbsent takes the marks off what is no longer present.
func (x *Index) healAbsent(ctx context.Context) (err error) {
	for _, k := range x.absentMarks() {
		err = errors.Join(err, x.heal(ctx, k.digest()))
	}
	return err
}

// absentMarks returns the marks of quarantine on what is no longer present.
func (x *Index) absentMarks() (keys []key) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for k := range x.state.quarantined {
		if x.state.present(k) == 0 {
			keys = append(keys, k)
		}
	}
	return keys
}
