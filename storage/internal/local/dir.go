package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"trow/storage"
	"trow/storage/files"
)

// MakeDir creates a directory durably if it does not exist, with its parents: the name of each is in the one above.
func MakeDir(dir string) error {
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return nil // not a step further: its parent may be a directory that we cannot even read
	}
	parent := filepath.Dir(dir)
	if err := MakeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		// Another process may have made it meanwhile.
		if fi, serr := os.Stat(dir); serr != nil || !fi.IsDir() {
			return err
		}
	}
	return files.SyncDir(parent)
}

// Denied adds the remedy to an error of the file system that says that the process may not write to the data directory.
func Denied(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; this process runs as user %d and group %d: give them the directory (chown), "+
			"or set --data-dir to one of theirs", err, os.Geteuid(), os.Getegid())
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w; mount it to be written to, or set --data-dir to another directory", err)
	}
	return err
}

// Full adds ErrFull to an error of the file system that says that no space, or no quota of the user, is left, and
// ErrReadOnly to one that says that it is read-only: it may have become so, after an error of the disk.
func Full(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", storage.ErrFull, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %w", storage.ErrReadOnly, err)
	}
	return err
}
