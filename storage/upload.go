package storage

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "crypto/sha512" // go-digest computes with what is linked in
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// diskUpload is what is kept of an upload in memory, so that nothing is read a second time. After a restart it
// is made anew from the file.
type diskUpload struct {
	mu     sync.Mutex // guards all below; held across the writer's I/O
	path   string
	writer *diskWriter // the one whose turn it is
	file   *os.File    // open while there is a writer
	hash   hash.Hash   // of the bytes so far; nil if they are from before a restart
	alg    digest.Algorithm
	size   int64
	gone   bool
	due    int64 // the size at which to look for room again
	behind int64 // the size up to which the kernel was asked to write back
}

const (
	// lookEvery is how much an upload writes between two looks at the room that is left.
	lookEvery = 16 << 20
	// writeBackEvery is how much of an upload the kernel is asked at a time to begin to write: enough for a disk to
	// be busy, and little enough that the closing fsync finds most of the work done.
	writeBackEvery = 8 << 20
	// worthTwo is from where on it pays to hash and to write at the same time; starting a goroutine costs 1 µs, and
	// hashing this much 20.
	worthTwo = 32 << 10
)

type diskWriter struct {
	disk *Disk
	u    *diskUpload
	id   string
}

// Create implements Blobs.
func (k *Disk) Create(_ context.Context, repo string, alg digest.Algorithm) (Upload, error) {
	if !Supported(alg) {
		return nil, fmt.Errorf("upload: %w: algorithm %.30q", ErrDigest, alg)
	}
	if most := k.options.MaxUploads; most > 0 && k.Uploads() >= most {
		return nil, fmt.Errorf("upload: %w: %d uploads are open, as many as may be", ErrBusy, most)
	}
	if err := k.room(); err != nil {
		return nil, err
	}
	id := newUploadID()
	u := &diskUpload{path: k.uploadPath(repo, id), alg: alg, hash: alg.Hash(), due: lookEvery}
	f, err := os.OpenFile(u.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fileError("upload", err)
	}
	u.file, u.writer = f, &diskWriter{k, u, id}
	k.mu.Lock()
	k.uploads[u.path] = u
	k.mu.Unlock()
	return u.writer, nil
}

// uploadPath binds an upload to its repo: with another one's name it is not found. The id has been checked.
func (k *Disk) uploadPath(repo, id string) string {
	sum := sha256.Sum256([]byte(repo))
	return filepath.Join(k.dir, "uploads", id+"-"+hex.EncodeToString(sum[:8]))
}

// Resume implements Blobs.
func (k *Disk) Resume(_ context.Context, repo, id string, offset int64) (Upload, error) {
	if !validUploadID(id) {
		return nil, fmt.Errorf("upload %.40q: %w", id, ErrNotFound)
	}
	u, err := k.upload(k.uploadPath(repo, id))
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.gone {
		return nil, fmt.Errorf("upload %s: %w", id, ErrNotFound)
	}
	if offset >= 0 && offset != u.size {
		return nil, fmt.Errorf("upload %s: %w: it has %d bytes, not %d", id, ErrOffset, u.size, offset)
	}
	if u.file == nil {
		if u.file, err = os.OpenFile(u.path, os.O_RDWR|os.O_APPEND, 0o600); err != nil {
			return nil, fileError("upload", err)
		}
	}
	u.writer = &diskWriter{k, u, id}
	return u.writer, nil
}

