package disk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/internal/local"
)

// upload is what is kept of an upload in memory, so that no byte has to be read again. After a restart it is made anew
// from the file.
type upload struct {
	mu         sync.Mutex // guards all below; held across the I/O of the writer
	path       string     // fixed
	kept       bool       // fixed: it counts for MaxUploads
	claimed    bool       // a client has continued it since the start
	open       *storage.OpenUpload
	writer     *writer   // the current one; nil: no writer
	file       *os.File  // open while there is a writer
	hash       hash.Hash // of the bytes so far; nil if they are from before a restart
	alg        digest.Algorithm
	size       int64
	ended      bool  // committed or dropped
	nextCheck  int64 // the size at which to check the room on the disk again
	writtenOut int64 // the size up to which the kernel was asked to write to the disk
}

const (
	// checkEvery is how much an upload writes between two checks of the room on the disk.
	checkEvery = 16 << 20
	// writeOutEvery is how much of an upload the kernel is asked at once to write to the disk: enough to keep a disk
	// busy, and little enough that the closing fsync finds most of the work done.
	writeOutEvery = 8 << 20
	// parallelFrom is the length of a write from which on it pays to hash and to write at the same time: starting a
	// goroutine costs 1 µs, and hashing this much 20.
	parallelFrom = 32 << 10
)

type writer struct {
	blobs *Blobs
	u     *upload
	id    string
	free  bool // no quota bounds it
}

// Create implements [storage.Blobs].
func (b *Blobs) Create(ctx context.Context, repo string, alg digest.Algorithm) (storage.Upload, error) {
	return b.create(ctx, repo, local.NewUploadID(), alg, false)
}

// CreateAs implements [storage.Blobs].
func (b *Blobs) CreateAs(ctx context.Context, repo, id string, alg digest.Algorithm) (storage.Upload, error) {
	if !local.ValidUploadID(id) {
		return nil, fmt.Errorf("upload %.40q: %w", id, storage.ErrNotFound)
	}
	for {
		u, err := b.create(ctx, repo, id, alg, true)
		if !errors.Is(err, storage.ErrBusy) || !b.dropUnclaimed() {
			return u, err
		}
	}
}

// dropUnclaimed drops the oldest of the uploads from before the restart that no client has continued since. It reports
// whether there was one.
func (b *Blobs) dropUnclaimed() bool {
	for {
		b.mu.Lock()
		if len(b.unclaimed) == 0 {
			b.mu.Unlock()
			return false
		}
		u := b.unclaimed[0]
		b.unclaimed = b.unclaimed[1:]
		b.mu.Unlock()
		if b.dropIfUnclaimed(u) {
			return true
		}
	}
}

func (b *Blobs) dropIfUnclaimed(u *upload) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended || u.claimed {
		return false
	}
	_ = b.drop(u) // if the file cannot be removed now, the next Expire tries again
	return true
}

// create starts an upload; kept reports whether it counts for MaxUploads.
func (b *Blobs) create(ctx context.Context, repo, id string, alg digest.Algorithm, kept bool) (storage.Upload, error) {
	if !storage.Supported(alg) {
		return nil, fmt.Errorf("upload: %w: algorithm %.30q", storage.ErrDigest, alg)
	}
	if err := b.checkRoom(); err != nil {
		return nil, err
	}
	u := &upload{path: b.uploadPath(repo, id), kept: kept, alg: alg, hash: alg.Hash(), nextCheck: checkEvery}
	// The lock comes first, so that a Resume that finds the upload waits for its file.
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := b.add(u); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(u.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		b.end(u)
		return nil, fileError("upload", err)
	}
	u.open = b.options.Uploads.Begin(repo, 0)
	u.file, u.writer = f, &writer{b, u, id, storage.IsUnbounded(ctx)}
	return u.writer, nil
}

// add lists an upload. It looks at the bound and takes the place under one lock, so that calls at the same time cannot
// exceed the bound together.
func (b *Blobs) add(u *upload) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.uploads[u.path] != nil {
		return fmt.Errorf("upload: %w: there is one of this ID", storage.ErrConflict)
	}
	if limit := b.options.MaxUploads; u.kept && limit > 0 && b.kept >= limit {
		return fmt.Errorf("upload: %w: %d uploads are open, which is the limit", storage.ErrBusy, limit)
	}
	b.uploads[u.path] = u
	if u.kept {
		b.kept++
	}
	return nil
}

