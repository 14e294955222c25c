package storage_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// hooked is a journal with its own Commit.
type hooked struct {
	storage.Journal
	commit func(ctx context.Context, b ...storage.Batch) (storage.Revision, error)
}

func (j hooked) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	return j.commit(ctx, b...)
}

// gated returns a journal whose commits wait for the gate and are counted.
func gated(inner storage.Journal) (j storage.Journal, gate chan struct{}, commits *atomic.Int32) {
	gate, commits = make(chan struct{}), new(atomic.Int32)
	return hooked{inner, func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
		commits.Add(1)
		<-gate
		return inner.Commit(ctx, b...)
	}}, gate, commits
}

// delayed is a journal whose watchers see commits only when the test lets them, as if it were far away. Commit itself
// returns at once.
type delayed struct {
	storage.Journal
	pass chan struct{} // closed to let commits through
}

func (j delayed) Watch(ctx context.Context, apply func(storage.Update) error) error {
	updates := make(chan storage.Update, 1000)
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		synced := false
		for {
			select {
			case u := <-updates:
				if synced {
					select {
					case <-j.pass:
					case <-ctx.Done():
						return
					}
				}
				synced = synced || u.Synced
				if err := apply(u); err != nil {
					failed <- err
					cancel()
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	err := j.Journal.Watch(ctx, func(u storage.Update) error { updates <- u; return nil })
	select {
	case err = <-failed:
	default:
	}
	return err
}

func manifest(i int) storage.Manifest {
	return storage.Manifest{Digest: digestOf("m", i), MediaType: "application/a", Size: int64(i)}
}

// put makes a manifest with a tag.
func put(i int, tag string) func(tx *storage.Tx) error {
	return func(tx *storage.Tx) error {
		return errors.Join(tx.PutManifest(manifest(i)), tx.SetTag(tag, manifest(i).Digest))
	}
}

// count moves the tag "count" to the next manifest of a series.
func count(tx *storage.Tx) error {
	next := 0
	if at, ok := tx.Tag("count"); ok {
		next = int(at.Size) + 1
	}
	return put(next, "count")(tx)
}

// counted returns how often count was committed.
func counted(t *testing.T, x *storage.Index, repo string) int {
	t.Helper()
	at, ok, err := x.Resolve(t.Context(), repo, "count")
	if err != nil || !ok {
		t.Fatalf("Resolve: %v, %v", ok, err)
	}
	return int(at.Size) + 1
}

func TestWaitingUpdatesShareOneCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, gate, commits := gated(memory.NewJournal())
		x := storagetest.OpenIndex(t, j)
		var wg sync.WaitGroup
		wg.Go(func() { storagetest.Update(t, x, "first", put(0, "v")) })
		synctest.Wait() // the first commit hangs

		cancelled, cancel := context.WithCancel(t.Context())
		for i := range 60 {
			repo := fmt.Sprint("repo", i%2)
			wg.Go(func() {
				if err := x.Update(t.Context(), repo, count); err != nil {
					t.Error(err)
				}
			})
			switch i % 20 {
			case 0:
				wg.Go(func() {
					err := x.Update(t.Context(), repo, func(tx *storage.Tx) error {
						return errors.Join(put(99, "failed")(tx), errAbort)
					})
					if !errors.Is(err, errAbort) {
						t.Errorf("a function's error came back as %v", err)
					}
				})
			case 1:
				wg.Go(func() {
					err := x.Update(t.Context(), repo, func(tx *storage.Tx) error {
						_ = put(98, "panicked")(tx)
						panic("at the disco")
					})
					if err == nil || !strings.Contains(err.Error(), "at the disco") {
						t.Errorf("a function's panic came back as %v", err)
					}
				})
			case 2:
				wg.Go(func() {
					err := x.Update(cancelled, repo, func(*storage.Tx) error {
						t.Error("a function ran for a caller that had given up")
						return nil
					})
					if !errors.Is(err, context.Canceled) {
						t.Errorf("a cancelled update returned %v", err)
					}
				})
			}
		}
		synctest.Wait() // all wait in the queue
		cancel()
		close(gate)
		wg.Wait()
		if n := commits.Load(); n != 2 {
			t.Errorf("61 updates took %d commits, want 2", n)
		}
		for _, repo := range []string{"repo0", "repo1"} {
			if n := counted(t, x, repo); n != 30 {
				t.Errorf("%s counts %d, want 30: a member did not see an earlier one", repo, n)
			}
			wantTags(t, x, repo, "count")
		}
	})
}

func TestUpdateAfterCloseIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, gate, _ := gated(memory.NewJournal())
		x := storagetest.OpenIndex(t, j)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				err := x.Update(t.Context(), "r", put(1, "v"))
				if !errors.Is(err, storage.ErrClosed) && !errors.Is(err, context.Canceled) && err != nil {
					t.Errorf("an update that waited during Close returned %v", err)
				}
			})
		}
		synctest.Wait()
		wg.Go(x.Close)
		synctest.Wait()
		close(gate)
		wg.Wait()
		if err := x.Update(t.Context(), "r", put(1, "v")); !errors.Is(err, storage.ErrClosed) {
			t.Errorf("Update after Close: %v", err)
		}
		done, cancel := context.WithCancel(t.Context())
		cancel()
		if err := x.Update(done, "r", put(1, "v")); err == nil {
			t.Error("Update after Close with an ended context succeeded")
		}
	})
}

func TestReadersDoNotWaitForACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := memory.NewJournal()
		setup := storagetest.OpenIndex(t, inner)
		blob := digest.FromString("blob")
		storagetest.Update(t, setup, "r", func(tx *storage.Tx) error { tx.Link(blob, 4); return put(1, "v1")(tx) })
		setup.Close()
		j, gate, _ := gated(inner)
		x := storagetest.OpenIndex(t, j)
		var wg sync.WaitGroup
		wg.Go(func() { storagetest.Update(t, x, "r", put(2, "v2")) })
		synctest.Wait() // the commit hangs
		if d, ok, err := x.Resolve(t.Context(), "r", "v1"); !ok || err != nil || d.Size != 1 {
			t.Errorf("Resolve of a tag: %v, %v", ok, err)
		}
		if _, ok, err := x.Resolve(t.Context(), "r", string(manifest(1).Digest)); !ok || err != nil {
			t.Errorf("Resolve of a digest: %v, %v", ok, err)
		}
		if _, ok, err := x.Resolve(t.Context(), "r", "v2"); ok || err != nil {
			t.Errorf("Resolve before the commit: %v, %v", ok, err)
		}
		if size, ok, err := x.Blob(t.Context(), "r", blob); size != 4 || !ok || err != nil {
			t.Errorf("Blob: %d, %v, %v", size, ok, err)
		}
		wantTags(t, x, "r", "v1")
		if repos, err := x.Repos(t.Context(), "", -1); err != nil || !slices.Equal(repos, []string{"r"}) {
			t.Errorf("Repos: %v, %v", repos, err)
		}
		if _, err := x.Referrers(t.Context(), "r", blob, "", -1); err != nil {
			t.Errorf("Referrers: %v", err)
		}
		if x.Stats().Tags != 1 || len(x.Holders(blob, 9)) != 1 {
			t.Errorf("Stats: %+v", x.Stats())
		}
		close(gate)
		wg.Wait()
		wantTags(t, x, "r", "v1", "v2")
	})
}

func TestAfterAFailedCommitTheIndexEqualsTheJournal(t *testing.T) {
	for name, place := range journals {
		for _, after := range []bool{false, true} {
			for n := 1; n <= 4; n++ {
				t.Run(fmt.Sprintf("%s, commit %d, after the effect: %v", name, n, after), func(t *testing.T) {
					open := place(t)
					fault := &storagetest.Fault{Method: "Commit", N: n, After: after}
					warned := 0
					j := open()
					x, err := storage.OpenIndex(t.Context(), storagetest.FailJournal{Journal: j, Fault: fault},
						storage.IndexOptions{Warn: func(error) { warned++ }})
					if err != nil {
						t.Fatal(err)
					}
					defer x.Close()
					var want []string
					for i := 1; i <= 4; i++ {
						tag := fmt.Sprint("v", i)
						err := x.Update(t.Context(), "r", put(i, tag))
						if (i == n) != errors.Is(err, storagetest.ErrFault) {
							t.Errorf("update %d: %v", i, err)
						}
						if i != n || after {
							want = append(want, tag)
						}
						wantTags(t, x, "r", want...)
						wantTags(t, storagetest.OpenIndex(t, j), "r", want...)
					}
					if warned != 1 || !fault.Fired() {
						t.Errorf("warned %d times", warned)
					}
					storagetest.Update(t, x, "r", put(n, fmt.Sprint("v", n))) // trying again is safe
					wantTags(t, x, "r", "v1", "v2", "v3", "v4")
					x.Close()
					wantTags(t, storagetest.OpenIndex(t, open()), "r", "v1", "v2", "v3", "v4")
				})
			}
		}
	}
}

