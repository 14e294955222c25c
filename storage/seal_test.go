package storage_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// behind is a process's access to a shared journal: what others commit shows only after its own first commit.
type behind struct {
	storage.Journal
	committed chan struct{}
	once      *sync.Once
}

func (j behind) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	rev, err := j.Journal.Commit(ctx, b...)
	j.once.Do(func() { close(j.committed) })
	return rev, err
}

// Head is what the process would get if it asked before the others committed.
func (j behind) Head(ctx context.Context) (storage.Revision, error) {
	select {
	case <-j.committed:
		return j.Journal.Head(ctx)
	default:
		return 0, nil
	}
}

func (j behind) Watch(ctx context.Context, apply func(storage.Update) error) error {
	updates := make(chan storage.Update, 100)
	go func() {
		synced := false
		for u := range updates {
			if synced {
				<-j.committed
			}
			synced = synced || u.Synced
			_ = apply(u)
		}
	}()
	return j.Journal.Watch(ctx, func(u storage.Update) error { updates <- u; return nil })
}

// TestNothingIsCommittedAfterASeal, also by a process that does not know of it yet, whatever it commits.
func TestNothingIsCommittedAfterASeal(t *testing.T) {
	d := digest.FromString("m")
	for name, change := range map[string]func(tx *storage.Tx) error{
		"a link": func(tx *storage.Tx) error { tx.Link(digest.FromString("b"), 1); return nil },
		"a manifest and a tag": func(tx *storage.Tx) error {
			return errors.Join(tx.PutManifest(storage.Manifest{Digest: digest.FromString("n"),
				MediaType: "application/a"}),
				tx.SetTag("n", digest.FromString("n")))
		},
		"a tag":      func(tx *storage.Tx) error { return tx.SetTag("other", d) },
		"a deletion": func(tx *storage.Tx) error { return tx.DeleteManifest(d) },
		"a tag goes": func(tx *storage.Tx) error { return tx.DeleteTag("v") },
	} {
		t.Run(name, func(t *testing.T) {
			journal := memory.NewJournal()
			journal.Is = storage.Traits{Shared: true}
			sealing := storagetest.OpenIndex(t, journal)
			storagetest.Update(t, sealing, "r", func(tx *storage.Tx) error {
				return errors.Join(tx.PutManifest(storage.Manifest{Digest: d, MediaType: "application/a"}),
					tx.SetTag("v", d))
			})
			late := storagetest.OpenIndex(t, behind{journal, make(chan struct{}), new(sync.Once)})
			if err := sealing.Seal(t.Context(), storage.Migration{ID: "id", To: "elsewhere"}); err != nil {
				t.Fatal(err)
			}
			sealed, _ := journal.Head(t.Context())
			if late.Sealed() != nil {
				t.Fatal("the process knows of the seal")
			}
			var refused *storage.SealedError
			err := late.Update(t.Context(), "r", change)
			if !errors.As(err, &refused) || !refused.Moved() || refused.Migration.To != "elsewhere" {
				t.Errorf("a change: %v", err)
			}
			if head, _ := journal.Head(t.Context()); head != sealed {
				t.Error("something was committed after the seal")
			}
		})
	}
}

// TestASealRefusesRecordsToo: robots and keys are what moves as well.
func TestASealRefusesRecordsToo(t *testing.T) {
	j := memory.NewJournal()
	x := storagetest.OpenIndex(t, j)
	if err := x.Seal(t.Context(), storage.Migration{ID: "id", To: "elsewhere"}); err != nil {
		t.Fatal(err)
	}
	var refused *storage.SealedError
	if err := x.SetRecord(t.Context(), "auth/robot/a", nil, []byte("a")); !errors.As(err, &refused) {
		t.Errorf("a record: %v", err)
	}
	if err := x.Unseal(t.Context(), storage.Migration{ID: "id"}); !errors.As(err, &refused) {
		t.Errorf("a source is unsealed: %v", err)
	}
	if again := storagetest.OpenIndex(t, j); !errors.As(again.Sealed(), &refused) {
		t.Errorf("after a restart: %v", again.Sealed())
	}
}

