package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// A journal that was restored from a backup does not have what was committed after it: objects that it does not name
// may be content that was acknowledged, and a mark of the Collector may be on content that was pushed again since. So
// once that is noticed nothing is collected, until an administrator lets the Collector go on.
//
// It is noticed in three ways: the engine says so, with an ErrRestored and in Update.Restored; a full state is of a
// lower revision than what this Index has shown; or the last commit is older than a copy of the facts that lies beside
// the bytes, see [Index.Expect]. A record keeps it, for all processes and over restarts.

// wentBackRecord is the name of the record. believedRecord has the time, in Unix nanoseconds, at which the journal was
// last accepted as it was, by an administrator or by a rebuild. A process may notice only later that the journal went
// back, so it compares the record with the value in the journal as the process knew it.
const (
	wentBackRecord = "journal/went-back"
	believedRecord = "journal/believed"
)

// ErrRestored: a Watch has ended because the journal is not the one that it has followed, but an earlier state of it or
// another one.
var ErrRestored = errors.New("the journal was replaced by an older or another one")

// wentBack is what the record says.
type wentBack struct {
	Seen Revision `json:"seen,omitempty"` // a revision that there was
	Head Revision `json:"head,omitempty"` // that of the last commit when this was noticed
	Time int64    `json:"time"`           // when, in Unix seconds
}

func (w wentBack) err() error {
	what := "the journal is an older or another one"
	if w.Seen > 0 {
		what = fmt.Sprintf("the journal went back to revision %d, and had been at %d", w.Head, w.Seen)
	}
	return fmt.Errorf("%w: %s (noticed at %s); it does not know what was pushed in between, so nothing is collected. "+
		"If a newer backup exists, restore that one", ErrSuspicious, what, time.Unix(w.Time, 0).UTC().
		Format(time.RFC3339))
}

// Suspicion returns an ErrSuspicious if the journal is not what it was before; nil if it is, or if [Index.Trust] was
// called since, or a rebuild has ended.
func (x *Index) Suspicion() error {
	if v := x.record(wentBackRecord); v != nil {
		var w wentBack
		_ = json.Unmarshal(v, &w) // a record that cannot be parsed is a suspicion as well
		return w.err()
	}
	if w := x.suspected.Load(); w != nil {
		return w.err()
	}
	return nil
}

// Expect compares the journal with a revision that it has had, and suspects it if its last commit is older. Errors:
// those of the journal; none if it is suspected, see Suspicion.
func (x *Index) Expect(ctx context.Context, seen Revision) error {
	if x.Revision() >= seen || x.Suspicion() != nil {
		return nil
	}
	head, err := x.headNow(ctx) // the state of this process may only be behind
	if err != nil {
		return fmt.Errorf("index: read the last commit: %w", err)
	}
	if head < seen {
		x.mu.RLock()
		defer x.mu.RUnlock()
		x.suspect(wentBack{Seen: seen, Head: head}, x.state)
	}
	return nil
}

// Doubt suspects the journal if an error of it is an ErrRestored.
func (x *Index) Doubt(err error) {
	if errors.Is(err, ErrRestored) {
		x.mu.RLock()
		defer x.mu.RUnlock()
		x.suspect(wentBack{}, x.state)
	}
}

// Trust removes the suspicion, once an administrator has accepted the journal as it is, also that of a process that has
// not recorded it yet. Errors: as Update.
func (x *Index) Trust(ctx context.Context) error {
	return x.believe(ctx, func(*Tx) {})
}

// believe ends all suspicions of the journal until now, in one commit with another change. Errors: as Update.
func (x *Index) believe(ctx context.Context, change func(*Tx)) error {
	noticed := x.suspected.Load()
	err := x.Update(ctx, storeRepo, func(tx *Tx) error {
		tx.believe()
		change(tx)
		return nil
	})
	if err == nil { // the change that records a suspicion finds this, but only later
		x.suspected.CompareAndSwap(noticed, nil)
	}
	return err
}

// believe is that of the Index, in a change.
func (tx *Tx) believe() {
	if tx.record(wentBackRecord) != nil {
		tx.setRecord(wentBackRecord, nil)
	}
	last, _ := strconv.ParseInt(string(tx.record(believedRecord)), 10, 64)
	tx.setRecord(believedRecord, strconv.AppendInt(nil, max(tx.clock, last+1), 10))
}

// believedSince reports whether the journal, in which these records were, was believed since. In an older state of it
// the value is less, or the same; in another journal it says nothing.
func (tx *Tx) believedSince(then map[string][]byte) bool {
	before, _ := strconv.ParseInt(string(then[believedRecord]), 10, 64)
	now, _ := strconv.ParseInt(string(tx.Record(believedRecord)), 10, 64)
	return now > before && same(tx.Record(IdentityRecord), then[IdentityRecord])
}

// Revision returns that of the last commit that the Index shows.
func (x *Index) Revision() Revision {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.revision
}

// suspect notes the suspicion in memory at once, and records it as soon as the journal accepts commits. known is the
// state of the journal as this process knew it. The caller may hold mu, so suspect takes no lock.
func (x *Index) suspect(w wentBack, known *state) {
	w.Time = time.Now().Unix()
	// The values are never changed, but replaced.
	then := map[string][]byte{believedRecord: known.records[believedRecord],
		IdentityRecord: known.records[IdentityRecord]}
	suspicion := &w
	if !x.suspected.CompareAndSwap(nil, suspicion) {
		return // an earlier suspicion is being recorded
	}
	value, _ := json.Marshal(w) // never fails
	x.done.Go(func() {
		x.options.Warn(w.err())
		// Short waits at first: if the process ends before the suspicion is recorded, the next one does not have it.
		for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
			err := x.Update(x.ctx, storeRepo, func(tx *Tx) error {
				// Decided in the change, on the condition that nothing of it has changed: Trust may have been called
				// meanwhile, or a rebuild has ended, or another process was faster.
				if !tx.believedSince(then) && tx.record(wentBackRecord) == nil {
					tx.setRecord(wentBackRecord, value)
				}
				return nil
			})
			switch {
			case x.ctx.Err() != nil, errors.Is(err, ErrReadOnly), errors.As(err, new(*SealedError)):
				return // it cannot be recorded: it stays in the memory of this process
			case err == nil:
				x.suspected.CompareAndSwap(suspicion, nil)
				return
			}
			pause(x.ctx, wait)
		}
	})
}
