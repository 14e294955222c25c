package bolt

import (
	"testing"
	"time"
)

// SetLockTimeout shortens the time that Open waits for another process, for one test.
func SetLockTimeout(t *testing.T, d time.Duration) {
	old := lockTimeout
	lockTimeout = d
	t.Cleanup(func() { lockTimeout = old })
}

// FailNext makes the next commit fail, after its effect, with the error that fault returns.
func (j *Journal) FailNext(fault func() error) {
	j.feed.Lock()
	defer j.feed.Unlock()
	j.fault = func() error { // Commit holds the lock
		j.fault = nil
		return fault()
	}
}
