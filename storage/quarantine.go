package storage

import (
	"context"
	"iter"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Quarantine records that the bytes of d were found damaged or missing: no repo is told to hold them any more, so
// that clients push them again, which heals. It does nothing if no repo holds d. Errors: as Update.
func (x *Index) Quarantine(ctx context.Context, d digest.Digest, reason string) error {
	k := keyOf(d)
	return x.Update(ctx, Store, func(tx *Tx) error {
		if x.held(k) {
			tx.set(KindQuarantined, string(k), quarantinedValue(reason, tx.now))
		}
		return nil
	})
}

// Quarantined tells whether d's bytes were found damaged or missing.
func (x *Index) Quarantined(d digest.Digest) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.state.quarantined) > 0 && x.state.isQuarantined(keyOf(d))
}

// Damages lists what is quarantined.
func (x *Index) Damages() map[digest.Digest]Damage {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := map[digest.Digest]Damage{}
	for k, v := range x.state.quarantined {
		out[k.digest()] = v
	}
	return out
}

// heal takes d out of quarantine, when its bytes are good again or nobody holds it any more.
func (x *Index) heal(ctx context.Context, d digest.Digest) error {
	if !x.Quarantined(d) {
		return nil
	}
	return x.Update(ctx, Store, func(tx *Tx) error {
		if x.Quarantined(d) {
			tx.set(KindQuarantined, string(keyOf(d)), nil)
		}
		return nil
	})
}

func (x *Index) held(k key) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.held(k)
}

// contents lists every digest that is held, in no order, beginning with a record of the state and going round. It takes
// the lock for a step at a time, since there may be millions: what begins to be held meanwhile may be left out, and so
// may others if the state is loaded anew.
func (x *Index) contents(first int) iter.Seq[key] {
	const step = 1024
	return func(yield func(key) bool) {
		n := x.records()
		for at := 0; at < n; at += step {
			for _, k := range x.heldAmong(first+at, min(step, n-at), n) {
				if !yield(k) {
					return
				}
			}
		}
	}
}

func (x *Index) records() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return int(x.state.contents.used)
}

// heldAmong lists those that are held of count records from first on, round n.
func (x *Index) heldAmong(first, count, n int) (keys []key) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for at := range count {
		i := id((first+at)%n + 1)
		if i <= x.state.contents.used && x.state.contents.at(i).holds > 0 {
			keys = append(keys, x.state.keyOf(i).key())
		}
	}
	return keys
}

// Names lists all repos, also those without a manifest, as of one moment, in ASCII order.
func (x *Index) Names() []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	names := make([]string, 0, len(x.state.repos))
	for name := range maps.Keys(x.state.repos) {
		if name != Store {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
