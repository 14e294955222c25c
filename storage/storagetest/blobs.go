package storagetest

import (
	"bytes"
	_ "crypto/sha512" // digests of this algorithm are computed here
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// Blobs tests an engine for bytes. place makes an empty place and returns a function that opens the engine there.
func Blobs(t *testing.T, place func(t *testing.T) (open func() storage.Blobs)) {
	tests := []struct {
		name string
		test func(t *testing.T, open func() storage.Blobs)
	}{
		{"a committed blob is read back", testCommit},
		{"an upload is invisible until it is committed", testInvisible},
		{"content with another digest is refused and dropped", testWrongDigest},
		{"a malformed digest is refused everywhere", testMalformedDigest},
		{"an unsupported algorithm is refused", testAlgorithm},
		{"the digest may be of another algorithm than announced", testOtherAlgorithm},
		{"an upload continues where it ended", testResume},
		{"a wrong offset is refused and the upload is kept", testWrongOffset},
		{"an upload of another repo is not found", testOtherRepo},
		{"a malformed upload ID is not found", testMalformedID},
		{"an upload has the ID that the caller has made", testCreateAs},
		{"a new writer ends the earlier one", testTakeOver},
		{"an ended upload accepts nothing more", testEnded},
		{"a cancelled upload is gone", testCancel},
		{"an upload survives a restart", testRestart},
		{"an empty upload survives a restart", testRestartEmpty},
		{"a blob survives a restart", testRestartBlob},
		{"a blob may be pushed again", testAgain},
		{"a deleted blob is gone", testDelete},
		{"idle uploads expire and others do not", testExpire},
		{"all blobs are listed", testAll},
		{"concurrent pushes of one blob", testConcurrentSame},
		{"concurrent pushes and deletes", testConcurrentMany},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, place(t)) })
	}
}

const repo = "team/app"

