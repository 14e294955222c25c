package storage_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// tardy is a journal whose commits show after a time, and whose head takes a time of its own.
type tardy struct {
	storage.Journal
	watch, head time.Duration
}

func (j tardy) Watch(ctx context.Context, apply func(storage.Update) error) error {
	return laggard{j.Journal, func() time.Duration { return j.watch }}.Watch(ctx, apply)
}

func (j tardy) Head(ctx context.Context) (storage.Revision, error) {
	return laggard{j.Journal, func() time.Duration { return j.head }}.Head(ctx)
}

// TestAMissIsLookedForAgain: a read of what another process has just made finds it, whether it shows before the head is
// known or after that.
func TestAMissIsLookedForAgain(t *testing.T) {
	for name, j := range map[string]tardy{
		"it shows before the head is known": {watch: 100 * time.Millisecond, head: 200 * time.Millisecond},
		"the head is known before it shows": {watch: 200 * time.Millisecond, head: 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shared := memory.NewJournal()
				shared.Is = storage.Traits{Shared: true, Compares: 24, Operations: 24, Bytes: 4000}
				j.Journal = shared
				writer, reader := storagetest.OpenIndex(t, shared), storagetest.OpenIndex(t, j)
				for what, read := range map[string]func() (bool, error){
					"manifest": func() (bool, error) {
						storagetest.Update(t, writer, "a", put(1, "v"))
						_, found, err := reader.Resolve(t.Context(), "a", "v")
						return found, err
					},
					"blob": func() (bool, error) {
						storagetest.Update(t, writer, "a", link(7, 1))
						_, found, err := reader.Blob(t.Context(), "a", digestOf("blob", 7))
						return found, err
					},
					"record": func() (bool, error) {
						if err := writer.SetRecord(t.Context(), "r", nil, []byte("x")); err != nil {
							return false, err
						}
						value, err := reader.Record(t.Context(), "r")
						return value != nil, err
					},
				} {
					if found, err := read(); !found || err != nil {
						t.Errorf("%s: %v, %v", what, found, err)
					}
				}
			})
		})
	}
}

// TestAListOfAnOldState is given if the repo is known; of another one nothing is known while the journal is silent.
func TestAListOfAnOldState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &mute{Journal: sharedJournal()}
		x := storagetest.OpenIndex(t, j)
		storagetest.Update(t, x, "a", put(1, "v"))
		for _, silent := range []bool{false, true} {
			j.silent.Store(silent)
			if tags, found, err := x.Tags(t.Context(), "a", "", -1); err != nil || !found ||
				!slices.Equal(tags, []string{"v"}) {
				t.Errorf("silent: %v: %q, %v, %v", silent, tags, found, err)
			}
			_, found, err := x.Tags(t.Context(), "b", "", -1)
			if found || errors.Is(err, storage.ErrUnavailable) != silent || (err != nil) != silent {
				t.Errorf("silent: %v: a repo that is not known: %v, %v", silent, found, err)
			}
		}
	})
}

// TestConfirmedDoesNotGoBack: of two requests to the journal, the answer to the earlier one may come later.
func TestConfirmedDoesNotGoBack(t *testing.T) {
	x := storagetest.OpenIndex(t, sharedMemory())
	late := x.Confirmed().Add(time.Hour)
	for _, at := range []time.Time{late.Add(-time.Minute), late, late.Add(-time.Second)} {
		storage.CaughtUp(x, at)
	}
	if got := x.Confirmed(); !got.Equal(late) {
		t.Errorf("confirmed at %v, want %v", got, late)
	}
}
