package memory_test

import (
	"errors"
	"testing"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

func TestBlobs(t *testing.T) {
	storagetest.Blobs(t, func(*testing.T) func() storage.Blobs {
		b := memory.NewBlobs()
		return func() storage.Blobs { return b }
	})
}

func TestJournal(t *testing.T) {
	storagetest.Journal(t, func(*testing.T) func() storage.Journal {
		j := memory.NewJournal()
		return func() storage.Journal { return j }
	})
}

func TestPushSucceedsAfterAnyFailedCall(t *testing.T) {
	storagetest.FailedCalls(t, func(*testing.T) storage.Blobs { return memory.NewBlobs() })
}

func TestAClosedJournalRefusesEverything(t *testing.T) {
	j := memory.NewJournal()
	ended := make(chan error, 1)
	synced := make(chan struct{})
	go func() { ended <- j.Watch(t.Context(), func(storage.Update) error { close(synced); return nil }) }()
	<-synced
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Watch: %v", err)
	}
	if _, err := j.Commit(t.Context(), storage.Batch{Repo: "r"}); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Commit: %v", err)
	}
}