// content returns n bytes that depend on seed.
func content(n, seed int) []byte {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func wantNil(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func write(t *testing.T, u storage.Upload, p []byte) {
	t.Helper()
	if n, err := u.Write(p); n != len(p) || err != nil {
		t.Fatalf("Write of %d bytes: %d, %v", len(p), n, err)
	}
}

// push uploads data under an algorithm's digest.
func push(t *testing.T, b storage.Blobs, alg digest.Algorithm, data []byte) digest.Digest {
	t.Helper()
	u := must(b.Create(t.Context(), repo, alg))(t)
	defer u.Close(t.Context())
	write(t, u, data)
	d := alg.FromBytes(data)
	wantNil(t, "Commit", u.Commit(t.Context(), d))
	return d
}

// wantBlob compares everything that an engine knows of a blob.
func wantBlob(t *testing.T, b storage.Blobs, d digest.Digest, data []byte) {
	t.Helper()
	info, err := b.Stat(t.Context(), d)
	if err != nil || info.Digest != d || info.Size != int64(len(data)) {
		t.Errorf("Stat: %+v, %v; want %s of %d bytes", info, err, d, len(data))
	}
	if age := time.Since(info.ModTime); age < -time.Minute || age > time.Hour {
		t.Errorf("Stat: committed at %v", info.ModTime)
	}
	r, err := b.Open(t.Context(), d)
	if err != nil {
		t.Errorf("Open: %v", err)
		return
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes, %v; want the %d that were pushed", len(got), err, len(data))
	}
	half := int64(len(data) / 2)
	if at, err := r.Seek(half, io.SeekStart); at != half || err != nil {
		t.Errorf("Seek: %d, %v", at, err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[half:]) {
		t.Errorf("read %d bytes from the middle, %v", len(got), err)
	}
}

func wantNoBlob(t *testing.T, b storage.Blobs, d digest.Digest) {
	t.Helper()
	_, err := b.Stat(t.Context(), d)
	wantErr(t, "Stat", err, storage.ErrNotFound)
	r, err := b.Open(t.Context(), d)
	wantErr(t, "Open", err, storage.ErrNotFound)
	if err == nil {
		r.Close()
	}
}

// list collects All.
func list(t *testing.T, b storage.Blobs) map[digest.Digest]int64 {
	t.Helper()
	all := map[digest.Digest]int64{}
	for info, err := range b.All(t.Context()) {
		if err != nil {
			t.Fatalf("All: %v", err)
		}
		if _, twice := all[info.Digest]; twice {
			t.Errorf("All lists %s twice", info.Digest)
		}
		all[info.Digest] = info.Size
	}
	return all
}

func testCommit(t *testing.T, open func() storage.Blobs) {
	b := open()
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		for _, n := range []int{0, 1, 4096, 1<<20 + 17} {
			t.Run(fmt.Sprintf("%s of %d bytes", alg, n), func(t *testing.T) {
				data := content(n, n)
				wantBlob(t, b, push(t, b, alg, data), data)
			})
		}
	}
}

func testInvisible(t *testing.T, open func() storage.Blobs) {
	b, data := open(), content(100, 1)
	u := must(b.Create(t.Context(), repo, digest.SHA256))(t)
	if u.Size() != 0 {
		t.Errorf("Size at the start: %d", u.Size())
	}
	write(t, u, data[:60])
	write(t, u, nil)
	write(t, u, data[60:])
	if u.Size() != 100 {
		t.Errorf("Size: %d, want 100", u.Size())
	}
	wantNoBlob(t, b, digest.FromBytes(data))
	if all := list(t, b); len(all) != 0 {
		t.Errorf("All lists %v", all)
	}
	wantNil(t, "Commit", u.Commit(t.Context(), digest.FromBytes(data)))
	wantBlob(t, b, digest.FromBytes(data), data)
}

func testWrongDigest(t *testing.T, open func() storage.Blobs) {
	b, data := open(), content(100, 1)
	for _, other := range []digest.Digest{digest.FromString("other"), digest.SHA512.FromString("other")} {
		u := must(b.Create(t.Context(), repo, digest.SHA256))(t)
		write(t, u, data)
		wantErr(t, "Commit", u.Commit(t.Context(), other), storage.ErrDigest)
		wantNoBlob(t, b, other)
		wantNoBlob(t, b, digest.FromBytes(data))
		_, err := b.Resume(t.Context(), repo, u.ID(), -1)
		wantErr(t, "Resume after the refusal", err, storage.ErrNotFound)
	}
}

// malformed returns digests that every engine must refuse.
func malformed() map[string]digest.Digest {
	hex := strings.Repeat("ab", 32)
	return map[string]digest.Digest{
		"empty":                "",
		"no algorithm":         digest.Digest(hex),
		"no hex":               "sha256:",
		"too short":            digest.Digest("sha256:" + hex[1:]),
		"too long":             digest.Digest("sha256:" + hex + "a"),
		"upper case hex":       digest.Digest("sha256:" + strings.ToUpper(hex)),
		"upper case algorithm": digest.Digest("SHA256:" + hex),
		"sha512's length":      digest.Digest("sha256:" + hex + hex),
		"sha256's length":      digest.Digest("sha512:" + hex),
		"another algorithm":    digest.Digest("sha384:" + strings.Repeat("ab", 48)),
		"md5":                  digest.Digest("md5:" + hex[:32]),
		"path":                 "sha256:../../../../../../../../../../../../../../../../../../etc/passwd",
		"path of right length": digest.Digest("sha256:" + strings.Repeat("../", 21) + "a"),
		"path as algorithm":    digest.Digest("../../x:" + hex),
		"slash":                digest.Digest("sha256:" + hex[:31] + "/" + hex[32:]),
		"zero byte":            digest.Digest("sha256:" + hex[:63] + "\x00"),
		"line break":           digest.Digest("sha256:" + hex[:63] + "\n"),
		"blank":                digest.Digest(" sha256:" + hex),
		"not ASCII":            digest.Digest("sha256:" + hex[:62] + "é"),
	}
}

func testMalformedDigest(t *testing.T, open func() storage.Blobs) {
	b := open()
	kept := push(t, b, digest.SHA256, []byte("kept"))
	for name, d := range malformed() {
		t.Run(name, func(t *testing.T) {
			_, err := b.Stat(t.Context(), d)
			wantErr(t, "Stat", err, storage.ErrDigest)
			_, err = b.Open(t.Context(), d)
			wantErr(t, "Open", err, storage.ErrDigest)
			wantErr(t, "Delete", b.Delete(t.Context(), d), storage.ErrDigest)
			u := must(b.Create(t.Context(), repo, digest.SHA256))(t)
			write(t, u, []byte("content"))
			wantErr(t, "Commit", u.Commit(t.Context(), d), storage.ErrDigest)
			_, err = b.Resume(t.Context(), repo, u.ID(), -1)
			wantErr(t, "Resume after the refusal", err, storage.ErrNotFound)
		})
	}
	if all := list(t, b); !maps.Equal(all, map[digest.Digest]int64{kept: 4}) {
		t.Errorf("All lists %v, want %s alone", all, kept)
	}
}

func testAlgorithm(t *testing.T, open func() storage.Blobs) {
	b := open()
	for _, alg := range []digest.Algorithm{"", "sha384", "md5", "SHA256", "../sha256", "sha256\x00"} {
		_, err := b.Create(t.Context(), repo, alg)
		wantErr(t, fmt.Sprintf("Create with %q", alg), err, storage.ErrDigest)
	}
}

func testOtherAlgorithm(t *testing.T, open func() storage.Blobs) {
	b, data := open(), content(300<<10, 5)
	other := map[digest.Algorithm]digest.Algorithm{digest.SHA256: digest.SHA512, digest.SHA512: digest.SHA256}
	for announced, used := range other {
		u := must(b.Create(t.Context(), repo, announced))(t)
		write(t, u, data)
		wantNil(t, "Commit", u.Commit(t.Context(), used.FromBytes(data)))
		wantBlob(t, b, used.FromBytes(data), data)
	}
}

func testResume(t *testing.T, open func() storage.Blobs) {
	b, data := open(), content(1000, 3)
	u := must(b.Create(t.Context(), repo, digest.SHA256))(t)
	id := u.ID()
	for at := 0; at < len(data); at += 100 {
		write(t, u, data[at:at+100])
		wantNil(t, "Close", u.Close(t.Context()))
		offset := int64(at + 100)
		if at%200 == 0 {
			offset = -1
		}
		u = must(b.Resume(t.Context(), repo, id, offset))(t)
		if u.Size() != int64(at+100) || u.ID() != id {
			t.Errorf("resumed %s of %d bytes, want %s of %d", u.ID(), u.Size(), id, at+100)
		}
	}
	wantNil(t, "Commit", u.Commit(t.Context(), digest.FromBytes(data)))
	wantBlob(t, b, digest.FromBytes(data), data)
}

func testWrongOffset(t *testing.T, open func() storage.Blobs) {
	b, data := open(), content(10, 3)
	u := must(b.Create(t.Context(), repo, digest.SHA256))(t)
	defer u.Close(t.Context())
	write(t, u, data[:6])
	for _, offset := range []int64{0, 5, 7, 1 << 62} {
		_, err := b.Resume(t.Context(), repo, u.ID(), offset)
		wantErr(t, fmt.Sprintf("Resume at %d", offset), err, storage.ErrOffset)
	}
	write(t, u, data[6:]) // the refused calls have not ended the writer
	wantNil(t, "Commit", u.Commit(t.Context(), digest.FromBytes(data)))
	wantBlob(t, b, digest.FromBytes(data), data)
}

func testOtherRepo(t *testing.T, open func() storage.Blobs) {
	b := open()
	u := must(b.Create(t.Context(), repo, digest.SHA256))(t)
	write(t, u, []byte("secret"))
	wantNil(t, "Close", u.Close(t.Context()))
	for _, other := range []string{"", "team", "team/app2", "team/app/", "Team/App", "../team/app"} {
		_, err := b.Resume(t.Context(), other, u.ID(), -1)
		wantErr(t, fmt.Sprintf("Resume in %q", other), err, storage.ErrNotFound)
	}
	again := must(b.Resume(t.Context(), repo, u.ID(), 6))(t)
	wantNil(t, "Cancel", again.Cancel(t.Context()))
}

func testMalformedID(t *testing.T, open func() storage.Blobs) {
	b := open()
	u := must(b.Create(t.Context(), repo, digest.SHA256))(t)
	defer u.Cancel(t.Context())
	id := u.ID()
	if len(id) != 36 || id[14] != '4' || strings.Count(id, "-") != 4 {
		t.Errorf("ID %q is not a UUID of version 4", id)
	}
	for _, bad := range []string{
		"", ".", "..", "x", "../uploads/" + id, id + "/", "/" + id, id[:35], id + "0", id[:35] + "/", id[:35] + "\x00",
		strings.ToUpper("abcdefab-cdef-4bcd-8fab-cdefabcdefab"), "00000000-0000-4000-8000-000000000000",
		strings.Repeat("-", 36), strings.Repeat("a", 36), strings.Repeat("../", 12), strings.Repeat("a", 1<<16),
	} {
		_, err := b.Resume(t.Context(), repo, bad, -1)
		wantErr(t, fmt.Sprintf("Resume of %.50q", bad), err, storage.ErrNotFound)
	}
}

func testCreateAs(t *testing.T, open func() storage.Blobs) {
	b, data := open(), content(20, 4)
	const id = "01234567-89ab-4def-8123-456789abcdef"
	wantNil(t, "Room", b.Room(t.Context()))
	for _, bad := range []string{"", "..", "../" + id[3:], id + "0", strings.ToUpper(id), id[:35] + "\x00"} {
		_, err := b.CreateAs(t.Context(), repo, bad, digest.SHA256)
		wantErr(t, fmt.Sprintf("CreateAs %q", bad), err, storage.ErrNotFound)
	}
	_, err := b.CreateAs(t.Context(), repo, id, "md5")
	wantErr(t, "CreateAs with md5", err, storage.ErrDigest)

	u := must(b.CreateAs(t.Context(), repo, id, digest.SHA512))(t)
	if u.ID() != id {
		t.Errorf("ID %s, want %s", u.ID(), id)
	}
	write(t, u, data[:7])
	_, err = b.CreateAs(t.Context(), repo, id, digest.SHA256)
	wantErr(t, "CreateAs of an upload that exists", err, storage.ErrConflict)
	write(t, u, data[7:11]) // it has not ended the writer
	wantNil(t, "Close", u.Close(t.Context()))
	b = open()
	_, err = b.CreateAs(t.Context(), repo, id, digest.SHA256)
	wantErr(t, "CreateAs after a restart", err, storage.ErrConflict)
	u = must(b.Resume(t.Context(), repo, id, 11))(t)
	write(t, u, data[11:])
	wantNil(t, "Commit", u.Commit(t.Context(), digest.SHA512.FromBytes(data)))
	wantBlob(t, b, digest.SHA512.FromBytes(data), data)
	u = must(b.CreateAs(t.Context(), repo, id, digest.SHA256))(t) // whether an ID may come again is up to the caller
	wantNil(t, "Cancel", u.Cancel(t.Context()))
}

func testTakeOver(t *testing.T, open func() storage.Blobs) {
	b, data := open(), content(20, 9)
	first := must(b.Create(t.Context(), repo, digest.SHA256))(t)
	write(t, first, data[:10])
	second := must(b.Resume(t.Context(), repo, first.ID(), -1))(t)
	_, err := first.Write([]byte("late"))
	wantErr(t, "Write of the first", err, storage.ErrClosed)
	wantErr(t, "Commit of the first", first.Commit(t.Context(), digest.FromBytes(data[:10])), storage.ErrClosed)
	wantErr(t, "Cancel of the first", first.Cancel(t.Context()), storage.ErrClosed)
	wantNil(t, "Close of the first", first.Close(t.Context()))
	write(t, second, data[10:]) // the Close of the first writer has not ended it
	wantNil(t, "Commit", second.Commit(t.Context(), digest.FromBytes(data)))
	wantBlob(t, b, digest.FromBytes(data), data)
}

func testEnded(t *testing.T, open func() storage.Blobs) {
	b, d := open(), digest.FromString("x")
	for name, end := range map[string]func(u storage.Upload) error{
		"Commit": func(u storage.Upload) error { return u.Commit(t.Context(), d) },
		"Cancel": func(u storage.Upload) error { return u.Cancel(t.Context()) },
		"Close":  func(u storage.Upload) error { return u.Close(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			u := must(b.Create(t.Context(), repo, digest.SHA256))(t)
			write(t, u, []byte("x"))
			wantNil(t, name, end(u))
			wantNil(t, "Close", u.Close(t.Context()))
			_, err := u.Write([]byte("y"))
			wantErr(t, "Write", err, storage.ErrClosed)
			wantErr(t, "Commit", u.Commit(t.Context(), d), storage.ErrClosed)
			wantErr(t, "Cancel", u.Cancel(t.Context()), storage.ErrClosed)
			u, err = b.Resume(t.Context(), repo, u.ID(), -1)
			if name != "Close" {
				wantErr(t, "Resume", err, storage.ErrNotFound)
				return
			}
			wantNil(t, "Resume", err)
			wantNil(t, "Cancel", u.Cancel(t.Context()))
		})
	}
	wantBlob(t, b, d, []byte("x"))
}

func testCancel(t *testing.T, open func() storage.Blobs) {
	b := open()
	u := must(b.Create(t.Context(), repo, digest.SHA256))(t)
	write(t, u, []byte("x"))
	wantNil(t, "Cancel", u.Cancel(t.Context()))
	_, err := b.Resume(t.Context(), repo, u.ID(), -1)
	wantErr(t, "Resume", err, storage.ErrNotFound)
	wantNoBlob(t, b, digest.FromString("x"))
	freed, err := b.Expire(t.Context(), time.Now().Add(time.Hour))
	if freed != 0 || err != nil {
		t.Errorf("Expire found %d bytes of it, %v", freed, err)
	}
}

func testRestart(t *testing.T, open func() storage.Blobs) {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		b, data := open(), content(700<<10, 2)
		u := must(b.Create(t.Context(), repo, alg))(t)
		write(t, u, data[:500<<10])
		wantNil(t, "Close", u.Close(t.Context()))
		b = open()
		_, err := b.Resume(t.Context(), "another", u.ID(), -1)
		wantErr(t, "Resume by another repo", err, storage.ErrNotFound)
		u = must(b.Resume(t.Context(), repo, u.ID(), 500<<10))(t)
		write(t, u, data[500<<10:])
		wantNil(t, "Commit", u.Commit(t.Context(), alg.FromBytes(data)))
		wantBlob(t, b, alg.FromBytes(data), data)
	}
}

func testRestartEmpty(t *testing.T, open func() storage.Blobs) {
	for _, data := range [][]byte{{}, content(10, 1)} {
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			u := must(open().Create(t.Context(), repo, alg))(t)
			wantNil(t, "Close", u.Close(t.Context()))
			b := open()
			u = must(b.Resume(t.Context(), repo, u.ID(), 0))(t)
			write(t, u, data)
			wantNil(t, "Commit", u.Commit(t.Context(), alg.FromBytes(data)))
			wantBlob(t, b, alg.FromBytes(data), data)
		}
	}
}

