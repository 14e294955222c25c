package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/disk"
	"trow/storage/internal/local"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// countedBy opens an engine and an Index that count uploads for a quota of team/.
func countedBy(t *testing.T, dir string, j storage.Journal, bytes int64) (*disk.Blobs, *storage.Index) {
	t.Helper()
	u := storage.NewUploads()
	b, err := disk.Open(dir, disk.Options{Uploads: u})
	if err != nil {
		t.Fatal(err)
	}
	x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{Uploads: u})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Close)
	x.SetQuotas(team(bytes))
	return b, x
}

// sizeOf returns how many bytes the files below a directory have.
func sizeOf(t *testing.T, dir string) (all int64) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				all += info.Size()
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestUploadsFillAQuota, written at the same time, and not beyond it; also after a restart.
func TestUploadsFillAQuota(t *testing.T) {
	const quota, piece = 10_000, 300
	dir, j := t.TempDir(), memory.NewJournal()
	b, x := countedBy(t, dir, j, quota)
	ids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range ids {
		ids[i] = local.NewUploadID()
		wg.Go(func() {
			u, err := b.CreateAs(t.Context(), fmt.Sprint("team/", i), ids[i], digest.SHA256)
			if err != nil {
				t.Error(err)
				return
			}
			for over := (*storage.QuotaError)(nil); over == nil; {
				if _, err = u.Write([]byte(strings.Repeat("x", piece))); err != nil && !errors.As(err, &over) {
					t.Error(err)
					return
				}
			}
			if err := u.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := sizeOf(t, dir); n != quota/piece*piece || x.Quotas()[0].Open != n {
		t.Errorf("%d bytes on the disk, %d counted", n, x.Quotas()[0].Open)
	}
	b, x = countedBy(t, dir, j, quota)
	if n := x.Quotas()[0].Open; n != quota/piece*piece {
		t.Errorf("%d bytes are counted after a restart", n)
	}
	u, err := b.Resume(t.Context(), "team/0", ids[0], -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write([]byte(strings.Repeat("x", piece))); err == nil {
		t.Error("a write beyond the quota after a restart")
	}
	size := u.Size()
	if err := u.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := x.Quotas()[0].Open; n != quota/piece*piece-size {
		t.Errorf("%d bytes are counted after one was cancelled", n)
	}
	if _, err := b.Expire(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if q := x.Quotas()[0]; q.Open != 0 || q.Used != 0 {
		t.Errorf("after all have expired: %+v", q)
	}
}

// TestAnUploadCountsOnce: while it is open, while it is committed and when it is linked; and as waiting if the client
// has gone in between.
func TestAnUploadCountsOnce(t *testing.T) {
	j := memory.NewJournal()
	b, x := countedBy(t, t.TempDir(), j, 100)
	for i, row := range []struct {
		link          bool
		used, waiting int64
	}{{true, 40, 0}, {false, 80, 40}} {
		content := strings.Repeat(fmt.Sprint(i), 40)
		d := digest.FromString(content)
		u, err := b.Create(t.Context(), "team/a", digest.SHA256)
		if err == nil {
			_, err = u.Write([]byte(content))
		}
		if err != nil {
			t.Fatal(err)
		}
		ctx, gone := context.WithCancel(t.Context())
		release, err := x.Commit(ctx, u, d)
		if err != nil {
			t.Fatal(err)
		}
		if q := x.Quotas()[0]; q.Used != 40+40*int64(i) {
			t.Errorf("committed: %+v", q)
		}
		if row.link {
			if q := x.Quotas()[0]; q.Open != 40 {
				t.Errorf("committed and not linked yet: %+v", q)
			}
			if err := x.Update(ctx, "team/a", func(tx *storage.Tx) error {
				if _, over := tx.Excess(d, 40); over {
					return errOver
				}
				tx.Link(d, 40)
				return nil
			}); err != nil {
				t.Error(err)
			}
			if q := x.Quotas()[0]; q.Used != 40 || q.Open != 0 { // before the caller releases it
				t.Errorf("linked: %+v", q)
			}
		}
		gone()
		release()
		wantUsage(t, x, "released", row.used, row.waiting)
		if q := x.Quotas()[0]; q.Open != 0 {
			t.Errorf("released: %+v", q)
		}
	}
	if _, err := (&storage.Collector{Blobs: b, Index: x, Grace: time.Hour}).Run(t.Context(), false, nil); err != nil {
		t.Fatal(err)
	}
	wantUsage(t, x, "collected", 40, 0)
}

// TestAnUploadOfALongName counts for every quota after a restart, until it is continued: its repo is not known.
func TestAnUploadOfALongName(t *testing.T) {
	dir, j, id := t.TempDir(), memory.NewJournal(), local.NewUploadID()
	b, _ := countedBy(t, dir, j, 100)
	long := "other/" + strings.Repeat("a", 240)
	u, err := b.CreateAs(t.Context(), long, id, digest.SHA256)
	if err == nil {
		_, err = u.Write([]byte("12345"))
	}
	if err := errors.Join(err, u.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	b, x := countedBy(t, dir, j, 100)
	wantUsage(t, x, "after a restart", 5, 0)
	if _, err := b.Resume(t.Context(), long, id, 5); err != nil {
		t.Fatal(err)
	}
	wantUsage(t, x, "continued", 0, 0)
}

// TestTheCountOfAnUpload: it may be written to the last byte of a quota, takes back what was not written, and is the
// same with new quotas. Nothing of it stays in memory.
func TestTheCountOfAnUpload(t *testing.T) {
	u := storage.NewUploads()
	x := storagetest.OpenIndexWith(t, memory.NewJournal(), storage.IndexOptions{Uploads: u})
	x.SetQuotas(team(100))
	want := func(when string, open int64) {
		t.Helper()
		if got := x.Quotas()[0].Open; got != open {
			t.Errorf("%s: %d bytes open, want %d", when, got, open)
		}
	}
	a, b := u.Begin("team/a", 10), u.Begin("team/a", 0)
	want("begun", 10)
	if err := b.Grow(90, true); err != nil {
		t.Errorf("up to the last byte: %v", err)
	}
	var over *storage.QuotaError
	if err := b.Grow(1, true); !errors.As(err, &over) || over.Excess.Used != 100 || over.Excess.Added != 1 {
		t.Errorf("beyond the last byte: %v", err)
	}
	want("full", 100)
	if err := b.Grow(5, false); err != nil {
		t.Errorf("what no quota bounds: %v", err)
	}
	b.Shrink(5)
	b.Shrink(0)
	b.Shrink(-1)
	want("taken back", 100)
	x.SetQuotas(team(200))
	want("with another quota", 100)
	if a.In("team/a") != a {
		t.Error("an upload in the same repository is another one")
	}
	other := a.In("other")
	want("in another repository", 90)
	if a.In("team/b") != a || other.In("other") != other {
		t.Error("an upload that has ended begins again")
	}
	want("after that", 90)
	b.End()
	b.End()
	want("ended", 0)
	if n := storage.OpenRepos(u); n != 1 {
		t.Errorf("%d repositories have uploads, want 1", n)
	}
	other.End()
	if n := storage.OpenRepos(u); n != 0 {
		t.Errorf("%d repositories have uploads after all have ended", n)
	}
	none := (*storage.Uploads)(nil).Begin("team/a", 1)
	none.Shrink(1)
	none.End()
	none.Commit(digest.FromString("x"))
	if none.In("other") != none || none.Grow(1<<40, true) != nil {
		t.Error("an upload that is not counted is refused")
	}
}

// TestCommittedBytesCountUntilTheIndexShowsThem: as a manifest too, and not only because the repo drops older ones.
func TestCommittedBytesCountUntilTheIndexShowsThem(t *testing.T) {
	u := storage.NewUploads()
	x := storagetest.OpenIndexWith(t, memory.NewJournal(), storage.IndexOptions{Uploads: u})
	x.SetQuotas(team(1000))
	want := func(when string, used, open int64) {
		t.Helper()
		if q := x.Quotas()[0]; q.Used != used || q.Open != open {
			t.Errorf("%s: %d used, %d open; want %d, %d", when, q.Used, q.Open, used, open)
		}
	}
	m := manifest(60)
	u.Begin("team/a", 60).Commit(m.Digest)
	want("committed", 60, 60)
	storagetest.Update(t, x, "team/b", func(tx *storage.Tx) error { return tx.PutManifest(m) })
	want("another repository holds it", 120, 60)
	storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error { return tx.PutManifest(m) })
	want("recorded", 120, 0)
	u.Begin("team/a", 60).Commit(m.Digest) // pushed again, and deleted before it is recorded
	storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error { return tx.DeleteManifest(m.Digest) })
	want("deleted", 120, 60)
	storagetest.Update(t, x, "team/a", func(tx *storage.Tx) error { tx.Link(m.Digest, 60); return nil })
	want("linked", 120, 0)
	if n := storage.OpenRepos(u); n != 0 {
		t.Errorf("%d repositories have uploads", n)
	}
}

// TestWhatNoQuotaCountsDoesNotWait: a push to such a repo that is given up costs nothing.
func TestWhatNoQuotaCountsDoesNotWait(t *testing.T) {
	b, x := countedBy(t, t.TempDir(), memory.NewJournal(), 100)
	u, err := b.Create(t.Context(), "other", digest.SHA256)
	if err == nil {
		_, err = u.Write([]byte("content"))
	}
	if err != nil {
		t.Fatal(err)
	}
	release, err := x.Commit(t.Context(), u, digest.FromString("content"))
	if err != nil {
		t.Fatal(err)
	}
	release()
	storagetest.Update(t, x, "other", link(1, 1))
	storagetest.Update(t, x, "other", unlink(1))
	if n := storage.Leftovers(x); n != 0 {
		t.Errorf("%d records of what no quota counts", n)
	}
}
