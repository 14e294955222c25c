package maintenance_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"trow/registry/maintenance"
	"trow/storage"
)

// failToOpen makes the journal of a directory one that this process cannot write to.
func failToOpen(t *testing.T, cause error) {
	maintenance.SetOpenJournal(t, func(string) (storage.Journal, error) {
		return nil, &os.PathError{Op: "open", Path: "journal.db", Err: cause}
	})
}

// TestADirectoryThatCannotBeWrittenToIsServed: whether the file system or the permissions forbid it, what is there can
// be read, and what would write fails with the reason.
func TestADirectoryThatCannotBeWrittenToIsServed(t *testing.T) {
	for _, cause := range []error{syscall.EROFS, syscall.EACCES, syscall.EPERM} {
		t.Run(cause.Error(), func(t *testing.T) {
			var log bytes.Buffer
			o := options(t, &log)
			data, index := open(t, o)
			d := push(t, data, index, "a", "content")
			if err := data.Close(); err != nil {
				t.Fatal(err)
			}
			failToOpen(t, cause)
			data, index = open(t, o)
			ok, text := data.ReadOnlyCheck()
			if ok || !data.ReadOnly() || !strings.Contains(text, "journal.db: "+cause.Error()) {
				t.Errorf("%v %s", ok, text)
			}
			if !strings.Contains(log.String(), "the data directory cannot be written to") {
				t.Errorf("the log: %s", &log)
			}
			if info, err := data.Blobs().Stat(t.Context(), d); err != nil || info.Size != int64(len("content")) {
				t.Errorf("the blob: %v", err)
			}
			_, err := data.Blobs().Create(t.Context(), "a", d.Algorithm())
			uerr := index.Update(t.Context(), "a", func(tx *storage.Tx) error { return tx.Unlink(d) })
			if !errors.Is(err, storage.ErrReadOnly) || !errors.Is(uerr, storage.ErrReadOnly) {
				t.Errorf("writes: %v, %v", err, uerr)
			}
			if !index.Present(d) {
				t.Error("after a write that failed, the blob is gone")
			}
		})
	}
}

// TestOtherErrorsOfADirectoryStay: a server does not become one for pulls because of a mistake that has another remedy.
func TestOtherErrorsOfADirectoryStay(t *testing.T) {
	o := options(t, &bytes.Buffer{})
	data, _ := open(t, o)
	if err := data.Close(); err != nil {
		t.Fatal(err)
	}
	failToOpen(t, syscall.ENOSPC)
	if _, err := maintenance.Open(o); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	// With nothing to serve, the first error has the remedy.
	failToOpen(t, syscall.EROFS)
	o.DataDir = t.TempDir()
	if _, err := maintenance.Open(o); !errors.Is(err, syscall.EROFS) || strings.Contains(err.Error(), "nothing to serve") {
		t.Errorf("an empty directory: %v", err)
	}
}
