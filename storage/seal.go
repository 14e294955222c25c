package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// A migration copies everything to another journal and other blobs, see package migrate. Two records keep other changes
// away from what it reads and writes:
//
//   - migrating, at the source, while the migration is unfinished: the Collector and retention rest.
//   - seal: only the migration writes. The target has it from the beginning to the end, the source for good once
//     everything is to be written at the target. Every commit of a journal that several processes write to has the
//     condition that there is no seal, so that no process commits anything after it, however far behind it is.
const (
	migratingRecord = "migration/source"
	sealRecord      = "migration/seal"
	originRecord    = "migration/origin" // at a target that is finished: where it comes from
)

// IdentityRecord is the name of the record of the identity of a journal and its blobs: each pair has its own.
const IdentityRecord = "identity"

// Migration is what the records of a migration say.
type Migration struct {
	ID   string `json:"id"`             // random, the same at both ends
	From string `json:"from,omitempty"` // at the target: the source
	To   string `json:"to,omitempty"`   // at the source: the target
	Run  string `json:"run,omitempty"`  // at the target: the run that may write
	Time int64  `json:"time,omitempty"` // when the record was made, Unix seconds
}

// ErrMigrating: a migration from here has not finished, or has moved everything away, so that nothing is collected.
var ErrMigrating = errors.New("nothing is collected or removed because of a migration")

// SealedError is the error of a change that a seal refuses. Nothing was changed, and it stays so.
type SealedError struct{ Migration Migration }

// Moved reports whether the content moves to Migration.To for good; otherwise this is the target of a migration that
// has not finished. The source does not know whether the rest has been copied and compared: it stays as it was at the
// switch.
func (e *SealedError) Moved() bool { return e.Migration.To != "" }

func (e *SealedError) Error() string {
	if e.Moved() {
		return fmt.Sprintf("everything moves to %s, for good: here, reads go on and nothing is written any more. If "+
			"trow migrate was cut short, run it again; when it has ended, start servers there", e.Migration.To)
	}
	return fmt.Sprintf("this is the target of a migration from %s that has not finished: run trow migrate again on "+
		"the server that it comes from, or empty the target", e.Migration.From)
}

func parseMigration(v []byte) (m Migration, found bool) {
	if v == nil {
		return m, false
	}
	_ = json.Unmarshal(v, &m) // a record that cannot be parsed still counts: its existence is what refuses writes
	return m, true
}

func (m Migration) value() []byte {
	v, err := json.Marshal(m)
	if err != nil { // it cannot fail for strings
		return []byte("{}")
	}
	return v
}

// Sealed returns the SealedError that a change would get now, or nil.
func (x *Index) Sealed() error {
	if v := x.record(sealRecord); v != nil {
		m, _ := parseMigration(v)
		return &SealedError{m}
	}
	return nil
}

// Resting returns an ErrMigrating if nothing is to be collected or removed because of a migration, with the remedy.
func (x *Index) Resting() error {
	if err := x.Sealed(); err != nil {
		return fmt.Errorf("%w: %w", ErrMigrating, err)
	}
	if m, found := x.Migrating(); found {
		return fmt.Errorf("%w: one to %s has not finished: run the same trow migrate again to go on with it, or "+
			"trow migrate --cancel to give it up", ErrMigrating, m.To)
	}
	return nil
}

// Migrating returns the migration from here that has begun and was not cancelled.
func (x *Index) Migrating() (Migration, bool) { return parseMigration(x.record(migratingRecord)) }

// Origin returns the migration that this journal was the target of, once it has ended.
func (x *Index) Origin() (Migration, bool) { return parseMigration(x.record(originRecord)) }

// BeginMigration records at the source that m has begun, or with nil that the one that has begun is given up. Errors:
// ErrConflict if another process was faster; as Update.
func (x *Index) BeginMigration(ctx context.Context, m *Migration) error {
	if m == nil {
		old := x.record(migratingRecord)
		return x.SetRecord(ctx, migratingRecord, old, nil)
	}
	return x.SetRecord(ctx, migratingRecord, nil, m.value())
}

