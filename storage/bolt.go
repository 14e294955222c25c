package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Bolt keeps facts in one bbolt file on a local disk. Open it with [OpenBolt].
//
// Why a commit that failed stops the writing: when the last fsync of a commit fails, bbolt says so, but shows
// the change all the same, and the kernel may have dropped the pages that it could not write. So the next
// commit first rewrites the file from what bbolt sees to a new one (write, fsync, rename, fsync of the
// directory), and goes on with that. A full disk is no such failure: nothing was overwritten, and writing
// goes on when there is space again.
type Bolt struct {
	fanout
	path  string
	db    *bolt.DB     // guarded by fanout.mu
	file  *os.File     // db's
	broke error        // an ErrDamaged: nothing is written any more. Guarded by fanout.mu
	saved uint64       // the revision of the last backup; Backup's
	tired bool         // the last commit failed: rewrite before the next. Guarded by fanout.mu
	fault func() error // tests: called after a commit, and what it returns is taken for the commit's error
}

// Buckets and keys of the file, part of the data format. Keys of facts: repo, a zero byte, kind, name.
var (
	bucketMeta  = []byte("meta")
	bucketRepos = []byte("repos") // the revision of each repo
	bucketFacts = []byte("facts")
	keyFormat   = []byte("format")
	keyRevision = []byte("revision")
	keyTally    = []byte("tally")
	journalFile = "journal.db"
	backupFile  = "journal.backup"
	ownerFile   = "owner"

	// unfinishedFile is there from when a rebuild puts a damaged journal aside until all is recorded that was found:
	// what is in its place until then knows less than it should, and a collection would believe it.
	unfinishedFile = "rebuild.unfinished"

	lockPatience = 10 * time.Second
)

var errForeign = errors.New("this bbolt file is not a journal of this registry")

// OpenBolt opens the journal in dir, making it if there is none. Errors: another process has it open (it is
// named, after waiting 10 s for it to end); the data is of a newer format; ErrDamaged, also of one that [Rebuild] has not
// finished with; what the file system says.
func OpenBolt(dir string) (*Bolt, error) {
	if _, err := os.Stat(filepath.Join(dir, unfinishedFile)); err == nil {
		return nil, fmt.Errorf("%s: %w: a rebuild of it was cut short; run trow rebuild --data-dir %s again", filepath.Join(dir, journalFile), ErrDamaged, dir)
	}
	return openBolt(dir)
}

func openBolt(dir string) (*Bolt, error) {
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	j := &Bolt{path: filepath.Join(dir, journalFile)}
	if err := j.lost(); err != nil {
		return nil, err
	}
	err := j.open(lockPatience)
	if errors.Is(err, ErrDamaged) && j.unborn() {
		err = j.open(lockPatience)
	}
	if err != nil {
		return nil, err
	}
	_ = os.Remove(j.path + ".new") // of a rewrite that a crash cut short; only the holder of the lock may
	owner := fmt.Sprintf("process %d on %s since %s\n", os.Getpid(), hostname(), time.Now().UTC().Format(time.RFC3339))
	if err := os.WriteFile(filepath.Join(dir, ownerFile), []byte(owner), 0o600); err != nil {
		j.db.Close()
		return nil, fmt.Errorf("data directory: %w", err)
	}
	return j, nil
}

// lost tells a journal that is gone from one that never was: bbolt would begin a new one in its place.
func (j *Bolt) lost() error {
	_, err := os.Stat(filepath.Join(filepath.Dir(j.path), ownerFile)) // written when a journal was open
	fi, jerr := os.Stat(j.path)
	if err == nil && (errors.Is(jerr, fs.ErrNotExist) || jerr == nil && fi.Size() == 0) {
		return fmt.Errorf("%s: %w: it is empty or gone; run trow rebuild --data-dir %s", j.path, ErrDamaged, filepath.Dir(j.path))
	}
	return nil
}

// unborn tells whether a damaged file is what a power cut left of a journal in the making, and puts it aside. A new file
// has four pages, every commit is in a longer one, and all else in the directory comes after the first of them. So
// nothing was ever kept in it.
func (j *Bolt) unborn() bool {
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
	// Under the lock, lest it is put aside while another process has just begun anew.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return false
	}
	named, err := os.Stat(j.path)
	return err == nil && os.SameFile(fi, named) && os.Rename(j.path, j.path+".unfinished") == nil
}

// makeDir makes a directory, durably, unless it is there: also those above it, each of which has its name in the one
// above.
func makeDir(dir string) error {
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return nil // its parent may be one that we cannot even read
	}
	parent := filepath.Dir(dir)
	if err := makeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		if fi, serr := os.Stat(dir); serr != nil || !fi.IsDir() {
			return err
		}
	}
	return syncDir(parent)
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "an unknown host"
	}
	return name
}

