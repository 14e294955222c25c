package storage_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// inOneCommit makes all changes wait for the same commit, and returns their errors and how many commits there were.
func inOneCommit(t *testing.T, x *storage.Index, gate chan struct{}, commits *atomic.Int32, changes ...func() error) (
	errs []error, n int32,
) {
	t.Helper()
	commits.Store(0)
	first := make(chan error, 1)
	go func() { first <- hold(t.Context(), x, "first", "first") }()
	for commits.Load() == 0 { // then the committer is busy, and what comes now waits
		runtime.Gosched()
	}
	errs = make([]error, len(changes))
	var wg sync.WaitGroup
	for i, change := range changes {
		wg.Go(func() { errs[i] = change() })
		for storage.Queued(x) < i+1 {
			runtime.Gosched()
		}
	}
	close(gate)
	wg.Wait()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	return errs, commits.Load() - 1
}

func hold(ctx context.Context, x *storage.Index, repo, content string) error {
	return x.Update(ctx, repo, func(tx *storage.Tx) error {
		tx.Link(digest.FromString(content), 1)
		return nil
	})
}

func holds(t *testing.T, x *storage.Index, repo, content string) bool {
	t.Helper()
	_, found, err := x.Blob(t.Context(), repo, digest.FromString(content))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestAFenceRefusesOneChangeOfAGroup, and the others of the group are committed.
func TestAFenceRefusesOneChangeOfAGroup(t *testing.T) {
	shared := memory.NewJournal()
	shared.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 1 << 20}
	j, gate, commits := gated(shared)
	x := storagetest.OpenIndex(t, j)
	lead := func(task string) (context.Context, <-chan struct{}) {
		t.Helper()
		fence, lost, err := shared.Lead(t.Context(), task, "me")
		if err != nil {
			t.Fatal(err)
		}
		return storage.WithFence(t.Context(), fence), lost
	}
	old, lost := lead("gc")
	if name, err := shared.Leader(t.Context(), "gc"); name != "me" || err != nil {
		t.Errorf("the leader is %q, %v", name, err)
	}
	other, _ := lead("scrub")
	go func() { gate <- struct{}{} }()
	if err := hold(old, x, "a", "before"); err != nil || !holds(t, x, "a", "before") {
		t.Fatalf("while the fence holds: %v", err)
	}
	shared.Depose("gc")
	<-lost
	now, _ := lead("gc")
	errs, n := inOneCommit(t, x, gate, commits,
		func() error { return hold(t.Context(), x, "a", "unfenced") },
		func() error { return hold(old, x, "a", "old") },
		func() error { return hold(old, x, "b", "old") },
		func() error { return hold(other, x, "b", "other") },
		func() error { return hold(now, x, "c", "now") },
		func() error { return hold(t.Context(), x, "c", "unfenced") })
	for i, want := range []error{nil, storage.ErrNotLeader, storage.ErrNotLeader, nil, nil, nil} {
		if !errors.Is(errs[i], want) {
			t.Errorf("change %d: %v, want %v", i, errs[i], want)
		}
	}
	for _, n := range []struct {
		repo, content string
		want          bool
	}{{"a", "unfenced", true}, {"a", "old", false}, {"b", "old", false}, {"b", "other", true}, {"c", "now", true},
		{"c", "unfenced", true}} {
		if got := holds(t, x, n.repo, n.content); got != n.want {
			t.Errorf("%s in %s: %v", n.content, n.repo, got)
		}
	}
	// The first is what comes before the newer fence, and is refused; the second is all that is left.
	if n != 2 {
		t.Errorf("%d commits, want 2: a change that is refused is not tried again", n)
	}
	for _, name := range x.Names() {
		if name != "first" && len(name) != 1 {
			t.Errorf("the fence has made a repository %s", name)
		}
	}
}

// TestAFenceCountsInTheBounds: a commit that has no room for the condition leaves the change to the next one.
func TestAFenceCountsInTheBounds(t *testing.T) {
	shared := memory.NewJournal()
	// A link counts with three compares.
	shared.Is = storage.Traits{Shared: true, Compares: 6}
	j, gate, commits := gated(shared)
	x := storagetest.OpenIndex(t, j)
	fence, _, err := shared.Lead(t.Context(), "gc", "me")
	if err != nil {
		t.Fatal(err)
	}
	fenced := storage.WithFence(t.Context(), fence)
	errs, n := inOneCommit(t, x, gate, commits, func() error { return hold(t.Context(), x, "a", "1") },
		func() error { return hold(fenced, x, "b", "2") })
	if err := errors.Join(errs...); err != nil || !holds(t, x, "b", "2") {
		t.Fatal(err)
	}
	if n != 2 {
		t.Errorf("%d commits, want 2", n)
	}
}

// TestNoCommitIsBeyondTheBounds: what the Index makes of changes is within the bounds of the journal, which refuses the
// rest, with fences, and with the seal of a migration.
func TestNoCommitIsBeyondTheBounds(t *testing.T) {
	done, refused := 0, 0
	for bytes := 20; bytes < 600; bytes++ {
		shared := memory.NewJournal()
		shared.Is = storage.Traits{Shared: true}
		x := storagetest.OpenIndex(t, shared)
		if bytes%2 == 0 {
			if err := x.Seal(t.Context(), storage.Migration{ID: "a migration", From: "here", To: "there"}); err != nil {
				t.Fatal(err)
			}
		}
		fence, _, err := shared.Lead(t.Context(), "a task with a name", "me")
		if err != nil {
			t.Fatal(err)
		}
		shared.Is.Bytes = bytes // from now on
		storage.SetTraits(x, shared.Is)
		fenced := storage.WithFence(t.Context(), fence)
		for i, ctx := range []context.Context{t.Context(), fenced} {
			switch err := hold(ctx, x, "a", fmt.Sprint(i)); {
			case err == nil:
				done++
			case errors.Is(err, storage.ErrTooLarge):
				refused++
			default:
				t.Fatalf("%d bytes: %v", bytes, err)
			}
		}
		x.Close()
	}
	if done < 200 || refused < 200 {
		t.Errorf("%d changes were done and %d refused: too few", done, refused)
	}
}
