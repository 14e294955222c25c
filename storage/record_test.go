package storage_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestARecordIsReplacedIfItIsAsTheCallerThinks: an empty value is a value.
func TestARecordIsReplacedIfItIsAsTheCallerThinks(t *testing.T) {
	x := storagetest.OpenIndex(t, sharedJournal())
	empty := storage.MemoryOfFacts(x)
	set := func(old, value []byte, want error) {
		t.Helper()
		if err := x.SetRecord(t.Context(), "a/1", old, value); !errors.Is(err, want) {
			t.Errorf("%q for %q: %v, want %v", value, old, err, want)
		}
	}
	read := func(want []byte) {
		t.Helper()
		got, err := x.Record(t.Context(), "a/1")
		if err != nil || string(got) != string(want) || (got == nil) != (want == nil) {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	read(nil)
	set([]byte{}, []byte("x"), storage.ErrConflict)
	set([]byte("x"), []byte("y"), storage.ErrConflict)
	set(nil, []byte{}, nil)
	read([]byte{})
	set(nil, []byte("x"), storage.ErrConflict)
	set([]byte{}, []byte("one"), nil)
	one := storage.MemoryOfFacts(x)
	set([]byte("two"), nil, storage.ErrConflict)
	read([]byte("one"))
	set([]byte("one"), []byte("two"), nil)
	read([]byte("two"))
	if one <= empty || storage.MemoryOfFacts(x) != one {
		t.Errorf("%d bytes for one value, %d for another of its length", one, storage.MemoryOfFacts(x))
	}
	for _, name := range []string{"a/3", "a/2", "b/1"} {
		if err := x.SetRecord(t.Context(), name, nil, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for name, value := range x.Records("a/") {
		if got = append(got, fmt.Sprintf("%s=%s", name, value)); len(got) == 2 {
			break
		}
	}
	if fmt.Sprint(got) != "[a/1=two a/2=a/2]" {
		t.Errorf("%v", got)
	}
	for name, value := range x.Records("") {
		if err := x.SetRecord(t.Context(), name, value, nil); err != nil {
			t.Fatal(err)
		}
	}
	read(nil)
	if n := storage.MemoryOfFacts(x); n != empty || storage.Leftovers(x) != 0 {
		t.Errorf("%d bytes are left, and %d records; want %d bytes", n, storage.Leftovers(x), empty)
	}
}

// TestRecordsWithinOneCommit: each change sees those before it.
func TestRecordsWithinOneCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, commits := conflicts(sharedJournal())
		x := storagetest.OpenIndex(t, j)
		set := func(old, value string, want error) func(*storage.Index) error {
			return func(x *storage.Index) error {
				bytes := func(s string) []byte {
					if s == "" {
						return nil
					}
					return []byte(s)
				}
				if err := x.SetRecord(t.Context(), "a", bytes(old), bytes(value)); !errors.Is(err, want) {
					return fmt.Errorf("%q for %q: %w", value, old, err)
				}
				return nil
			}
		}
		together(t, x, set("", "1", nil), set("1", "2", nil), set("2", "", nil), set("", "3", nil))
		if value, err := x.Record(t.Context(), "a"); string(value) != "3" || err != nil || len(*commits) != 1 {
			t.Errorf("%q, %v, %d commits", value, err, len(*commits))
		}
	})
}

// TestProcessesDoNotExceedAQuotaTogether: what one adds while another one decides is a conflict, in whichever
// repository of the quota; what adds nothing is none.
func TestProcessesDoNotExceedAQuotaTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := sharedJournal()
		var during func()
		guards := 0
		x := storagetest.OpenIndex(t, watched(inner, func(b []storage.Batch) error {
			for i := range b {
				for _, f := range b[i].Facts {
					if b[i].Repo == storage.StoreRepo && strings.HasPrefix(f.Name, "quota/") {
						guards++
					}
				}
			}
			if f := during; f != nil {
				during = nil
				f()
			}
			return nil
		}))
		y := storagetest.OpenIndex(t, inner)
		x.SetQuotas(team(100))
		y.SetQuotas(team(100))
		during = func() { storagetest.Update(t, y, "team/b", link(2, 60)) }
		if err := x.Update(t.Context(), "team/a", link(1, 60)); !errors.Is(err, errOver) {
			t.Errorf("both together have 120 of 100 bytes: %v", err)
		}
		storagetest.Update(t, x, "team/a", link(3, 40))
		wantUsage(t, x, "all", 100, 0)
		guards = 0
		storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error {
			return tx.PutManifest(storage.Manifest{Digest: digestOf("blob", 3), MediaType: "application/a", Size: 40})
		})
		storagetest.Update(t, x, "team/a", unlink(3))
		storagetest.Update(t, x, "other", link(3, 40))
		if guards != 0 {
			t.Errorf("%d records of quotas by changes that add nothing", guards)
		}
	})
}

