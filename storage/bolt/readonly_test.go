package bolt_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/storagetest"
)

// TestReadOnly: a journal that is only read shows all that was written, shares its lock with other readers, and leaves
// every file as it is.
func TestReadOnly(t *testing.T) {
	bolt.SetLockTimeout(t, 50*time.Millisecond)
	dir := t.TempDir()
	j := openBolt(t, dir)
	x := storagetest.OpenIndex(t, j)
	storagetest.Update(t, x, "r", put(1, "v"))
	storagetest.Update(t, x, "r", put(2, "v"))
	if _, err := bolt.OpenReadOnly(dir); err == nil || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("while another process writes: %v", err)
	}
	x.Close()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	before, names := contents(t, dir)
	for range 2 {
		reader, err := bolt.OpenReadOnly(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		x := storagetest.OpenIndex(t, reader)
		wantTags(t, x, "r", "v")
		if h, err := x.History(t.Context(), "r", "v"); err != nil || len(h) != 2 {
			t.Errorf("the history: %v %v", h, err)
		}
		if err := x.Update(t.Context(), "r", put(3, "w")); !errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("a change: %v", err)
		}
		wantTags(t, x, "r", "v")
		if err := reader.Backup(); err != nil {
			t.Error(err)
		}
	}
	if _, err := bolt.Open(dir); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a writer beside readers: %v", err)
	}
	if after, now := contents(t, dir); !bytes.Equal(before, after) || now != names {
		t.Errorf("files have changed: %s, before %s", now, names)
	}
}

// contents returns the content of the journal and the names in its directory.
func contents(t *testing.T, dir string) (journal []byte, names string) {
	t.Helper()
	journal, err := os.ReadFile(journalIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return journal, strings.Join(all, " ")
}

func TestNothingToRead(t *testing.T) {
	dir := t.TempDir()
	want := func(text string) {
		t.Helper()
		if _, err := bolt.OpenReadOnly(dir); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
		if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) > 1 {
			t.Errorf("it has made %v", names)
		}
	}
	want("nothing to serve")
	if err := os.WriteFile(journalIn(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want("the journal is empty")
	if err := os.WriteFile(journalIn(dir), []byte("no journal"), 0o600); err != nil {
		t.Fatal(err)
	}
	want("run trow rebuild")
}

// TestAVolumeThatBecomesReadOnly: the change that meets it fails with the reason, and so do later ones; what was there
// before can still be read.
func TestAVolumeThatBecomesReadOnly(t *testing.T) {
	dir := t.TempDir()
	j := openBolt(t, dir)
	x := storagetest.OpenIndex(t, j)
	storagetest.Update(t, x, "r", put(1, "v"))
	failNext(j, syscall.EROFS)
	if err := x.Update(t.Context(), "r", put(2, "w")); !errors.Is(err, storage.ErrReadOnly) {
		t.Errorf("a change: %v", err)
	}
	if _, ok, err := x.Resolve(t.Context(), "r", "v"); !ok || err != nil {
		t.Errorf("a read after that: %v %v", ok, err)
	}
}
