package local

import (
	"errors"
	"fmt"
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

// Full adds ErrFull to an error of the file system that says that no space, or no quota of the user, is left.
func Full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", storage.ErrFull, err)
	}
	return err
}
