package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// known is what is known of a fact of the target.
type known struct {
	value uint64 // its hash
	pass  uint32 // the last one in which the source had it
}

// work is what has to be copied.
type work struct {
	blobs     map[digest.Digest]struct{}
	facts     map[string]map[fact][]byte // by repo; nil: to delete
	histories map[string]struct{}        // repos whose histories have to be compared
}

type fact struct {
	kind storage.Kind
	name string
}

func newWork() work {
	return work{map[digest.Digest]struct{}{}, map[string]map[fact][]byte{}, map[string]struct{}{}}
}

func (w work) size() int {
	n := len(w.blobs) + len(w.histories)
	for _, facts := range w.facts {
		n += len(facts)
	}
	return n
}

func (m *migration) hashFact(repo string, f storage.Fact) uint64 {
	var h maphash.Hash
	h.SetSeed(m.seed)
	_, _ = h.WriteString(repo) // a Hash never fails
	_ = h.WriteByte(0)
	_ = h.WriteByte(byte(f.Kind))
	_, _ = h.WriteString(f.Name)
	return h.Sum64()
}

func (m *migration) hashOf(d digest.Digest) uint64 { return maphash.String(m.bySeed, string(d)) }

// load reads what the target has, as its engines list and deliver it.
func (m *migration) load(ctx context.Context) error {
	first := m.have == nil
	m.seed = maphash.MakeSeed()
	if first {
		m.bySeed = maphash.MakeSeed()
	}
	have := map[uint64]known{}
	err := state(ctx, m.To.Journal, func(repo string, f storage.Fact) {
		if storage.Portable(repo, f) {
			have[m.hashFact(repo, f)] = known{value: maphash.Bytes(m.seed, f.Value)}
		}
	})
	if err != nil {
		return fmt.Errorf("read the target's journal: %w", err)
	}
	stored, err := m.list(ctx)
	if err != nil {
		return fmt.Errorf("list the target's blobs: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.have, m.stored, m.found, m.held = have, stored, newWork(), 0
	if !first {
		return nil
	}
	for d := range m.From.Index.Contents() {
		m.done.Contents++
		m.done.Bytes += m.From.Index.Size(d)
		if _, there := stored[m.hashOf(d)]; there {
			m.done.There++
		}
	}
	return nil
}

// list returns the sizes of the blobs at the target.
func (m *migration) list(ctx context.Context) (map[uint64]int64, error) {
	stored := map[uint64]int64{}
	placed, ok := m.To.Blobs.(storage.Placed)
	if !ok {
		for info, err := range m.To.Blobs.All(ctx) {
			if err != nil {
				return nil, err
			}
			stored[m.hashOf(info.Digest)] = info.Size
		}
		return stored, nil
	}
	objects := map[uint64]int64{}
	for o, err := range placed.Objects(ctx) {
		if err != nil {
			return nil, err
		}
		objects[maphash.String(m.bySeed, o.Place)] = o.Size
	}
	for d, place := range m.To.Index.Places() {
		if size, there := objects[maphash.String(m.bySeed, place)]; there {
			stored[m.hashOf(d)] = size
		}
	}
	return stored, nil
}

// state calls f with each fact of the full state of a journal.
func state(ctx context.Context, j storage.Journal, f func(repo string, f storage.Fact)) error {
	err := j.Watch(ctx, func(u storage.Update) error {
		for _, b := range u.Batches {
			for _, one := range b.Facts {
				f(b.Repo, one)
			}
		}
		if u.Synced {
			return errOnce
		}
		return nil
	})
	if errors.Is(err, errOnce) {
		return nil
	}
	return err
}

// note compares a fact of the source with the target. The caller holds mu. It is called from a Watch of the source,
// which may keep commits waiting, so it only compares and remembers.
func (m *migration) note(repo string, f storage.Fact) {
	if storage.IsSeal(repo, f) {
		m.sealSeen = f.Value != nil
	}
	if !storage.Portable(repo, f) {
		return
	}
	if d, size, ok := storage.ContentOf(repo, f); ok && !m.has(d, size) {
		if _, found := m.found.blobs[d]; !found {
			m.found.blobs[d] = struct{}{}
			m.held += 200 // about what a digest takes, with its place in the map
		}
	}
	switch {
	case f.IsHistoryEnd():
		m.found.histories[strings.Clone(repo)] = struct{}{}
		return
	case f.Kind == storage.KindHistory: // not in the full state, so not in have; copyHistories compares the rest
		m.find(repo, f)
		return
	}
	h := m.hashFact(repo, f)
	old, had := m.have[h]
	if f.Value == nil {
		if had {
			delete(m.have, h)
			m.find(repo, f)
		}
		return
	}
	now := known{maphash.Bytes(m.seed, f.Value), m.pass}
	m.have[h] = now
	if !had || old.value != now.value {
		m.find(repo, f)
	}
}

// find remembers a fact that differs, and clones it: the journal's own bytes are valid only during apply. The caller
// holds mu.
func (m *migration) find(repo string, f storage.Fact) {
	facts := m.found.facts[repo]
	if facts == nil {
		facts = map[fact][]byte{}
		m.found.facts[strings.Clone(repo)] = facts
	}
	facts[fact{f.Kind, strings.Clone(f.Name)}] = bytes.Clone(f.Value)
	m.held += 150 + len(f.Name) + len(f.Value)
}

// has reports whether the target has the bytes of a content, or the source has lost them. The caller holds mu.
func (m *migration) has(d digest.Digest, size int64) bool {
	h := m.hashOf(d)
	n, there := m.stored[h]
	if !there {
		_, lost := m.lost[d]
		return lost
	}
	// The size in a fact may be wrong, if the bytes were missing when trow rebuild made it. Then only bytes that this
	// run has copied, and the engine has compared with the digest, count as whole.
	whole, verified := m.verified[h]
	return n == size || verified && n == whole
}

// next is take, after findStale if that is due. Errors: those of the target's journal.
func (m *migration) next(ctx context.Context) (w work, synced, sealed bool, err error) {
	w, synced, sealed, due := m.take()
	if due {
		if err := m.findStale(ctx); err != nil {
			return w, false, false, err
		}
		w, synced, sealed, _ = m.take()
	}
	return w, synced, sealed, nil
}

// take returns what was found since the last call. synced reports whether the pass has seen the full state, and sealed
// whether it has seen the source's seal as well: what was found until then is in what take has returned. If findStale
// is due, take returns nothing. Both are decided under one lock: the full state may be complete at any moment, and what
// has changed since must not be copied before what findStale finds.
func (m *migration) take() (w work, synced, sealed, due bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.synced && m.staleDue {
		return w, false, false, true
	}
	w = m.found
	m.found, m.held = newWork(), 0
	return w, m.synced, m.synced && m.sealSeen, false
}

// findStale finds, once in a pass, the facts that the target has of an earlier run and that the source has not. They
// are deleted together with all that has changed since the full state: one without the other could leave a tag without
// its manifest.
func (m *migration) findStale(ctx context.Context) error {
	m.mu.Lock()
	m.staleDue = false
	stale := false
	for _, k := range m.have {
		stale = stale || k.pass != m.pass
	}
	m.mu.Unlock()
	if !stale {
		return nil
	}
	return state(ctx, m.To.Journal, func(repo string, f storage.Fact) {
		m.mu.Lock()
		defer m.mu.Unlock()
		h := m.hashFact(repo, f)
		k, had := m.have[h]
		d, quarantine := storage.IsQuarantine(repo, f)
		if _, lost := m.lost[d]; !had || k.pass == m.pass || quarantine && lost {
			return // the source has it, or had it in this pass, or this migration has quarantined lost content
		}
		delete(m.have, h)
		f.Value = nil
		m.find(repo, f)
	})
}
