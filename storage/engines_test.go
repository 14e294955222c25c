package storage_test

import (
	"testing"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
	"trow/storage/memory"
)

// journals are the engines that the Index is tested over. Each returns what opens a journal at a new place; to open it
// again is a restart.
var journals = map[string]func(t *testing.T) func() storage.Journal{"memory": memoryPlace, "bolt": boltPlace}

func memoryPlace(*testing.T) func() storage.Journal {
	j := memory.NewJournal()
	return func() storage.Journal { return j }
}

func boltPlace(t *testing.T) func() storage.Journal {
	dir := t.TempDir()
	var last *bolt.Journal
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

func openDisk(t testing.TB, dir string) *disk.Blobs {
	t.Helper()
	b, err := disk.Open(dir, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// openBolt opens a journal and closes it when the test ends; it may have been closed before.
func openBolt(t testing.TB, dir string) *bolt.Journal {
	t.Helper()
	j, err := bolt.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}