func testRestartBlob(t *testing.T, open func() storage.Blobs) {
	data := content(5000, 4)
	d := push(t, open(), digest.SHA256, data)
	wantBlob(t, open(), d, data)
}

func testAgain(t *testing.T, open func() storage.Blobs) {
	b, data := open(), content(5000, 4)
	d := push(t, b, digest.SHA256, data)
	before := must(b.Stat(t.Context(), d))(t)
	r := must(b.Open(t.Context(), d))(t)
	defer r.Close()
	push(t, b, digest.SHA256, data)
	wantBlob(t, b, d, data)
	if after := must(b.Stat(t.Context(), d))(t); after.ModTime.Before(before.ModTime) {
		t.Errorf("committed again at %v, before %v", after.ModTime, before.ModTime)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("a reader that had the blob open got %d bytes, %v", len(got), err)
	}
	if all := list(t, b); len(all) != 1 {
		t.Errorf("All lists %v", all)
	}
}

func testDelete(t *testing.T, open func() storage.Blobs) {
	b := open()
	d := push(t, b, digest.SHA256, []byte("to be deleted"))
	same := push(t, b, digest.SHA512, []byte("to be deleted"))
	wantNil(t, "Delete", b.Delete(t.Context(), d))
	wantNoBlob(t, b, d)
	wantErr(t, "Delete again", b.Delete(t.Context(), d), storage.ErrNotFound)
	wantBlob(t, b, same, []byte("to be deleted"))
	b = open()
	wantNoBlob(t, b, d)
	push(t, b, digest.SHA256, []byte("to be deleted"))
	wantBlob(t, b, d, []byte("to be deleted"))
}

