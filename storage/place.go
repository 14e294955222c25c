package storage

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"trow/storage/internal/slab"
)

// place is the name of an object, see Placed: a generation, and 16 random bytes.
//
// Objects that no fact names, because a process ended between the object and the fact, are removed by generation: the
// Collector raises the generation, a record, once in a while, and removes the objects that no fact names and whose
// generation is at least two behind. A fact may name an object only while its generation is at most one behind, as a
// condition of the commit. So an object can be named, or be removed, but never both, however long a process is stopped
// in between.
type place struct {
	generation uint32
	random     [16]byte
}

// generationRecord is the name of the record of the generation: a varint, and when it was raised, in Unix seconds.
const generationRecord = "generation"

func (p place) String() string { return fmt.Sprintf("%08x/%x", p.generation, p.random) }

// parsePlace is the opposite of String.
func parsePlace(name string) (p place, ok bool) {
	generation, random, found := strings.Cut(name, "/")
	n, err := strconv.ParseUint(generation, 16, 32)
	if !found || err != nil || len(random) != 2*len(p.random) {
		return place{}, false
	}
	p.generation = uint32(n)
	if _, err := hex.Decode(p.random[:], []byte(random)); err != nil || p.String() != name {
		return place{}, false
	}
	return p, true
}

func (p place) value() []byte {
	return append(binary.AppendUvarint(nil, uint64(p.generation)), p.random[:]...)
}

func parsePlaceValue(v []byte) (p place, err error) {
	n, l := binary.Uvarint(v)
	if l <= 0 || n > 1<<32-1 || len(v) < l+len(p.random) {
		return place{}, errFact
	}
	p.generation = uint32(n)
	copy(p.random[:], v[l:])
	return p, nil
}

// memPlace is what a place takes of memory, with its slot in the map.
const memPlace = 60

func (s *state) setPlace(k, v []byte) error {
	if v == nil {
		if c := s.lookup(k); s.placed(c) {
			delete(s.places, c)
			s.memory -= memPlace
			s.forget(c)
		}
		return nil
	}
	p, err := parsePlaceValue(v)
	if err != nil {
		return err
	}
	c := s.intern(k)
	if !s.placed(c) {
		s.memory += memPlace
	}
	s.places[c] = p
	return nil
}

// placed reports whether a content has a place. 0 is no content.
func (s *state) placed(c slab.ID) bool {
	if c == 0 || len(s.places) == 0 {
		return false
	}
	_, yes := s.places[c]
	return yes
}

// placeOf returns the place of a content as it is committed.
func (x *Index) placeOf(k key) (p place, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if c := x.state.lookup([]byte(k)); c != 0 {
		p, ok = x.state.places[c]
	}
	return p, ok
}

// made has the objects that uploads of this process have made, and that changes may name.
type made struct {
	mu     sync.Mutex // guards all below
	places map[key][]madePlace
}

type madePlace struct {
	place
	used  bool // a change has tried to name it
	spent bool // a commit has named it, or may have: it can be deleted at any time, so no later change may name it
}

func (m *made) add(k key, p place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.places == nil {
		m.places = map[key][]madePlace{}
	}
	m.places[k] = append(m.places[k], madePlace{place: p})
}

// remove takes an object out, so that no change names it from now on, and returns it.
func (m *made) remove(k key, p place) (removed madePlace) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.places[k] = slices.DeleteFunc(m.places[k], func(other madePlace) bool {
		if other.place == p {
			removed = other
		}
		return other.place == p
	})
	if len(m.places[k]) == 0 {
		delete(m.places, k)
	}
	return removed
}

// use returns the object of a content with the newest generation, for a change that names it. Errors: ErrNotFound if
// there is none, ErrExpired if those that there were have been named before.
func (m *made) use(k key) (place, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var last *madePlace
	for i := range m.places[k] {
		if p := &m.places[k][i]; !p.spent && (last == nil || p.generation > last.generation) {
			last = p
		}
	}
	switch {
	case last != nil:
		last.used = true
		return last.place, nil
	case len(m.places[k]) > 0:
		return place{}, ErrExpired
	}
	return place{}, ErrNotFound
}

// spend records that a commit with these changes of facts about content has happened, or may have.
func (m *made) spend(changes overlay) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for f, value := range changes {
		if f.kind != kindPlace {
			continue
		}
		named, err := parsePlaceValue(value)
		all := m.places[key(f.name)]
		for i := range all {
			all[i].spent = all[i].spent || err == nil && all[i].place == named
		}
	}
}

// place makes the change depend on where the bytes of k are, and names the object if no fact does. Errors: ErrNotFound
// if there are no bytes, ErrExpired.
func (tx *Tx) place(k key) error {
	v, changed := tx.storeFact(kindPlace, string(k))
	if v != nil {
		return nil // by an earlier change of this commit, with its conditions
	}
	// If an earlier change of this commit has ended the fact, the Collector is about to remove that object: what the
	// fact still names as committed does not count, and a new object takes its place.
	if p, ok := tx.x.placeOf(k); ok && !changed {
		if tx.x.shared {
			tx.require(storeRepo, kindPlace, string(k), p.value())
		}
		return nil
	}
	p, err := tx.x.made.use(k)
	if err != nil {
		return fmt.Errorf("content %s: %w", k.digest(), err)
	}
	return tx.name(k, p, nil)
}

// name records that an object has the bytes of k. committed is the value of the fact until now.
func (tx *Tx) name(k key, p place, committed []byte) error {
	if err := tx.fresh(p); err != nil {
		return err
	}
	tx.setStore(kindPlace, string(k), p.value(), committed)
	return nil
}