// forgetful is a journal: when lose is set, a commit takes effect, but fails and is not delivered to watchers.
type forgetful struct {
	storage.Journal
	lose *atomic.Bool
}

func (j forgetful) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	rev, err := j.Journal.Commit(ctx, b...)
	if j.lose.Swap(false) {
		return 0, storagetest.ErrFault
	}
	return rev, err
}

func (j forgetful) Watch(ctx context.Context, apply func(storage.Update) error) error {
	synced := false
	return j.Journal.Watch(ctx, func(u storage.Update) error {
		if synced && j.lose.Load() {
			return nil
		}
		synced = synced || u.Synced
		return apply(u)
	})
}

func TestAFailedUpdateReturnsWhenTheIndexShowsItsOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := forgetful{memory.NewJournal(), new(atomic.Bool)}
		x := storagetest.OpenIndex(t, j)
		for want := 2; want < 20; want += 2 {
			storagetest.Update(t, x, "r", count)
			j.lose.Store(true)
			if err := x.Update(t.Context(), "r", count); !errors.Is(err, storagetest.ErrFault) {
				t.Errorf("a lost commit: %v", err)
			}
			if n := counted(t, x, "r"); n != want { // a hit is not confirmed with the journal
				t.Errorf("the Index counts %d, the journal %d", n, want)
			}
		}
	})
}

func TestAFailedCommitFailsAllItsUpdates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner, gate := memory.NewJournal(), make(chan struct{})
		commits := 0
		x := storagetest.OpenIndex(t, hooked{inner,
			func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
				if commits++; commits == 1 {
					return inner.Commit(ctx, b...)
				}
				<-gate
				if commits == 3 {
					return 0, storagetest.ErrFault
				}
				return inner.Commit(ctx, b...)
			}})
		storagetest.Update(t, x, "r", put(1, "v"))
		var wg sync.WaitGroup
		wg.Go(func() { storagetest.Update(t, x, "other", put(2, "v")) })
		synctest.Wait()
		wg.Go(func() { // the first of its commit, which cannot have seen a change of the others
			err := x.Update(t.Context(), "third", func(tx *storage.Tx) error { return tx.DeleteTag("v") })
			if !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("a function's error came back as %v", err)
			}
		})
		synctest.Wait()
		// One update deletes the tag, and the next does not find it, because of a change that will not have happened.
		for range 2 {
			wg.Go(func() {
				err := x.Update(t.Context(), "r", func(tx *storage.Tx) error { return tx.DeleteTag("v") })
				if !errors.Is(err, storagetest.ErrFault) {
					t.Errorf("an update of a failed commit returned %v", err)
				}
			})
		}
		synctest.Wait()
		close(gate)
		wg.Wait()
		wantTags(t, x, "r", "v")
	})
}

func TestAFailedWatchIsStartedAgain(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; n <= 4; n++ {
			t.Run(fmt.Sprintf("watch %d, after the effect: %v", n, after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					inner := memory.NewJournal()
					fault := &storagetest.Fault{Method: "Watch", N: n, After: after}
					commitFault := &storagetest.Fault{Method: "Commit", N: 2}
					j := storagetest.FailJournal{Journal: storagetest.FailJournal{Journal: inner, Fault: commitFault},
						Fault: fault}
					warned := 0
					x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{Warn: func(error) { warned++ }})
					if n == 1 && !after {
						synctest.Wait()
						if !errors.Is(err, storagetest.ErrFault) || warned != 0 {
							t.Errorf("OpenIndex: %v, want the journal's error; %d warnings", err, warned)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					defer x.Close()
					for i := range 5 {
						err := x.Update(t.Context(), "r", count)
						if (i == 1) != errors.Is(err, storagetest.ErrFault) {
							t.Errorf("update %d: %v", i, err)
						}
					}
					if n := counted(t, x, "r"); n != 4 {
						t.Errorf("counted %d, want 4", n)
					}
				})
			})
		}
	}
}