// uploadPath binds an upload to its repo: under another repo's name it is not found. The caller has checked the ID. The
// path ends with the repo, unless that is too long, so that after a restart the upload counts for the quotas of the
// repo. Earlier versions had no such end.
func (b *Blobs) uploadPath(repo, id string) string {
	path := b.oldUploadPath(repo, id)
	if len(repo) > maxRepoInPath {
		return path
	}
	return path + "-" + strings.ReplaceAll(repo, "/", "+")
}

func (b *Blobs) oldUploadPath(repo, id string) string {
	sum := sha256.Sum256([]byte(repo))
	return filepath.Join(b.dir, "uploads", id+"-"+hex.EncodeToString(sum[:8]))
}

const (
	// uploadName is the length of the name of an upload without the repo.
	uploadName = 36 + 1 + 16
	// maxRepoInPath is what is left of the longest name of a file (NAME_MAX).
	maxRepoInPath = 255 - uploadName - 1
)

// repoOf returns the repo of an upload by the name of its file; empty if it is not known. No repo has a +.
func repoOf(name string) string {
	if len(name) <= uploadName+1 {
		return ""
	}
	return strings.ReplaceAll(name[uploadName+1:], "+", "/")
}

// Resume implements [storage.Blobs].
func (b *Blobs) Resume(ctx context.Context, repo, id string, offset int64) (storage.Upload, error) {
	if err := b.writable(); err != nil {
		return nil, err
	}
	if !local.ValidUploadID(id) {
		return nil, fmt.Errorf("upload %.40q: %w", id, storage.ErrNotFound)
	}
	u, err := b.upload(b.uploadPath(repo, id))
	if errors.Is(err, storage.ErrNotFound) { // it may be from an earlier version
		u, err = b.upload(b.oldUploadPath(repo, id))
	}
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		return nil, fmt.Errorf("upload %s: %w", id, storage.ErrNotFound)
	}
	if offset >= 0 && offset != u.size {
		return nil, fmt.Errorf("upload %s: %w: it has %d bytes, not %d", id, storage.ErrOffset, u.size, offset)
	}
	if u.file == nil {
		if u.file, err = os.OpenFile(u.path, os.O_RDWR|os.O_APPEND, 0o600); err != nil {
			return nil, fileError("upload", err)
		}
	}
	u.claimed = true
	u.open = u.open.In(repo)
	u.writer = &writer{b, u, id, storage.IsUnbounded(ctx)} // an earlier writer has ended
	return u.writer, nil
}

