package storage

import (
	"encoding/binary"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage/internal/slab"
)

// Where several processes share a journal, no process knows what clients of another one have learned. A client that has
// learned that a layer exists may push a manifest with it much later; if the layer belonged to a manifest that is
// deleted meanwhile, its link must not be removed at once, however old it is. So a deleted manifest leaves a fact: what
// it consisted of, and when it was deleted. That keeps the links for the Collector's grace. It is one fact, however
// many layers there are.

// departed is what a deleted manifest has left.
type departed struct {
	at   moment
	refs []slab.ID // entries
}

func departedValue(unix int64, refs []key) []byte {
	buf := binary.AppendUvarint(binary.AppendVarint(nil, unix), uint64(len(refs)))
	for _, k := range refs {
		buf = appendString(buf, string(k))
	}
	return buf
}

// depart applies a fact of KindDeparted.
func (s *state) depart(r *repo, k, v []byte) error {
	c := s.intern(k)
	// The new references are counted before the old ones are released, so that no entry of both is dropped in between.
	old, held := r.departed[c]
	if v != nil {
		f := reader{buf: v}
		d := departed{at: momentOf(f.number())}
		n := f.length()
		if f.err != nil || n > uint64(len(f.buf)) {
			return errFact
		}
		d.refs = make([]slab.ID, 0, min(n, uint64(len(f.buf)/shortKey)))
		for range n {
			ref := f.key(false)
			if f.err != nil {
				return f.err
			}
			d.refs = append(d.refs, s.keep(r, s.addRef(r, ref), 1))
		}
		if r.departed == nil {
			r.departed = map[slab.ID]departed{}
		}
		s.contents.At(c).subjects++ // the content stays known as long as the record names it
		r.departed[c] = d
		s.memory += memOfDeparted(d)
	}
	if held {
		if v == nil {
			delete(r.departed, c)
		}
		for _, ref := range old.refs {
			s.removeRef(r, s.keep(r, ref, -1))
		}
		s.contents.At(c).subjects--
		s.memory -= memOfDeparted(old)
	}
	s.forget(c)
	return nil
}

// keep adds n to the references of departed manifests to an entry, and returns the entry.
func (s *state) keep(r *repo, entry slab.ID, n int32) slab.ID {
	if r.kept == nil {
		r.kept = map[slab.ID]int32{}
	}
	before := len(r.kept)
	if r.kept[entry] += n; r.kept[entry] == 0 {
		delete(r.kept, entry)
	}
	s.memory += memKept * int64(len(r.kept)-before)
	return entry
}

// memKept is what an entry takes that deleted manifests keep, in repo.kept.
const memKept = 16

// memOfDeparted is what a deleted manifest takes: 70 bytes are its place in the map.
func memOfDeparted(d departed) int64 { return 70 + memRef*int64(len(d.refs)) }

func (s *state) departed(repo string, k key) (d departed, held bool) {
	if r := s.repos[repo]; r != nil {
		if c := s.lookup([]byte(k)); c != 0 {
			d, held = r.departed[c]
		}
	}
	return d, held
}

// leave records what a manifest that is deleted consists of.
func (tx *Tx) leave(k key) {
	if !tx.x.shared {
		return // this process knows what its clients have learned: see leases
	}
	refs := tx.refsOf(k)
	if len(refs) > 0 {
		tx.set(KindDeparted, string(k), departedValue(tx.now, refs))
	}
}

// refsOf returns what a manifest refers to.
func (tx *Tx) refsOf(k key) (refs []key) {
	if v, changed := tx.fact(KindManifest, string(k)); changed {
		if m, err := parseManifest(v); err == nil {
			_ = m.eachRef(func(ref []byte) { refs = append(refs, key(ref)) }) // a value of our own: it is valid
		}
		return refs
	}
	tx.x.mu.RLock()
	defer tx.x.mu.RUnlock()
	s := tx.x.state
	if r := s.repos[tx.repo]; r != nil {
		if i := s.manifest(r, []byte(k)); i != 0 {
			for _, ref := range s.manifests.At(s.entries.At(i).manifest).refs {
				refs = append(refs, s.keyOf(s.entries.At(ref).content).key())
			}
		}
	}
	return refs
}

// departedBefore lists the manifests of a repo whose records are older than a time.
func (x *Index) departedBefore(repo string, since time.Time) (keys []key) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	if r := s.repos[repo]; r != nil {
		for c, d := range yielding(x, r.departed) {
			if d.before(since) {
				keys = append(keys, s.keyOf(c).key())
			}
		}
	}
	return keys
}

func (x *Index) isDepartedBefore(repo string, k key, since time.Time) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	d, held := x.state.departed(repo, k)
	return held && d.before(since)
}

// before reports whether the manifest was deleted before a time, which may be between two seconds, as that of a run
// without a grace is. A moment is whole seconds, so the deletion may be almost a second younger than it says.
func (d departed) before(since time.Time) bool { return time.Unix(int64(d.at)+1, 0).Before(since) }

// stale reports whether a link that the repo holds is so old that it has to be recorded anew when a client learns of
// it. With a journal that one process writes to, leases do that.
func (tx *Tx) stale(d digest.Digest) bool {
	return tx.x.shared && tx.x.staleLink(tx.repo, keyOf(d), tx.now)
}

// staleLink reports whether no manifest of the repo refers to a link, and half of the grace has passed since it was
// recorded. References of departed manifests do not count: the Collector may remove them at any moment.
func (x *Index) staleLink(repo string, k key, unix int64) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	r := s.repos[repo]
	if r == nil {
		return false
	}
	i := s.find(r, []byte(k))
	if i == 0 {
		return false
	}
	e := s.entries.At(i)
	return e.linked && e.refs == r.kept[i] && unix-int64(e.since) > int64(x.options.Grace.Seconds()/2)
}
