package bolt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"trow/storage/files"
)

// Exists reports whether a directory holds data of a registry, so that commands create nothing in one that was named by
// mistake. For one that cannot be read it returns true. An empty journal file alone, as [LockDirectory] makes it, is
// not data.
func Exists(dir string) bool {
	for _, name := range []string{journalFile, backupFile, ownerFile, unfinishedFile, "blobs"} {
		fi, err := os.Lstat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) || err == nil && name == journalFile && fi.Size() == 0 {
			continue
		}
		return true
	}
	return false
}

// LockedOnly reports whether a directory has an empty journal file and no other data, as [LockDirectory] makes it: the
// facts of its server are elsewhere, or its first start was cut short.
func LockedOnly(dir string) bool {
	fi, err := os.Lstat(filepath.Join(dir, journalFile))
	return err == nil && fi.Size() == 0 && !Exists(dir)
}

// NoData returns the error for a directory for which Exists is false.
func NoData(dir string) error {
	if LockedOnly(dir) {
		return fmt.Errorf("%s has no journal: the facts of its server are in etcd (setting journal), or it has not "+
			"started yet",
			dir)
	}
	return fmt.Errorf("%s holds no data of a registry; set --data-dir to the data directory of one", dir)
}

// CopyTo copies the journal in dir, damaged or not, and its backup into the directory to, so that a recovery can be
// tried there. Until release is called no process can open the original. Errors: another process has it open; those of
// the file system.
func CopyTo(dir, to string) (release func(), err error) {
	release = func() {}
	lock, err := os.Open(filepath.Join(dir, journalFile))
	if err == nil {
		release = func() { lock.Close() } // which gives up the lock
		if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			release()
			return nil, fmt.Errorf("data directory %s is in use by %s; stop that one first, or use another --data-dir",
				dir,
				owner(dir))
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	root, err := os.OpenRoot(to)
	if err == nil {
		defer root.Close()
		for _, name := range []string{journalFile, backupFile, ownerFile, unfinishedFile} {
			if err = copyFile(filepath.Join(dir, name), root, name); err != nil {
				break
			}
		}
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// copyFile copies a file with its time, which says of a backup how old it is. It may be missing.
func copyFile(from string, root *os.Root, name string) error {
	f, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	err = files.WriteFrom(root, name, 0o600, func(w io.Writer) error { _, err := io.Copy(w, f); return err })
	if err != nil {
		return err
	}
	return root.Chtimes(name, fi.ModTime(), fi.ModTime())
}
