package bolt_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
	"trow/storage/storagetest"
)

func TestJournal(t *testing.T) {
	storagetest.Journal(t, func(t *testing.T) func() storage.Journal {
		dir := t.TempDir()
		var last *bolt.Journal
		return func() storage.Journal { // to open it again is a restart
			if last != nil {
				if err := last.Close(); err != nil {
					t.Fatal(err)
				}
			}
			last = openBolt(t, dir)
			return last
		}
	})
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

func openDisk(t testing.TB, dir string) *disk.Blobs {
	t.Helper()
	b, err := disk.Open(dir, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// openFiles returns how many file descriptors of the process belong to temporary files.
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

// put records a manifest with a tag.
func put(i int, tag string) func(tx *storage.Tx) error {
	m := storage.Manifest{Digest: digest.FromString(fmt.Sprint("m", i)), MediaType: "application/a", Size: int64(i)}
	return func(tx *storage.Tx) error { return errors.Join(tx.PutManifest(m), tx.SetTag(tag, m.Digest)) }
}

func wantTags(t *testing.T, x *storage.Index, repo string, want ...string) {
	t.Helper()
	got, _, err := x.Tags(t.Context(), repo, "", -1)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Tags(%s): %v, %v; want %v", repo, got, err, want)
	}
}
