package disk

import (
	"sync"

	"trow/storage/files"
)

// groupSync makes the names in a directory durable for many callers at once. A caller that comes while an fsync is in
// progress shares the next one with all others that wait: the one in progress may have started before the caller's
// change.
type groupSync struct {
	dir     string
	running sync.Mutex // held by the caller that runs the fsync

	mu   sync.Mutex // guards next
	next *syncRound // not started yet; nil: no caller waits
}

// syncRound is one fsync and the callers that wait for it.
type syncRound struct {
	done chan struct{}
	err  error // of the fsync; valid once done is closed
}

// Sync returns when everything that happened to the directory before the call is durable.
func (s *groupSync) Sync() error {
	s.mu.Lock()
	if r := s.next; r != nil {
		s.mu.Unlock()
		<-r.done
		return r.err
	}
	r := &syncRound{done: make(chan struct{})}
	s.next = r
	s.mu.Unlock()

	s.running.Lock()
	// The round closes before its fsync starts: a caller that comes from here on needs another one.
	s.mu.Lock()
	s.next = nil
	s.mu.Unlock()
	r.err = files.SyncDir(s.dir)
	s.running.Unlock()
	close(r.done)
	return r.err
}
