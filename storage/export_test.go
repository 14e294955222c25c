package storage

import (
	"testing"
	"time"
)

// SetLockPatience shortens the time that OpenBolt waits for another process, for one test.
func SetLockPatience(t *testing.T, d time.Duration) {
	old := lockPatience
	lockPatience = d
	t.Cleanup(func() { lockPatience = old })
}

// SetFault makes a Bolt take what f returns after a commit for the commit's error.
func SetFault(j *Bolt, f func() error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fault = f
}

// SetFaultLocked is SetFault for f itself.
func SetFaultLocked(j *Bolt, f func() error) { j.fault = f }
