package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	bbolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"trow/storage"
	"trow/storage/files"
	"trow/storage/internal/local"
)

// The files in the data directory.
const (
	journalFile = "journal.db"
	backupFile  = "journal.backup"
	ownerFile   = "owner" // which process has the journal open, for messages
	// unfinishedFile exists from when a rebuild puts a damaged journal aside until it has recorded all that it found.
	// Until then the journal knows less than it should, and a collection would believe it.
	unfinishedFile = "rebuild.unfinished"
	newSuffix      = ".new" // of a file that a rewrite makes
)

// lockTimeout is how long Open waits for another process to end.
var lockTimeout = 10 * time.Second

var errForeign = errors.New("this bbolt file is not a journal of this registry")

// Open opens the journal in dir, and creates it in an empty directory. Errors: another process has it open (the error
// names it, after waiting 10 s for it to end); the data is of a newer format; ErrDamaged, also for a journal that
// [Recover] has not finished; those of the file system.
func Open(dir string) (*Journal, error) {
	if err := checkFinished(dir); err != nil {
		return nil, err
	}
	return open(dir)
}

// checkFinished returns ErrDamaged while a rebuild has not recorded all that it found.
func checkFinished(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, unfinishedFile)); err != nil {
		return nil
	}
	return fmt.Errorf("%s: %w: a rebuild of it was cut short; run trow rebuild --data-dir %s again",
		filepath.Join(dir, journalFile), storage.ErrDamaged, dir)
}

func open(dir string) (*Journal, error) {
	j, err := openIn(dir)
	return j, local.Denied(err)
}

func openIn(dir string) (*Journal, error) {
	if err := local.MakeDir(dir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	j := &Journal{path: filepath.Join(dir, journalFile)}
	if err := j.checkLost(); err != nil {
		return nil, err
	}
	err := j.openLocked(lockTimeout)
	if errors.Is(err, storage.ErrDamaged) && j.putUnusedAside() {
		err = j.openLocked(lockTimeout)
	}
	if err != nil {
		return nil, err
	}
	if err := claim(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("data directory: %w", err), j.db.Close())
	}
	return j, nil
}

// claim does what only the holder of the lock may do: it removes what a crash left, and writes down who holds it.
func claim(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	err = files.Sweep(root, ".")
	for _, name := range []string{journalFile, backupFile} {
		if rerr := root.Remove(name + newSuffix); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return err
	}
	// Not files.Write: the content need not be durable, because after a power cut no process holds the directory, and a
	// process that reads it half written only names the holder less precisely. checkLost needs no more than its name.
	owner := fmt.Sprintf("process %d on %s since %s\n", os.Getpid(), hostname(), time.Now().UTC().Format(time.RFC3339))
	return os.WriteFile(filepath.Join(dir, ownerFile), []byte(owner), 0o600)
}

// checkLost returns ErrDamaged if there was a journal and it is gone: bbolt would start a new one in its place.
func (j *Journal) checkLost() error {
	dir := filepath.Dir(j.path)
	_, err := os.Stat(filepath.Join(dir, ownerFile)) // written whenever a journal is opened
	fi, jerr := os.Stat(j.path)
	if err == nil && (errors.Is(jerr, fs.ErrNotExist) || jerr == nil && fi.Size() == 0) {
		return fmt.Errorf("%s: %w: it is empty or gone; run trow rebuild --data-dir %s", j.path,
			storage.ErrDamaged, dir)
	}
	return nil
}

// putUnusedAside reports whether a damaged file is what a power cut left of a journal that was just being made, and
// renames it. A new file has four pages, every commit is in a longer one, and everything else in the directory is made
// after the first of them. So such a file never held a fact.
func (j *Journal) putUnusedAside() bool {
	const newPages = 4
	for _, later := range []string{ownerFile, backupFile, "blobs"} {
		if _, err := os.Stat(filepath.Join(filepath.Dir(j.path), later)); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	f, err := os.Open(j.path)
	if err != nil {
		return false
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() > int64(newPages*os.Getpagesize()) {
		return false
	}
	// Under the lock, so that we do not rename a file with which another process has just started.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return false
	}
	named, err := os.Stat(j.path)
	return err == nil && os.SameFile(fi, named) && os.Rename(j.path, j.path+".unfinished") == nil
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "an unknown host"
	}
	return name
}

