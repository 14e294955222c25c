package disk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/disk"
	"trow/storage/storagetest"
	"trow/storage/storagetest/enginetest"
)

func TestBlobs(t *testing.T) {
	descriptors := openFiles(t)
	t.Cleanup(func() {
		if now := openFiles(t); now > descriptors {
			t.Errorf("%d files are open, %d were before", now, descriptors)
		}
	})
	storagetest.Blobs(t, func(t *testing.T) func() storage.Blobs {
		dir := t.TempDir()
		t.Cleanup(func() { wantOnlyBlobs(t, dir) })
		return func() storage.Blobs { return open(t, dir) }
	})
}

func TestPushSucceedsAfterAnyFailedCall(t *testing.T) {
	storagetest.FailedCalls(t, func(t *testing.T) storage.Blobs { return open(t, t.TempDir()) })
}

var open, openFiles = enginetest.Disk, enginetest.OpenFiles

// wantOnlyBlobs checks that a data directory contains nothing but blobs under their names.
func wantOnlyBlobs(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		d := strings.Replace(strings.TrimPrefix(name, "blobs/"), "/", ":", 1)
		if _, err := storage.ParseDigest(d); err != nil {
			t.Errorf("%s was left behind", name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func blobFile(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func TestAPushHealsADamagedBlob(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	data := []byte("one\ntwo\nthree\n")
	d, err := storagetest.Push(t.Context(), b, data)
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
			t.Fatal("the damage had no effect")
		}
		if _, err := storagetest.Push(t.Context(), b, data); err != nil {
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

func TestOpenReturnsAFile(t *testing.T) {
	b := open(t, t.TempDir())
	d, err := storagetest.Push(t.Context(), b, []byte("x"))
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
	b := open(t, dir)
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
		u, err := b.Create(t.Context(), name, digest.SHA256) // the name of a repo is not a path either
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
		t.Errorf("outside the directory there is %v, and the file contains %q", entries, got)
	}
}

func TestOnlyBlobsAreListed(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
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
	b := open(t, t.TempDir())
	for i := range 3 {
		if _, err := storagetest.Push(t.Context(), b, []byte(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	long, err := b.Create(t.Context(), "r", digest.SHA512)
	if err == nil {
		err = long.Commit(t.Context(), digest.SHA512.FromString(""))
	}
	if err != nil {
		t.Fatal(err)
	}
	var last error
	listed := 0
	for _, err := range b.All(ctx) {
		listed++
		last = err
	}
	if !errors.Is(last, context.Canceled) || listed != 3+1 { // what was read with the first look, and the error
		t.Errorf("the last of %d in All is %v", listed, last)
	}
	u, err := b.Create(t.Context(), "r", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Cancel(t.Context())
	if _, err := b.Expire(ctx, time.Now().Add(time.Hour)); !errors.Is(err, context.Canceled) {
		t.Errorf("Expire: %v", err)
	}
}

func TestUploadsOfAnEarlierProcessExpire(t *testing.T) {
	dir := t.TempDir()
	u, err := open(t, dir).Create(t.Context(), "r", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write([]byte("12345")); err != nil {
		t.Fatal(err)
	}
	if err := u.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir)
	if freed, err := b.Expire(t.Context(), time.Now().Add(time.Hour)); freed != 5 || err != nil {
		t.Errorf("Expire: %d, %v; want 5 bytes", freed, err)
	}
	wantOnlyBlobs(t, dir)
}

func TestMissingDirectoriesAreErrors(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
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
			t.Error("an entry was listed without an error")
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "uploads")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(t.Context(), "r", digest.SHA256); err == nil {
		t.Error("an upload to nowhere was made")
	}
	if _, err := b.Expire(t.Context(), time.Now()); err == nil {
		t.Error("Expire returned no error")
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Open(file, disk.Options{}); err == nil {
		t.Error("a file was taken for a data directory")
	}
}