// TestARecordThatAnotherProcessHasSet is found: a miss is confirmed with the Journal.
func TestARecordThatAnotherProcessHasSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := sharedJournal()
		far := delayed{inner, make(chan struct{})}
		j := &mute{Journal: far}
		x := storagetest.OpenIndex(t, j)
		if err := storagetest.OpenIndex(t, inner).SetRecord(t.Context(), "a", nil, []byte("v")); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Millisecond)
			close(far.pass)
		}()
		if value, err := x.Record(t.Context(), "a"); string(value) != "v" || err != nil {
			t.Errorf("%q, %v", value, err)
		}
		j.silent.Store(true)
		if _, err := x.Record(t.Context(), "b"); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a miss that cannot be confirmed: %v", err)
		}
	})
}

// TestAChangeThatReadsARecordDependsOnIt: it is not committed beside another process's change of the record, but runs
// again and sees that.
func TestAChangeThatReadsARecordDependsOnIt(t *testing.T) {
	for name, old := range map[string][]byte{"one that exists": []byte("old"), "one that does not": nil} {
		t.Run(name, func(t *testing.T) {
			inner := sharedJournal()
			other := storagetest.OpenIndex(t, inner)
			if err := other.SetRecord(t.Context(), "x", nil, old); err != nil {
				t.Fatal(err)
			}
			first := true
			x := storagetest.OpenIndex(t, hooked{inner,
				func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
					if first {
						first = false
						if err := other.SetRecord(ctx, "x", old, []byte("new")); err != nil {
							t.Error(err)
						}
					}
					return inner.Commit(ctx, b...)
				}})
			var seen []string
			storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
				seen = append(seen, string(tx.Record("x")))
				return put(1, "v")(tx)
			})
			if want := []string{string(old), "new"}; !slices.Equal(seen, want) {
				t.Errorf("it has seen %q, want %q", seen, want)
			}
			wantTags(t, x, "r", "v")
		})
	}
}

// TestARecordIsNotOverwritten by a change that has decided before another process's change showed.
func TestARecordIsNotOverwritten(t *testing.T) {
	j := memory.NewJournal()
	j.Is = storage.Traits{Shared: true}
	here, there := storagetest.OpenIndex(t, j), storagetest.OpenIndex(t, j)
	between := sync.OnceFunc(func() {
		if err := there.SetRecord(t.Context(), "a", nil, []byte("theirs")); err != nil {
			t.Error(err)
		}
		for shown := false; !shown; {
			for _, value := range here.Records("a") {
				shown = string(value) == "theirs"
			}
		}
	})
	err := storage.SetRecordSlowly(t.Context(), here, "a", nil, []byte("ours"), between)
	if !errors.Is(err, storage.ErrConflict) {
		t.Errorf("%v", err)
	}
	if value, err := here.Record(t.Context(), "a"); err != nil || string(value) != "theirs" {
		t.Errorf("%q, %v", value, err)
	}
}

// TestAQuotaOfManyReposThatOthersChange: the committer looks up the quotas of a repo while a change of another process
// shows.
func TestAQuotaOfManyReposThatOthersChange(t *testing.T) {
	j := sharedJournal()
	var wg sync.WaitGroup
	for p := range 2 {
		x := storagetest.OpenIndex(t, j)
		x.SetQuotas(team(1 << 40))
		for i := range 4 {
			wg.Go(func() {
				for n := range 100 { // many commits
					if err := x.Update(t.Context(), fmt.Sprint("team/", p, i, n), link(n, 1)); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
}
