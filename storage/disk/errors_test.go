package disk

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"

	"trow/storage"
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