func TestAMissThatCannotBeConfirmedIsAnError(t *testing.T) {
	j := storagetest.FailJournal{Journal: memory.NewJournal(), Fault: &storagetest.Fault{}}
	x := storagetest.OpenIndex(t, j)
	storagetest.Update(t, x, "r", put(1, "v"))
	calls := map[string]func() error{
		"Resolve": func() error { _, _, err := x.Resolve(t.Context(), "r", "missing"); return err },
		"Blob":    func() error { _, _, err := x.Blob(t.Context(), "r", digest.FromString("missing")); return err },
		"Tags":    func() error { _, _, err := x.Tags(t.Context(), "r", "", -1); return err },
		"Repos":   func() error { _, err := x.Repos(t.Context(), "", -1); return err },
		"Referrers": func() error {
			_, err := x.Referrers(t.Context(), "r", digest.FromString("missing"), "", -1)
			return err
		},
		"Update": func() error {
			return x.Update(t.Context(), "r", func(tx *storage.Tx) error { return tx.DeleteTag("missing") })
		},
	}
	for name, call := range calls {
		fault := &storagetest.Fault{Method: "Head", N: 1}
		x = storagetest.OpenIndex(t, storagetest.FailJournal{Journal: j.Journal, Fault: fault})
		if err := call(); !errors.Is(err, storagetest.ErrFault) || errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s: %v, want the journal's error", name, err)
		}
		if err := call(); errors.Is(err, storagetest.ErrFault) {
			t.Errorf("%s afterwards: %v", name, err)
		}
	}
}

func TestTwoIndexesOnOneJournalLoseNoUpdate(t *testing.T) {
	j := memory.NewJournal()
	indexes := []*storage.Index{storagetest.OpenIndex(t, j), storagetest.OpenIndex(t, delayed{j, closed()})}
	const each = 50
	var wg sync.WaitGroup
	for _, x := range indexes {
		for range 2 {
			wg.Go(func() {
				for range each {
					err := storage.ErrConflict
					for errors.Is(err, storage.ErrConflict) {
						err = x.Update(t.Context(), "r", count)
					}
					if err != nil {
						t.Error(err)
						return
					}
					if _, ok, err := x.Resolve(t.Context(), "r", "count"); !ok || err != nil {
						t.Errorf("a writer does not see its write: %v, %v", ok, err)
					}
				}
			})
		}
	}
	wg.Wait()
	for _, x := range append(indexes, storagetest.OpenIndex(t, j)) {
		wantTags(t, x, "r", "count") // a list waits for the journal's last commit
		if n := counted(t, x, "r"); n != 4*each {
			t.Errorf("counted %d, want %d", n, 4*each)
		}
	}
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestAMissWaitsForTheJournal(t *testing.T) {
	blob := digest.FromString("blob")
	tests := map[string]func(ctx context.Context, x *storage.Index) (bool, error){
		"Resolve": func(ctx context.Context, x *storage.Index) (bool, error) {
			_, ok, err := x.Resolve(ctx, "r", "v")
			return ok, err
		},
		"Blob": func(ctx context.Context, x *storage.Index) (bool, error) {
			_, ok, err := x.Blob(ctx, "r", blob)
			return ok, err
		},
		"Tags": func(ctx context.Context, x *storage.Index) (bool, error) {
			tags, ok, err := x.Tags(ctx, "r", "", -1)
			return ok && len(tags) == 1, err
		},
		"Repos": func(ctx context.Context, x *storage.Index) (bool, error) {
			repos, err := x.Repos(ctx, "", -1)
			return len(repos) == 1, err
		},
		"Update that fails because of a miss": func(ctx context.Context, x *storage.Index) (bool, error) {
			err := x.Update(ctx, "r", func(tx *storage.Tx) error { return tx.DeleteTag("v") })
			return err == nil, err
		},
		"Update that changes something and fails because of a miss": func(ctx context.Context,
			x *storage.Index) (bool, error) {
			err := x.Update(ctx, "r", func(tx *storage.Tx) error {
				return errors.Join(put(9, "w")(tx), tx.DeleteTag("v"))
			})
			return err == nil, err
		},
		"Update that changes nothing because of a hit": func(ctx context.Context, x *storage.Index) (bool, error) {
			err := x.Update(ctx, "gone", put(7, "v")) // another process has deleted it
			_, ok, _ := x.Resolve(ctx, "gone", "v")
			return ok, err
		},
		"Update that is committed at once": func(ctx context.Context, x *storage.Index) (bool, error) {
			err := x.Update(ctx, "own", put(8, "v"))
			return err == nil, err
		},
		"Update on an old base": func(ctx context.Context, x *storage.Index) (bool, error) {
			seen := false
			err := x.Update(ctx, "r", func(tx *storage.Tx) error { _, seen = tx.Tag("v"); return put(2, "w")(tx) })
			return seen, err
		},
	}
	for name, ask := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := memory.NewJournal()
				near := storagetest.OpenIndex(t, j)
				storagetest.Update(t, near, "gone", put(7, "v"))
				far := delayed{j, make(chan struct{})}
				x := storagetest.OpenIndex(t, far)
				storagetest.Update(t, near, "r", func(tx *storage.Tx) error {
					tx.Link(blob, 1)
					return put(1, "v")(tx)
				})
				storagetest.Update(t, near, "gone", func(tx *storage.Tx) error {
					return tx.DeleteManifest(manifest(7).Digest)
				})

				short, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, _, err := x.Resolve(short, "r", "v"); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("a miss that cannot be confirmed in time: %v", err)
				}
				if _, _, err := x.Blob(short, "r", blob); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("a missing blob that cannot be confirmed in time: %v", err)
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					if ok, err := ask(t.Context(), x); !ok || err != nil {
						t.Errorf("answered %v, %v", ok, err)
					}
				}()
				synctest.Wait()
				select {
				case <-done:
					t.Error("it answered before it knew")
				default:
				}
				close(far.pass)
				<-done
			})
		})
	}
}

