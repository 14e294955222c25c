package bolt

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"

	bbolt "go.etcd.io/bbolt"

	"trow/storage"
)

// Watch implements [storage.Journal].
func (j *Journal) Watch(ctx context.Context, apply func(storage.Update) error) error {
	return j.feed.Watch(ctx, j.load, apply)
}

// Snapshot implements [storage.Snapshots] with a reading transaction, as Backup does. A commit waits for its end only
// if it has to enlarge the memory map, or to rewrite the file after a failed commit.
func (j *Journal) Snapshot(ctx context.Context, apply func(storage.Update) error) error {
	j.feed.Lock()
	db, damage, closed := j.db, j.damage, j.feed.Closed()
	j.feed.Unlock() // not held while the state is read, so that commits go on
	switch {
	case closed:
		return fmt.Errorf("%s: %w", j.path, storage.ErrClosed)
	case damage != nil:
		return damage
	}
	err := view(db, func(tx *bbolt.Tx) error {
		defer forgetPages(tx)
		return read(tx, func(u storage.Update) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return apply(u)
		})
	})
	j.feed.Lock()
	defer j.feed.Unlock()
	j.noteDamage(err)
	return err
}

// loadPart is how many facts of the full state are in memory at once, beside what they become.
const loadPart = 4096

// releaseEvery is the number of facts, about 30 MB of the file, after which the pages that were read are given back.
const releaseEvery = 32 * loadPart

// load delivers the full state in parts; the caller holds the lock.
func (j *Journal) load(apply func(storage.Update) error) error {
	if j.damage != nil { // bbolt may hold its own locks for ever
		return j.damage
	}
	err := view(j.db, func(tx *bbolt.Tx) (err error) {
		defer forgetPages(tx)
		deliver, wait := pipeline(apply)
		// Deferred, so that it waits after a panic too: the facts point into the memory map, which must not be read
		// after the transaction.
		defer func() {
			if applied := wait(); err == nil {
				err = applied
			}
		}()
		return read(tx, deliver)
	})
	if j.noteDamage(err); j.damage != nil {
		return fmt.Errorf("%s: %w; stop the server and run trow rebuild --data-dir %s", j.path, err,
			filepath.Dir(j.path))
	}
	return err
}

// pipeline calls apply in a goroutine of its own, so that one processor reads what another one applies. wait must be
// called in the end. deliver and wait return apply's error.
func pipeline(apply func(storage.Update) error) (deliver func(storage.Update) error, wait func() error) {
	updates, done := make(chan storage.Update), make(chan struct{})
	var failed error // valid once done is closed
	go func() {
		defer close(done)
		failed = guard(func() error { // apply reads the memory map as well
			for u := range updates {
				if err := apply(u); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	deliver = func(u storage.Update) error {
		select {
		case updates <- u:
			return nil
		case <-done:
			return failed
		}
	}
	wait = func() error {
		close(updates)
		<-done
		return failed
	}
	return deliver, wait
}

// read delivers the full state of a transaction.
func read(tx *bbolt.Tx, deliver func(storage.Update) error) error {
	l := loading{deliver: deliver, repos: tx.Bucket(bucketRepos), facts: make([]storage.Fact, 0, loadPart)}
	meta := tx.Bucket(bucketMeta)
	want, ok := parseTally(meta.Get(keyTally))
	c := tx.Bucket(bucketFacts).Cursor()
	// The count bounds the loop: damaged pages can form a ring.
	for k, v := c.First(); k != nil && l.sum.count <= want.count; k, v = c.Next() {
		if err := l.add(k, v); err != nil {
			return err
		}
		if len(l.facts) == loadPart {
			if err := l.flush(storage.Update{}); err != nil {
				return err
			}
			if l.sum.count%releaseEvery == 0 {
				forgetPages(tx)
			}
		}
	}
	// Only now the state is known to be complete, and the last part may say so.
	if !ok || want != l.sum {
		return fmt.Errorf("%w: it has %d facts, not the %d that were written", storage.ErrDamaged,
			l.sum.count, want.count)
	}
	return l.flush(storage.Update{Revision: storage.Revision(parseNumber(meta.Get(keyRevision))), Synced: true})
}

// loading gathers the full state into updates.
type loading struct {
	deliver func(storage.Update) error
	repos   *bbolt.Bucket
	batches []storage.Batch
	facts   []storage.Fact  // of this part; the facts of each batch are a slice of it
	names   strings.Builder // of this part; all its strings are parts of it
	sum     tally
}

// add takes one record. Its bytes are valid only during the transaction; apply does not keep them.
func (l *loading) add(k, v []byte) error {
	l.sum.add(1, k, v)
	repo, fact, ok := bytes.Cut(k, []byte{0})
	if !ok || len(fact) == 0 {
		return fmt.Errorf("%w: damaged fact: record %.80q", storage.ErrDamaged, k)
	}
	if n := len(l.batches); n == 0 || l.batches[n-1].Repo != string(repo) {
		base := storage.Revision(parseNumber(l.repos.Get(repo)))
		l.batches = append(l.batches, storage.Batch{Repo: l.text(repo), Base: base})
	}
	b, n := &l.batches[len(l.batches)-1], len(l.facts)
	l.facts = append(l.facts, storage.Fact{Kind: storage.Kind(fact[0]), Name: l.text(fact[1:]), Value: v})
	b.Facts = l.facts[n-len(b.Facts) : n+1]
	return nil
}

// text copies b into a string without an allocation of its own.
func (l *loading) text(b []byte) string {
	n := l.names.Len()
	l.names.Write(b)
	return l.names.String()[n:]
}

func (l *loading) flush(u storage.Update) error {
	u.Batches = l.batches
	// New buffers, since the goroutine of the pipeline reads the old ones. The next part will be about as large.
	batches, names := len(l.batches), l.names.Len()
	l.batches, l.facts = make([]storage.Batch, 0, batches), make([]storage.Fact, 0, loadPart)
	l.names = strings.Builder{}
	if !u.Synced {
		l.names.Grow(names)
	}
	return l.deliver(u)
}
