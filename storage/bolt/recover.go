package bolt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"trow/storage"
	"trow/storage/files"
)

// Recovered is a journal that can be read.
type Recovered struct {
	Journal *Journal  // open; the caller closes it
	Damage  string    // what was wrong with the journal in the directory; empty: nothing
	Aside   string    // where the damaged file is now
	Backup  time.Time // when the copy that took its place was made; zero: there was none
	dir     string
}

// Recover opens the journal in dir, on a data directory without a server. check loads the journal, because some damage
// shows only then. If the journal is damaged, it is put aside, and its backup or an empty journal takes its place. From
// then until [Recovered.Done], [Open] refuses the directory: the journal knows less than it should. Recover can be
// repeated if it was cut short. Errors: as Open; the directory holds no data; those of check and of the file system.
func Recover(dir string, check func(*Journal) error) (*Recovered, error) {
	if !Exists(dir) {
		return nil, NoData(dir)
	}
	r := &Recovered{dir: dir}
	err := r.open(check)
	if errors.Is(err, storage.ErrDamaged) {
		r.Damage = err.Error()
		err = r.putAside(check)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// putAside puts a damaged journal aside and opens what takes its place.
func (r *Recovered) putAside(check func(*Journal) error) error {
	root, err := os.OpenRoot(r.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	// The mark is durable before the journal loses its name, so that no crash leaves an empty journal without a mark.
	if err := files.Write(root, unfinishedFile, nil, 0o600); err != nil {
		return err
	}
	aside := journalFile + ".damaged-" + time.Now().UTC().Format("20060102T150405Z")
	r.Aside = filepath.Join(r.dir, aside)
	if err := root.Rename(journalFile, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("put the damaged journal aside: %w", err)
	}
	err = r.openBackup(root, check)
	if errors.Is(err, storage.ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
		err = r.openEmpty(root, check)
	}
	return err
}

// open opens the journal and checks it.
func (r *Recovered) open(check func(*Journal) error) (err error) {
	if r.Journal, err = open(r.dir); err != nil {
		return err
	}
	if err = check(r.Journal); err != nil {
		return errors.Join(err, r.Journal.Close())
	}
	return nil
}

// openBackup puts a copy of the backup in the place of the journal. A copy, so that the backup stays whatever happens
// to it.
func (r *Recovered) openBackup(root *os.Root, check func(*Journal) error) error {
	backup, err := root.Open(backupFile)
	if err != nil {
		return err
	}
	defer backup.Close()
	fi, err := backup.Stat()
	if err != nil {
		return err
	}
	r.Backup = fi.ModTime()
	err = files.WriteFrom(root, journalFile, 0o600, func(w io.Writer) error {
		_, err := io.Copy(w, backup)
		return err
	})
	if err != nil {
		return err
	}
	return r.open(check)
}

// openEmpty puts an empty journal in the place of the journal.
func (r *Recovered) openEmpty(root *os.Root, check func(*Journal) error) error {
	r.Backup = time.Time{}
	// Without the owner file, Open takes a missing journal for one that never was.
	for _, name := range []string{journalFile, ownerFile} {
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return r.open(check)
}

// Unfinished reports whether the journal may know less than it should, because it was damaged, now or when a recovery
// before this one was cut short.
func (r *Recovered) Unfinished() bool {
	_, err := os.Stat(filepath.Join(r.dir, unfinishedFile))
	return !errors.Is(err, fs.ErrNotExist)
}

// Done allows [Open] again, durably: the journal knows all that was found.
func (r *Recovered) Done() error {
	err := os.Remove(filepath.Join(r.dir, unfinishedFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return files.SyncDir(r.dir)
}
