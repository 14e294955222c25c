package storage_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestNotifyRecords: each process hears of each change of a record, and of nothing else, before the change is
// acknowledged where it was made.
func TestNotifyRecords(t *testing.T) {
	j := memory.NewJournal()
	j.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 1 << 20}
	here, there := storagetest.OpenIndex(t, j), storagetest.OpenIndex(t, j)
	var mine, theirs atomic.Int64
	here.NotifyRecords("auth/", func() { mine.Add(1) })
	there.NotifyRecords("auth/", func() { theirs.Add(1) })
	var last []byte
	for i, name := range []string{"auth/x", "auth/x", "other"} {
		value := []byte{byte(i)}
		if name == "other" {
			last = nil
		}
		if err := here.SetRecord(t.Context(), name, last, value); err != nil {
			t.Fatal(err)
		}
		last = value
		if n := mine.Load(); n != min(int64(i)+1, 2) {
			t.Errorf("after the change of %s: %d", name, n)
		}
	}
	if _, err := there.Record(t.Context(), "none"); err != nil { // waits for what there is
		t.Fatal(err)
	}
	if n := theirs.Load(); n != 2 {
		t.Errorf("the other process heard of %d changes", n)
	}
	storagetest.Update(t, here, "auth/x", func(tx *storage.Tx) error { tx.Link(digestOf("blob", 1), 1); return nil })
	if n := mine.Load(); n != 2 {
		t.Errorf("a change of a repository counts: %d", n)
	}
	if !here.Shared() || storagetest.OpenIndex(t, memory.NewJournal()).Shared() {
		t.Error("Shared is not what the journal says")
	}
}

// TestNotifyRecordsAfterAReload: changes may have been missed.
func TestNotifyRecordsAfterAReload(t *testing.T) {
	j := &once{Journal: memory.NewJournal(), end: make(chan struct{})}
	x := storagetest.OpenIndex(t, j)
	news := make(chan struct{}, 10)
	x.NotifyRecords("auth/", func() { news <- struct{}{} })
	close(j.end)
	<-news
}

// once is a journal whose first Watch ends.
type once struct {
	*memory.Journal
	end   chan struct{}
	begun atomic.Bool
}

func (j *once) Watch(ctx context.Context, apply func(storage.Update) error) error {
	if j.begun.Swap(true) {
		return j.Journal.Watch(ctx, apply)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { <-j.end; cancel() }()
	return j.Journal.Watch(ctx, apply)
}

// TestNotifyRecordsOfACommitOfSeveral: the record may come after other changes.
func TestNotifyRecordsOfACommitOfSeveral(t *testing.T) {
	j, gate, commits := gated(memory.NewJournal())
	x := storagetest.OpenIndex(t, j)
	var news atomic.Int64
	x.NotifyRecords("auth/", func() { news.Add(1) })
	errs, n := inOneCommit(t, x, gate, commits, func() error { return hold(t.Context(), x, "a", "1") },
		func() error { return x.SetRecord(t.Context(), "auth/x", nil, []byte("x")) },
		func() error { return hold(t.Context(), x, "b", "2") })
	if err := errors.Join(errs...); err != nil || n != 1 || news.Load() != 1 {
		t.Errorf("%v; %d commits, %d calls", err, n, news.Load())
	}
}