func TestAnUpdateThatAlwaysConflictsGivesUp(t *testing.T) {
	commits := 0
	conflict := func(context.Context, ...storage.Batch) (storage.Revision, error) {
		commits++
		return 0, fmt.Errorf("busy: %w", storage.ErrConflict)
	}
	x := storagetest.OpenIndex(t, hooked{memory.NewJournal(), conflict})
	if err := x.Update(t.Context(), "r", put(1, "v")); !errors.Is(err, storage.ErrConflict) || commits < 2 {
		t.Errorf("after %d commits: %v, want ErrConflict", commits, err)
	}
}

func TestChangesOfOneCommitAreAppliedInAValidOrder(t *testing.T) {
	m1, m2 := manifest(1), manifest(2)
	other := m1
	other.MediaType = "application/b"
	type step = func(tx *storage.Tx) error
	del := func(m storage.Manifest) step {
		return func(tx *storage.Tx) error { return tx.DeleteManifest(m.Digest) }
	}
	tests := []struct {
		name  string
		steps []step
		want  map[string]string // tag: media type and size
	}{
		{"a manifest pushed again under another media type keeps its tags",
			[]step{func(tx *storage.Tx) error { return tx.PutManifest(other) }},
			map[string]string{"a": "application/b 1", "b": "application/b 1"}},
		{"tags move from one manifest to another and the first is deleted",
			[]step{put(2, "a"), put(2, "b"), del(m1)},
			map[string]string{"a": "application/a 2", "b": "application/a 2"}},
		{"a manifest is deleted and put again without tags",
			[]step{del(m1), func(tx *storage.Tx) error { return tx.PutManifest(m1) }},
			map[string]string{}},
		{"a manifest is deleted and put again with a tag",
			[]step{del(m1), put(1, "b")},
			map[string]string{"b": "application/a 1"}},
		{"a manifest is put and deleted", []step{put(2, "c"), del(m2)},
			map[string]string{"a": "application/a 1", "b": "application/a 1"}},
		{"a tag moves there and back and its manifest is replaced",
			[]step{put(2, "a"), func(tx *storage.Tx) error { return tx.PutManifest(other) },
				func(tx *storage.Tx) error { return tx.SetTag("a", m1.Digest) }, del(m2)},
			map[string]string{"a": "application/b 1", "b": "application/b 1"}},
		{"everything is deleted", []step{del(m1)}, map[string]string{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inner := memory.NewJournal()
				setup := storagetest.OpenIndex(t, inner)
				storagetest.Update(t, setup, "r", put(1, "a"))
				storagetest.Update(t, setup, "r", put(1, "b"))
				j, gate, commits := gated(inner)
				x := storagetest.OpenIndex(t, j)
				var wg sync.WaitGroup
				wg.Go(func() { storagetest.Update(t, x, "other", put(1, "v")) })
				synctest.Wait()
				for _, step := range tt.steps {
					wg.Go(func() { storagetest.Update(t, x, "r", step) })
					synctest.Wait() // so that they queue in order
				}
				close(gate)
				wg.Wait()
				if commits.Load() != 2 {
					t.Errorf("%d commits", commits.Load())
				}
				loaded := storagetest.OpenIndex(t, inner)
				for who, x := range map[string]*storage.Index{"the writer": x, "a watcher": setup,
					"a new Index": loaded} {
					tags, _, err := x.Tags(t.Context(), "r", "", -1)
					got := map[string]string{}
					for _, tag := range tags {
						d, _, _ := x.Resolve(t.Context(), "r", tag)
						got[tag] = d.MediaType + " " + strconv.FormatInt(d.Size, 10)
					}
					if err != nil || fmt.Sprint(got) != fmt.Sprint(tt.want) {
						t.Errorf("%s has %v, %v; want %v", who, got, err, tt.want)
					}
				}
			})
		})
	}
}

