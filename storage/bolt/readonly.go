package bolt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	bbolt "go.etcd.io/bbolt"

	"trow/storage"
)

// OpenReadOnly opens the journal in dir to read it, and writes nothing there: for a volume that cannot be written to.
// Commit then fails with ErrReadOnly. Several processes may have a journal open in this way, but not while one has it
// open to write. Errors: as Open; that there is no journal.
func OpenReadOnly(dir string) (*Journal, error) {
	if err := checkFinished(dir); err != nil {
		return nil, err
	}
	j := &Journal{path: filepath.Join(dir, journalFile), readOnly: true}
	if err := j.checkLost(); err != nil {
		return nil, err
	}
	// bbolt would start a new file in the place of an empty one.
	if fi, err := os.Stat(j.path); err != nil {
		return nil, fmt.Errorf("journal: %w; a read-only data directory without a journal holds nothing to serve", err)
	} else if fi.Size() == 0 {
		return nil, errEmpty
	}
	if err := j.openLocked(lockTimeout); err != nil {
		return nil, err
	}
	return j, nil
}

var errEmpty = errors.New("the journal is empty: this read-only data directory holds nothing to serve")

// readMeta checks the format of a file that cannot be changed.
func (j *Journal) readMeta(tx *bbolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		if k, _ := tx.Cursor().First(); k != nil {
			return foreign(tx)
		}
		return errEmpty
	}
	if err := j.readFormat(tx, meta); err != nil {
		return err
	}
	if _, ok := parseTally(meta.Get(keyTally)); !ok {
		return fmt.Errorf("an earlier version wrote it, and it has to be converted (%w): "+
			"start this version once where it can write to the data directory", storage.ErrReadOnly)
	}
	return nil
}
