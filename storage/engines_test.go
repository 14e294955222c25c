package storage_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"trow/storage"
	"trow/storage/storagetest"
)

func TestMemoryKeepsBlobs(t *testing.T) {
	storagetest.Blobs(t, func(*testing.T) func() storage.Blobs {
		m := new(storage.Memory)
		return func() storage.Blobs { return m }
	})
}

func TestDiskKeepsBlobs(t *testing.T) {
	descriptors := openFiles(t)
	t.Cleanup(func() {
		if now := openFiles(t); now > descriptors {
			t.Errorf("%d files are open, %d were before", now, descriptors)
		}
	})
	storagetest.Blobs(t, func(t *testing.T) func() storage.Blobs {
		dir := t.TempDir()
		t.Cleanup(func() { wantOnlyBlobs(t, dir) })
		return func() storage.Blobs { return openDisk(t, dir) }
	})
}

func TestMemoryJournalKeepsFacts(t *testing.T) {
	storagetest.Journal(t, memoryPlace)
}

func TestBoltKeepsFacts(t *testing.T) {
	storagetest.Journal(t, boltPlace)
}

func TestWrappersWithoutFaultBehaveAsWhatTheyWrap(t *testing.T) {
	t.Run("blobs", func(t *testing.T) {
		storagetest.Blobs(t, func(*testing.T) func() storage.Blobs {
			b := storagetest.FailBlobs{Blobs: new(storage.Memory), Fault: new(storagetest.Fault)}
			return func() storage.Blobs { return b }
		})
	})
	t.Run("journal", func(t *testing.T) {
		storagetest.Journal(t, func(*testing.T) func() storage.Journal {
			j := storagetest.FailJournal{Journal: new(storage.MemoryJournal), Fault: new(storagetest.Fault)}
			return func() storage.Journal { return j }
		})
	})
}

// memoryPlace and boltPlace are places for a journal; a restart of the former keeps it.
func memoryPlace(*testing.T) func() storage.Journal {
	j := new(storage.MemoryJournal)
	return func() storage.Journal { return j }
}

func boltPlace(t *testing.T) func() storage.Journal {
	dir := t.TempDir()
	var last *storage.Bolt
	return func() storage.Journal {
		if last != nil {
			if err := last.Close(); err != nil {
				t.Fatal(err)
			}
		}
		last = openBolt(t, dir)
		return last
	}
}

// journals are the engines that the Index is tested over.
var journals = map[string]func(t *testing.T) func() storage.Journal{"memory": memoryPlace, "bolt": boltPlace}

func openDisk(t testing.TB, dir string) *storage.Disk {
	t.Helper()
	d, err := storage.OpenDisk(dir, storage.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// openBolt opens a journal and closes it when the test ends, which is no harm if it was closed before.
func openBolt(t testing.TB, dir string) *storage.Bolt {
	t.Helper()
	j, err := storage.OpenBolt(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// openFiles counts the process's file descriptors that belong to files.
func openFiles(t *testing.T) (n int) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Log("file descriptors are counted on Linux only")
		return 0
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, os.TempDir()) {
			n++
		}
	}
	return n
}

// wantOnlyBlobs walks a data directory: there is nothing but blobs under their names.
func wantOnlyBlobs(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		d := strings.Replace(strings.TrimPrefix(name, "blobs/"), "/", ":", 1)
		if _, err := storage.ParseDigest(d); err != nil {
			t.Errorf("%s was left behind", name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