func TestUpdateRefusesInvalidFacts(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	d := digest.FromString("x")
	tests := map[string]func() error{
		"a repo without a name":   func() error { return x.Update(t.Context(), "", put(1, "v")) },
		"a repo with a zero byte": func() error { return x.Update(t.Context(), "a\x00b", put(1, "v")) },
		"a link to a bad digest": func() error {
			return x.Update(t.Context(), "r", func(tx *storage.Tx) error { tx.Link("x", 1); return nil })
		},
		"a manifest without a digest": func() error {
			return x.Update(t.Context(), "r", func(tx *storage.Tx) error { return tx.PutManifest(storage.Manifest{}) })
		},
		"a bad reference": func() error {
			return x.Update(t.Context(), "r", func(tx *storage.Tx) error {
				return tx.PutManifest(storage.Manifest{Digest: d, Refs: []digest.Digest{"x"}})
			})
		},
		"a bad subject": func() error {
			return x.Update(t.Context(), "r", func(tx *storage.Tx) error {
				return tx.PutManifest(storage.Manifest{Digest: d, Subject: "x"})
			})
		},
		"a tag without a name":   func() error { return x.Update(t.Context(), "r", put(1, "")) },
		"a tag that is a digest": func() error { return x.Update(t.Context(), "r", put(1, string(d))) },
		"a tag of a manifest that does not exist": func() error {
			return x.Update(t.Context(), "r", func(tx *storage.Tx) error { return tx.SetTag("v", d) })
		},
		"deleting a tag that is a digest": func() error {
			return x.Update(t.Context(), "r", func(tx *storage.Tx) error {
				return errors.Join(tx.PutManifest(manifest(1)), tx.DeleteTag(string(manifest(1).Digest)))
			})
		},
	}
	for name, call := range tests {
		if err := call(); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if s := x.Stats(); s != (storage.Stats{}) {
		t.Errorf("something was recorded: %+v", s)
	}
	wantTags(t, storagetest.OpenIndex(t, memory.NewJournal()), "r")
}

func TestTagsArePaged(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	const n = 1300 // some chunks of the ordered set
	want := make([]string, n)
	for i := range want {
		want[i] = fmt.Sprintf("v%05d", i)
	}
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
		err := tx.PutManifest(manifest(1))
		for i := range want {
			err = errors.Join(err, tx.SetTag(want[(i*7919)%n], manifest(1).Digest))
		}
		return err
	})
	for _, page := range []int{1, 7, 512, 513, 1300, 5000} {
		var got []string
		for last := ""; ; last = got[len(got)-1] {
			tags, found, err := x.Tags(t.Context(), "r", last, page)
			if err != nil || !found || len(tags) > page {
				t.Fatalf("a page of %d: %d tags, %v, %v", page, len(tags), found, err)
			}
			if len(tags) == 0 {
				break
			}
			got = append(got, tags...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d make %d tags, want %d", page, len(got), n)
		}
	}
	if tags, _, _ := x.Tags(t.Context(), "r", "v00010x", 1); !slices.Equal(tags, []string{"v00011"}) {
		t.Errorf("after a tag that does not exist comes %v", tags)
	}
	if tags, found, _ := x.Tags(t.Context(), "r", "", 0); tags == nil || len(tags) != 0 || !found {
		t.Errorf("a page of zero tags is %v", tags)
	}
	if tags, found, err := x.Tags(t.Context(), "none", "", 5); tags == nil || len(tags) != 0 || found || err != nil {
		t.Errorf("a repo that does not exist has %v, %v, %v", tags, found, err)
	}
}

