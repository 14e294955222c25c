package bolt

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bbolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"trow/storage"
)

// opened returns a new journal with a fact, and its directory.
func opened(t *testing.T) (*Journal, string) {
	t.Helper()
	dir := t.TempDir()
	j, err := Open(dir)
	if err == nil {
		t.Cleanup(func() { _ = j.Close() })
		_, err = j.Commit(t.Context(), storage.Batch{Repo: "r", Facts: []storage.Fact{
			{Kind: storage.KindTag, Name: "v", Value: []byte("1")}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return j, dir
}

// TestACopyThatFailsIsNotTakenForOne: it would replace the journal.
func TestACopyThatFailsIsNotTakenForOne(t *testing.T) {
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "copy")
	if err := copyTo(db, path); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := copyTo(db, path); !errors.Is(err, berrors.ErrDatabaseNotOpen) {
		t.Errorf("a copy of a closed database: %v", err)
	}
}

// TestABackupIsThatOfAGoodJournal: neither a damaged nor a closed one replaces it.
func TestABackupIsThatOfAGoodJournal(t *testing.T) {
	j, dir := opened(t)
	none := func(when string) {
		t.Helper()
		if err := j.Backup(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if _, err := os.Stat(filepath.Join(dir, backupFile)); err == nil {
			t.Errorf("%s: a backup was made", when)
		}
	}
	j.damage = storage.ErrDamaged
	none("damaged")
	j.damage = nil
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	none("closed")
}

// TestAStateIsLoadedInParts of 4,096 facts: all at once would take the memory of all, and each alone the time.
func TestAStateIsLoadedInParts(t *testing.T) {
	j, _ := opened(t) // it has a fact
	facts := make([]storage.Fact, 2*loadPart)
	for i := range facts {
		facts[i] = storage.Fact{Kind: storage.KindTag, Name: fmt.Sprintf("v%05d", i), Value: []byte("1")}
	}
	if _, err := j.Commit(t.Context(), storage.Batch{Repo: "other", Facts: facts}); err != nil {
		t.Fatal(err)
	}
	var parts []int
	if err := view(j.db, func(tx *bbolt.Tx) error {
		return read(tx, func(u storage.Update) error {
			n := 0
			for _, b := range u.Batches {
				n += len(b.Facts)
			}
			parts = append(parts, n)
			if u.Synced != (len(parts) == 3) {
				t.Errorf("part %d says that it is the last one: %v", len(parts), u.Synced)
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if want := []int{loadPart, loadPart, 1}; !slices.Equal(parts, want) {
		t.Errorf("parts of %v facts, want %v", parts, want)
	}
}

// TestTheTallyIsPartOfTheDataFormat: what one version has written, every other one must compute.
func TestTheTallyIsPartOfTheDataFormat(t *testing.T) {
	h := fnv.New64a()
	_, _ = h.Write([]byte("\x03keyvalue"))
	var sum tally
	sum.add(1, []byte("key"), []byte("value"))
	if want := (tally{1, h.Sum64()}); sum != want {
		t.Errorf("got %v, want %v", sum, want)
	}
	if sum.add(-1, []byte("key"), []byte("value")); sum != (tally{}) {
		t.Errorf("after it was removed: %v", sum)
	}
}

// TestWhatBboltCallsInvalidIsDamage, and nothing else.
func TestWhatBboltCallsInvalidIsDamage(t *testing.T) {
	for err, want := range map[error]bool{berrors.ErrInvalid: true, berrors.ErrVersionMismatch: true,
		berrors.ErrChecksum: true, errors.New("file size too small"): true, berrors.ErrTimeout: false,
		os.ErrPermission: false, nil: false} {
		if got := isInvalid(err); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// TestOpenWaitsAsLongAsItSays, see Open.
func TestOpenWaitsAsLongAsItSays(t *testing.T) {
	if lockTimeout != 10*time.Second {
		t.Errorf("it waits for %s", lockTimeout)
	}
}

// TestAJournalThatHasLostItsFormatIsDamaged, with either of the parts that no other program has.
func TestAJournalThatHasLostItsFormatIsDamaged(t *testing.T) {
	for _, name := range [][]byte{bucketRepos, bucketFacts} {
		dir := t.TempDir()
		db, err := bbolt.Open(filepath.Join(dir, journalFile), 0o600, nil)
		if err == nil {
			err = db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket(name); return err })
		}
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		for what, open := range map[string]func(string) (*Journal, error){"Open": Open, "OpenReadOnly": OpenReadOnly} {
			if _, err := open(dir); !errors.Is(err, storage.ErrDamaged) ||
				!strings.Contains(err.Error(), "of which format") {
				t.Errorf("%s with %s: %v", what, name, err)
			}
		}
	}
}

// TestAReaderRefusesWhatItCannotRead: a newer format, and a file that would have to be converted first.
func TestAReaderRefusesWhatItCannotRead(t *testing.T) {
	for name, row := range map[string]struct {
		change func(meta *bbolt.Bucket) error
		want   string
	}{
		"newer format": {func(meta *bbolt.Bucket) error { return meta.Put(keyFormat, number(storage.Format+1)) },
			fmt.Sprintf("of format %d", storage.Format+1)},
		"no tally": {func(meta *bbolt.Bucket) error { return meta.Delete(keyTally) }, "an earlier version wrote it"},
	} {
		j, dir := opened(t)
		if err := j.db.Update(func(tx *bbolt.Tx) error { return row.change(tx.Bucket(bucketMeta)) }); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenReadOnly(dir); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v; want %q", name, err, row.want)
		}
	}
}

// TestAnEmptyOwnerFileNamesNoProcess: it is written without a sync.
func TestAnEmptyOwnerFileNamesNoProcess(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]string{"": "another process", "process 7\n": "process 7"} {
		if err := os.WriteFile(filepath.Join(dir, ownerFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := owner(dir); got != want {
			t.Errorf("with %q in it: %q", content, got)
		}
	}
}

// TestARecoveryIsDoneWhenItsMarkIsGone, and not if the mark cannot be removed.
func TestARecoveryIsDoneWhenItsMarkIsGone(t *testing.T) {
	r := &Recovered{dir: t.TempDir()}
	mark := filepath.Join(r.dir, unfinishedFile)
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is none
		if err := r.Done(); err != nil || r.Unfinished() {
			t.Errorf("%v; it is unfinished: %v", err, r.Unfinished())
		}
	}
	if err := os.MkdirAll(filepath.Join(mark, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.Done(); err == nil {
		t.Error("a mark that stays was reported as gone")
	}
}

// TestACopyOfAFileHasItsTime, which says of a backup how old it is. A file that is missing is none.
func TestACopyOfAFileHasItsTime(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	root, err := os.OpenRoot(to)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	backup, when := filepath.Join(from, backupFile), time.Unix(1_700_000_000, 0)
	if err := errors.Join(os.WriteFile(backup, []byte("facts"), 0o600), os.Chtimes(backup, when, when)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{backupFile, journalFile} {
		if err := copyFile(filepath.Join(from, name), root, name); err != nil {
			t.Error(err)
		}
	}
	if err := copyFile(from+"/"+backupFile+"/x", root, "x"); err == nil {
		t.Error("a path through a file was taken for a missing file")
	}
	fi, err := root.Stat(backupFile)
	if err != nil || !fi.ModTime().Equal(when) || fi.Size() != 5 {
		t.Errorf("%v, %v", fi, err)
	}
	if _, err := root.Stat(journalFile); err == nil {
		t.Error("a file that is missing was copied")
	}
}
