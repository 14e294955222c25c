package storage_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// costOf is what a commit takes of the bounds of a journal; see storage.Traits. Each batch with facts counts, as if it
// were not Detached: the bound is kept all the same.
func costOf(batches []storage.Batch) (compares, operations, bytes int) {
	for _, b := range batches {
		if len(b.Facts) > 0 {
			compares, operations, bytes = compares+1, operations+1, bytes+len(b.Repo)
		}
		compares, operations = compares+len(b.If), operations+len(b.Facts)
		for _, f := range slices.Concat(b.If, b.Facts) {
			bytes += len(b.Repo) + len(f.Name) + len(f.Value)
		}
	}
	return compares, operations, bytes
}

// TestACommitIsWithinTheBoundsOfItsJournal: a change that is within them to the last byte is made, one that is not is
// refused, and changes that are not together take two commits.
func TestACommitIsWithinTheBoundsOfItsJournal(t *testing.T) {
	link := func(text string) func(tx *storage.Tx) error {
		return func(tx *storage.Tx) error { tx.Link(digest.FromString(text), int64(len(text))); return nil }
	}
	image := storage.Manifest{Digest: digest.FromString("image"), MediaType: "application/a", Size: 5,
		Refs: []digest.Digest{digest.FromString("held"), digest.FromString("absent")}}
	put := func(text, tag string) func(tx *storage.Tx) error {
		m := storage.Manifest{Digest: digest.FromString(text), MediaType: "application/a", Size: int64(len(text))}
		return func(tx *storage.Tx) error { return errors.Join(tx.PutManifest(m), tx.SetTag(tag, m.Digest)) }
	}
	letGo := func(tx *storage.Tx) error { return tx.Unlink(digest.FromString("held")) }
	type change struct {
		repo string
		fn   func(tx *storage.Tx) error
	}
	for name, row := range map[string]struct {
		shared bool
		all    []change
	}{
		"a manifest":       {false, []change{{"a", put("made 1", "v")}}},
		"of several repos": {false, []change{{"a", put("made 1", "v")}, {"team/b", put("made 2", "long name")}}},
		"of one repo": {false, []change{{"a", put("made 1", "v")}, {"a", put("made 2", "w")},
			{"a", put("made 3", "x")}}},
		"what waits":             {false, []change{{"team/a", letGo}}},
		"what waits, and others": {true, []change{{"team/a", letGo}, {"b", put("made 1", "v")}}},
		"an object":              {true, []change{{"a", link("made 4")}}},
		"an object that is held": {true, []change{{"a", link("held")}}},
		"a deleted manifest": {true, []change{{"images", func(tx *storage.Tx) error {
			return tx.DeleteManifest(image.Digest)
		}}}},
	} {
		t.Run(name, func(t *testing.T) {
			// run makes the changes as one group, and returns the commits, and the errors of the changes.
			run := func(bounds storage.Traits) (commits [][]storage.Batch, errs []error) {
				synctest.Test(t, func(t *testing.T) {
					j := memory.NewJournal()
					j.Is = storage.Traits{Shared: row.shared}
					setUp, service, _ := placed(t, j) // without bounds
					setUp.index.SetQuotas(team(1 << 40))
					setUp.raise("1")
					setUp.push("team/a", []byte("held"))
					defer setUp.made("image")()
					storagetest.Update(t, setUp.index, "images", func(tx *storage.Tx) error {
						return tx.PutManifest(image)
					})
					recording := false
					j.Is = bounds
					j.Is.Shared = row.shared
					s, _, b := placed(t, hooked{j,
						func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
							if recording {
								commits = append(commits, b)
							}
							return j.Commit(ctx, b...)
						}})
					b.Objects.Service = service
					s.index.SetQuotas(team(1 << 40))
					for _, text := range []string{"made 1", "made 2", "made 3", "made 4"} {
						defer s.made(text)()
					}
					time.Sleep(time.Second)
					recording = true
					errs = make([]error, len(row.all))
					var updates []func(*storage.Index) error
					for i, c := range row.all {
						updates = append(updates, func(x *storage.Index) error {
							errs[i] = x.Update(t.Context(), c.repo, c.fn)
							return nil
						})
					}
					together(t, s.index, updates...)
					recording = false
				})
				return commits, errs
			}
			commits, errs := run(storage.Traits{})
			if len(commits) != 1 || errors.Join(errs...) != nil {
				t.Fatalf("without bounds: %d commits, %v", len(commits), errs)
			}
			compares, operations, bytes := costOf(commits[0])
			for what, at := range map[string]func(less int) storage.Traits{
				"compares":   func(less int) storage.Traits { return storage.Traits{Compares: compares - less} },
				"operations": func(less int) storage.Traits { return storage.Traits{Operations: operations - less} },
				"bytes":      func(less int) storage.Traits { return storage.Traits{Bytes: bytes - less} },
				"all": func(less int) storage.Traits {
					return storage.Traits{Compares: compares - less, Operations: operations - less, Bytes: bytes - less}
				},
			} {
				commits, errs := run(at(0))
				if len(commits) != 1 || errors.Join(errs...) != nil {
					t.Errorf("%s, at the bound: %d commits, %v", what, len(commits), errs)
				}
				if what == "compares" && (compares == 1 || name == "of one repo") ||
					what == "all" && name == "of one repo" {
					continue // of less, not even one change can be made, or there is no bound
				}
				commits, errs = run(at(1))
				if len(row.all) == 1 && (len(commits) != 0 || !errors.Is(errs[0], storage.ErrTooLarge)) {
					t.Errorf("%s, beyond the bound: %d commits, %v", what, len(commits), errs)
				}
				if len(row.all) > 1 && (len(commits) != 2 || errors.Join(errs...) != nil) {
					t.Errorf("%s, beyond the bound: %d commits, %v", what, len(commits), errs)
				}
				for _, b := range commits {
					bound := at(1)
					c, o, n := costOf(b)
					if bound.Compares > 0 && c > bound.Compares || bound.Operations > 0 && o > bound.Operations ||
						bound.Bytes > 0 && n > bound.Bytes {
						t.Errorf("%s: a commit of %d compares, %d operations, %d bytes; bounds %+v", what, c,
							o, n, bound)
					}
				}
			}
		})
	}
}

// TestAChangeThatIsTooLargeHoldsUpNoOther of its group.
func TestAChangeThatIsTooLargeHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := memory.NewJournal()
		j.Is.Operations = 10
		x := storagetest.OpenIndex(t, j)
		small := func(x *storage.Index) error { return x.Update(t.Context(), "r", count) }
		together(t, x, small, func(x *storage.Index) error {
			err := x.Update(t.Context(), "r", func(tx *storage.Tx) (err error) {
				for i := range 10 {
					err = errors.Join(err, put(100+i, fmt.Sprint("v", i))(tx))
				}
				return err
			})
			if !errors.Is(err, storage.ErrTooLarge) {
				return fmt.Errorf("it is made: %w", err)
			}
			return nil
		}, small, small)
		if n := counted(t, x, "r"); n != 3 {
			t.Errorf("counted %d", n)
		}
		wantTags(t, x, "r", "count")
	})
}

// TestSpaceFull: uploads are refused once less is free than is to stay free.
func TestSpaceFull(t *testing.T) {
	for free, want := range map[int64]bool{0: true, 9: true, 10: false, 11: false} {
		if got := (storage.Space{Size: 100, Free: free, Reserve: 10}).Full(); got != want {
			t.Errorf("with %d bytes free: %v", free, got)
		}
	}
}