func TestDamagedFactsAreRefused(t *testing.T) {
	good := string(binary(digest.FromString("x")))
	manyRefs := []byte{2, 2, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f}
	tests := map[string]storage.Fact{
		"a link with a bad name":           {Kind: storage.KindLink, Name: "x", Value: []byte{2, 2}},
		"a link with an unknown algorithm": {Kind: storage.KindLink, Name: "\x07" + good[1:], Value: []byte{2, 2}},
		"a link without a value":           {Kind: storage.KindLink, Name: good, Value: []byte{}},
		"a link that is cut":               {Kind: storage.KindLink, Name: good, Value: []byte{2}},
		"a manifest with a bad name":       {Kind: storage.KindManifest, Name: "", Value: []byte{2, 2, 0, 0, 0}},
		"a manifest that is cut":           {Kind: storage.KindManifest, Name: good, Value: []byte{2, 2, 5, 'a'}},
		"a manifest without references":    {Kind: storage.KindManifest, Name: good, Value: []byte{2, 2, 0, 0}},
		"a manifest with too many":         {Kind: storage.KindManifest, Name: good, Value: manyRefs},
		"a manifest with a bad reference": {
			Kind:  storage.KindManifest,
			Name:  good,
			Value: []byte{2, 2, 0, 0, 1, 1, 'x'},
		},
		"a manifest with a bad subject": {Kind: storage.KindManifest, Name: good,
			Value: []byte{2, 2, 0, 1, 'x', 0}},
		"a tag that is cut": {Kind: storage.KindTag, Name: "v", Value: []byte{33, 1}},
		"a tag of a manifest that is not there": {Kind: storage.KindTag, Name: "v",
			Value: []byte("\x21" + good + "\x02")},
		"an unknown kind": {Kind: 'z', Name: good, Value: []byte{1}},
	}
	for name, f := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := memory.NewJournal()
				warned := make(chan error, 100)
				x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{Warn: func(err error) {
					warned <- err
				}})
				if err != nil {
					t.Fatal(err)
				}
				defer x.Close()
				storagetest.Update(t, x, "good", put(1, "v"))
				bad := storage.Batch{Repo: "team/app", Facts: []storage.Fact{f}}
				if _, err := j.Commit(t.Context(), bad); err != nil {
					t.Fatal(err)
				}
				want := func(err error) {
					t.Helper()
					name := f.Name
					if f.Kind != storage.KindTag { // a digest in binary form
						name = ""
						if f.Name == good {
							name = digest.FromString("x").String()
						}
					}
					if err == nil || !strings.Contains(err.Error(), "damaged fact") ||
						!strings.Contains(err.Error(), `"team/app"`) ||
						!strings.Contains(err.Error(), fmt.Sprintf("name %q", name)) {
						t.Errorf("the error %q does not say what is damaged", err)
					}
				}
				want(<-warned)
				if _, ok, _ := x.Resolve(t.Context(), "good", "v"); !ok {
					t.Error("another repo is not served any more")
				}
				_, err = storage.OpenIndex(t.Context(), j, storage.IndexOptions{})
				if want(err); !errors.Is(err, storage.ErrDamaged) {
					t.Errorf("%v is not ErrDamaged", err)
				}
			})
		})
	}
}

// binary returns a sha256 digest in the form of the data format.
func binary(d digest.Digest) []byte {
	out := []byte{1}
	for i := 0; i < len(d.Encoded()); i += 2 {
		b, _ := strconv.ParseUint(d.Encoded()[i:i+2], 16, 8)
		out = append(out, byte(b))
	}
	return out
}

func TestATagWithoutItsManifestIsNotLoaded(t *testing.T) {
	j := memory.NewJournal()
	x := storagetest.OpenIndex(t, j)
	storagetest.Update(t, x, "r", put(0, "v"))
	head, _ := j.Head(t.Context())
	gone := storage.Fact{Kind: storage.KindManifest, Name: string(binary(manifest(0).Digest))}
	if _, err := j.Commit(t.Context(), storage.Batch{Repo: "r", Base: head, Facts: []storage.Fact{gone}}); err != nil {
		t.Fatal(err)
	}
	if _, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{}); err == nil {
		t.Error("a tag without its manifest was loaded")
	}
}

func TestOpenIndexEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := storage.OpenIndex(ctx, silent{}, storage.IndexOptions{})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("OpenIndex of a silent journal: %v", err)
		}
	})
}

// silent is a journal that never delivers anything.
type silent struct{ storage.Journal }

func (silent) Watch(ctx context.Context, _ func(storage.Update) error) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestProgressIsReportedWhileLoading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := slow{memory.NewJournal()}
		setup := storagetest.OpenIndex(t, j.Journal)
		storagetest.Update(t, setup, "r", put(1, "v"))
		var reported []int
		report := func(n int) { reported = append(reported, n) }
		x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{Progress: report})
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		if !slices.Equal(reported, []int{2}) {
			t.Errorf("progress: %v, want the 2 facts", reported)
		}
		storagetest.OpenIndex(t, j) // without a report
		fast, err := storage.OpenIndex(t.Context(), j.Journal, storage.IndexOptions{Progress: report})
		if err != nil {
			t.Fatal(err)
		}
		defer fast.Close()
		if len(reported) != 1 {
			t.Errorf("progress of less than a second: %v", reported[1:])
		}
	})
}

