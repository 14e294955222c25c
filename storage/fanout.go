package storage

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// fanout hands a local journal's commits to those who watch it. Its lock is the journal's: it is held for a
// whole commit and for the delivery of a full state, so that there is neither a gap nor an overlap.
type fanout struct {
	mu       sync.Mutex // guards all below
	watchers map[*watcher]struct{}
	closed   bool

	head atomic.Uint64 // the revision of the last commit
}

type watcher struct {
	apply func(Update) error
	ended chan error // of one: what apply failed with
}

// follow delivers the full state through load and then the commits, until ctx ends or apply fails.
func (f *fanout) follow(ctx context.Context, load func(apply func(Update) error) error, apply func(Update) error) error {
	w := &watcher{apply: apply, ended: make(chan error, 1)}
	if err := f.join(w, load); err != nil {
		return err
	}
	defer func() {
		f.mu.Lock()
		delete(f.watchers, w)
		f.mu.Unlock()
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case err := <-w.ended:
		return err
	}
}

func (f *fanout) join(w *watcher, load func(apply func(Update) error) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("journal: %w", ErrClosed)
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

// publish tells the watchers of a commit; the caller has mu.
func (f *fanout) publish(rev Revision, batches []Batch) {
	f.head.Store(uint64(rev))
	for w := range f.watchers {
		if err := w.apply(Update{Revision: rev, Batches: batches}); err != nil {
			delete(f.watchers, w)
			w.ended <- err
		}
	}
}

// end makes every watch return; the caller has mu.
func (f *fanout) end() {
	f.closed = true
	for w := range f.watchers {
		delete(f.watchers, w)
		w.ended <- fmt.Errorf("journal: %w", ErrClosed)
	}
}
