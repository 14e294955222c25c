// Package bolt keeps facts in one bbolt file on a local disk.
//
// # Words
//
//   - head: the last commit; in a bbolt file, also one of the two pages that say which commit is the last.
//   - tally: a count and a sum over all facts, kept with each commit, by which damage is noticed.
//   - rewrite: the file is copied to a new one, which takes its place.
//   - recover: what trow rebuild does with a journal that is damaged.
//
// # Invariants
//
//  1. A process that has the journal open holds the lock of the data directory.
//  2. What Commit acknowledged is in the file after a power cut, whole.
//  3. A damaged file is reported as [storage.ErrDamaged]; a part of the facts is never taken for all of them.
//
// Why a commit that failed stops the writing: when the last fsync of a commit fails, bbolt returns an error, but shows
// the change all the same, and the kernel may have dropped the pages that it could not write. So the next commit first
// rewrites the file from what bbolt shows, and continues with the new one. A full disk is not such a failure: nothing
// was overwritten, and writing continues when there is space again.
//
// # What it does not do
//
// It does not interpret the values of facts. It detects damage by accident, not by an attacker, and not the loss of the
// page that says which commit is the last: bbolt then takes the commit before, as it must after a power cut.
package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	bbolt "go.etcd.io/bbolt"

	"trow/storage"
	"trow/storage/internal/local"
)

// Journal is the engine. Open it with [Open].
type Journal struct {
	path     string
	readOnly bool             // see OpenReadOnly
	saved    storage.Revision // the revision of the last backup; only Backup uses it

	feed    local.Feed // its lock guards all below
	db      *bbolt.DB
	file    *os.File     // of db
	damage  error        // an ErrDamaged: nothing is written any more
	suspect bool         // a commit failed: rewrite before the next one
	fault   func() error // for tests: called after a commit; its error is taken for that of the commit
}

