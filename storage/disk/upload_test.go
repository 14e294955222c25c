package disk_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

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
	resume := func(b *disk.Blobs, n int) {
		if u, err := b.Resume(t.Context(), "r", id(n), -1); err != nil {
			t.Error(err)
		} else if err := u.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	b := reopen()
	for n := range most {
		u, err := create(b, n)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for range 2 { // the second time after a restart
		if _, err := create(b, most); !errors.Is(err, storage.ErrBusy) {
			t.Errorf("one upload too many: %v", err)
		}
		if _, err := storagetest.Push(t.Context(), b, []byte("manifest")); err != nil {
			t.Errorf("what one request brings: %v", err)
		}
		if n := b.Uploads(); n != most {
			t.Errorf("%d uploads are open, want %d", n, most)
		}
		b = reopen()
		for n := range most { // they count, and are continued
			resume(b, n)
		}
	}
	u, err := b.Resume(t.Context(), "r", id(0), -1)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Cancel(t.Context()); err != nil {
		t.Error(err)
	}
	if u, err = create(b, most); err != nil {
		t.Fatalf("after one was cancelled: %v", err)
	}
	if err := u.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := create(b, most+1); !errors.Is(err, storage.ErrBusy) {
		t.Errorf("one upload too many: %v", err)
	}
}

// TestUploadsFromBeforeARestartGiveWay: those that no client has continued since, the one that was idle the longest
// first. Otherwise clients that had filled all places would keep others out after it.
func TestUploadsFromBeforeARestartGiveWay(t *testing.T) {
	const most = 4
	dir := t.TempDir()
	id := func(n int) string { return fmt.Sprintf("01234567-89ab-4def-8123-%012d", n) }
	reopen := func() *disk.Blobs {
		b, err := disk.Open(dir, disk.Options{MaxUploads: most})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	create := func(b *disk.Blobs, n int) error {
		u, err := b.CreateAs(t.Context(), "r", id(n), digest.SHA256)
		if err != nil {
			return err
		}
		return u.Close(t.Context())
	}
	b := reopen()
	for n := range most {
		if err := create(b, n); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "uploads", "*"))
	if err != nil || len(files) != most {
		t.Fatal(files, err)
	}
	for n, age := range []int{30, 10, 40, 20} { // minutes
		when := time.Now().Add(-time.Duration(age) * time.Minute)
		if err := os.Chtimes(files[n], when, when); err != nil {
			t.Fatal(err)
		}
	}
	b = reopen()
	u, err := b.Resume(t.Context(), "r", id(0), -1)
	if err != nil || u.Close(t.Context()) != nil {
		t.Fatal(err)
	}
	for i, gone := range []int{2, 3, 1} {
		if err := create(b, most+i); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Resume(t.Context(), "r", id(gone), -1); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("upload %d: %v", gone, err)
		}
		if n := b.Uploads(); n != most {
			t.Errorf("%d uploads are open, want %d", n, most)
		}
	}
	if err := create(b, 2*most); !errors.Is(err, storage.ErrBusy) {
		t.Errorf("all are used: %v", err)
	}
	if _, err := b.Resume(t.Context(), "r", id(0), -1); err != nil {
		t.Errorf("the one that was continued: %v", err)
	}
}