// upload finds an upload, also one from before a restart.
func (k *Disk) upload(path string) (*diskUpload, error) {
	k.mu.Lock()
	u := k.uploads[path]
	k.mu.Unlock()
	if u != nil {
		return u, nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fileError("upload", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if u = k.uploads[path]; u == nil {
		u = &diskUpload{path: path, size: fi.Size()}
		k.uploads[path] = u
	}
	return u, nil
}

// Expire implements Blobs.
func (k *Disk) Expire(ctx context.Context, before time.Time) (freed int64, err error) {
	entries, err := os.ReadDir(filepath.Join(k.dir, "uploads"))
	if err != nil {
		return 0, fileError("uploads", err)
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return freed, context.Cause(ctx)
		}
		if fi, err := e.Info(); err != nil || !fi.ModTime().Before(before) {
			continue // ended meanwhile, or in use
		}
		if u, err := k.upload(filepath.Join(k.dir, "uploads", e.Name())); err == nil {
			freed += k.expire(u, before)
		}
	}
	return freed, nil
}

// expire drops an upload that is idle still: its writer may have been at work until the lock was free.
func (k *Disk) expire(u *diskUpload, before time.Time) (freed int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fi, err := os.Stat(u.path)
	if u.gone || err != nil || !fi.ModTime().Before(before) {
		return 0
	}
	_ = k.drop(u) // what cannot be removed now is tried again next time
	return fi.Size()
}

// drop removes an upload and its bytes; the caller has u.mu.
func (k *Disk) drop(u *diskUpload) error {
	err := errors.Join(u.end(), os.Remove(u.path))
	u.gone = true
	k.mu.Lock()
	delete(k.uploads, u.path)
	k.mu.Unlock()
	return err
}

// end ends the writer's turn; the caller has mu.
func (u *diskUpload) end() error {
	u.writer = nil
	f := u.file
	u.file = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

// turn locks the upload for its writer. Errors: ErrClosed when another writer has taken over.
func (w *diskWriter) turn() error {
	w.u.mu.Lock()
	if w.u.writer != w {
		w.u.mu.Unlock()
		return fmt.Errorf("upload %s: %w", w.id, ErrClosed)
	}
	return nil
}

func (w *diskWriter) Write(p []byte) (int, error) {
	if err := w.turn(); err != nil {
		return 0, err
	}
	defer w.u.mu.Unlock()
	if w.u.size+int64(len(p)) > w.u.due {
		if err := w.disk.room(); err != nil {
			return 0, err
		}
		w.u.due = w.u.size + int64(len(p)) + lookEvery
	}
	n, err := w.u.write(p)
	return n, fileError("upload", err)
}

// write appends to the file and to the hash, at the same time, since both take about as long.
func (u *diskUpload) write(p []byte) (n int, err error) {
	if u.hash == nil && u.size == 0 { // an upload from before a restart that was empty then
		u.alg, u.hash = digest.SHA256, sha256.New()
	}
	switch {
	case u.hash == nil:
		n, err = u.file.Write(p)
	case len(p) < worthTwo:
		n, err = u.file.Write(p)
		u.hash.Write(p[:n])
	default:
		hashed := make(chan struct{})
		go func() {
			u.hash.Write(p)
			close(hashed)
		}()
		n, err = u.file.Write(p)
		if <-hashed; n < len(p) { // the hash is ahead of the file: Commit reads it again
			u.hash = nil
		}
	}
	u.size += int64(n)
	if fresh := u.size - u.behind; fresh >= writeBackEvery {
		writeBack(u.file, u.behind, fresh)
		u.behind = u.size
	}
	return n, err
}

func (w *diskWriter) ID() string { return w.id }

func (w *diskWriter) Size() int64 {
	w.u.mu.Lock()
	defer w.u.mu.Unlock()
	return w.u.size
}

func (w *diskWriter) Commit(_ context.Context, d digest.Digest) error {
	if err := w.turn(); err != nil {
		return err
	}
	defer w.u.mu.Unlock()
	path, err := w.disk.path(d)
	if err == nil {
		err = w.u.verify(d)
	}
	if err == nil {
		err = w.u.publish(path, w.disk.syncs[d.Algorithm()])
	}
	if err != nil {
		_ = w.disk.drop(w.u) // the error that matters is the first
		return err
	}
	w.u.gone = true
	w.disk.mu.Lock()
	delete(w.disk.uploads, w.u.path)
	w.disk.mu.Unlock()
	return w.u.end()
}

// verify compares the content with the promised digest; it reads the file only if it has not been hashed
// with this algorithm on the way in.
func (u *diskUpload) verify(d digest.Digest) error {
	h := u.hash
	if h == nil || u.alg != d.Algorithm() {
		h = d.Algorithm().Hash()
		if _, err := u.file.Seek(0, io.SeekStart); err != nil {
			return fileError("upload", err)
		}
		if _, err := io.CopyBuffer(h, struct{ io.Reader }{u.file}, make([]byte, 256<<10)); err != nil {
			return fileError("upload", err)
		}
	}
	if got := digest.NewDigest(d.Algorithm(), h); got != d {
		return fmt.Errorf("upload: %w: content is %s, not %s", ErrDigest, got, d)
	}
	return nil
}

// publish makes the upload's file the blob at path, durably; dir is the directory of that.
func (u *diskUpload) publish(path string, dir *syncer) error {
	if err := u.file.Sync(); err != nil {
		return fileError("blob", err)
	}
	if err := os.Rename(u.path, path); err != nil {
		return fileError("blob", err)
	}
	return fileError("blob", dir.Sync())
}

func (w *diskWriter) Cancel() error {
	if err := w.turn(); err != nil {
		return err
	}
	defer w.u.mu.Unlock()
	return w.disk.drop(w.u)
}

func (w *diskWriter) Close() error {
	w.u.mu.Lock()
	defer w.u.mu.Unlock()
	if w.u.writer != w {
		return nil
	}
	return w.u.end()
}

// newUploadID makes a random UUID (RFC 9562, version 4), which the distribution spec asks for.
func newUploadID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// validUploadID tells whether id has the form that newUploadID makes, so that it is safe in a path.
func validUploadID(id string) bool {
	if len(id) != 36 {
		return false
	}
	for i, c := range []byte(id) {
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (c == '-') || !dash && nibble(c) > 15 {
			return false
		}
	}
	return true
}