// upload returns an upload, also one from before a restart.
func (b *Blobs) upload(path string) (*upload, error) {
	b.mu.Lock()
	u := b.uploads[path]
	b.mu.Unlock()
	if u != nil {
		return u, nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fileError("upload", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	// Another call may have been faster; there must be one upload for one file.
	if u = b.uploads[path]; u == nil {
		u = &upload{path: path, size: fi.Size(), kept: true,
			open: b.options.Uploads.Begin(repoOf(filepath.Base(path)), fi.Size())}
		b.uploads[path] = u
		b.kept++
	}
	return u, nil
}

// Expire implements [storage.Blobs].
func (b *Blobs) Expire(ctx context.Context, before time.Time) (freed int64, err error) {
	if err := b.writable(); err != nil {
		return 0, err
	}
	entries, err := os.ReadDir(filepath.Join(b.dir, "uploads"))
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
		if u, err := b.upload(filepath.Join(b.dir, "uploads", e.Name())); err == nil {
			freed += b.expire(u, before)
		}
	}
	return freed, nil
}

// expire drops an upload if it is idle still.
func (b *Blobs) expire(u *upload, before time.Time) (freed int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	// Asked again under the lock: a writer may have been at work while we waited for it.
	fi, err := os.Stat(u.path)
	if u.ended || err != nil || !fi.ModTime().Before(before) {
		return 0
	}
	_ = b.drop(u) // if the file cannot be removed now, the next Expire tries again
	return fi.Size()
}

// drop removes an upload and its bytes; the caller holds u.mu.
func (b *Blobs) drop(u *upload) error {
	err := errors.Join(u.endWriter(), os.Remove(u.path))
	b.end(u)
	return err
}

// end records that an upload has no file of its own any more; the caller holds u.mu.
func (b *Blobs) end(u *upload) {
	u.ended = true
	u.open.End()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.uploads[u.path] != u {
		return // it has ended before
	}
	delete(b.uploads, u.path)
	if u.kept {
		b.kept--
	}
}

// endWriter ends the current writer and closes its file; the caller holds mu.
func (u *upload) endWriter() error {
	u.writer = nil
	f := u.file
	u.file = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

// lock locks the upload for its writer. It returns ErrClosed, without the lock, if another writer has taken over.
func (w *writer) lock() error {
	w.u.mu.Lock()
	if w.u.writer != w {
		w.u.mu.Unlock()
		return fmt.Errorf("upload %s: %w", w.id, storage.ErrClosed)
	}
	return nil
}

// Write implements [storage.Upload].
func (w *writer) Write(p []byte) (int, error) {
	if err := w.lock(); err != nil {
		return 0, err
	}
	defer w.u.mu.Unlock()
	if w.u.size+int64(len(p)) > w.u.nextCheck {
		if err := w.blobs.checkRoom(); err != nil {
			return 0, err
		}
		w.u.nextCheck = w.u.size + int64(len(p)) + checkEvery
	}
	if err := w.u.open.Grow(int64(len(p)), !w.free); err != nil {
		return 0, err
	}
	n, err := w.u.write(p)
	w.u.open.Shrink(int64(len(p) - n))
	return n, fileError("upload", err)
}

// write appends to the file and to the hash.
func (u *upload) write(p []byte) (n int, err error) {
	if u.hash == nil && u.size == 0 { // from before a restart, and empty: nothing has to be read again
		u.alg, u.hash = digest.SHA256, sha256.New()
	}
	switch {
	case u.hash == nil:
		n, err = u.file.Write(p)
	case len(p) < parallelFrom:
		n, err = u.file.Write(p)
		u.hash.Write(p[:n])
	default: // at the same time: both take about as long
		hashed := make(chan struct{})
		go func() {
			u.hash.Write(p)
			close(hashed)
		}()
		n, err = u.file.Write(p)
		if <-hashed; n < len(p) {
			u.hash = nil // it is ahead of the file now; Commit reads the file instead
		}
	}
	u.size += int64(n)
	if unwritten := u.size - u.writtenOut; unwritten >= writeOutEvery {
		startWriteOut(u.file, u.writtenOut, unwritten)
		u.writtenOut = u.size
	}
	return n, err
}

// ID implements [storage.Upload].
func (w *writer) ID() string { return w.id }

// Size implements [storage.Upload].
func (w *writer) Size() int64 {
	w.u.mu.Lock()
	defer w.u.mu.Unlock()
	return w.u.size
}

// Commit implements [storage.Upload].
func (w *writer) Commit(_ context.Context, d digest.Digest) error {
	if err := w.lock(); err != nil {
		return err
	}
	defer w.u.mu.Unlock()
	path, err := w.blobs.path(d)
	if err == nil {
		err = w.u.verify(d)
	}
	if err == nil {
		err = w.u.publish(path, w.blobs.syncs[d.Algorithm()])
	}
	if err != nil {
		_ = w.blobs.drop(w.u) // the first error is the one that matters
		return err
	}
	w.u.open.Commit(d)
	w.blobs.end(w.u)
	return w.u.endWriter()
}

// verify compares the content with the expected digest. It reads the file only if its bytes were not hashed with this
// algorithm when they came in.
func (u *upload) verify(d digest.Digest) error {
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
		return fmt.Errorf("upload: %w: content is %s, not %s", storage.ErrDigest, got, d)
	}
	return nil
}

// publish makes the upload's file the blob at path, durably; dir is path's directory.
func (u *upload) publish(path string, dir *groupSync) error {
	// The order makes the invariants: the bytes are durable before the blob's name points to them, and the name is
	// durable before we return. The rename replaces a damaged file at once.
	if err := u.file.Sync(); err != nil {
		return fileError("blob", err)
	}
	if err := os.Rename(u.path, path); err != nil {
		return fileError("blob", err)
	}
	return fileError("blob", dir.Sync())
}

// Cancel implements [storage.Upload].
func (w *writer) Cancel(context.Context) error {
	if err := w.lock(); err != nil {
		return err
	}
	defer w.u.mu.Unlock()
	return w.blobs.drop(w.u)
}

// Close implements [storage.Upload].
func (w *writer) Close(context.Context) error {
	w.u.mu.Lock()
	defer w.u.mu.Unlock()
	if w.u.writer != w {
		return nil
	}
	return w.u.endWriter()
}
