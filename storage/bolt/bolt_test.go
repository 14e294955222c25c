package bolt_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	bbolt "go.etcd.io/bbolt"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/storagetest"
)

func journalIn(dir string) string { return filepath.Join(dir, "journal.db") }

// edit changes a journal's file behind the engine's back.
func edit(t *testing.T, dir string, f func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(journalIn(dir), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(f), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestASecondOpenerLearnsWhoHoldsTheDirectory(t *testing.T) {
	bolt.SetLockTimeout(t, time.Millisecond)
	dir := t.TempDir()
	j := openBolt(t, dir)
	_, err := bolt.Open(dir)
	host, _ := os.Hostname()
	want := fmt.Sprintf("data directory %s is in use by process %d on %s since ", dir, os.Getpid(), host)
	if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "stop that one first") {
		t.Errorf("the second Open returned %q, want %q", err, want)
	}
	if err := os.Remove(filepath.Join(dir, "owner")); err != nil {
		t.Fatal(err)
	}
	if _, err := bolt.Open(dir); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("without an owner file the second Open returned %q", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	openBolt(t, dir)
}

func TestOpenRefusesUnknownData(t *testing.T) {
	number := func(n byte) []byte { return []byte{0, 0, 0, 0, 0, 0, 0, n} }
	bucket := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			edit(t, dir, func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte(name)); return err })
		}
	}
	tests := []struct {
		name string
		make func(t *testing.T, dir string)
		want string
	}{
		{"a newer format", func(t *testing.T, dir string) {
			openBolt(t, dir).Close()
			edit(t, dir, func(tx *bbolt.Tx) error {
				return tx.Bucket([]byte("meta")).Put([]byte("format"), number(storage.Format+1))
			})
		}, "the data is of format 4, and this version knows formats up to 3: use the newer version that wrote it"},
		{"another program's file", bucket("v1"), "not a journal of this registry"},
		{"another program's file with a bucket of our name", bucket("meta"), "not a journal of this registry"},
		{"something else", func(t *testing.T, dir string) {
			if err := os.WriteFile(journalIn(dir), []byte(strings.Repeat("no database", 5000)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "invalid database"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.make(t, dir)
			before, err := os.ReadFile(journalIn(dir))
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the refusal leaves no lock behind
				_, err := bolt.Open(dir)
				if err == nil || !strings.Contains(err.Error(), tt.want) ||
					!strings.Contains(err.Error(), journalIn(dir)) {
					t.Errorf("Open: %v; want %q", err, tt.want)
				}
			}
			if after, err := os.ReadFile(journalIn(dir)); err != nil || !slices.Equal(before, after) {
				t.Errorf("the file was changed, %v", err)
			}
		})
	}
}

// TestAnUnusedJournalIsMadeAgain: what a power cut leaves of a journal that was just being made is not damage, and the
// next start makes a new one. The same bytes are damage if the journal was in use.
func TestAnUnusedJournalIsMadeAgain(t *testing.T) {
	dir := t.TempDir()
	if err := openBolt(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile(journalIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	noHeads := slices.Concat(make([]byte, 2*os.Getpagesize()), made[2*os.Getpagesize():4*os.Getpagesize()])
	for name, file := range map[string][]byte{
		"zeros":                  make([]byte, 4*os.Getpagesize()),
		"a sector":               make([]byte, 512),
		"no heads":               noHeads,
		"heads and nothing else": slices.Concat(made[:2*os.Getpagesize()], make([]byte, 2*os.Getpagesize())),
	} {
		for _, beside := range []string{"", "owner", "blobs", "journal.backup"} {
			dir := t.TempDir()
			if err := os.WriteFile(journalIn(dir), file, 0o600); err != nil {
				t.Fatal(err)
			}
			if beside != "" {
				if err := os.WriteFile(filepath.Join(dir, beside), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			j, err := bolt.Open(dir)
			if used := beside != ""; errors.Is(err, storage.ErrDamaged) != used || (j == nil) != used {
				t.Errorf("%s, beside it %q: %v", name, beside, err)
			}
			if j != nil {
				storagetest.Update(t, storagetest.OpenIndex(t, j), "r", put(1, "v"))
				j.Close()
			}
		}
	}
	long := make([]byte, 9*os.Getpagesize())
	if err := os.WriteFile(journalIn(dir), long, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "owner")); err != nil {
		t.Fatal(err)
	}
	if _, err := bolt.Open(dir); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("a longer file without an owner: %v", err)
	}
}

func TestDamagedRecordsAreRefused(t *testing.T) {
	for _, k := range []string{"no zero byte", "repo\x00"} {
		dir := t.TempDir()
		openBolt(t, dir).Close()
		edit(t, dir, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("facts")).Put([]byte(k), []byte("x")) })
		_, err := storage.OpenIndex(t.Context(), openBolt(t, dir), storage.IndexOptions{})
		if err == nil || !strings.Contains(err.Error(), "damaged fact: record "+fmt.Sprintf("%q", k)) {
			t.Errorf("a record %q: %v", k, err)
		}
	}
}

