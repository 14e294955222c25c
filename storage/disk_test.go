package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/storagetest"
)

// pushBlob uploads data in pieces.
func pushBlob(ctx context.Context, b storage.Blobs, data []byte) (digest.Digest, error) {
	u, err := b.Create(ctx, "team/app", digest.SHA256)
	if err != nil {
		return "", err
	}
	defer u.Close()
	for piece := range bytes.Lines(data) {
		if _, err := u.Write(piece); err != nil {
			return "", err
		}
	}
	d := digest.FromBytes(data)
	return d, u.Commit(ctx, d)
}

func blobFile(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func TestDamagedBlobIsHealedByAPush(t *testing.T) {
	dir := t.TempDir()
	b := openDisk(t, dir)
	data := []byte("one\ntwo\nthree\n")
	d, err := pushBlob(t.Context(), b, data)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"other bytes": func() error { return os.WriteFile(blobFile(dir, d), []byte("something else"), 0o600) },
		"cut":         func() error { return os.Truncate(blobFile(dir, d), 3) },
		"gone":        func() error { return os.Remove(blobFile(dir, d)) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(blobFile(dir, d)); bytes.Equal(got, data) {
			t.Fatal("the damage did nothing")
		}
		if _, err := pushBlob(t.Context(), b, data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		r, err := b.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: read %q, %v", name, got, err)
		}
		r.Close()
	}
}

func TestDiskOpensFiles(t *testing.T) {
	b := openDisk(t, t.TempDir())
	d, err := pushBlob(t.Context(), b, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, ok := r.(*os.File); !ok {
		t.Errorf("Open returned a %T, to which sendfile does not apply", r)
	}
}

func TestNoNameLeadsOutOfTheDirectory(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "deep", "data")
	b := openDisk(t, dir)
	outside := filepath.Join(root, "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../../../../outside", "/" + outside, "../uploads/x", "..", "."} {
		d := digest.Digest("sha256:" + name)
		if _, err := b.Stat(t.Context(), d); !errors.Is(err, storage.ErrDigest) {
			t.Errorf("Stat(%s): %v", d, err)
		}
		if err := b.Delete(t.Context(), d); !errors.Is(err, storage.ErrDigest) {
			t.Errorf("Delete(%s): %v", d, err)
		}
		if _, err := b.Resume(t.Context(), "team/app", name, -1); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("Resume(%s): %v", name, err)
		}
		u, err := b.Create(t.Context(), name, digest.SHA256) // a repo's name is no path either
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Commit(t.Context(), d); !errors.Is(err, storage.ErrDigest) {
			t.Errorf("Commit(%s): %v", d, err)
		}
	}
	wantOnlyBlobs(t, dir)
	entries, err := os.ReadDir(root)
	if got, _ := os.ReadFile(outside); err != nil || len(entries) != 2 || string(got) != "secret" {
		t.Errorf("outside there are %v, and the file holds %q", entries, got)
	}
}

