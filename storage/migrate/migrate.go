// Package migrate moves all that a registry holds from one journal and its blobs to others, while the source is in use.
//
// # Words
//
//   - source, target: the two [Side]s. Each has a journal, an Index that follows it, and blobs.
//   - seal, migrating: the records that say so at both ends; see seal.go of package storage.
//   - verified: of bytes, that the target's engine has compared them with their digest when it stored them.
//   - lost: content that the source says it holds, and whose bytes are damaged or missing there.
//   - switch: the moment from which on the source refuses every write.
//
// # Invariants
//
//  1. Before the switch, nothing of the source changes but the record that a migration has begun. After it, nothing at
//     all.
//  2. The target is sealed until everything in it has been compared with the source. Taking the seal off is the last
//     step.
//  3. Facts are copied as they are, value by value, so that the times and the order of tags, the ages of links and what
//     the quotas count are those of the source.
//  4. What is known to be at the target already is not copied again. Whenever a migration was cut short, a new [Run]
//     continues it.
//
// # How
//
// A pass watches the journal of the source: first its full state, then the commits. It has hashes of what the target
// has, so it finds what differs without holding all of it in memory; and it copies that, bytes before facts. A pass
// that finds more than it may hold ends, and another one follows. When a pass has seen everything, the source is
// sealed, and the rest is copied. Then another pass compares both ends: the hashes are made anew, from what the
// target's engines list and deliver.
//
// # What it does not do
//
// It opens no engines, and it does not copy open uploads, nor bytes that no repository holds.
package migrate

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// Side is one end of a migration. The Index follows the Journal; that of the target was opened with
// IndexOptions.Migration, and, if the Blobs are Placed ones, their Records are this Index.
type Side struct {
	Name    string // for messages; it has no credentials
	Journal storage.Journal
	Index   *storage.Index
	Blobs   storage.Blobs
}

// Options are the options of Run.
type Options struct {
	From, To Side
	// Parallel is how many blobs are copied at once; 0: 8.
	Parallel int
	// Report is called about once a second with the progress. Optional.
	Report func(Progress)
	budget int // bytes of what is found and not copied yet; 0: 64 MiB
}

// Stage is what a migration is doing.
type Stage string

// The stages, in order.
const (
	Copying   Stage = "copying"   // the source is in use
	Switched  Stage = "switched"  // the source refuses writes; the rest is copied
	Comparing Stage = "comparing" // of both ends
	Done      Stage = "done"      // the target can be used
)

// Progress is what has been done so far, or, at the end, in all.
type Progress struct {
	Stage    Stage         `json:"stage"`
	Contents int           `json:"contents"` // at the source: when the migration began or went on, and pushed since
	Bytes    int64         `json:"bytes"`    // of these
	There    int           `json:"there"`    // of these, at the target before: of an earlier run
	Copied   int           `json:"copied"`   // contents
	Sent     int64         `json:"sent"`     // bytes of these
	Facts    int           `json:"facts"`    // copied or deleted
	Lost     []Lost        `json:"lost,omitempty"`
	Took     time.Duration `json:"took"`            // nanoseconds
	Refused  time.Duration `json:"refused"`         // of these, for how long the source has refused writes
	Again    bool          `json:"again,omitempty"` // an earlier run had finished; nothing was done
}

// Lost is a content whose bytes are damaged or missing at the source. The target quarantines it.
type Lost struct {
	Digest digest.Digest `json:"digest"`
	Reason string        `json:"reason"`
}

// Errors that say what an administrator must do.
var (
	// ErrNotEmpty: the target holds what this migration has not put there.
	ErrNotEmpty = errors.New("the target is not empty")
	// ErrOther: a migration to another target has begun, or has finished.
	ErrOther = errors.New("another migration has begun")
)

const (
	defaultParallel = 8
	defaultBudget   = 64 << 20
)

