package storage

import (
	"errors"
	"os"
	"sync"
)

// syncDir makes what happened to a directory's entries durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncer is syncDir for many at once. Who comes while a sync is under way shares the next one with all others who
// wait: the one under way may have begun before his change.
type syncer struct {
	dir  string
	turn sync.Mutex // held by the one that syncs

	mu   sync.Mutex // guards next
	next *syncRound // not begun yet; nil: nobody waits
}

// syncRound is one sync and those who wait for it.
type syncRound struct {
	done chan struct{}
	err  error // of the sync; read it when done is closed
}

// Sync returns when all that happened to the directory before the call is durable.
func (s *syncer) Sync() error {
	s.mu.Lock()
	if r := s.next; r != nil {
		s.mu.Unlock()
		<-r.done
		return r.err
	}
	r := &syncRound{done: make(chan struct{})}
	s.next = r
	s.mu.Unlock()

	s.turn.Lock()
	s.mu.Lock()
	s.next = nil // who comes from here on is too late for this round
	s.mu.Unlock()
	r.err = syncDir(s.dir)
	s.turn.Unlock()
	close(r.done)
	return r.err
}