// open opens the file and reads the revision.
func (j *Bolt) open(patience time.Duration) error {
	db, file, err := openFile(j.path, patience)
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("data directory %s is in use by %s; stop that one first, or give this one another --data-dir", filepath.Dir(j.path), owner(filepath.Dir(j.path)))
	}
	if err == nil {
		j.db, j.file = db, file
		if err = guard(func() error { return db.Update(j.prepare) }); err != nil {
			j.release(err)
		}
	}
	if err != nil && (errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrVersionMismatch) || errors.Is(err, berrors.ErrChecksum) ||
		strings.Contains(err.Error(), "file size too small")) { // bbolt has no name for that
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	switch {
	case errors.Is(err, ErrDamaged):
		return fmt.Errorf("%s: %w; run trow rebuild --data-dir %s", j.path, err, filepath.Dir(j.path))
	case err != nil:
		return fmt.Errorf("journal %s: %w", j.path, err)
	}
	if err := syncDir(filepath.Dir(j.path)); err != nil { // the file may be new, also one that a crash kept from getting here
		j.release(nil)
		return fmt.Errorf("journal %s: %w", j.path, err)
	}
	return nil
}

// release lets go of the file. After damage was met, bbolt may hold its own locks for ever, so that its Close would
// hang: then only the file is closed, and with it the lock of the directory; the memory map stays until the process ends.
func (j *Bolt) release(met error) error {
	if errors.Is(met, ErrDamaged) {
		// The memory map keeps the open file, and so its lock, alive.
		return errors.Join(syscall.Flock(int(j.file.Fd()), syscall.LOCK_UN), j.file.Close())
	}
	return j.db.Close()
}