func testExpire(t *testing.T, open func() storage.Blobs) {
	b := open()
	d := push(t, b, digest.SHA256, []byte("a blob is not an upload"))
	idle := must(b.Create(t.Context(), repo, digest.SHA256))(t)
	write(t, idle, content(100, 1))
	wantNil(t, "Close", idle.Close(t.Context()))
	busy := must(b.Create(t.Context(), repo, digest.SHA256))(t)
	write(t, busy, content(11, 1))

	freed, err := b.Expire(t.Context(), time.Now().Add(-time.Hour))
	if freed != 0 || err != nil {
		t.Errorf("Expire of uploads older than an hour: %d, %v; want nothing", freed, err)
	}
	wantNil(t, "Close", must(b.Resume(t.Context(), repo, idle.ID(), 100))(t).Close(t.Context()))
	write(t, busy, content(11, 2))

	freed, err = b.Expire(t.Context(), time.Now().Add(time.Hour))
	if freed != 122 || err != nil {
		t.Errorf("Expire of all: %d, %v; want 122 bytes", freed, err)
	}
	for _, u := range []storage.Upload{idle, busy} {
		_, err = b.Resume(t.Context(), repo, u.ID(), -1)
		wantErr(t, "Resume", err, storage.ErrNotFound)
	}
	_, err = busy.Write([]byte("x"))
	wantErr(t, "Write", err, storage.ErrClosed)
	wantErr(t, "Commit", busy.Commit(t.Context(), digest.FromBytes(content(11, 1))), storage.ErrClosed)
	wantNil(t, "Close", busy.Close(t.Context()))
	wantBlob(t, b, d, []byte("a blob is not an upload"))
}

