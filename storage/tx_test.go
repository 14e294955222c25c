package storage_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestATagLeavesAManifestThatIsDeletedInTheSameCommit: the facts of a batch are in an order in which a state can apply
// them, without an error that only a new full state hides.
func TestATagLeavesAManifestThatIsDeletedInTheSameCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := storagetest.OpenIndexWith(t, memory.NewJournal(), storage.IndexOptions{Warn: func(err error) {
			t.Error(err)
		}})
		storagetest.Update(t, x, "r", put(1, "v"))
		storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
			return errors.Join(put(2, "v")(tx), tx.DeleteManifest(manifest(1).Digest))
		})
		synctest.Wait()
		if at, ok, err := x.Resolve(t.Context(), "r", "v"); !ok || err != nil || at.Digest() != manifest(2).Digest {
			t.Errorf("%v, %v, %v", at, ok, err)
		}
	})
}

// TestAContentCountsOnceInAChange, as a blob and as a manifest, and when it waits; and a size that is corrected counts
// by the difference.
func TestAContentCountsOnceInAChange(t *testing.T) {
	m := manifest(60)
	asManifest := func(tx *storage.Tx) error { return tx.PutManifest(m) }
	resized := func(size int64) func(*storage.Tx) error {
		return func(tx *storage.Tx) error { tx.Link(m.Digest, size); return nil }
	}
	asBlob := resized(60)
	letGo := func(tx *storage.Tx) error {
		if tx.Linked(m.Digest) {
			return tx.Unlink(m.Digest)
		}
		return tx.DeleteManifest(m.Digest)
	}
	nothing := func(*storage.Tx) error { return nil }
	for name, row := range map[string]struct {
		before []func(*storage.Tx) error
		change func(*storage.Tx) error
		room   int64 // what of 100 bytes is left after the change
	}{
		"a new blob":             {nil, asBlob, 40},
		"a new manifest":         {nil, asManifest, 40},
		"a manifest as a blob":   {[]func(*storage.Tx) error{asManifest}, asBlob, 40},
		"a blob as a manifest":   {[]func(*storage.Tx) error{asBlob}, asManifest, 40},
		"what waits as a blob":   {[]func(*storage.Tx) error{asManifest, letGo}, asBlob, 40},
		"what waits as manifest": {[]func(*storage.Tx) error{asBlob, letGo}, asManifest, 40},
		"what waits":             {[]func(*storage.Tx) error{asBlob, letGo}, nothing, 40},
		"both": {nil, func(tx *storage.Tx) error {
			return errors.Join(asBlob(tx), asManifest(tx))
		}, 40},
		"a corrected size":      {[]func(*storage.Tx) error{asBlob}, resized(70), 30},
		"a size corrected down": {[]func(*storage.Tx) error{asBlob}, resized(50), 50},
	} {
		t.Run(name, func(t *testing.T) {
			x := storagetest.OpenIndex(t, memory.NewJournal())
			x.SetQuotas(team(100))
			for _, fn := range row.before {
				storagetest.Update(t, x, "team/a", fn)
			}
			storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error {
				if err := row.change(tx); err != nil {
					return err
				}
				if _, over := tx.Excess(digestOf("blob", 9), row.room); over {
					t.Errorf("%d bytes more exceed the quota", row.room)
				}
				if _, over := tx.Excess(digestOf("blob", 9), row.room+1); !over {
					t.Errorf("%d bytes more do not exceed the quota", row.room+1)
				}
				return nil
			})
			if got := 100 - x.Quotas()[0].Used; got != row.room {
				t.Errorf("committed: %d bytes are left, want %d", got, row.room)
			}
		})
	}
}

// TestWhatIsPardonedCanBeNamedInTheSameCommit: its mark is gone by then.
func TestWhatIsPardonedCanBeNamedInTheSameCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blobs, journal := memory.NewBlobs(), memory.NewJournal()
		fault := &storagetest.Fault{Method: "Commit", N: 2} // which ends the mark
		s := newStore(t, blobs, storagetest.FailJournal{Journal: journal, Fault: fault})
		s.collector.Blobs = undeletable{blobs}
		d := digest.FromString("orphan")
		release, err := s.commit(t.Context(), "a", []byte("orphan"))
		if err != nil {
			t.Fatal(err)
		}
		release()
		if _, err := s.collector.Run(t.Context(), false, nil); err == nil {
			t.Error("a run that deletes nothing returned no error")
		}
		s = newStore(t, blobs, journal)
		link := func(x *storage.Index) error {
			return x.Update(t.Context(), "a", func(tx *storage.Tx) error { tx.Link(d, 6); return nil })
		}
		if err := link(s.index); !errors.Is(err, storage.ErrBusy) {
			t.Errorf("what is condemned was named: %v", err)
		}
		together(t, s.index, func(*storage.Index) error { return s.collector.Pardon(t.Context()) }, link)
		if !s.holds("a", d) || !s.has(d) {
			t.Error("the pardoned content is not here")
		}
	})
}
