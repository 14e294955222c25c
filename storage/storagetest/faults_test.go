package storagetest_test

import (
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

func TestWrappersWithoutAFaultBehaveAsWhatTheyWrap(t *testing.T) {
	t.Run("blobs", func(t *testing.T) {
		storagetest.Blobs(t, func(*testing.T) func() storage.Blobs {
			b := storagetest.FailBlobs{Blobs: memory.NewBlobs(), Fault: new(storagetest.Fault)}
			return func() storage.Blobs { return b }
		})
	})
	t.Run("journal", func(t *testing.T) {
		storagetest.Journal(t, func(*testing.T) func() storage.Journal {
			j := storagetest.FailJournal{Journal: memory.NewJournal(), Fault: new(storagetest.Fault)}
			return func() storage.Journal { return j }
		})
	})
}

func TestEveryCallOfBlobsCanBeMadeToFail(t *testing.T) {
	d := digest.FromString("x")
	inner := memory.NewBlobs()
	if _, err := storagetest.Push(t.Context(), inner, []byte("x")); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	calls := map[string]func(b storage.Blobs) error{
		"Stat":   func(b storage.Blobs) error { _, err := b.Stat(t.Context(), d); return err },
		"Open":   func(b storage.Blobs) error { _, err := b.Open(t.Context(), d); return err },
		"Create": func(b storage.Blobs) error { _, err := b.Create(t.Context(), "r", digest.SHA256); return err },
		"Room":   func(b storage.Blobs) error { return b.Room(t.Context()) },
		"Resume": func(b storage.Blobs) error {
			u, err := b.Create(t.Context(), "r", digest.SHA256)
			if err == nil {
				_, err = b.Resume(t.Context(), "r", u.ID(), -1)
			}
			return err
		},
		"Cancel": func(b storage.Blobs) error {
			u, err := b.Create(t.Context(), "r", digest.SHA256)
			if err == nil {
				err = u.Cancel(t.Context())
			}
			return err
		},
		"Expire": func(b storage.Blobs) error { _, err := b.Expire(t.Context(), time.Unix(0, 0)); return err },
		"All": func(b storage.Blobs) (last error) {
			for _, err := range b.All(t.Context()) {
				last = err
			}
			return last
		},
		"Delete": func(b storage.Blobs) error { return b.Delete(t.Context(), d) },
	}
	for method, call := range calls {
		for _, after := range []bool{false, true} {
			b := storagetest.FailBlobs{Blobs: inner,
				Fault: &storagetest.Fault{Method: method, N: 2, After: after, Err: boom}}
			if method == "Delete" {
				b.Fault.N = 1
			} else if err := call(b); err != nil {
				t.Errorf("%s, the first call: %v", method, err)
			}
			if err := call(b); !errors.Is(err, boom) {
				t.Errorf("%s: %v, want the fault", method, err)
			}
			if _, err := inner.Stat(t.Context(), d); (err != nil) != (method == "Delete" && after) {
				t.Errorf("%s, after %v: the blob: %v", method, after, err)
			}
			if _, err := storagetest.Push(t.Context(), inner, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
}
