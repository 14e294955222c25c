package disk_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"trow/storage"
	"trow/storage/disk"
)

// TestWritable asks real file systems: one that is mounted read-only while it is in use, and a directory that is gone.
func TestWritable(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	b, err := disk.Open(dir, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Writable(); err != nil {
		t.Error(err)
	}
	for _, flags := range []uintptr{syscall.MS_RDONLY, 0} {
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
		err := b.Writable()
		if readOnly := flags != 0; readOnly != errors.Is(err, storage.ErrReadOnly) ||
			readOnly && !strings.Contains(err.Error(), dir) {
			t.Errorf("read-only %v: %v", readOnly, err)
		}
	}
	gone := filepath.Join(dir, "blobs", "sha512")
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	if err := b.Writable(); err == nil || errors.Is(err, storage.ErrReadOnly) || !strings.Contains(err.Error(), gone) {
		t.Errorf("a directory that is gone: %v", err)
	}
	if b, err = disk.Open(dir, disk.Options{ReadOnly: true}); err != nil ||
		!errors.Is(b.Writable(), storage.ErrReadOnly) {
		t.Errorf("opened to read: %v", err)
	}
}