func TestWhatIsNoBlobIsNotListed(t *testing.T) {
	dir := t.TempDir()
	b := openDisk(t, dir)
	for _, name := range []string{"blobs/sha256/notes.txt", "blobs/sha256/.hidden"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for info, err := range b.All(t.Context()) {
		t.Errorf("All lists %v, %v", info, err)
	}
}

func TestListingEndsWithItsContext(t *testing.T) {
	b := openDisk(t, t.TempDir())
	for i := range 3 {
		if _, err := pushBlob(t.Context(), b, []byte(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var last error
	for _, err := range b.All(ctx) {
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("the last of All is %v", last)
	}
	u, err := b.Create(t.Context(), "r", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Cancel()
	if _, err := b.Expire(ctx, time.Now().Add(time.Hour)); !errors.Is(err, context.Canceled) {
		t.Errorf("Expire: %v", err)
	}
}

func TestUploadsOfAnEarlierProcessExpire(t *testing.T) {
	dir := t.TempDir()
	u, err := openDisk(t, dir).Create(t.Context(), "r", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write([]byte("12345")); err != nil {
		t.Fatal(err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	b := openDisk(t, dir)
	if freed, err := b.Expire(t.Context(), time.Now().Add(time.Hour)); freed != 5 || err != nil {
		t.Errorf("Expire: %d, %v; want 5 bytes", freed, err)
	}
	wantOnlyBlobs(t, dir)
}

func TestMissingDirectoriesAreErrors(t *testing.T) {
	dir := t.TempDir()
	b := openDisk(t, dir)
	u, err := b.Create(t.Context(), "r", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "blobs", "sha256")); err != nil {
		t.Fatal(err)
	}
	if err := u.Commit(t.Context(), digest.FromBytes(nil)); err == nil {
		t.Error("a commit to nowhere succeeded")
	}
	n := 0
	for _, err := range b.All(t.Context()) {
		if n++; err == nil {
			t.Error("nothing was listed without an error")
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "uploads")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(t.Context(), "r", digest.SHA256); err == nil {
		t.Error("an upload to nowhere was made")
	}
	if _, err := b.Expire(t.Context(), time.Now()); err == nil {
		t.Error("Expire found nothing and did not say why")
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := storage.OpenDisk(file, storage.DiskOptions{}); err == nil {
		t.Error("a file was taken for a data directory")
	}
	if _, err := storage.OpenBolt(file); err == nil {
		t.Error("a file was taken for a data directory")
	}
}

func TestPushSucceedsAfterAnyFailedCall(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) storage.Blobs{
		"memory": func(*testing.T) storage.Blobs { return new(storage.Memory) },
		"disk":   func(t *testing.T) storage.Blobs { return openDisk(t, t.TempDir()) },
	} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after the effect: %v", name, after), func(t *testing.T) {
				b, failed := open(t), 0
				for n := 1; ; n++ {
					data := fmt.Appendf(nil, "one\ntwo\n%d\n", n)
					fault := &storagetest.Fault{N: n, After: after}
					_, err := pushBlob(t.Context(), storagetest.FailBlobs{Blobs: b, Fault: fault}, data)
					if err == nil && !fault.Fired() {
						break
					}
					if failed++; err == nil && n != 6 { // the sixth is Close, which is nothing by then
						t.Errorf("call %d failed and nobody noticed", n)
					}
					if _, serr := b.Stat(t.Context(), digest.FromBytes(data)); serr == nil && err != nil && !(after && n == 5) {
						t.Errorf("call %d failed, and the blob is there", n)
					}
					if _, err := pushBlob(t.Context(), b, data); err != nil {
						t.Errorf("after a failed call %d: %v", n, err)
					}
					if _, err := b.Stat(t.Context(), digest.FromBytes(data)); err != nil {
						t.Errorf("after a failed call %d: %v", n, err)
					}
				}
				if failed != 6 { // Create, three Writes, Commit, Close
					t.Errorf("%d calls failed", failed)
				}
			})
		}
	}
}

func TestEveryCallOfBlobsCanBeMadeToFail(t *testing.T) {
	d := digest.FromString("x")
	inner := new(storage.Memory)
	if _, err := pushBlob(t.Context(), inner, []byte("x")); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	calls := map[string]func(b storage.Blobs) error{
		"Stat":   func(b storage.Blobs) error { _, err := b.Stat(t.Context(), d); return err },
		"Open":   func(b storage.Blobs) error { _, err := b.Open(t.Context(), d); return err },
		"Create": func(b storage.Blobs) error { _, err := b.Create(t.Context(), "r", digest.SHA256); return err },
		"Resume": func(b storage.Blobs) error {
			u, err := b.Create(t.Context(), "r", digest.SHA256)
			if err == nil {
				_, err = b.Resume(t.Context(), "r", u.ID(), -1)
			}
			return err
		},
		"Cancel": func(b storage.Blobs) error {
			u, err := b.Create(t.Context(), "r", digest.SHA256)
			if err == nil {
				err = u.Cancel()
			}
			return err
		},
		"Expire": func(b storage.Blobs) error { _, err := b.Expire(t.Context(), time.Unix(0, 0)); return err },
		"All": func(b storage.Blobs) (last error) {
			for _, err := range b.All(t.Context()) {
				last = err
			}
			return last
		},
		"Delete": func(b storage.Blobs) error { return b.Delete(t.Context(), d) },
	}
	for method, call := range calls {
		for _, after := range []bool{false, true} {
			b := storagetest.FailBlobs{Blobs: inner, Fault: &storagetest.Fault{Method: method, N: 2, After: after, Err: boom}}
			if method == "Delete" {
				b.Fault.N = 1
			} else if err := call(b); err != nil {
				t.Errorf("%s, the first call: %v", method, err)
			}
			if err := call(b); !errors.Is(err, boom) {
				t.Errorf("%s: %v, want the fault", method, err)
			}
			if _, err := inner.Stat(t.Context(), d); (err != nil) != (method == "Delete" && after) {
				t.Errorf("%s, after %v: the blob: %v", method, after, err)
			}
			if _, err := pushBlob(t.Context(), inner, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
}
