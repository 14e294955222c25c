package bolt

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	bbolt "go.etcd.io/bbolt"

	"trow/storage/files"
	"trow/storage/internal/local"
)

// rewrite copies what bbolt shows to a new file, which takes the place of the old one; the caller holds the lock.
func (j *Journal) rewrite() error {
	tmp := j.path + newSuffix
	if err := copyTo(j.db, tmp); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	// The new file is opened, and so locked, before it gets the name, and the old one is closed last. So there is no
	// moment in which another process could take the directory, and no failure after which no file is open.
	db, file, err := openFile(tmp, lockTimeout, false)
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, j.path); err != nil {
		return errors.Join(err, db.Close(), os.Remove(tmp))
	}
	_ = j.db.Close() // the old file may well be broken
	j.db, j.file = db, file
	return files.SyncDir(filepath.Dir(j.path))
}

// copyTo writes a durable copy of the database to a file.
func copyTo(db *bbolt.DB, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := view(db, func(tx *bbolt.Tx) error { _, err := tx.WriteTo(f); return err }); err != nil {
		return err
	}
	return f.Sync()
}

// Backup writes a copy of the journal beside it, for trow rebuild, unless nothing has changed since the last one.
// Commits go on meanwhile. It must not be called twice at once.
func (j *Journal) Backup() error {
	j.feed.Lock()
	db, unusable, head := j.db, j.feed.Closed() || j.damage != nil || j.readOnly, j.feed.Head()
	j.feed.Unlock()
	dir := filepath.Dir(j.path)
	// A copy of a damaged journal must not replace a good one.
	if _, err := os.Stat(filepath.Join(dir, backupFile)); unusable || err == nil && head == j.saved {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("backup of the journal: %w", err)
	}
	defer root.Close()
	err = files.WriteFrom(root, backupFile, 0o600, func(w io.Writer) error {
		return view(db, func(tx *bbolt.Tx) error { _, err := tx.WriteTo(w); return err })
	})
	if err != nil {
		j.feed.Lock()
		j.noteDamage(err)
		j.feed.Unlock()
		return fmt.Errorf("backup of the journal: %w", local.Full(err))
	}
	j.saved = head
	return nil
}
