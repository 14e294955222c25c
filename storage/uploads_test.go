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
			if err := x.Update(ctx, "team/a", func(tx *storage.Tx) error {
				if _, over := tx.Excess(d, 40); over {
					return errOver
				}
				tx.Link(d, 40)
				return nil
			}); err != nil {
				t.Error(err)
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