// Buckets and keys of the file; they are part of the data format. The key of a fact is repo, a zero byte, kind, name.
var (
	bucketMeta  = []byte("meta")
	bucketRepos = []byte("repos") // the revision of each repo
	bucketFacts = []byte("facts")
	// bucketHistory has the facts of KindHistory, from format 2 on. They are apart, so that loading does not read them,
	// and not in the tally, which loading compares.
	bucketHistory = []byte("history")
	keyFormat     = []byte("format")
	keyRevision   = []byte("revision")
	keyTally      = []byte("tally")
)

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func parseNumber(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// Commit implements [storage.Journal].
func (j *Journal) Commit(_ context.Context, batches ...storage.Batch) (storage.Revision, error) {
	j.feed.Lock()
	defer j.feed.Unlock()
	if j.feed.Closed() {
		return 0, fmt.Errorf("journal: %w", storage.ErrClosed)
	}
	if j.readOnly {
		return 0, fmt.Errorf("journal: %w", storage.ErrReadOnly)
	}
	if j.damage != nil {
		return 0, fmt.Errorf("journal %s: %w; reads continue from memory; stop the server and run trow rebuild", j.path,
			j.damage)
	}
	// Pages of the failed commit may be on the disk in part, and the kernel may think that they were written.
	if j.suspect {
		if err := j.rewrite(); err != nil {
			j.noteDamage(err)
			return 0, fmt.Errorf("journal: rewrite after a failed commit: %w", local.Full(err))
		}
		j.suspect = false
	}
	rev := j.feed.Head() + 1
	err := guard(func() error { return j.db.Update(func(tx *bbolt.Tx) error { return put(tx, rev, batches) }) })
	if j.noteDamage(err); j.damage != nil {
		return 0, fmt.Errorf("journal %s: %w", j.path, err)
	}
	if err == nil && j.fault != nil {
		err = j.fault()
	}
	if err != nil {
		err = local.Full(err)
		j.suspect = !errors.Is(err, storage.ErrConflict) && !errors.Is(err, storage.ErrFull)
		if j.shows(rev) { // it happened all the same, and watchers must not miss it
			j.feed.Publish(rev, batches)
		}
		return 0, fmt.Errorf("journal: %w", err)
	}
	// The commit is durable; now it may be seen.
	j.feed.Publish(rev, batches)
	return rev, nil
}

// noteDamage remembers an ErrDamaged; the caller holds the lock.
func (j *Journal) noteDamage(err error) {
	if errors.Is(err, storage.ErrDamaged) {
		j.damage = err
	}
}

// view runs a reading transaction.
func view(db *bbolt.DB, do func(tx *bbolt.Tx) error) error {
	return guard(func() error { return db.View(do) })
}

// shows reports whether the file's last commit is rev.
func (j *Journal) shows(rev storage.Revision) (yes bool) {
	_ = view(j.db, func(tx *bbolt.Tx) error {
		yes = parseNumber(tx.Bucket(bucketMeta).Get(keyRevision)) == uint64(rev)
		return nil
	})
	return yes
}

// put writes batches. An error rolls the transaction back.
func put(tx *bbolt.Tx, rev storage.Revision, batches []storage.Batch) error {
	meta, repos, facts := tx.Bucket(bucketMeta), tx.Bucket(bucketRepos), tx.Bucket(bucketFacts)
	sum, _ := parseTally(meta.Get(keyTally)) // prepare has made sure that there is one
	var conflict []string
	for _, b := range batches {
		if !fits(tx, b) {
			conflict = append(conflict, b.Repo)
			continue
		}
		for _, f := range b.Facts {
			if err := raiseFormat(tx, f); err != nil {
				return err
			}
			err := error(nil)
			if f.Kind == storage.KindHistory {
				err = putHistory(tx, b.Repo, f)
			} else {
				err = putFact(facts, &sum, b.Repo, f)
			}
			if err != nil {
				return err
			}
		}
		if err := putRevision(repos, b, rev); err != nil {
			return err
		}
	}
	if len(conflict) > 0 {
		return &storage.ConflictError{Repos: conflict}
	}
	return errors.Join(meta.Put(keyRevision, number(uint64(rev))), meta.Put(keyTally, sum.bytes()))
}

func putFact(facts *bbolt.Bucket, sum *tally, repo string, f storage.Fact) error {
	k := factKey(repo, f.Kind, f.Name)
	if old := facts.Get(k); old != nil {
		sum.add(-1, k, old)
	}
	if f.Value == nil {
		return facts.Delete(k)
	}
	sum.add(1, k, f.Value)
	return facts.Put(k, f.Value)
}

// fits reports whether a batch can be committed.
func fits(tx *bbolt.Tx, b storage.Batch) bool {
	repos, facts, history := tx.Bucket(bucketRepos), tx.Bucket(bucketFacts), tx.Bucket(bucketHistory)
	if !b.Detached && storage.Revision(parseNumber(repos.Get([]byte(b.Repo)))) != b.Base {
		return false
	}
	return !slices.ContainsFunc(b.If, func(f storage.Fact) bool {
		var value []byte
		if f.Kind != storage.KindHistory {
			value = facts.Get(factKey(b.Repo, f.Kind, f.Name))
		} else if history != nil {
			value = history.Get(factKey(b.Repo, f.Kind, f.Name))
		}
		return (value == nil) != (f.Value == nil) || !bytes.Equal(value, f.Value)
	})
}

// putRevision records the revision that a repo has after a batch.
func putRevision(repos *bbolt.Bucket, b storage.Batch, rev storage.Revision) error {
	switch {
	case b.Detached:
		return nil
	case b.Ends:
		return repos.Delete([]byte(b.Repo))
	}
	return repos.Put([]byte(b.Repo), number(uint64(rev)))
}

func factKey(repo string, kind storage.Kind, name string) []byte {
	return append(append(prefix(repo), byte(kind)), name...)
}

// prefix is what the keys of a repo's facts start with.
func prefix(repo string) []byte { return append([]byte(repo), 0) }

// Traits implements [storage.Journal]. One process writes to the file, and a commit may have any size.
func (j *Journal) Traits() storage.Traits { return storage.Traits{} }

// Head implements [storage.Journal].
func (j *Journal) Head(context.Context) (storage.Revision, error) { return j.feed.Head(), nil }

// Close ends every Watch and closes the file.
func (j *Journal) Close() error {
	j.feed.Lock()
	defer j.feed.Unlock()
	if j.feed.Closed() {
		return nil
	}
	j.feed.Close()
	return j.release(j.damage)
}
