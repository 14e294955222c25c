package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/internal/local"
	"trow/storage/memory"
)

func openIn(t *testing.T, dir string, o Options) *Blobs {
	t.Helper()
	b, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func begin(t *testing.T, b *Blobs, repo string, content []byte) *writer {
	t.Helper()
	u, err := b.Create(t.Context(), repo, digest.SHA256)
	if err == nil {
		_, err = u.Write(content)
	}
	if err != nil {
		t.Fatal(err)
	}
	return u.(*writer)
}

// TestTheRoomIsThatOfTheFileSystem, and what is free may be used up to the reserve.
func TestTheRoomIsThatOfTheFileSystem(t *testing.T) {
	b := openIn(t, t.TempDir(), Options{Reserve: func(size int64) int64 { return size / 4 }})
	got, err := b.Space()
	if err != nil {
		t.Fatal(err)
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(b.dir, &fs); err != nil {
		t.Fatal(err)
	}
	free := int64(fs.Bavail) * int64(fs.Bsize) // others use the file system meanwhile
	if size := int64(fs.Blocks) * int64(fs.Bsize); got.Size != size || got.Reserve != size/4 || got.Free > 2*free ||
		got.Free < free/2 {
		t.Errorf("%+v, want %d bytes, of which %d are free", got, size, free)
	}
	for s, full := range map[storage.Space]bool{{Free: 9, Reserve: 10}: true, {Free: 10, Reserve: 10}: false,
		{}: false} {
		if s.Full() != full {
			t.Errorf("%+v is full: %v", s, s.Full())
		}
	}
}

// TestUploadsAreRefusedBelowTheReserve: at their beginning, and after each checkEvery bytes.
func TestUploadsAreRefusedBelowTheReserve(t *testing.T) {
	var full atomic.Bool
	b := openIn(t, t.TempDir(), Options{Reserve: func(size int64) int64 {
		if full.Load() {
			return 2 * size
		}
		return 0
	}})
	u := begin(t, b, "r", nil)
	full.Store(true)
	if _, err := b.Create(t.Context(), "r", digest.SHA256); !errors.Is(err, storage.ErrFull) {
		t.Errorf("an upload without room: %v", err)
	}
	if err := b.Room(t.Context()); !errors.Is(err, storage.ErrFull) {
		t.Errorf("Room: %v", err)
	}
	piece := make([]byte, checkEvery)
	for range 2 {
		if n, err := u.Write(piece); err != nil || n != len(piece) {
			t.Fatalf("up to the next look: %d, %v", n, err)
		}
		if n, err := u.Write([]byte("x")); !errors.Is(err, storage.ErrFull) || n != 0 {
			t.Errorf("after it: %d, %v", n, err)
		}
		full.Store(false)
		if _, err := u.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		full.Store(true)
	}
	if err := u.Cancel(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestAShortWrite: what the disk has taken counts, and the upload goes on behind it; its content is that of the file.
func TestAShortWrite(t *testing.T) {
	const most = 100 << 10
	uploads := storage.NewUploads()
	x, err := storage.OpenIndex(t.Context(), memory.NewJournal(), storage.IndexOptions{Uploads: uploads})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	x.SetQuotas([]storage.Quota{{Name: "all", Match: func(string) bool { return true }, Bytes: 1 << 30}})
	b := openIn(t, t.TempDir(), Options{Uploads: uploads})
	content := bytes.Repeat([]byte("0123456789"), 12_000) // the rest is short, so that it is hashed after it is written
	u := begin(t, b, "r", nil)
	// A limit of the process stands for a full disk.
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: most, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	n, err := u.Write(content)
	if rerr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); rerr != nil {
		t.Fatal(rerr)
	}
	if n != most || err == nil || u.Size() != most || x.Quotas()[0].Open != most {
		t.Errorf("written %d, %v; size %d, counted %d", n, err, u.Size(), x.Quotas()[0].Open)
	}
	if _, err := u.Write(content[n:]); err != nil {
		t.Error(err)
	}
	if err := u.Commit(t.Context(), digest.FromBytes(content)); err != nil {
		t.Error(err)
	}
}

// TestTheNameOfAnUploadTellsItsRepo, as far as a file's name has room.
func TestTheNameOfAnUploadTellsItsRepo(t *testing.T) {
	b := openIn(t, t.TempDir(), Options{})
	id := local.NewUploadID()
	for _, repo := range []string{"a", "team/app", strings.Repeat("a", maxRepoInPath-1),
		strings.Repeat("a", maxRepoInPath)} {
		name := filepath.Base(b.uploadPath(repo, id))
		if got := repoOf(name); got != repo || len(name) != uploadName+1+len(repo) {
			t.Errorf("the name %s is of %q, want %q", name, got, repo)
		}
	}
	long := strings.Repeat("a", maxRepoInPath+1)
	for _, name := range []string{filepath.Base(b.uploadPath(long, id)), filepath.Base(b.oldUploadPath("a", id))} {
		if got := repoOf(name); got != "" || len(name) != uploadName {
			t.Errorf("the name %s is of %q", name, got)
		}
	}
	for _, repo := range []string{long[1:], long} { // also the longest one is a name that the file system takes
		u, err := b.CreateAs(t.Context(), repo, local.NewUploadID(), digest.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Cancel(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestExpireLooksAtEachUpload, and drops none that was written to since it was listed, or has ended.
func TestExpireLooksAtEachUpload(t *testing.T) {
	b := openIn(t, t.TempDir(), Options{})
	var all []*writer
	for range 5 {
		u := begin(t, b, "r", []byte("12345"))
		if err := u.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, u)
	}
	paths, err := filepath.Glob(filepath.Join(b.dir, "uploads", "*")) // in the order in which Expire sees them
	if err != nil || len(paths) != len(all) {
		t.Fatal(paths, err)
	}
	old, limit := time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
	for _, path := range paths[1:] { // the first one is in use
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if freed, err := b.Expire(t.Context(), limit); freed != 20 || err != nil || b.Uploads() != 1 {
		t.Errorf("freed %d, %v; %d uploads are left", freed, err, b.Uploads())
	}
	u := b.uploads[paths[0]]
	if freed := b.expire(u, limit); freed != 0 || u.ended {
		t.Errorf("an upload in use was dropped: %d", freed)
	}
	if err := os.Chtimes(u.path, old, old); err != nil {
		t.Fatal(err)
	}
	u.ended = true // and another one has its name
	if freed := b.expire(u, limit); freed != 0 {
		t.Errorf("an upload that has ended was dropped: %d", freed)
	}
	u.ended = false
	if err := os.Remove(u.path); err != nil {
		t.Fatal(err)
	}
	if freed := b.expire(u, limit); freed != 0 || u.ended {
		t.Errorf("an upload without a file was dropped: %d", freed)
	}
}

// TestABlobThatCannotGetItsNameIsNotAcknowledged.
func TestABlobThatCannotGetItsNameIsNotAcknowledged(t *testing.T) {
	b := openIn(t, t.TempDir(), Options{})
	d := digest.FromString("content")
	path, err := b.path(d)
	if err == nil {
		err = os.MkdirAll(filepath.Join(path, "in the way"), 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := begin(t, b, "r", []byte("content")).Commit(t.Context(), d); err == nil {
		t.Error("a commit succeeded although the rename failed")
	}
}

// TestAListingShowsEachBlob, whatever else is in the directory.
func TestAListingShowsEachBlob(t *testing.T) {
	b := openIn(t, t.TempDir(), Options{})
	want := map[digest.Digest]bool{}
	for i := range 20 {
		content := fmt.Appendf(nil, "content %d", i)
		d := digest.FromBytes(content)
		if i%2 == 1 {
			d = digest.SHA512.FromBytes(content)
		}
		if err := begin(t, b, "r", content).Commit(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		want[d] = true
		for _, alg := range algorithms { // what is not a blob, in between
			name := filepath.Join(b.dir, "blobs", string(alg), fmt.Sprintf("%02x", i*13))
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for info, err := range b.All(t.Context()) {
		if err != nil || !want[info.Digest] {
			t.Errorf("%v, %v", info, err)
		}
		delete(want, info.Digest)
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
}

// TestNoByteIsReadAgain: bytes are hashed as they come in, also of an upload that was empty at a restart, and the
// kernel is asked to write them out piece by piece.
func TestNoByteIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	b := openIn(t, dir, Options{})
	id := local.NewUploadID()
	created, err := b.CreateAs(t.Context(), "r", id, digest.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := created.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if u := created.(*writer).u; u.alg != digest.SHA512 || u.hash == nil || u.hash.Size() != digest.SHA512.Size() {
		t.Errorf("what is created for %s is hashed as %s", digest.SHA512, u.alg)
	}
	if err := created.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	empty, err := b.CreateAs(t.Context(), "r", id, digest.SHA256)
	if err == nil {
		err = empty.Close(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	resumed, err := openIn(t, dir, Options{}).Resume(t.Context(), "r", id, 0)
	if err != nil {
		t.Fatal(err)
	}
	u := resumed.(*writer).u
	for i, piece := range []struct{ length, writtenOut int64 }{{writeOutEvery - 1, 0}, {1, writeOutEvery},
		{writeOutEvery - 1, writeOutEvery}, {1, 2 * writeOutEvery}} {
		if _, err := resumed.Write(make([]byte, piece.length)); err != nil {
			t.Fatal(err)
		}
		if u.hash == nil || u.writtenOut != piece.writtenOut {
			t.Errorf("piece %d: hashed %v, written out up to %d, want %d", i, u.hash != nil, u.writtenOut,
				piece.writtenOut)
		}
	}
	if err := resumed.Commit(t.Context(), digest.FromBytes(make([]byte, 2*writeOutEvery))); err != nil {
		t.Error(err)
	}
}
