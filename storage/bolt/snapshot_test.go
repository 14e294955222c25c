package bolt_test

import (
	"context"
	"errors"
	"testing"

	"trow/storage"
	"trow/storage/bolt"
)

// TestASnapshotIsOfOneRevision: it has no commit that came after it began.
func TestASnapshotIsOfOneRevision(t *testing.T) {
	j, err := bolt.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	commit := func(name string) error {
		_, err := j.Commit(t.Context(), storage.Batch{Repo: "a", Detached: true,
			Facts: []storage.Fact{{Kind: storage.KindTag, Name: name, Value: []byte("value")}}})
		return err
	}
	if err := commit("one"); err != nil {
		t.Fatal(err)
	}
	committed := make(chan error, 1)
	var seen []string
	synced := false
	err = j.Snapshot(t.Context(), func(u storage.Update) error {
		for _, b := range u.Batches {
			for _, f := range b.Facts {
				seen = append(seen, f.Name)
			}
		}
		go func() { committed <- commit("two") }() // not here: where the file grows, it waits for the transaction
		synced = u.Synced && u.Revision == 1
		return nil
	})
	if err != nil || len(seen) != 1 || seen[0] != "one" || !synced {
		t.Errorf("%v, synced %v, %v", seen, synced, err)
	}
	if err := <-committed; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := j.Snapshot(ctx, func(storage.Update) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	err = j.Snapshot(t.Context(), func(storage.Update) error { return nil })
	if !errors.Is(err, storage.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