// openFile opens a bbolt file and takes its lock. The lock belongs to the file, not to its name: if the holder
// we waited for has put another file in its place meanwhile, what we locked is nobody's, and we try again.
func openFile(path string, patience time.Duration) (db *bolt.DB, file *os.File, err error) {
	for {
		err = guard(func() (err error) {
			db, err = bolt.Open(path, 0o600, &bolt.Options{
				Timeout:      patience,
				FreelistType: bolt.FreelistMapType,
				OpenFile: func(name string, flag int, perm os.FileMode) (_ *os.File, err error) {
					file, err = os.OpenFile(name, flag, perm)
					return file, err
				},
			})
			return err
		})
		if err != nil {
			if errors.Is(err, ErrDamaged) && file != nil {
				_ = (&Bolt{file: file}).release(err)
			}
			return nil, nil, err
		}
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

// owner says who holds the directory, as that one wrote it down.
func owner(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil || len(b) == 0 {
		return "another process"
	}
	return strings.TrimSpace(string(b))
}

// prepare checks the format, or writes it into a new file.
func (j *Bolt) prepare(tx *bolt.Tx) error {
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
		return errors.Join(tx.Bucket(bucketMeta).Put(keyFormat, number(Format)), tx.Bucket(bucketMeta).Put(keyTally, tally{}.bytes()))
	}
	switch v := parseNumber(meta.Get(keyFormat)); {
	case v == 0:
		return foreign(tx)
	case v > Format:
		return fmt.Errorf("the data is of format %d, and this version knows formats up to %d: use the newer version that wrote it", v, Format)
	}
	j.head.Store(parseNumber(meta.Get(keyRevision)))
	if _, ok := parseTally(meta.Get(keyTally)); !ok { // of a file from before there was one
		var t tally
		if err := tx.Bucket(bucketFacts).ForEach(func(k, v []byte) error { t.add(1, k, v); return nil }); err != nil {
			return err
		}
		return meta.Put(keyTally, t.bytes())
	}
	return nil
}

// foreign tells another program's file from a journal that has lost its format.
func foreign(tx *bolt.Tx) error {
	if tx.Bucket(bucketRepos) == nil && tx.Bucket(bucketFacts) == nil {
		return errForeign
	}
	return fmt.Errorf("%w: nothing says of which format it is", ErrDamaged)
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func parseNumber(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// Commit implements Journal.
func (j *Bolt) Commit(_ context.Context, batches ...Batch) (Revision, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return 0, fmt.Errorf("journal: %w", ErrClosed)
	}
	if j.broke != nil {
		return 0, fmt.Errorf("journal %s: %w; reading goes on from memory, stop the server and run trow rebuild", j.path, j.broke)
	}
	if j.tired {
		if err := j.rewrite(); err != nil {
			j.meet(err)
			return 0, fmt.Errorf("journal: rewrite after a failed commit: %w", full(err))
		}
		j.tired = false
	}
	rev := Revision(j.head.Load()) + 1
	err := guard(func() error { return j.db.Update(func(tx *bolt.Tx) error { return put(tx, rev, batches) }) })
	if j.meet(err); j.broke != nil {
		return 0, fmt.Errorf("journal %s: %w", j.path, err)
	}
	if err == nil && j.fault != nil {
		err = j.fault()
	}
	if err != nil {
		err = full(err)
		j.tired = !errors.Is(err, ErrConflict) && !errors.Is(err, ErrFull)
		if j.shows(rev) { // it happened all the same, and who watches must not miss it
			j.publish(rev, batches)
		}
		return 0, fmt.Errorf("journal: %w", err)
	}
	j.publish(rev, batches)
	return rev, nil
}

// meet notes damage; the caller has mu.
func (j *Bolt) meet(err error) {
	if errors.Is(err, ErrDamaged) {
		j.broke = err
	}
}

// view runs a reading transaction. What was not closed for damage could be waited for without end.
func view(db *bolt.DB, do func(tx *bolt.Tx) error) error {
	return guard(func() error { return db.View(do) })
}

// shows tells whether the file's last commit is rev.
func (j *Bolt) shows(rev Revision) (yes bool) {
	_ = view(j.db, func(tx *bolt.Tx) error {
		yes = parseNumber(tx.Bucket(bucketMeta).Get(keyRevision)) == uint64(rev)
		return nil
	})
	return yes
}

func put(tx *bolt.Tx, rev Revision, batches []Batch) error {
	meta, repos, facts := tx.Bucket(bucketMeta), tx.Bucket(bucketRepos), tx.Bucket(bucketFacts)
	sum, _ := parseTally(meta.Get(keyTally)) // prepare has seen to it
	for _, b := range batches {
		if Revision(parseNumber(repos.Get([]byte(b.Repo)))) != b.Base {
			return fmt.Errorf("repository %q: %w", b.Repo, ErrConflict)
		}
		for _, f := range b.Facts {
			if err := putFact(facts, &sum, b.Repo, f); err != nil {
				return err
			}
		}
		if err := putRevision(repos, facts, b.Repo, rev); err != nil {
			return err
		}
	}
	return errors.Join(meta.Put(keyRevision, number(uint64(rev))), meta.Put(keyTally, sum.bytes()))
}

func putFact(facts *bolt.Bucket, sum *tally, repo string, f Fact) error {
	k := append(append(prefix(repo), byte(f.Kind)), f.Name...)
	if old := facts.Get(k); old != nil {
		sum.add(-1, k, old)
	}
	if f.Value == nil {
		return facts.Delete(k)
	}
	sum.add(1, k, f.Value)
	return facts.Put(k, f.Value)
}

// putRevision notes a repo's revision, or forgets the repo with its last fact.
func putRevision(repos, facts *bolt.Bucket, repo string, rev Revision) error {
	first, _ := facts.Cursor().Seek(prefix(repo))
	if strings.HasPrefix(string(first), string(prefix(repo))) {
		return repos.Put([]byte(repo), number(uint64(rev)))
	}
	return repos.Delete([]byte(repo))
}

func prefix(repo string) []byte { return append([]byte(repo), 0) }

// rewrite copies what bbolt sees to a new file, which takes the place of the old one. The new one is open, and
// so locked, before it gets the name, and the old one is closed last: there is no moment in which another
// process could take the directory, and no failure after which none is open.
func (j *Bolt) rewrite() error {
	tmp := j.path + ".new"
	if err := copyTo(j.db, tmp); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	db, file, err := openFile(tmp, lockPatience)
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, j.path); err != nil {
		return errors.Join(err, db.Close(), os.Remove(tmp))
	}
	_ = j.db.Close() // what we gave up may well say that it is broken
	j.db, j.file = db, file
	return syncDir(filepath.Dir(j.path))
}

// Backup writes a copy of the journal beside it, for trow rebuild, unless nothing has changed since the last one.
// Commits go on meanwhile.
func (j *Bolt) Backup() error {
	j.mu.Lock()
	db, closed, head := j.db, j.closed || j.broke != nil, j.head.Load()
	j.mu.Unlock()
	dir := filepath.Dir(j.path)
	path := filepath.Join(dir, backupFile)
	if _, err := os.Stat(path); closed || err == nil && head == j.saved {
		return nil
	}
	err := copyTo(db, path+".new")
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		j.mu.Lock()
		j.meet(err)
		j.mu.Unlock()
		return errors.Join(fmt.Errorf("backup of the journal: %w", full(err)), os.RemoveAll(path+".new"))
	}
	j.saved = head
	return nil
}

func copyTo(db *bolt.DB, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := view(db, func(tx *bolt.Tx) error { _, err := tx.WriteTo(f); return err }); err != nil {
		return err
	}
	return f.Sync()
}

