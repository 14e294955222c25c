package disk_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/disk"
	"trow/storage/storagetest"
)

// TestAFullPoolOfUploadsStopsNoManifest: MaxUploads bounds what stays for later requests, also after a restart, and not
// what one request begins and ends.
func TestAFullPoolOfUploadsStopsNoManifest(t *testing.T) {
	const most = 3
	dir := t.TempDir()
	id := func(n int) string { return fmt.Sprintf("01234567-89ab-4def-8123-%012d", n) }
	create := func(b *disk.Blobs, n int) (storage.Upload, error) {
		return b.CreateAs(t.Context(), "r", id(n), digest.SHA256)
	}
	reopen := func() *disk.Blobs {
		b, err := disk.Open(dir, disk.Options{MaxUploads: most})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := reopen()
	for n := range most {
		u, err := create(b, n)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, b := range []*disk.Blobs{b, reopen()} {
		if _, err := create(b, most); !errors.Is(err, storage.ErrBusy) {
			t.Errorf("one upload too many: %v", err)
		}
		if _, err := storagetest.Push(t.Context(), b, []byte("manifest")); err != nil {
			t.Errorf("what one request brings: %v", err)
		}
		if n := b.Uploads(); n != most {
			t.Errorf("%d uploads are open, want %d", n, most)
		}
	}
	b = reopen()
	u, err := b.Resume(t.Context(), "r", id(0), -1)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Cancel(); err != nil {
		t.Error(err)
	}
	if u, err = create(b, most); err != nil {
		t.Fatalf("after one was cancelled: %v", err)
	}
	if err := u.Close(); err != nil {
		t.Error(err)
	}
	if _, err := create(b, most+1); !errors.Is(err, storage.ErrBusy) {
		t.Errorf("one upload too many: %v", err)
	}
}