// Run moves everything, or continues a migration that an earlier Run has begun. At the end, the source is sealed for
// good and the target can be used. Errors: ErrNotEmpty, ErrOther; *storage.SealedError for a source that is itself a
// target; those of the engines and ctx's, after which another Run continues.
func Run(ctx context.Context, o Options) (Progress, error) {
	o.Parallel, o.budget = cmp.Or(o.Parallel, defaultParallel), cmp.Or(o.budget, defaultBudget)
	if o.Report == nil {
		o.Report = func(Progress) {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var reporting sync.WaitGroup
	defer reporting.Wait() // nothing is reported after Run has returned
	defer cancel()
	m := &migration{Options: o, start: time.Now(), lost: map[digest.Digest]string{}, verified: map[uint64]int64{}}
	m.done.Stage = Copying
	finished, err := m.begin(ctx)
	if err != nil || finished {
		m.done.Again = finished && err == nil
		return m.now(), err
	}
	reporting.Go(func() { m.reportEach(ctx, time.Second) })
	for _, step := range []func(context.Context) error{m.identity, m.load, m.follow, m.compare, m.finish} {
		if err := step(ctx); err != nil {
			return m.now(), fmt.Errorf("migrate to %s: %w", o.To.Name, err)
		}
	}
	return m.now(), nil
}

// begin records the migration at both ends, or finds it recorded. It reports whether it has finished before.
func (m *migration) begin(ctx context.Context) (finished bool, err error) {
	from, to := m.From.Index, m.To.Index
	begun, migrating := from.Migrating()
	sealed := (*storage.SealedError)(nil)
	m.sealed = errors.As(from.Sealed(), &sealed) && sealed.Moved()
	if sealed != nil && !m.sealed {
		return false, sealed // the source is itself a target
	}
	if m.sealed {
		begun, migrating, m.done.Stage = sealed.Migration, true, Switched
	}
	theirs := (*storage.SealedError)(nil)
	if errors.As(to.Sealed(), &theirs); theirs != nil && theirs.Moved() {
		return false, fmt.Errorf("%w: its content has moved to %s; give an empty one", ErrNotEmpty, theirs.Migration.To)
	}
	origin, made := to.Origin()
	switch {
	case m.sealed && theirs == nil && made && origin.ID == begun.ID:
		m.done.Stage = Done
		return true, nil
	case theirs != nil && (!migrating || theirs.Migration.ID != begun.ID):
		return false, fmt.Errorf("%w: it is the target of a migration from %s that has not finished; go on with that "+
			"one, or empty the target", ErrNotEmpty, theirs.Migration.From)
	case theirs == nil && migrating && begun.To != m.To.Name:
		return false, fmt.Errorf("%w: to %s; go on with that one%s", ErrOther, begun.To, cancelRemedy(m.sealed))
	case theirs == nil:
		if err := m.empty(ctx); err != nil {
			return false, err
		}
	}
	// The source first: its Collector rests before anything is copied. If a run is cut short in between, the next one
	// finds the ID there; a sealed target without its migration at the source could not be used any more.
	if !migrating {
		begun = storage.Migration{ID: rand.Text(), To: m.To.Name, Time: time.Now().Unix()}
		if err := from.BeginMigration(ctx, &begun); err != nil {
			return false, fmt.Errorf("record the migration at the source: %w", err)
		}
	}
	m.id = begun.ID
	// The seal names this run, so that an earlier run that is still going on somewhere cannot commit any more.
	seal := storage.Migration{ID: m.id, From: m.From.Name, Run: rand.Text(), Time: time.Now().Unix()}
	if err := to.Seal(ctx, seal); err != nil {
		return false, fmt.Errorf("record the migration at the target: %w", err)
	}
	return false, nil
}

func cancelRemedy(sealed bool) string {
	if sealed {
		return ""
	}
	return ", or give it up with trow migrate --cancel"
}

// empty returns an ErrNotEmpty unless the target has neither facts nor bytes.
func (m *migration) empty(ctx context.Context) error {
	if !m.To.Index.Empty() {
		return fmt.Errorf("%w: its journal has repositories or contents that this migration has not put there; "+
			"give an empty one", ErrNotEmpty)
	}
	if placed, ok := m.To.Blobs.(storage.Placed); ok {
		for _, err := range placed.Objects(ctx) {
			return cmp.Or(err, fmt.Errorf("%w: there are objects that its journal does not know; give an empty "+
				"prefix of the bucket", ErrNotEmpty))
		}
		return nil
	}
	for _, err := range m.To.Blobs.All(ctx) {
		return cmp.Or(err, fmt.Errorf("%w: there are blobs that its journal does not know; give an empty directory",
			ErrNotEmpty))
	}
	return nil
}

// identified is storage.Identified: Blobs that keep the identity of the pair that they are in. The journal has the same
// identity in a record.
type identified interface {
	Identity(ctx context.Context) (string, error)
	SetIdentity(ctx context.Context, id string) error
}

// identity makes the target's journal and blobs a pair, with an identity of its own. It refuses blobs of another pair.
func (m *migration) identity(ctx context.Context) error {
	blobs, ok := m.To.Blobs.(identified)
	if !ok {
		return nil
	}
	theirs, err := blobs.Identity(ctx)
	if err != nil {
		return fmt.Errorf("read the identity of the target's blobs: %w", err)
	}
	mine, err := m.To.Index.Record(ctx, storage.IdentityRecord)
	switch {
	case err != nil:
		return err
	case theirs != "" && theirs != string(mine):
		return fmt.Errorf("%w: its blobs belong to another journal (identity %s); give an empty prefix of the bucket",
			ErrNotEmpty, theirs)
	case theirs != "":
		return nil
	}
	// The journal first: if a run is cut short in between, the next one finds the identity there. Blobs with an
	// identity that the journal does not have are refused above.
	if mine == nil {
		mine = []byte(rand.Text())
		if j, ok := m.To.Journal.(interface{ Identity() string }); ok {
			mine = []byte(j.Identity()) // an administrator finds the journal by it in its service
		}
		if err := m.To.Index.SetRecord(ctx, storage.IdentityRecord, nil, mine); err != nil {
			return err
		}
	}
	return blobs.SetIdentity(ctx, string(mine))
}

// finish removes the seal of the target. It is the last step; see invariant 2.
func (m *migration) finish(ctx context.Context) error {
	m.mu.Lock()
	m.done.Stage = Done
	m.mu.Unlock()
	return m.To.Index.Unseal(ctx, storage.Migration{ID: m.id, From: m.From.Name, Time: time.Now().Unix()})
}

// Cancel gives up a migration before its switch: the source collects again. The target stays sealed, so it must be
// emptied before it is used. It returns the migration, if there was one. Errors: as Index.Update; *storage.SealedError
// after the switch.
func Cancel(ctx context.Context, x *storage.Index) (m storage.Migration, found bool, err error) {
	if err := x.Sealed(); err != nil {
		return m, false, err
	}
	if m, found = x.Migrating(); found {
		err = x.BeginMigration(ctx, nil)
	}
	return m, found, err
}

// Plan is what a migration would copy.
type Plan struct {
	Repos     int           `json:"repositories"`
	Manifests int           `json:"manifests"`
	Tags      int           `json:"tags"`
	Contents  int           `json:"contents"`
	Bytes     int64         `json:"bytes"`
	Lost      int           `json:"lost"`     // known to be damaged or missing
	Estimate  time.Duration `json:"estimate"` // nanoseconds; 0: not known
}

// PlanOf returns what a migration of a source would copy. to may be nil; otherwise it is the open target. The estimate
// is from the time that a sample takes: up to 32 MiB are read from the source and, if there is a target, sent there and
// dropped. Errors: ErrNotEmpty; those of the engines.
func PlanOf(ctx context.Context, from Side, to *Side) (Plan, error) {
	s := from.Index.Stats()
	p := Plan{Repos: s.Repos, Manifests: s.Manifests, Tags: s.Tags, Lost: s.Quarantined}
	var sample digest.Digest
	for d := range from.Index.Contents() {
		size := from.Index.Size(d)
		p.Contents++
		p.Bytes += size
		if size > from.Index.Size(sample) && !from.Index.Quarantined(d) {
			sample = d
		}
	}
	if to != nil {
		m := &migration{Options: Options{From: from, To: *to}}
		if _, migrating := from.Index.Migrating(); !migrating && to.Index.Sealed() == nil {
			if err := m.empty(ctx); err != nil {
				return p, err
			}
		}
	}
	if sample == "" {
		return p, nil
	}
	took, n, err := trial(ctx, from, to, sample)
	if err != nil {
		return p, fmt.Errorf("try how fast the target is: %w", err)
	}
	// For a small content the requests take most of the time, about as long as 64 KiB of bytes.
	p.Estimate = time.Duration(float64(took) / float64(max(n, 1)) * float64(p.Bytes+int64(p.Contents)<<16))
	return p, nil
}
