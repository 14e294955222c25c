package storage

import (
	"context"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Sizes are how many records the state of an Index has, free ones included.
type Sizes struct{ Contents, Entries, Manifests, Tags int }

// SizesOf returns the sizes of an Index's state.
func SizesOf(x *Index) Sizes {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	return Sizes{int(s.contents.Last()), int(s.entries.Last()), int(s.manifests.Last()), int(s.tags.Last())}
}

// Leftovers returns how many records of an Index that holds nothing are still in use.
func Leftovers(x *Index) int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	return len(s.repos) + len(s.tails) + len(s.halves) + s.byDigest.Len() + s.catalog.len + len(x.quotas.of) +
		len(s.waiting)
}

// TagValue and ParseTag are the values of facts about tags.
func TagValue(d digest.Digest, unix, order int64) []byte { return tagValue(keyOf(d), unix, order, 0) }

func ParseTag(v []byte) (d digest.Digest, unix, order int64, err error) {
	t, err := parseTag(v)
	return key(t.digest).digest(), t.unix, t.order, err
}

// ManifestFact and LinkFact are facts.
func ManifestFact(m Manifest) Fact {
	return Fact{KindManifest, string(keyOf(m.Digest)), manifestValue(m)}
}

func LinkFact(d digest.Digest, size int64) Fact {
	return Fact{KindLink, string(keyOf(d)), linkValue(size, 1_800_000_000, false)}
}

// MemoryOfFacts is the estimate of memory without the media types, which are never forgotten.
func MemoryOfFacts(x *Index) int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := x.state.memory
	for t := range x.state.types {
		n -= memType + memText(len(t))
	}
	return n
}

// WaitingOf returns the name of the waiting repo of a repo.
func WaitingOf(repo string) string { return waitingOf(repo) }

// MaxGroup bounds the changes of one commit.
const MaxGroup = maxGroup

// StoreRepo has the facts about content itself.
const StoreRepo = storeRepo

// QuotasByRepo returns of how many repos an Index remembers the quotas.
func QuotasByRepo(x *Index) int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.quotas.of)
}

// OpenRepos returns of how many repos an Uploads knows an upload, open or committed.
func OpenRepos(u *Uploads) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.repos) + len(u.committed)
}

// Queued returns how many changes wait for the committer.
func Queued(x *Index) int { return len(x.queue) }

// BeatOf is Beat of a process whose clock shows a time.
func BeatOf(ctx context.Context, x *Index, name string, clock time.Time) error {
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		tx.setRecord(replicaRecord+name, replicaValue(clock, Format))
		return nil
	})
}

// Replicas returns the names of the processes that have a record.
func Replicas(x *Index) (names []string) {
	for name := range x.Records(replicaRecord) {
		names = append(names, strings.TrimPrefix(name, replicaRecord))
	}
	return names
}

// The kinds of a made-up next format. A reader of this one may skip the first.
const (
	OptionalKind Kind = 'Z'
	NextKind     Kind = 'z'
)

// SetFact sets a fact of any kind, if others may set it as well.
func SetFact(ctx context.Context, x *Index, repo string, k Kind, name string, value []byte) (may bool, err error) {
	err = x.Update(ctx, repo, func(tx *Tx) error {
		if may = tx.May(k); may {
			tx.set(k, name, value)
		}
		return nil
	})
	return may, err
}

// Force is SetFact by a version that forgets to ask.
func Force(ctx context.Context, x *Index, repo string, k Kind, name string) error {
	return x.Update(ctx, repo, func(tx *Tx) error { tx.set(k, name, []byte("x")); return nil })
}

// EndedRevisions are the revisions of repos without a fact.
func EndedRevisions(x *Index) map[string]Revision { return x.endedRevisions() }

// Step returns how many things one commit of a journal with these traits can change.
func Step(t Traits, n, operations, compares int) int {
	return (&Index{traits: t}).step(n, operations, compares)
}

// Departed returns of how many manifests an Index has a record that they were deleted.
func Departed(x *Index, repo string) int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if r := x.state.repos[repo]; r != nil {
		return len(r.departed)
	}
	return 0
}

// DepartedFact is the fact that a deleted manifest leaves.
func DepartedFact(d digest.Digest, unix int64, refs ...digest.Digest) Fact {
	var keys []key
	for _, ref := range refs {
		keys = append(keys, keyOf(ref))
	}
	return Fact{KindDeparted, string(keyOf(d)), departedValue(unix, keys)}
}

// CopyStep returns how many of the facts CopyFacts commits at once to a journal with these traits.
func CopyStep(t Traits, repo string, facts []Fact) int {
	return (&Index{traits: t}).copyStep(repo, facts)
}