// fresh makes the change depend on the generation, so that it does not name an object that the Collector may be
// removing; see place. Error: ErrExpired.
func (tx *Tx) fresh(p place) error {
	v, changed := tx.storeFact(kindRecord, generationRecord)
	if !changed {
		v = tx.x.record(generationRecord)
		if tx.x.shared {
			tx.require(storeRepo, kindRecord, generationRecord, v)
		}
	}
	if generation, _ := parseGeneration(v); p.generation+1 < generation {
		return ErrExpired
	}
	return nil
}

// parseGeneration returns the generation and when it was raised, in Unix seconds.
func parseGeneration(v []byte) (generation uint32, unix int64) {
	r := reader{buf: v}
	n, unix := r.number(), r.number()
	if r.err != nil {
		return 0, 0
	}
	return uint32(n), unix
}

func generationValue(generation uint32, unix int64) []byte {
	return binary.AppendVarint(binary.AppendVarint(nil, int64(generation)), unix)
}

// commitPlaced lets changes name the object that the engine has made for u, and replaces a quarantined object of d by
// it. The caller calls abandon once it has named d or given up. Errors: as Update.
func (x *Index) commitPlaced(ctx context.Context, u PlacedUpload, d digest.Digest) (abandon func(), err error) {
	p, ok := parsePlace(u.Place())
	if !ok {
		return nil, fmt.Errorf("the engine made object %q, a name that it was not given", u.Place())
	}
	k := keyOf(d)
	x.made.add(k, p)
	if err = x.replaceDamaged(ctx, k, p); err != nil {
		x.made.remove(k, p)
		return nil, err
	}
	return func() {
		// Without the cancelling: the client may have gone, and the object must not stay. remove comes first, so that
		// no change starts to name the object while abandon decides about it.
		x.abandon(context.WithoutCancel(ctx), u, k, x.made.remove(k, p))
	}, nil
}

// replaceDamaged makes an object the bytes of a content that is quarantined.
func (x *Index) replaceDamaged(ctx context.Context, k key, p place) error {
	if !x.marked(k) {
		return nil
	}
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		if !x.marked(k) {
			return nil
		}
		if old, ok := x.placeOf(k); ok { // the object of old is left to the Collector
			if err := tx.name(k, p, old.value()); err != nil {
				return err
			}
		}
		tx.set(kindQuarantined, string(k), nil)
		return nil
	})
}

// abandon handles an object that no further change can name. If a fact names another object with the same bytes, it is
// removed. If there is none, because the client has gone or a limit was reached, a fact names it, so that the next
// collection removes it. If neither is possible, the Collector removes it by its generation; so errors are ignored.
func (x *Index) abandon(ctx context.Context, u PlacedUpload, k key, p madePlace) {
	switch _, named := x.placeOf(k); {
	case p.spent: // it was named, and may have been deleted since
	case named && !p.used: // no change has tried to name it, so no commit that does is under way
		_ = u.Discard(ctx)
	case !named:
		_ = x.Update(ctx, storeRepo, func(tx *Tx) error {
			if _, named := x.placeOf(k); named {
				return nil
			}
			return tx.name(k, p.place, nil)
		})
	}
}

// Place implements [Records].
func (x *Index) Place(ctx context.Context, d digest.Digest) (string, error) {
	if _, err := ParseDigest(string(d)); err != nil {
		return "", err
	}
	p, ok := x.placeOf(keyOf(d))
	if !ok {
		if _, err := x.confirm(ctx); err != nil {
			return "", err
		}
		if p, ok = x.placeOf(keyOf(d)); !ok {
			return "", fmt.Errorf("blob %s: %w", d, ErrNotFound)
		}
	}
	return p.String(), nil
}

// NewPlace implements [Records].
func (x *Index) NewPlace() string {
	var p place
	p.generation, _ = parseGeneration(x.record(generationRecord))
	rand.Read(p.random[:]) // never fails
	return p.String()
}

// uploadRecord begins the names of the records of uploads.
const uploadRecord = "upload/"

func sessionName(repo, id string) string { return uploadRecord + repo + "\x00" + id }

// Session implements [Records].
func (x *Index) Session(ctx context.Context, repo, id string) ([]byte, error) {
	// Confirmed also for a hit: another process may have continued the upload.
	if _, err := x.confirm(ctx); err != nil {
		return nil, err
	}
	value := x.record(sessionName(repo, id))
	if value == nil {
		return nil, fmt.Errorf("upload %.40q: %w", id, ErrNotFound)
	}
	return value, nil
}

// SetSession implements [Records].
func (x *Index) SetSession(ctx context.Context, repo, id string, old, value []byte) error {
	return x.SetRecord(ctx, sessionName(repo, id), old, value)
}

// Sessions implements [Records].
func (x *Index) Sessions() iter.Seq[SessionRecord] {
	return func(yield func(SessionRecord) bool) {
		for name, value := range x.Records(uploadRecord) {
			repo, id, _ := strings.Cut(strings.TrimPrefix(name, uploadRecord), "\x00")
			if !yield(SessionRecord{Repo: repo, ID: id, Value: value}) {
				return
			}
		}
	}
}

// NotifySessions is NotifyRecords for the records of uploads.
func (x *Index) NotifySessions(changed func()) { x.NotifyRecords(uploadRecord, changed) }

// Places implements [Records].
func (x *Index) Places() iter.Seq2[digest.Digest, string] {
	return func(yield func(digest.Digest, string) bool) {
		for _, k := range x.placedContents() {
			if p, ok := x.placeOf(k); ok && !yield(k.digest(), p.String()) {
				return
			}
		}
	}
}

var _ Records = (*Index)(nil)
