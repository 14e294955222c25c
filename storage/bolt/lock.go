package bolt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"trow/storage/internal/local"
)

// LockDirectory takes the lock of a data directory whose journal is not used, because the facts are elsewhere: two
// servers must not share certificates and a socket. It creates the directory if it does not exist, and waits for up to
// lockTimeout. Errors: as Open for a directory that is in use; those of the file system.
func LockDirectory(dir string) (release func() error, err error) {
	if err := local.MakeDir(dir); err != nil {
		return nil, fmt.Errorf("data directory: %w", local.Denied(err))
	}
	// The lock is that of the journal's file, as Open takes it. An existing file stays as it is; a new one is empty,
	// and Open makes a journal in an empty file.
	f, err := os.OpenFile(filepath.Join(dir, journalFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", local.Denied(err))
	}
	for end := time.Now().Add(lockTimeout); ; time.Sleep(50 * time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return f.Close, nil // Close releases the lock
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return nil, errors.Join(fmt.Errorf("data directory %s: lock: %w", dir, err), f.Close())
		case time.Now().After(end):
			return nil, errors.Join(fmt.Errorf("data directory %s is in use by %s; stop that one first, or use "+
				"another --data-dir", dir, owner(dir)), f.Close())
		}
	}
}
