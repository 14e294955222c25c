package storage

import (
	"context"
	"iter"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Quarantine records that the bytes of d were found damaged or missing: no repo is told to hold them any more, so
// that clients push them again, which heals. It does nothing unless d is present. Errors: as Update.
func (x *Index) Quarantine(ctx context.Context, d digest.Digest, reason string) error {
	k := keyOf(d)
	return x.Update(ctx, Store, func(tx *Tx) error {
		if x.present(k) {
			tx.set(KindQuarantined, string(k), quarantinedValue(reason, tx.now))
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

// Damages returns what is quarantined.
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

// heal takes the mark off d, when its bytes are good again or d is no longer present. It looks at the mark alone: when a
// push heals, d may not be linked yet.
func (x *Index) heal(ctx context.Context, d digest.Digest) error {
	if !x.marked(keyOf(d)) {
		return nil
	}
	return x.Update(ctx, Store, func(tx *Tx) error {
		if x.marked(keyOf(d)) {
			tx.set(KindQuarantined, string(keyOf(d)), nil)
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

// stale returns the marks on what is no longer present.
func (x *Index) stale() (keys []key) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for k := range x.state.quarantined {
		if x.state.present(k) == 0 {
			keys = append(keys, k)
		}
	}
	return keys
}

// present reports whether a repo holds k as a blob or a manifest, so that its bytes must be there.
func (x *Index) present(k key) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.present(k) > 0
}

// contents lists every digest that is present, in no order, beginning with a record of the state and going round. It takes
// the lock for a step at a time, since there may be millions: what becomes present meanwhile may be left out, and so
// may others if the state is loaded anew.
func (x *Index) contents(first int) iter.Seq[key] {
	const step = 1024
	return func(yield func(key) bool) {
		n := x.records()
		for at := 0; at < n; at += step {
			for _, k := range x.presentAmong(first+at, min(step, n-at), n) {
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

// presentAmong lists those that are present of count records from first on, round n.
func (x *Index) presentAmong(first, count, n int) (keys []key) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for at := range count {
		i := id((first+at)%n + 1)
		if i <= x.state.contents.used && x.state.contents.at(i).present > 0 {
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