// TestWhatASealRefuses: changes, whichever facts they set; not one that changes nothing, and not those of the migration
// that has sealed its target, until it is unsealed for all.
func TestWhatASealRefuses(t *testing.T) {
	nothing := func(*storage.Tx) error { return nil }
	for _, from := range []string{"", "here"} {
		j := memory.NewJournal()
		x := storagetest.OpenIndex(t, j)
		m := storage.Migration{ID: "id", From: from, To: "there"}
		if err := x.Seal(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		other := storagetest.OpenIndex(t, j)
		for _, c := range []struct {
			x      *storage.Index
			repo   string
			writes bool
		}{{x, "a", from != ""}, {other, "b", false}} {
			if err := c.x.Update(t.Context(), "r", nothing); err != nil {
				t.Errorf("from %q, nothing: %v", from, err)
			}
			for name, err := range map[string]error{"a link": hold(t.Context(), c.x, c.repo, "a"),
				"two facts": storage.SetBoth(t.Context(), c.x, c.repo)} {
				if (err == nil) != c.writes {
					t.Errorf("from %q, %s: %v", from, name, err)
				}
			}
		}
		other.Close()
		if from == "" {
			continue
		}
		if err := x.Unseal(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if err := hold(t.Context(), x, "r", "after"); err != nil {
			t.Errorf("after it is unsealed: %v", err)
		}
	}
}

// TestTheCollectorRestsAfterAMigration for a grace: clients may rely on what they have learned from the source.
func TestTheCollectorRestsAfterAMigration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, c, _ := twoClocks(t)
		run := func(want bool) {
			t.Helper()
			if done, err := c.Run(t.Context(), false, nil); err != nil || done.Waiting != want {
				t.Errorf("%+v, %v; waiting: want %v", done, err, want)
			}
		}
		run(false)
		m := storage.Migration{ID: "id", From: "here", Time: time.Now().Unix()}
		if err := errors.Join(x.Seal(t.Context(), m), x.Unseal(t.Context(), m)); err != nil {
			t.Fatal(err)
		}
		run(true)
		time.Sleep(sharedGrace) // the time of a migration is in whole seconds, so it may be almost a second younger
		run(true)
		time.Sleep(time.Second)
		run(false)
	})
}

// TestWhatTravels with a migration: not what two engines have of their own, and all that users have made.
func TestWhatTravels(t *testing.T) {
	d := string(digest.FromString("x"))
	records := map[string]bool{"auth/robot/a": true, "auth/key/1": true, "upload-key": true, "identities": true,
		"generations": true, "uploads": true, "quotas": true,
		"migration/source": false, "migration/seal": false, "migration/origin": false, "identity": false,
		"generation": false, "journal/went-back": false, "rebuild": false, "upload/a\x00id": false, "quota/team": false,
		"replica/r": false, "quota/\x00r": false, "quota/\x01": false}
	for name, want := range records {
		if got := storage.Portable(storage.StoreRepo, storage.RecordFact(name, []byte("x"))); got != want {
			t.Errorf("the record %q travels: %v", name, got)
		}
		if !storage.Portable("repo", storage.RecordFact(name, []byte("x"))) {
			t.Errorf("a fact of a repo with the name %q does not travel", name)
		}
	}
	for kind, want := range map[storage.Kind]bool{storage.KindCondemned: false, storage.KindPlace: false,
		storage.KindQuarantined: true} {
		f := storage.Fact{Kind: kind, Name: d, Value: []byte("x")}
		if got := storage.Portable(storage.StoreRepo, f); got != want {
			t.Errorf("the kind %c travels: %v", kind, got)
		}
		if !storage.Portable("repo", f) {
			t.Errorf("a fact of a repo with the kind %c does not travel", kind)
		}
	}
}