func TestAClosedJournalRefusesEverything(t *testing.T) {
	j := openBolt(t, t.TempDir())
	x := storagetest.OpenIndex(t, j)
	if err := errors.Join(j.Close(), j.Close()); err != nil {
		t.Error(err)
	}
	if _, err := j.Commit(t.Context(), storage.Batch{Repo: "r"}); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Commit: %v", err)
	}
	if err := j.Watch(t.Context(), nil); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Watch: %v", err)
	}
	x.Close()
}

func failNext(j *bolt.Journal, err error) { j.FailNext(func() error { return err }) }

func fileOf(t *testing.T, dir string) os.FileInfo {
	t.Helper()
	fi, err := os.Stat(journalIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	return fi
}

func TestTheFileIsRewrittenAfterAFailedCommit(t *testing.T) {
	bolt.SetLockTimeout(t, 100*time.Millisecond)
	dir := t.TempDir()
	j := openBolt(t, dir)
	x, other := storagetest.OpenIndex(t, j), storagetest.OpenIndex(t, j)
	before := openFiles(t)
	var want []string
	for i := range 6 {
		tag := fmt.Sprint("v", i)
		old := fileOf(t, dir)
		storagetest.Update(t, x, "r", put(i, tag+"a"))
		if rewritten := !os.SameFile(old, fileOf(t, dir)); rewritten != (i > 0) {
			t.Errorf("round %d: rewritten is %v", i, rewritten)
		}
		failNext(j, syscall.EIO)
		if err := x.Update(t.Context(), "r", put(i, tag+"b")); !errors.Is(err, syscall.EIO) {
			t.Errorf("a failed commit: %v", err)
		}
		want = append(want, tag+"a", tag+"b")
		wantTags(t, x, "r", want...)     // it happened nevertheless
		wantTags(t, other, "r", want...) // and the other Index has seen it
		if _, err := bolt.Open(dir); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("the directory is not locked: %v", err)
		}
	}
	storagetest.Update(t, other, "r", put(1, "w")) // based on a commit that failed for the other Index
	want = append(want, "w")
	wantTags(t, x, "r", want...)
	if now := openFiles(t); now != before {
		t.Errorf("%d files are open, %d were before", now, before)
	}
	if _, err := os.Stat(journalIn(dir) + ".new"); err == nil {
		t.Error("the new file was left behind")
	}
	x.Close()
	other.Close()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	wantTags(t, storagetest.OpenIndex(t, openBolt(t, dir)), "r", want...)
}

