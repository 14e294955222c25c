// Package disk keeps blobs as files on a local disk.
//
// # Words
//
//   - data directory: the directory given to [Open]. blobs/<algorithm>/<hex> are the blobs, as in an OCI image layout;
//     uploads/<id>-<hash of the repo>-<repo> are uploads in progress, see uploadPath. Both are on one file system, so
//     that a rename turns an upload into a blob.
//   - reserve: how much of the file system uploads must leave free.
//
// # Invariants
//
//  1. A file below blobs has the bytes that its name says, unless the disk damaged it: it gets its name only after its
//     bytes were verified and are durable.
//  2. Commit returns after the name is durable too.
//  3. No name that a client sends leads out of the directory.
//
// # What it does not do
//
// It does not lock the directory: the journal beside it does. It does not read blobs to verify them; [storage.Scrubber]
// does.
package disk

import (
	"context"
	_ "crypto/sha512" // go-digest computes the algorithms that are linked in
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/files"
	"trow/storage/internal/local"
)

// algorithms are those that storage supports. Each has a directory of blobs.
var algorithms = []digest.Algorithm{digest.SHA256, digest.SHA512}

// Blobs is the engine. Open it with [Open].
type Blobs struct {
	dir     string
	options Options
	syncs   map[digest.Algorithm]*groupSync // of the directories that blobs are in

	mu      sync.Mutex // guards what follows; never held across I/O
	uploads map[string]*upload
	kept    int // how many of uploads count for MaxUploads
	// unclaimed are the uploads from before the start, the one that was idle the longest first. Those that were
	// continued or have ended since are left in it until they are reached.
	unclaimed []*upload
}

// Options bound what uploads may use. The zero value bounds nothing.
type Options struct {
	// Reserve returns how many bytes of a file system of size bytes are to stay free: an upload that would use them is
	// refused with ErrFull. So deletions, tags and the journal have room to go on.
	Reserve func(size int64) int64
	// MaxUploads bounds the uploads that CreateAs makes and that are open at once, including those that no client
	// writes to and those from before a restart; then CreateAs fails with ErrBusy. Those from before a restart that no
	// client has continued since are dropped instead, the oldest first: their owners are not known, and most clients
	// begin again. Create is not bounded: a manifest must not wait until uploads end. 0: no bound.
	MaxUploads int
	// ReadOnly makes everything that writes fail with ErrReadOnly, and Open create nothing.
	ReadOnly bool
	// Uploads counts the uploads for quotas. nil: they do not count.
	Uploads *storage.Uploads
}

// Open opens the blobs in dir; it creates the directories if they do not exist.
func Open(dir string, o Options) (*Blobs, error) {
	b := &Blobs{dir: dir, options: o, syncs: map[digest.Algorithm]*groupSync{}, uploads: map[string]*upload{}}
	if err := b.open(); err != nil {
		return nil, fmt.Errorf("data directory: %w", local.Denied(err))
	}
	return b, nil
}

func (b *Blobs) open() error {
	if b.options.ReadOnly {
		return nil // uploads from before cannot go on, so they do not count
	}
	if err := local.MakeDir(b.dir); err != nil {
		return err
	}
	subs := []string{"blobs", "uploads"}
	for _, alg := range algorithms {
		path := filepath.Join("blobs", string(alg))
		b.syncs[alg] = &groupSync{dir: filepath.Join(b.dir, path)}
		subs = append(subs, path)
	}
	for _, sub := range subs {
		path := filepath.Join(b.dir, sub)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		// Also if it exists: an earlier process may have been killed before its fsync.
		if err := files.SyncDir(filepath.Dir(path)); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(filepath.Join(b.dir, "uploads"))
	if err != nil {
		return err
	}
	used := map[*upload]time.Time{}
	for _, e := range entries { // from before a restart: they count, and can be resumed
		if fi, err := e.Info(); err == nil {
			path := filepath.Join(b.dir, "uploads", e.Name())
			u := &upload{path: path, size: fi.Size(), kept: true,
				open: b.options.Uploads.Begin(repoOf(e.Name()), fi.Size())}
			b.uploads[path], used[u] = u, fi.ModTime()
			b.unclaimed = append(b.unclaimed, u)
			b.kept++
		}
	}
	slices.SortFunc(b.unclaimed, func(x, y *upload) int { return used[x].Compare(used[y]) })
	return nil
}

// Space returns how much room there is.
func (b *Blobs) Space() (storage.Space, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(b.dir, &fs); err != nil {
		return storage.Space{}, fmt.Errorf("data directory: %w", err)
	}
	s := storage.Space{Size: int64(fs.Blocks) * int64(fs.Bsize), Free: int64(fs.Bavail) * int64(fs.Bsize)}
	if b.options.Reserve != nil {
		s.Reserve = b.options.Reserve(s.Size)
	}
	return s, nil
}

// Room implements [storage.Blobs].
func (b *Blobs) Room(context.Context) error { return b.checkRoom() }

// writable returns ErrReadOnly if nothing may be written.
func (b *Blobs) writable() error {
	if b.options.ReadOnly {
		return fmt.Errorf("blobs: %w", storage.ErrReadOnly)
	}
	return nil
}

// Writable returns an error that names the first directory that cannot be written to any more: the file system may have
// become read-only after a disk error, or the permissions may have changed. It also creates a file and removes it,
// because access(2) may report such a file system as writable (ext4, emergency_ro). Errors: ErrReadOnly; those of the
// file system.
func (b *Blobs) Writable() error {
	if err := b.writable(); err != nil {
		return err
	}
	const wOK = 2 // W_OK of access(2), which package syscall does not have
	dirs := []string{b.dir, filepath.Join(b.dir, "uploads")}
	for _, s := range b.syncs {
		dirs = append(dirs, s.dir)
	}
	for _, dir := range dirs {
		if err := syscall.Access(dir, wOK); err != nil {
			return local.Full(&fs.PathError{Op: "write", Path: dir, Err: err})
		}
	}
	f, err := os.CreateTemp(b.dir, files.TempPrefix)
	if err != nil {
		return local.Full(err)
	}
	return local.Full(errors.Join(f.Close(), os.Remove(f.Name())))
}

// checkRoom returns ErrFull when uploads are to be refused, ErrReadOnly if they always are.
func (b *Blobs) checkRoom() error {
	if err := b.writable(); err != nil {
		return err
	}
	s, err := b.Space()
	if err == nil && s.Full() {
		return fmt.Errorf("upload: %w: %d MiB are free, and %d MiB are reserved", storage.ErrFull, s.Free>>20,
			s.Reserve>>20)
	}
	return err
}

// Uploads returns how many uploads are open.
func (b *Blobs) Uploads() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.uploads)
}

