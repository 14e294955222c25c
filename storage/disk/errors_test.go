package disk

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/internal/local"
)

func TestAFullDiskIsErrFull(t *testing.T) {
	for _, err := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		if !errors.Is(fileError("blob", err), storage.ErrFull) || !errors.Is(fileError("blob", err), err) {
			t.Errorf("%v became %v", err, fileError("blob", err))
		}
	}
	if errors.Is(fileError("blob", syscall.EIO), storage.ErrFull) {
		t.Error("an I/O error was taken for a full disk")
	}
}

// TestReadOnly: blobs that may only be read are read, and nothing is made in their directory.
func TestReadOnly(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	d := digest.FromString("x")
	b, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Stat(ctx, d); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a blob that is not there: %v", err)
	}
	id := local.NewUploadID()
	_, create := b.Create(ctx, "r", d.Algorithm())
	_, createAs := b.CreateAs(ctx, "r", id, d.Algorithm())
	_, resume := b.Resume(ctx, "r", id, -1)
	_, expire := b.Expire(ctx, time.Now())
	for i, err := range []error{create, createAs, resume, expire, b.Delete(ctx, d), b.Room(ctx)} {
		if !errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if all, _ := os.ReadDir(dir); len(all) > 0 {
		t.Errorf("it has made %v", all)
	}
	if !errors.Is(fileError("blob", syscall.EROFS), storage.ErrReadOnly) {
		t.Error("a file system that has become read-only is not named as such")
	}
}

func TestOnlyAnErrorOfTheDiskMeansThatBytesAreLost(t *testing.T) {
	b := &Blobs{}
	if !b.Lost(&fs.PathError{Op: "read", Err: syscall.EIO}) {
		t.Error("an I/O error was taken for one that passes")
	}
	for _, err := range []error{syscall.EMFILE, syscall.EACCES, syscall.ENOMEM, storage.ErrNotFound} {
		if b.Lost(err) {
			t.Errorf("%v was taken for lost bytes", err)
		}
	}
}
