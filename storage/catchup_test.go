package storage_test

import (
	"context"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// heldBack delivers commits while Head is on its way, as a service that answers both over a network.
type heldBack struct {
	storage.Journal
	deliver chan struct{} // receives once Head has been asked
	done    chan struct{} // receives once all is delivered
}

func (j *heldBack) Watch(ctx context.Context, apply func(storage.Update) error) error {
	synced := false
	return j.Journal.Watch(ctx, func(u storage.Update) error {
		if synced {
			<-j.deliver
			defer func() { j.done <- struct{}{} }()
		}
		synced = synced || u.Synced
		return apply(u)
	})
}

func (j *heldBack) Head(ctx context.Context) (storage.Revision, error) {
	select {
	case j.deliver <- struct{}{}:
		<-j.done
	case <-ctx.Done():
	}
	return j.Journal.Head(ctx)
}

// TestAMissIsLookedUpAgain: what another process had committed before may be delivered between the look and the answer
// of Head, which then shows nothing new.
func TestAMissIsLookedUpAgain(t *testing.T) {
	for _, look := range []func(*storage.Index, digest.Digest) (bool, error){
		func(x *storage.Index, d digest.Digest) (bool, error) {
			_, found, err := x.Blob(t.Context(), "a", d)
			return found, err
		},
		func(x *storage.Index, d digest.Digest) (bool, error) {
			_, found, err := x.Resolve(t.Context(), "a", d.String())
			return found, err
		},
		func(x *storage.Index, d digest.Digest) (bool, error) {
			value, err := x.Record(t.Context(), d.String())
			return value != nil, err
		},
	} {
		journal := memory.NewJournal()
		journal.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 1 << 20}
		j := &heldBack{journal, make(chan struct{}), make(chan struct{})}
		x := storagetest.OpenIndex(t, j)
		d := digest.FromString("content")
		fact := storage.Batch{Repo: "a", Facts: []storage.Fact{storage.LinkFact(d, 7),
			storage.ManifestFact(storage.Manifest{Digest: d, Size: 7, MediaType: "m"})}}
		record := storage.Batch{Repo: storage.StoreRepo, Detached: true, Facts: []storage.Fact{
			{Kind: 'r', Name: d.String(), Value: []byte("value")}}}
		go func() { // a local journal returns from Commit when all watchers have the commit
			_, _ = journal.Commit(context.Background(), fact, record)
		}()
		if found, err := look(x, d); !found || err != nil {
			t.Errorf("found %v, %v", found, err)
		}
	}
}