// path returns where a blob is. Only a well-formed digest has a path, so no name leads out of the directory.
func (b *Blobs) path(d digest.Digest) (string, error) {
	if _, err := storage.ParseDigest(string(d)); err != nil {
		return "", err
	}
	return filepath.Join(b.dir, "blobs", d.Algorithm().String(), d.Encoded()), nil
}

// Stat implements [storage.Blobs].
func (b *Blobs) Stat(_ context.Context, d digest.Digest) (storage.BlobInfo, error) {
	path, err := b.path(d)
	if err != nil {
		return storage.BlobInfo{}, err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return storage.BlobInfo{}, fileError("blob", err)
	}
	return storage.BlobInfo{Digest: d, Size: fi.Size(), ModTime: fi.ModTime()}, nil
}

// Open implements [storage.Blobs].
func (b *Blobs) Open(_ context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	path, err := b.path(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError("blob", err)
	}
	return f, nil
}

// Lost reports whether an error of a reader means that the disk cannot read the bytes, see [storage.Blobs]. Others,
// such as too many open files, say nothing about them.
func (b *Blobs) Lost(err error) bool { return errors.Is(err, syscall.EIO) }

// Delete implements [storage.Blobs]. It does not sync: if a power cut brings the file back, no fact names it, and the
// next collection deletes it again.
func (b *Blobs) Delete(_ context.Context, d digest.Digest) error {
	path, err := b.path(d)
	if err = errors.Join(err, b.writable()); err != nil {
		return err
	}
	return fileError("blob", os.Remove(path))
}

// All implements [storage.Blobs].
func (b *Blobs) All(ctx context.Context) iter.Seq2[storage.BlobInfo, error] {
	return func(yield func(storage.BlobInfo, error) bool) {
		for _, alg := range algorithms {
			if !b.list(ctx, alg, yield) {
				return
			}
		}
	}
}

// list yields the blobs of one algorithm, page by page, so that a million of them do not fill the memory.
func (b *Blobs) list(ctx context.Context, alg digest.Algorithm, yield func(storage.BlobInfo, error) bool) (more bool) {
	const page = 1024
	dir, err := os.Open(filepath.Join(b.dir, "blobs", alg.String()))
	if err != nil {
		return yield(storage.BlobInfo{}, fileError("blobs", err))
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(page)
		for _, e := range entries {
			d, derr := storage.ParseDigest(alg.String() + ":" + e.Name())
			fi, ierr := e.Info()
			if derr != nil || ierr != nil {
				continue // not a blob, or deleted meanwhile
			}
			if !yield(storage.BlobInfo{Digest: d, Size: fi.Size(), ModTime: fi.ModTime()}, nil) {
				return false
			}
		}
		if err == io.EOF {
			return true
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return yield(storage.BlobInfo{}, fileError("blobs", err)) && false
		}
	}
}

// fileError adds the error of package storage that an error of the file system stands for.
func fileError(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", what, storage.ErrNotFound)
	}
	return fmt.Errorf("%s: %w", what, local.Full(err))
}