func testAll(t *testing.T, open func() storage.Blobs) {
	b, want := open(), map[digest.Digest]int64{}
	for i := range 40 {
		alg := digest.SHA256
		if i%3 == 0 {
			alg = digest.SHA512
		}
		want[push(t, b, alg, content(i, i))] = int64(i)
	}
	for _, b := range []storage.Blobs{b, open()} {
		if got := list(t, b); !maps.Equal(got, want) {
			t.Errorf("All lists %d blobs, want the %d that were pushed", len(got), len(want))
		}
	}
	n := 0
	for range b.All(t.Context()) {
		if n++; n == 7 {
			break
		}
	}
	if n != 7 {
		t.Errorf("All continued to %d after the caller stopped at 7", n)
	}
}

func testConcurrentSame(t *testing.T, open func() storage.Blobs) {
	b, data := open(), content(64<<10, 6)
	d := digest.FromBytes(data)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if _, err := Push(t.Context(), b, data); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 20 {
				if got, err := Read(t.Context(), b, d); err == nil && !bytes.Equal(got, data) {
					t.Errorf("a reader saw %d bytes of %d", len(got), len(data))
				} else if err != nil && !errors.Is(err, storage.ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	wantBlob(t, b, d, data)
	if all := list(t, b); len(all) != 1 {
		t.Errorf("All lists %v", all)
	}
}

func testConcurrentMany(t *testing.T, open func() storage.Blobs) {
	b := open()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 10 {
				data := content(1000+i, g*100+i)
				if _, err := Push(t.Context(), b, data); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := b.Delete(t.Context(), digest.FromBytes(data)); err != nil {
						t.Error(err)
					}
				}
			}
		})
		wg.Go(func() {
			for _, err := range b.All(t.Context()) {
				if err != nil {
					t.Error(err)
				}
			}
			if _, err := b.Expire(t.Context(), time.Now().Add(-time.Hour)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if all := list(t, b); len(all) != 40 {
		t.Errorf("All lists %d blobs, want 40", len(all))
	}
}
