// Package local has what the engines of one process share.
//
// # Words
//
//   - feed: what a journal of one process delivers to its watchers.
//
// # Invariants
//
//  1. The lock of a [Feed] is the journal's lock. It is held for a whole commit and for the delivery of a full state,
//     so that no watcher misses a commit or sees it twice.
//
// # What it does not do
//
// It keeps no data. A journal that other processes write to needs another feed.
package local

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"

	"trow/storage"
)

// Feed delivers the commits of a journal to its watchers. The embedded Mutex is the journal's lock. The zero value is
// ready.
type Feed struct {
	sync.Mutex // guards watchers and closed, and what the journal says it guards
	watchers   map[*watcher]struct{}
	closed     bool

	head atomic.Uint64 // the revision of the last commit
}

type watcher struct {
	apply func(storage.Update) error
	ended chan error // has room for one: what apply failed with
}

// Head returns the revision of the last commit.
func (f *Feed) Head() storage.Revision { return storage.Revision(f.head.Load()) }

// SetHead sets the revision of the last commit, when a journal opens.
func (f *Feed) SetHead(rev storage.Revision) { f.head.Store(uint64(rev)) }

// Closed returns whether Close was called; the caller holds the lock.
func (f *Feed) Closed() bool { return f.closed }

// Watch implements the Watch of a Journal. It delivers the full state through load and then the commits, until ctx ends
// or apply fails.
func (f *Feed) Watch(ctx context.Context, load func(apply func(storage.Update) error) error,
	apply func(storage.Update) error) error {
	w := &watcher{apply: apply, ended: make(chan error, 1)}
	if err := f.join(w, load); err != nil {
		return err
	}
	defer func() {
		f.Lock()
		delete(f.watchers, w)
		f.Unlock()
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case err := <-w.ended:
		return err
	}
}

// join delivers the full state and registers a watcher under one lock: no commit comes in between.
func (f *Feed) join(w *watcher, load func(apply func(storage.Update) error) error) error {
	f.Lock()
	defer f.Unlock()
	if f.closed {
		return fmt.Errorf("journal: %w", storage.ErrClosed)
	}
	if err := load(w.apply); err != nil {
		return err
	}
	if f.watchers == nil {
		f.watchers = map[*watcher]struct{}{}
	}
	f.watchers[w] = struct{}{}
	return nil
}

// Publish delivers a commit to the watchers, and makes it the head; the caller holds the lock.
func (f *Feed) Publish(rev storage.Revision, batches []storage.Batch) {
	f.SetHead(rev)
	for w := range f.watchers {
		if err := w.apply(storage.Update{Revision: rev, Batches: batches}); err != nil {
			delete(f.watchers, w)
			w.ended <- err
		}
	}
}

// Close makes every Watch return ErrClosed; the caller holds the lock.
func (f *Feed) Close() {
	f.closed = true
	for w := range f.watchers {
		delete(f.watchers, w)
		w.ended <- fmt.Errorf("journal: %w", storage.ErrClosed)
	}
}

// NewUploadID returns a random UUID (RFC 9562, version 4), as the distribution spec recommends for uploads.
func NewUploadID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// ValidUploadID reports whether id has the form that NewUploadID makes, so that it is safe in a path.
func ValidUploadID(id string) bool {
	if len(id) != 36 {
		return false
	}
	for i, c := range []byte(id) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		hex := '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
		if dash != (c == '-') || !dash && !hex {
			return false
		}
	}
	return true
}
