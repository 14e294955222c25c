package storage

import (
	"context"
	_ "crypto/sha512" // go-digest computes with what is linked in
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"
)

// Disk keeps blobs as files of a directory on a local disk: blobs/<algorithm>/<hex>, as in an OCI image
// layout, and uploads/<id>-<repo's hash> for those in the making. Both are on one file system, so that a rename
// makes a blob of an upload. Open it with [OpenDisk].
type Disk struct {
	dir     string
	options DiskOptions
	syncs   map[digest.Algorithm]*syncer // of the directories that blobs are in

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

// OpenDisk opens the blobs in dir, making the directories if there are none.
func OpenDisk(dir string, o DiskOptions) (*Disk, error) {
	d := &Disk{dir: dir, options: o, syncs: map[digest.Algorithm]*syncer{}, uploads: map[string]*diskUpload{}}
	for _, alg := range algorithms {
		d.syncs[alg] = &syncer{dir: filepath.Join(dir, "blobs", string(alg))}
	}
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
	s := Space{Size: int64(fs.Blocks) * int64(fs.Bsize), Free: int64(fs.Bavail) * int64(fs.Bsize)}
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
		for _, alg := range algorithms {
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
