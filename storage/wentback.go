package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// A journal that was restored from a backup knows nothing of what was committed after it: objects that it does not name
// may be content that was acknowledged, and a mark of the Collector may be on content that was pushed again since. So
// nothing is collected any more once it is noticed, until an administrator lets the Collector go on.
//
// It is noticed in three ways: the engine says so with an ErrRestored; a full state is of a lower revision than what
// this Index has shown; or the last commit is older than a copy of the facts that lies beside the bytes, see
// [Index.Expect]. A record keeps it, for all processes and over restarts.

// wentBackRecord is the name of the record.
const wentBackRecord = "journal/went-back"

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
// called since.
func (x *Index) Suspicion() error {
	if v := x.record(wentBackRecord); v != nil {
		var w wentBack
		_ = json.Unmarshal(v, &w) // a record of another form is one all the same
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
	head, err := x.headNow(ctx) // this process may only be behind
	if err != nil {
		return fmt.Errorf("index: read the last commit: %w", err)
	}
	if head < seen {
		x.suspect(wentBack{Seen: seen, Head: head})
	}
	return nil
}

// Doubt suspects the journal if an error of it is an ErrRestored.
func (x *Index) Doubt(err error) {
	if errors.Is(err, ErrRestored) {
		x.suspect(wentBack{})
	}
}

// Trust takes the suspicion away: the journal is to be believed as it is. Errors: as Update.
func (x *Index) Trust(ctx context.Context) error {
	x.suspected.Store(nil) // first: what is recorded after this change sees that it is not to be
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		if tx.record(wentBackRecord) != nil {
			tx.setRecord(wentBackRecord, nil)
		}
		return nil
	})
}

// Revision returns that of the last commit that the Index shows.
func (x *Index) Revision() Revision {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.revision
}

// suspect notes it at once, and records it as soon as the journal takes commits. The caller may hold mu.
func (x *Index) suspect(w wentBack) {
	w.Time = time.Now().Unix()
	suspicion := &w
	if !x.suspected.CompareAndSwap(nil, suspicion) {
		return // it is being recorded
	}
	value, _ := json.Marshal(w) // never fails
	x.done.Go(func() {
		x.options.Warn(w.err())
		// Soon at first: a process that ends before it is recorded leaves nothing that tells the next one.
		for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
			err := x.Update(x.ctx, storeRepo, func(tx *Tx) error {
				// Decided in the change: Trust may have been called meanwhile, or another process was faster.
				if x.suspected.Load() == suspicion && tx.record(wentBackRecord) == nil {
					tx.setRecord(wentBackRecord, value)
				}
				return nil
			})
			switch {
			case x.ctx.Err() != nil, errors.Is(err, ErrReadOnly), errors.As(err, new(*SealedError)):
				return // what this process knows has to do
			case err == nil:
				x.suspected.CompareAndSwap(suspicion, nil)
				return
			}
			pause(x.ctx, wait)
		}
	})
}