// slow is a journal that takes a while to deliver anything.
type slow struct{ storage.Journal }

func (j slow) Watch(ctx context.Context, apply func(storage.Update) error) error {
	time.Sleep(2 * time.Second) // the bubble's clock
	return j.Journal.Watch(ctx, apply)
}

func TestMediaTypesAreKeptBeyondTheTable(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	const n = 1500
	storagetest.Update(t, x, "r", func(tx *storage.Tx) (err error) {
		for i := range n {
			m := manifest(i)
			m.MediaType = fmt.Sprint("application/x", i)
			err = errors.Join(err, tx.PutManifest(m))
		}
		return err
	})
	for i := range n {
		d, ok, err := x.Resolve(t.Context(), "r", string(manifest(i).Digest))
		if !ok || err != nil || d.MediaType != fmt.Sprint("application/x", i) {
			t.Fatalf("Resolve of manifest %d: %+v, %v, %v", i, d, ok, err)
		}
	}
}

func TestViewChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := memory.NewJournal()
		storagetest.Update(t, storagetest.OpenIndex(t, inner), "r", put(1, "v1"))
		j, gate, commits := gated(inner)
		x := storagetest.OpenIndex(t, j)
		var wg sync.WaitGroup
		wg.Go(func() { storagetest.Update(t, x, "r", put(2, "v2")) })
		synctest.Wait() // the commit hangs, and View does not wait for it
		err := x.View("r", func(tx *storage.Tx) error {
			_, old := tx.Tag("v1")
			_, pending := tx.Tag("v2")
			if !old || pending {
				t.Errorf("View sees v1: %v, v2: %v; want what is committed", old, pending)
			}
			if err := put(3, "v3")(tx); err != nil {
				return err
			}
			if _, ok := tx.Tag("v3"); !ok {
				t.Error("View does not show what its function did")
			}
			return tx.DeleteTag("missing")
		})
		if !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("View returned %v, want the function's error", err)
		}
		close(gate)
		wg.Wait()
		if commits.Load() != 1 {
			t.Errorf("%d commits", commits.Load())
		}
		wantTags(t, x, "r", "v1", "v2")
	})
}

func TestMoreUpdatesThanOneCommitTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, gate, commits := gated(memory.NewJournal())
		x := storagetest.OpenIndex(t, j)
		var wg sync.WaitGroup
		wg.Go(func() { storagetest.Update(t, x, "first", put(0, "v")) })
		synctest.Wait()
		const n = 600 // more than the queue and one commit take
		for range n {
			wg.Go(func() {
				if err := x.Update(t.Context(), "r", count); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := x.Update(short, "r", count); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an update that gives up before a full queue returned %v", err)
		}
		close(gate)
		wg.Wait()
		if got, c := counted(t, x, "r"), commits.Load(); got != n || c < 3 || c > 20 {
			t.Errorf("counted %d of %d in %d commits", got, n, c)
		}
	})
}

func (silent) Traits() storage.Traits { return storage.Traits{} }

// TestAPageOfNoReferrers is empty.
func TestAPageOfNoReferrers(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	m := manifest(1)
	m.Subject = digestOf("m", 2)
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.PutManifest(m) })
	for n, want := range map[int]int{-1: 1, 0: 0, 1: 1, 2: 1} {
		if got, err := x.Referrers(t.Context(), "r", m.Subject, "", n); err != nil || len(got) != want {
			t.Errorf("at most %d: %v, %v", n, got, err)
		}
	}
}

// TestTheLongestMediaType is kept; a longer one is none.
func TestTheLongestMediaType(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	for n, want := range map[int]int{255: 255, 256: 0} { // RFC 6838, section 4.2: 127 characters, a slash, 127 more
		m := manifest(n)
		m.MediaType = strings.Repeat("a", n)
		storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.PutManifest(m) })
		if at, ok, err := x.Resolve(t.Context(), "r", m.Digest.String()); !ok || err != nil ||
			len(at.MediaType) != want {
			t.Errorf("a media type of %d bytes became %q, %v, %v", n, at.MediaType, ok, err)
		}
	}
}
