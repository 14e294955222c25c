package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// scratchPattern matches scratch directories. They are on a disk, because containers need a real file system.
const scratchPattern = "/var/tmp/trow-e2e-*"

// scratch is the directory of one run. Its lock is held until the run ends.
type scratch struct {
	dir  string
	lock *os.File
}

// newScratch creates a scratch directory, and removes those of runs that were killed.
func newScratch() (*scratch, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	// This lock keeps other runs from sweeping the directory before it is locked.
	all, err := lockFile(filepath.Join(cache, "scratch.lock"), syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	sweep()
	dir, err := os.MkdirTemp(filepath.Dir(scratchPattern), filepath.Base(scratchPattern))
	if err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(dir, "lock"), syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return &scratch{dir, lock}, os.Chmod(dir, 0o711)
}

// sweep removes the directories of dead runs. Their mounts and processes ended with their namespaces.
func sweep() {
	dirs, _ := filepath.Glob(scratchPattern)
	for _, dir := range dirs {
		lock, err := lockFile(filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil {
			continue // the run is alive
		}
		if _, err := os.Stat(filepath.Join(dir, "kept")); err != nil {
			_ = (&scratch{dir, lock}).remove()
		}
		lock.Close()
	}
}

// remove removes the directory and the cgroups of the run, whose processes are dead. TROW_E2E_KEEP=1 keeps the
// directory.
func (s *scratch) remove() error {
	defer s.lock.Close()
	err := removeCgroups(filepath.Base(s.dir))
	if os.Getenv("TROW_E2E_KEEP") == "1" {
		fmt.Fprintln(os.Stderr, "e2e: kept", s.dir)
		return errors.Join(err, os.WriteFile(filepath.Join(s.dir, "kept"), nil, 0o600))
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// lockFile creates and locks a file. The caller closes it, which unlocks it.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// cacheDir returns the directory that is kept from run to run.
func cacheDir() (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache directory: %w", err)
	}
	dir := filepath.Join(user, "trow-ci")
	return dir, os.MkdirAll(dir, 0o755)
}