// Watch implements Journal.
func (j *Bolt) Watch(ctx context.Context, apply func(Update) error) error {
	return j.follow(ctx, j.load, apply)
}

// loadPart is how many facts of the full state are in memory at once beside what they become.
const loadPart = 4096

// releaseEvery is the number of facts, about 30 MB of the file, after which the pages that were read are given back.
const releaseEvery = 32 * loadPart

// load delivers the full state in parts.
func (j *Bolt) load(apply func(Update) error) error {
	if j.broke != nil { // bbolt may wait for its own locks for ever
		return j.broke
	}
	err := view(j.db, func(tx *bolt.Tx) (err error) {
		defer forgetPages(tx)
		deliver, wait := behind(apply)
		defer func() { // also of a panic: nothing may be applied beyond the transaction
			if applied := wait(); err == nil {
				err = applied
			}
		}()
		return read(tx, deliver)
	})
	if errors.Is(err, errFact) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if j.meet(err); j.broke != nil {
		return fmt.Errorf("%s: %w; stop the server and run trow rebuild --data-dir %s", j.path, err, filepath.Dir(j.path))
	}
	return err
}

// behind calls apply in a goroutine of its own, so that one processor reads what the other applies. wait has to be called
// in the end. Errors: apply's, of deliver or else of wait.
func behind(apply func(Update) error) (deliver func(Update) error, wait func() error) {
	updates, done := make(chan Update), make(chan struct{})
	var failed error
	go func() {
		defer close(done)
		failed = guard(func() error {
			for u := range updates {
				if err := apply(u); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	deliver = func(u Update) error {
		select {
		case updates <- u:
			return nil
		case <-done:
			return failed
		}
	}
	wait = func() error {
		close(updates)
		<-done
		return failed
	}
	return deliver, wait
}

// read delivers the full state of a transaction.
func read(tx *bolt.Tx, deliver func(Update) error) error {
	l := loading{deliver: deliver, repos: tx.Bucket(bucketRepos), facts: make([]Fact, 0, loadPart)}
	meta := tx.Bucket(bucketMeta)
	want, ok := parseTally(meta.Get(keyTally))
	c := tx.Bucket(bucketFacts).Cursor()
	for k, v := c.First(); k != nil && l.sum.count <= want.count; k, v = c.Next() { // pages could make a ring
		if err := l.add(k, v); err != nil {
			return err
		}
		if len(l.facts) == loadPart {
			if err := l.flush(Update{}); err != nil {
				return err
			}
			if l.sum.count%releaseEvery == 0 {
				forgetPages(tx)
			}
		}
	}
	if !ok || want != l.sum {
		return fmt.Errorf("%w: it has %d facts, and not the %d that were written", ErrDamaged, l.sum.count, want.count)
	}
	return l.flush(Update{Revision: Revision(parseNumber(meta.Get(keyRevision))), Synced: true})
}

// loading gathers the full state into updates.
type loading struct {
	deliver func(Update) error
	repos   *bolt.Bucket
	batches []Batch
	facts   []Fact          // of this part; each batch has a piece of it
	names   strings.Builder // of this part; all strings are pieces of it
	sum     tally
}

// add takes one record. Its bytes are valid during the transaction only, and are not kept by apply.
func (l *loading) add(k, v []byte) error {
	l.sum.add(1, k, v)
	repo, fact, ok := bytes.Cut(k, []byte{0})
	if !ok || len(fact) == 0 {
		return fmt.Errorf("journal: %w: record %.80q", errFact, k)
	}
	if n := len(l.batches); n == 0 || l.batches[n-1].Repo != string(repo) {
		base := Revision(parseNumber(l.repos.Get(repo)))
		l.batches = append(l.batches, Batch{Repo: l.text(repo), Base: base})
	}
	b, n := &l.batches[len(l.batches)-1], len(l.facts)
	l.facts = append(l.facts, Fact{Kind(fact[0]), l.text(fact[1:]), v})
	b.Facts = l.facts[n-len(b.Facts) : n+1]
	return nil
}

// text is a string of its own that costs no allocation of its own.
func (l *loading) text(b []byte) string {
	n := l.names.Len()
	l.names.Write(b)
	return l.names.String()[n:]
}

func (l *loading) flush(u Update) error {
	u.Batches = l.batches
	batches, names := len(l.batches), l.names.Len() // the next part will be about as large
	l.batches, l.facts, l.names = make([]Batch, 0, batches), make([]Fact, 0, loadPart), strings.Builder{}
	if !u.Synced {
		l.names.Grow(names)
	}
	return l.deliver(u)
}

// Head implements Journal.
func (j *Bolt) Head(context.Context) (Revision, error) { return Revision(j.head.Load()), nil }

// Close ends every Watch and closes the file.
func (j *Bolt) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.end()
	return j.release(j.broke)
}
