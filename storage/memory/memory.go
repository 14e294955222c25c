// Package memory has engines that keep everything in memory, for tests.
//
// # Words
//
// As in package storage.
//
// # Invariants
//
// [Blobs] and [Journal] pass the same suites as the engines on disk, so a test over memory says what the others would
// do.
//
// # What it does not do
//
// Nothing survives the process.
package memory

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/internal/local"
)

// Blobs keeps blobs in memory. Make one with [NewBlobs].
type Blobs struct {
	Uploads *storage.Uploads // counts the uploads for quotas; set it before the first one. nil: they do not count

	mu      sync.Mutex // guards all below
	blobs   map[digest.Digest]blob
	uploads map[string]*upload
}

type blob struct {
	data []byte
	info storage.BlobInfo
}

// open returns the bytes as [storage.Blobs] does.
func (b blob) open() io.ReadSeekCloser {
	return struct {
		io.ReadSeeker
		io.Closer
	}{bytes.NewReader(b.data), io.NopCloser(nil)}
}

// upload is the state of one upload; its writers change.
type upload struct {
	repo   string
	data   []byte
	used   time.Time
	writer *writer // the current one; the others have ended
	open   *storage.OpenUpload
}

type writer struct {
	b  *Blobs
	id string
	u  *upload

	free bool // no quota bounds it
}

// NewBlobs returns an empty engine for bytes.
func NewBlobs() *Blobs {
	return &Blobs{blobs: map[digest.Digest]blob{}, uploads: map[string]*upload{}}
}

func (b *Blobs) blob(d digest.Digest) (blob, error) {
	if _, err := storage.ParseDigest(string(d)); err != nil {
		return blob{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	found, ok := b.blobs[d]
	if !ok {
		return blob{}, fmt.Errorf("blob %s: %w", d, storage.ErrNotFound)
	}
	return found, nil
}

// Stat implements [storage.Blobs].
func (b *Blobs) Stat(_ context.Context, d digest.Digest) (storage.BlobInfo, error) {
	found, err := b.blob(d)
	return found.info, err
}

// Open implements [storage.Blobs].
func (b *Blobs) Open(_ context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	found, err := b.blob(d)
	if err != nil {
		return nil, err
	}
	return found.open(), nil
}

// Room implements [storage.Blobs].
func (b *Blobs) Room(context.Context) error { return nil }

// Create implements [storage.Blobs].
func (b *Blobs) Create(ctx context.Context, repo string, alg digest.Algorithm) (storage.Upload, error) {
	return b.CreateAs(ctx, repo, local.NewUploadID(), alg)
}

// CreateAs implements [storage.Blobs].
func (b *Blobs) CreateAs(ctx context.Context, repo, id string, alg digest.Algorithm) (storage.Upload, error) {
	switch {
	case !local.ValidUploadID(id):
		return nil, fmt.Errorf("upload %.40q: %w", id, storage.ErrNotFound)
	case !storage.Supported(alg):
		return nil, fmt.Errorf("upload: %w: algorithm %.30q", storage.ErrDigest, alg)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if old := b.uploads[id]; old != nil && old.repo == repo {
		return nil, fmt.Errorf("upload: %w: there is one of this ID", storage.ErrConflict)
	}
	u := &upload{repo: repo, used: time.Now(), open: b.Uploads.Begin(repo, 0)}
	u.writer = &writer{b, id, u, storage.IsUnbounded(ctx)}
	b.uploads[id] = u
	return u.writer, nil
}

// Resume implements [storage.Blobs].
func (b *Blobs) Resume(ctx context.Context, repo, id string, offset int64) (storage.Upload, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.uploads[id]
	if u == nil || u.repo != repo {
		return nil, fmt.Errorf("upload %.40q: %w", id, storage.ErrNotFound)
	}
	if offset >= 0 && offset != int64(len(u.data)) {
		return nil, fmt.Errorf("upload %s: %w: it has %d bytes, not %d", id, storage.ErrOffset, len(u.data), offset)
	}
	u.writer = &writer{b, id, u, storage.IsUnbounded(ctx)} // the earlier writer has ended
	return u.writer, nil
}

// Expire implements [storage.Blobs].
func (b *Blobs) Expire(_ context.Context, before time.Time) (freed int64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.uploads, func(_ string, u *upload) bool {
		if !u.used.Before(before) {
			return false
		}
		freed += int64(len(u.data))
		u.writer = nil
		u.open.End()
		return true
	})
	return freed, nil
}

// Delete implements [storage.Blobs].
func (b *Blobs) Delete(_ context.Context, d digest.Digest) error {
	if _, err := storage.ParseDigest(string(d)); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.blobs[d]; !ok {
		return fmt.Errorf("blob %s: %w", d, storage.ErrNotFound)
	}
	delete(b.blobs, d)
	return nil
}

// All implements [storage.Blobs].
func (b *Blobs) All(context.Context) iter.Seq2[storage.BlobInfo, error] {
	b.mu.Lock()
	all := slices.Collect(maps.Values(b.blobs))
	b.mu.Unlock()
	return func(yield func(storage.BlobInfo, error) bool) {
		for _, found := range all {
			if !yield(found.info, nil) {
				return
			}
		}
	}
}

// check returns ErrClosed unless w is still the writer; the caller holds mu.
func (w *writer) check() error {
	if w.u.writer != w {
		return fmt.Errorf("upload %s: %w", w.id, storage.ErrClosed)
	}
	w.u.used = time.Now()
	return nil
}

// Write implements [storage.Upload].
func (w *writer) Write(p []byte) (int, error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if err := w.check(); err != nil {
		return 0, err
	}
	if err := w.u.open.Grow(int64(len(p)), !w.free); err != nil {
		return 0, err
	}
	w.u.data = append(w.u.data, p...)
	return len(p), nil
}

// ID implements [storage.Upload].
func (w *writer) ID() string { return w.id }

// Size implements [storage.Upload].
func (w *writer) Size() int64 {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	return int64(len(w.u.data))
}

// Commit implements [storage.Upload].
func (w *writer) Commit(_ context.Context, d digest.Digest) error {
	return w.commit(d, func(b blob) { w.b.blobs[d] = b })
}

// commit ends the upload, and calls keep, with mu held, with its bytes if they are those of d. Errors: as Commit.
func (w *writer) commit(d digest.Digest, keep func(blob)) error {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if err := w.check(); err != nil {
		return err
	}
	defer w.end() // after the bytes count as committed
	if err := w.verify(d); err != nil {
		return err
	}
	keep(blob{w.u.data, storage.BlobInfo{Digest: d, Size: int64(len(w.u.data)), ModTime: time.Now()}})
	w.u.open.Commit(d)
	return nil
}

// verify compares the bytes with a digest. The caller holds mu.
func (w *writer) verify(d digest.Digest) error {
	if _, err := storage.ParseDigest(string(d)); err != nil {
		return err
	}
	if got := d.Algorithm().FromBytes(w.u.data); got != d {
		return fmt.Errorf("upload: %w: content is %s, not %s", storage.ErrDigest, got, d)
	}
	return nil
}

// Cancel implements [storage.Upload].
func (w *writer) Cancel(context.Context) error {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if err := w.check(); err != nil {
		return err
	}
	w.end()
	return nil
}

// end removes the upload. The caller holds mu.
func (w *writer) end() {
	w.u.writer = nil
	delete(w.b.uploads, w.id)
	w.u.open.End()
}

// Close implements [storage.Upload].
func (w *writer) Close(context.Context) error {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if w.u.writer == w {
		w.u.writer = nil
	}
	return nil
}
