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
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// Disk keeps blobs as files of a directory on a local disk: blobs/<algorithm>/<hex>, as in an OCI image
// layout, and uploads/<id>-<repo's hash> for those in the making. Both are on one file system, so that a rename
// makes a blob of an upload. Open it with [OpenDisk].
type Disk struct {
	dir     string
	options DiskOptions

	mu      sync.Mutex // guards uploads; never held across I/O
	uploads map[string]*diskUpload
}

// DiskOptions bound what a Disk takes in. The zero value bounds nothing.
type DiskOptions struct {
	// Reserve says how many bytes of a file system of size bytes are to stay free: uploads that would go below
	// are refused with ErrFull. So deletions, tags and the journal have room to go on.
	Reserve func(size int64) int64
	// MaxUploads bounds the uploads that are open at once, also those that nobody writes to; Create then fails with
	// ErrBusy. 0: no bound.
	MaxUploads int
}

// Space is the room on a file system, in bytes.
type Space struct {
	Size, Free int64 // Free is what an unprivileged user may still write
	Reserve    int64 // what is to stay free
}

// Full tells whether uploads are refused.
func (s Space) Full() bool { return s.Free < s.Reserve }

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
}

// lookEvery is how much an upload writes between two looks at the room that is left.
const lookEvery = 16 << 20

type diskWriter struct {
	disk *Disk
	u    *diskUpload
	id   string
}

// OpenDisk opens the blobs in dir, making the directories if there are none.
func OpenDisk(dir string, o DiskOptions) (*Disk, error) {
	d := &Disk{dir: dir, options: o, uploads: map[string]*diskUpload{}}
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	for _, sub := range []string{"blobs", "blobs/sha256", "blobs/sha512", "uploads"} {
		path := filepath.Join(dir, sub)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, fmt.Errorf("data directory: %w", err)
		}
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, fmt.Errorf("data directory: %w", err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "uploads"))
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	for _, e := range entries { // of before a restart: they count, and can be resumed
		if fi, err := e.Info(); err == nil {
			path := filepath.Join(dir, "uploads", e.Name())
			d.uploads[path] = &diskUpload{path: path, size: fi.Size()}
		}
	}
	return d, nil
}

// Space tells how much room there is.
func (k *Disk) Space() (Space, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(k.dir, &fs); err != nil {
		return Space{}, fmt.Errorf("data directory: %w", err)
	}
	s := Space{Size: int64(fs.Blocks) * fs.Bsize, Free: int64(fs.Bavail) * fs.Bsize}
	if k.options.Reserve != nil {
		s.Reserve = k.options.Reserve(s.Size)
	}
	return s, nil
}

// room fails with ErrFull when uploads are to be refused.
func (k *Disk) room() error {
	s, err := k.Space()
	if err == nil && s.Full() {
		return fmt.Errorf("upload: %w: %d MiB are free, and %d MiB are to stay free", ErrFull, s.Free>>20, s.Reserve>>20)
	}
	return err
}

// Uploads counts the open ones.
func (k *Disk) Uploads() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.uploads)
}

// path returns where the blob is. Only a well-formed digest gets one, so no name leads out of the directory.
func (k *Disk) path(d digest.Digest) (string, error) {
	if _, err := ParseDigest(string(d)); err != nil {
		return "", err
	}
	return filepath.Join(k.dir, "blobs", d.Algorithm().String(), d.Encoded()), nil
}

// Stat implements Blobs.
func (k *Disk) Stat(_ context.Context, d digest.Digest) (BlobInfo, error) {
	path, err := k.path(d)
	if err != nil {
		return BlobInfo{}, err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return BlobInfo{}, fileError("blob", err)
	}
	return BlobInfo{Digest: d, Size: fi.Size(), ModTime: fi.ModTime()}, nil
}

// Open implements Blobs.
func (k *Disk) Open(_ context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	path, err := k.path(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError("blob", err)
	}
	return f, nil
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

// Delete implements Blobs. It does not wait for the disk: what a power cut brings back belongs to nothing, and is collected
// again.
func (k *Disk) Delete(_ context.Context, d digest.Digest) error {
	path, err := k.path(d)
	if err != nil {
		return err
	}
	return fileError("blob", os.Remove(path))
}

// All implements Blobs.
func (k *Disk) All(ctx context.Context) iter.Seq2[BlobInfo, error] {
	return func(yield func(BlobInfo, error) bool) {
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			if !k.list(ctx, alg, yield) {
				return
			}
		}
	}
}

// list yields the blobs of one algorithm, page by page, so that a million of them do not fill the memory.
func (k *Disk) list(ctx context.Context, alg digest.Algorithm, yield func(BlobInfo, error) bool) (more bool) {
	const page = 1024
	dir, err := os.Open(filepath.Join(k.dir, "blobs", alg.String()))
	if err != nil {
		return yield(BlobInfo{}, fileError("blobs", err))
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(page)
		for _, e := range entries {
			d, derr := ParseDigest(alg.String() + ":" + e.Name())
			fi, ierr := e.Info()
			if derr != nil || ierr != nil {
				continue // not a blob, or gone meanwhile
			}
			if !yield(BlobInfo{Digest: d, Size: fi.Size(), ModTime: fi.ModTime()}, nil) {
				return false
			}
		}
		if err == io.EOF {
			return true
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return yield(BlobInfo{}, fileError("blobs", err)) && false
		}
	}
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
	n, err := w.u.file.Write(p)
	if w.u.hash == nil && w.u.size == 0 { // an upload from before a restart that was empty then
		w.u.alg, w.u.hash = digest.SHA256, sha256.New()
	}
	if w.u.hash != nil {
		w.u.hash.Write(p[:n])
	}
	w.u.size += int64(n)
	return n, fileError("upload", err)
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
		err = w.u.publish(path)
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

// publish makes the upload's file the blob at path, durably.
func (u *diskUpload) publish(path string) error {
	if err := u.file.Sync(); err != nil {
		return fileError("blob", err)
	}
	if err := os.Rename(u.path, path); err != nil {
		return fileError("blob", err)
	}
	return fileError("blob", syncDir(filepath.Dir(path)))
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

// syncDir makes what happened to a directory's entries durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// fileError gives a file system's error the meaning it has here.
func fileError(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	return fmt.Errorf("%s: %w", what, full(err))
}

// full marks an error that says that there is no space left.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}
