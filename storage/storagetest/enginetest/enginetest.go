// Package enginetest opens the engines that keep data on the disk, for tests. It is apart from storagetest, which knows
// no engine.
package enginetest

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
)

// Bolt opens a journal and closes it when the test ends; the test may close it before.
func Bolt(t testing.TB, dir string) *bolt.Journal {
	t.Helper()
	j, err := bolt.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// BoltPlace returns a function that opens the journal of one new directory. A further call closes the journal and opens
// it again, as a restart does.
func BoltPlace(t *testing.T) func() storage.Journal {
	dir := t.TempDir()
	var last *bolt.Journal
	return func() storage.Journal {
		if last != nil {
			if err := last.Close(); err != nil {
				t.Fatal(err)
			}
		}
		last = Bolt(t, dir)
		return last
	}
}

// Disk opens blobs with the default options.
func Disk(t testing.TB, dir string) *disk.Blobs { return DiskWith(t, dir, disk.Options{}) }

// DiskWith is [Disk] with options.
func DiskWith(t testing.TB, dir string, o disk.Options) *disk.Blobs {
	t.Helper()
	b, err := disk.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// OpenFiles returns how many file descriptors of the process belong to temporary files. It returns 0 on systems other
// than Linux.
func OpenFiles(t *testing.T) (n int) {
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