// TestRepeatingAFailedUpdateMakesItDurable: what a failed commit shows may not be durable. An update that asks for the
// same again, and so for no change, returns only when it is.
func TestRepeatingAFailedUpdateMakesItDurable(t *testing.T) {
	dir := t.TempDir()
	j := openBolt(t, dir)
	x := storagetest.OpenIndex(t, j)
	for name, row := range map[string]struct {
		do   func(*storage.Tx) error
		then error // what repeating it returns
	}{
		"a push":     {put(1, "v"), nil},
		"a deletion": {func(tx *storage.Tx) error { return tx.DeleteTag("w") }, storage.ErrNotFound},
	} {
		storagetest.Update(t, x, "r", put(0, "w"))
		old := fileOf(t, dir)
		failNext(j, syscall.EIO)
		if err := x.Update(t.Context(), "r", row.do); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s whose commit fails: %v", name, err)
		}
		if err := x.Update(t.Context(), "r", row.do); !errors.Is(err, row.then) {
			t.Errorf("%s again: %v", name, err)
		}
		if os.SameFile(old, fileOf(t, dir)) {
			t.Errorf("%s was not committed again", name)
		}
	}
}

func TestAFullDiskNeedsNoRewrite(t *testing.T) {
	dir := t.TempDir()
	j := openBolt(t, dir)
	x := storagetest.OpenIndex(t, j)
	old := fileOf(t, dir)
	failNext(j, syscall.ENOSPC)
	if err := x.Update(t.Context(), "r", put(1, "v")); !errors.Is(err, storage.ErrFull) {
		t.Errorf("a commit on a full disk: %v", err)
	}
	storagetest.Update(t, x, "r", put(2, "w"))
	if !os.SameFile(old, fileOf(t, dir)) {
		t.Error("the file was rewritten")
	}
	wantTags(t, x, "r", "v", "w")
}

func TestAFailedRewriteIsRepeated(t *testing.T) {
	dir := t.TempDir()
	j := openBolt(t, dir)
	x := storagetest.OpenIndex(t, j)
	storagetest.Update(t, x, "r", put(1, "v1"))
	failNext(j, syscall.EIO)
	if err := x.Update(t.Context(), "r", put(2, "v2")); err == nil {
		t.Error("the commit did not fail")
	}
	obstacle := filepath.Join(journalIn(dir)+".new", "x")
	if err := os.MkdirAll(obstacle, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := x.Update(t.Context(), "r", put(3, "v3"))
		if err == nil || !strings.Contains(err.Error(), "rewrite after a failed commit") {
			t.Errorf("an update before the file could be rewritten: %v", err)
		}
		wantTags(t, x, "r", "v1", "v2") // reads work
		wantTags(t, storagetest.OpenIndex(t, j), "r", "v1", "v2")
	}
	if err := os.RemoveAll(filepath.Dir(obstacle)); err != nil {
		t.Fatal(err)
	}
	storagetest.Update(t, x, "r", put(3, "v3"))
	wantTags(t, x, "r", "v1", "v2", "v3")
}

func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	left := []string{"journal.db.new", "journal.backup.new", ".trow-tmp-BACKUP"}
	for _, name := range left {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half a journal"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openBolt(t, dir)
	for _, name := range left {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestAWaitingOpenGetsTheRewrittenFile(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("how many files are open is known on Linux only")
	}
	dir := t.TempDir()
	j := openBolt(t, dir)
	x := storagetest.OpenIndex(t, j)
	before := openFiles(t)
	type opened struct {
		j   *bolt.Journal
		err error
	}
	second := make(chan opened)
	go func() {
		j, err := bolt.Open(dir)
		second <- opened{j, err}
	}()
	for openFiles(t) == before { // until it has the old file open
		runtime.Gosched()
	}
	failNext(j, syscall.EIO)
	_ = x.Update(t.Context(), "r", put(1, "v1"))
	storagetest.Update(t, x, "r", put(2, "v2")) // only in the new file
	x.Close()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	got := <-second
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer got.j.Close()
	x = storagetest.OpenIndex(t, got.j)
	wantTags(t, x, "r", "v1", "v2")
	storagetest.Update(t, x, "r", put(3, "v3"))
	x.Close()
	got.j.Close()
	wantTags(t, storagetest.OpenIndex(t, openBolt(t, dir)), "r", "v1", "v2", "v3")
}