// Seal refuses all writes from now on. At a target (m.From is set), this Index alone continues to write, until another
// run calls Seal. Errors: as Update.
func (x *Index) Seal(ctx context.Context, m Migration) error {
	value := m.value()
	err := x.Update(ctx, storeRepo, func(tx *Tx) error {
		tx.seals = true
		tx.setRecord(sealRecord, value)
		return nil
	})
	if err == nil && m.From != "" {
		x.setOwnSeal(value)
	}
	return err
}

// Unseal ends a migration at its target, which can be used from now on. Errors: as Update.
func (x *Index) Unseal(ctx context.Context, m Migration) error {
	err := x.Update(ctx, storeRepo, func(tx *Tx) error {
		if err := x.sealed(); err != nil {
			return err
		}
		tx.seals = true
		tx.setRecord(sealRecord, nil)
		tx.setRecord(originRecord, m.value())
		return nil
	})
	if err == nil {
		x.setOwnSeal(nil)
	}
	return err
}

func (x *Index) setOwnSeal(value []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ownSeal = value
}

// sealed returns the error for a change that is not about the seal.
func (x *Index) sealed() error {
	x.mu.RLock()
	seal, own := x.state.records[sealRecord], x.ownSeal
	x.mu.RUnlock()
	switch m, _ := parseMigration(seal); {
	case same(seal, own):
		return nil
	case own != nil:
		return errors.New("another run of the migration has taken over, or the target was emptied meanwhile; " +
			"run one at a time")
	default:
		return &SealedError{m}
	}
}

// requireSeal makes a commit depend on the seal being as the functions saw it.
func (p *plan) requireSeal() {
	if !p.x.shared {
		return // this process makes all commits, one after the other, and sealed has checked the seal
	}
	r := p.repo(storeRepo)
	if _, known := r.conditions[factKey{kindRecord, sealRecord}]; !known {
		r.require(factKey{kindRecord, sealRecord}, p.seal)
	}
}

// costOfSeal returns what requireSeal adds.
func (p *plan) costOfSeal() cost {
	if !p.x.shared {
		return cost{}
	}
	return cost{compares: 1, bytes: len(storeRepo) + len(sealRecord) + len(p.seal)}
}

// migratedSince reports whether a migration to here has ended after a time. Until a grace has passed, clients may rely
// on what they have learned from the source.
func (x *Index) migratedSince(since time.Time) bool {
	m, found := x.Origin()
	return found && time.Unix(m.Time+1, 0).After(since)
}

// Portable reports whether a fact of a repo means the same with other engines, so that a migration copies it. What is
// not copied: which object has which bytes, what is about to be deleted, open uploads, and what a pair of engines has
// of its own.
func Portable(repo string, f Fact) bool {
	if repo != storeRepo {
		return true
	}
	switch f.Kind {
	case kindCondemned, kindPlace:
		return false
	case kindRecord:
		switch f.Name {
		case migratingRecord, sealRecord, originRecord, IdentityRecord, generationRecord, wentBackRecord,
			believedRecord, rebuildRecord:
			return false
		}
		return !strings.HasPrefix(f.Name, uploadRecord) && !strings.HasPrefix(f.Name, quotaRecord) &&
			!strings.HasPrefix(f.Name, replicaRecord) // the processes of the source are not those of the target
	}
	return true
}

// IsSeal reports whether a fact is the seal.
func IsSeal(repo string, f Fact) bool {
	return repo == storeRepo && f.Kind == kindRecord && f.Name == sealRecord
}

// IsQuarantine returns the digest that a fact quarantines.
func IsQuarantine(repo string, f Fact) (d digest.Digest, yes bool) {
	if repo != storeRepo || f.Kind != kindQuarantined || !key(f.Name).valid() {
		return "", false
	}
	return key(f.Name).digest(), true
}

// ContentOf returns the content that a fact makes present in a repo, and its size in bytes.
func ContentOf(repo string, f Fact) (d digest.Digest, size int64, found bool) {
	if !ofRegistry(repo) || f.Value == nil || !key(f.Name).valid() {
		return "", 0, false
	}
	switch f.Kind {
	case KindLink:
		size, _, _, err := parseLink(f.Value)
		return key(f.Name).digest(), size, err == nil
	case KindManifest:
		m, err := parseManifest(f.Value)
		return key(f.Name).digest(), m.size, err == nil
	}
	return "", 0, false
}
