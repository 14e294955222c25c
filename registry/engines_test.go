package registry_test

import (
	"testing"

	"trow/storage"
	"trow/storage/disk"
	"trow/storage/memory"
	"trow/storage/storagetest/enginetest"
)

// This file is where the tests open storage engines.

// inMemory returns empty engines in memory.
func inMemory() (storage.Blobs, storage.Journal) {
	b := memory.NewBlobs()
	b.Uploads = storage.NewUploads()
	return b, memory.NewJournal()
}

// engines opens the embedded engines on a directory until the test ends. close closes the journal earlier.
func engines(t *testing.T, dir string) (b storage.Blobs, j storage.Journal, close func() error) {
	t.Helper()
	return bounded(t, dir, 0)
}

// bounded is engines with a bound of uploads.
func bounded(t *testing.T, dir string, uploads int) (b storage.Blobs, j storage.Journal, close func() error) {
	t.Helper()
	journal := enginetest.Bolt(t, dir)
	return enginetest.DiskWith(t, dir, disk.Options{MaxUploads: uploads}), journal, journal.Close
}