// Agree reports whether a change with one condition fits into a commit that has another one.
func Agree(repo, name string, value []byte, otherRepo, otherName string, other []byte) bool {
	r := &planned{name: repo}
	r.require(factKey{kindRecord, name}, value)
	tx := &Tx{conditions: map[factOf][]byte{{otherRepo, factKey{kindRecord, otherName}}: other}}
	return (&plan{repos: map[string]*planned{repo: r}}).agrees(tx)
}

// WaitingContents returns how many contents wait to be collected.
func WaitingContents(x *Index) int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.state.waiting)
}

// YieldEvery is after how many steps a long look lets others have the lock.
const YieldEvery = yieldEvery

// The kinds of facts about content itself.
const (
	KindCondemned   = kindCondemned
	KindQuarantined = kindQuarantined
	KindPlace       = kindPlace
	KindRecord      = kindRecord
)

// PlaceFact and RecordFact are facts about content itself.
func PlaceFact(d digest.Digest, name string) Fact {
	p, ok := parsePlace(name)
	if !ok {
		panic(name)
	}
	return Fact{kindPlace, string(keyOf(d)), p.value()}
}

func RecordFact(name string, value []byte) Fact { return Fact{kindRecord, name, value} }

// IsPlace reports whether an object can have this name.
func IsPlace(name string) bool { _, ok := parsePlace(name); return ok }

// SetTraits is for a journal whose bounds change. No change may be under way.
func SetTraits(x *Index, t Traits) { x.traits = t }

// IsOptional reports whether a version that does not know a kind leaves it alone.
func IsOptional(k Kind) bool { return k.optional() }

// Unset deletes a fact of any kind, by a version that does not ask.
func Unset(ctx context.Context, x *Index, repo string, k Kind, name string) error {
	return x.Update(ctx, repo, func(tx *Tx) error { tx.set(k, name, nil); return nil })
}

// SetBoth sets a fact of a repo and one about content itself.
func SetBoth(ctx context.Context, x *Index, repo string) error {
	return x.Update(ctx, repo, func(tx *Tx) error {
		tx.set(OptionalKind, "name", []byte("x"))
		tx.setStore(OptionalKind, "name", []byte("x"), nil)
		return nil
	})
}

// Waiters returns how many links of waiting repos to these contents there are.
func Waiters(x *Index, digests ...digest.Digest) (n int) {
	keys := make([]key, len(digests))
	for i, d := range digests {
		keys[i] = keyOf(d)
	}
	for _, keys := range x.waiters(keys) {
		n += len(keys)
	}
	return n
}

// LongLooks are the looks at many names that are made while clients are served. Each returns how many it has found.
func LongLooks(x *Index, repo string, d digest.Digest) map[string]func() int {
	return map[string]func() int{
		"links":   func() int { return len(x.unneeded(repo, time.Unix(1<<32, 0))) },
		"waiting": func() int { return len(x.allWaiting()) },
		"holders": func() int { return len(x.Holders(d, 1<<30)) },
		"all": func() int {
			h, _, whole := x.holdings(repo, true)
			if !whole {
				return 0
			}
			return len(h.Blobs)
		},
		"references": func() (n int) {
			x.refersTo("images", keyOf(digest.FromString("config")), func(key) bool { n++; return true })
			return n
		},
	}
}

// Yielding iterates over a map, with the lock held, and calls fn.
func Yielding(x *Index, m map[int]bool, fn func(int)) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for k := range yielding(x, m) {
		fn(k)
	}
}

// Apply applies batches as the next commit that shows. The caller has the lock, see Lock.
func Apply(x *Index, batches ...Batch) error {
	return x.quotas.apply(x.state, Update{Revision: x.state.revision + 1, Batches: batches})
}

// Looks is how often Holdings looks before it keeps the lock.
const Looks = looks

// CaughtUp notes that an Index has all that the journal had at a time.
func CaughtUp(x *Index, at time.Time) { x.caughtUp(at) }

// Lock takes the lock for a change, and calls fn. Wanted reports whether a Lock waits.
func Lock(x *Index, fn func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	fn()
}

func Wanted(x *Index) bool {
	if x.mu.TryRLock() {
		x.mu.RUnlock()
		return false
	}
	return true
}

// SetRecordSlowly is SetRecord that calls between after it has compared the record, and before it changes it.
func SetRecordSlowly(ctx context.Context, x *Index, name string, old, value []byte, between func()) error {
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		if !same(tx.record(name), old) {
			return ErrConflict
		}
		between()
		tx.setRecord(name, value)
		return nil
	})
}

// PutRecord sets a record as a part of another change.
func PutRecord(tx *Tx, name string, value []byte) error {
	tx.setRecord(name, value)
	return nil
}

// ReservedRecord begins the names of the records of reservations.
const ReservedRecord = reservedRecord

// GiveBack gives back what is reserved and not needed, as a process does now and then.
func (u *Uploads) GiveBack(ctx context.Context) error { return u.giveBack(ctx) }