// openLocked opens the file, takes its lock and reads the revision.
func (j *Journal) openLocked(timeout time.Duration) error {
	dir := filepath.Dir(j.path)
	db, file, err := openFile(j.path, timeout, j.readOnly)
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("data directory %s is in use by %s; stop that one first, or use another --data-dir", dir,
			owner(dir))
	}
	if err == nil {
		j.db, j.file = db, file
		run, prepare := db.Update, j.prepare
		if j.readOnly {
			run, prepare = db.View, j.readMeta
		}
		if err = guard(func() error { return run(prepare) }); err != nil {
			_ = j.release(err)
		}
	}
	if isInvalid(err) {
		err = fmt.Errorf("%w: %w", storage.ErrDamaged, err)
	}
	switch {
	case errors.Is(err, storage.ErrDamaged):
		return fmt.Errorf("%s: %w; run trow rebuild --data-dir %s", j.path, err, dir)
	case err != nil:
		return fmt.Errorf("journal %s: %w", j.path, err)
	case j.readOnly:
		return nil
	}
	// The file's name must be durable before anything is recorded in it. Also if the file exists: the process that made
	// it may have been killed before its fsync.
	if err := files.SyncDir(dir); err != nil {
		return errors.Join(fmt.Errorf("journal %s: %w", j.path, err), j.release(nil))
	}
	return nil
}

// isInvalid reports whether bbolt found that the file is not one of its own, or not whole.
func isInvalid(err error) bool {
	return err != nil && (errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrVersionMismatch) ||
		// has no error value
		errors.Is(err, berrors.ErrChecksum) || strings.Contains(err.Error(), "file size too small"))
}

// release closes the file and gives up its lock.
func (j *Journal) release(met error) error {
	if errors.Is(met, storage.ErrDamaged) {
		// bbolt may hold its own locks for ever after a panic, so that its Close would hang. We close only the file.
		// Its memory map stays until the process ends, and would keep the file's lock alive, so we unlock it first.
		return errors.Join(syscall.Flock(int(j.file.Fd()), syscall.LOCK_UN), j.file.Close())
	}
	return j.db.Close()
}

// openFile opens a bbolt file and takes its lock.
func openFile(path string, timeout time.Duration, readOnly bool) (db *bbolt.DB, file *os.File, err error) {
	for {
		err = guard(func() (err error) {
			db, err = bbolt.Open(path, 0o600, &bbolt.Options{
				Timeout:      timeout,
				ReadOnly:     readOnly, // then the lock is a shared one
				FreelistType: bbolt.FreelistMapType,
				OpenFile: func(name string, flag int, perm os.FileMode) (_ *os.File, err error) {
					file, err = os.OpenFile(name, flag, perm)
					return file, err
				},
			})
			return err
		})
		if err != nil {
			if errors.Is(err, storage.ErrDamaged) && file != nil {
				_ = (&Journal{file: file}).release(err)
			}
			return nil, nil, err
		}
		// The lock belongs to the file, not to its name. If the holder that we waited for has put another file in its
		// place meanwhile, we have locked a file without a name, and try again.
		ours, err := file.Stat()
		named, nerr := os.Stat(path)
		if err == nil && nerr == nil && os.SameFile(ours, named) {
			return db, file, nil
		}
		db.Close()
		if err = errors.Join(err, nerr); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
	}
}

// owner returns which process holds the directory, as that process wrote it down.
func owner(dir string) string {
	b, err := files.Read(filepath.Join(dir, ownerFile), 1<<10)
	if err != nil || len(b) == 0 {
		return "another process"
	}
	return strings.TrimSpace(string(b))
}

// prepare checks the format, or writes it into a new file.
func (j *Journal) prepare(tx *bbolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		if k, _ := tx.Cursor().First(); k != nil {
			return foreign(tx)
		}
		for _, name := range [][]byte{bucketMeta, bucketRepos, bucketFacts} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta = tx.Bucket(bucketMeta)
		return errors.Join(meta.Put(keyFormat, number(storage.FirstFormat)), meta.Put(keyTally, tally{}.bytes()))
	}
	if err := j.readFormat(tx, meta); err != nil {
		return err
	}
	if _, ok := parseTally(meta.Get(keyTally)); !ok { // written before there were tallies
		var t tally
		if err := tx.Bucket(bucketFacts).ForEach(func(k, v []byte) error { t.add(1, k, v); return nil }); err != nil {
			return err
		}
		return meta.Put(keyTally, t.bytes())
	}
	return nil
}

// readFormat checks the format, and takes over the revision.
func (j *Journal) readFormat(tx *bbolt.Tx, meta *bbolt.Bucket) error {
	switch v := parseNumber(meta.Get(keyFormat)); {
	case v == 0:
		return foreign(tx)
	case v > storage.Format:
		return fmt.Errorf("the data is of format %d, and this version knows formats up to %d: use the newer version "+
			"that wrote it", v, storage.Format)
	}
	j.feed.SetHead(storage.Revision(parseNumber(meta.Get(keyRevision))))
	return nil
}

// foreign returns the error for a file without a format: of another program, or a journal that has lost it.
func foreign(tx *bbolt.Tx) error {
	if tx.Bucket(bucketRepos) == nil && tx.Bucket(bucketFacts) == nil {
		return errForeign
	}
	return fmt.Errorf("%w: it does not say of which format it is", storage.ErrDamaged)
}
