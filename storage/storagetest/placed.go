package storagetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// Placed tests an engine that keeps bytes in objects with names of their own: with the suite of Blobs, once with a
// new engine for each opening, and once with two engines that take turns, as two processes would. place makes an
// empty place and returns a function that opens the engine there, with Records that all of that place share.
func Placed(t *testing.T, place func(t *testing.T) (open func(storage.Records) storage.Placed)) {
	t.Run("one engine", func(t *testing.T) {
		Blobs(t, func(t *testing.T) func() storage.Blobs {
			records, open := NewRecords(), place(t)
			return func() storage.Blobs { return PlacedBlobs{open(records), records} }
		})
	})
	t.Run("two engines", func(t *testing.T) {
		Blobs(t, func(t *testing.T) func() storage.Blobs {
			records, open, n := NewRecords(), place(t), 0
			both := [2]PlacedBlobs{{open(records), records}, {open(records), records}}
			return func() storage.Blobs {
				n++
				return both[n%2]
			}
		})
	})
}

// PlacedBlobs does for a Placed engine what the Index does: a Commit records which object has the bytes, and Delete
// removes record and object.
type PlacedBlobs struct {
	storage.Placed
	Records *Records
}

// Create implements [storage.Blobs].
func (b PlacedBlobs) Create(ctx context.Context, repo string, alg digest.Algorithm) (storage.Upload, error) {
	return b.upload(b.Placed.Create(ctx, repo, alg))
}

// CreateAs implements [storage.Blobs].
func (b PlacedBlobs) CreateAs(ctx context.Context, repo, id string, alg digest.Algorithm) (storage.Upload, error) {
	return b.upload(b.Placed.CreateAs(ctx, repo, id, alg))
}

// Resume implements [storage.Blobs].
func (b PlacedBlobs) Resume(ctx context.Context, repo, id string, offset int64) (storage.Upload, error) {
	return b.upload(b.Placed.Resume(ctx, repo, id, offset))
}

func (b PlacedBlobs) upload(u storage.Upload, err error) (storage.Upload, error) {
	if err != nil {
		return nil, err
	}
	return placedUpload{u.(storage.PlacedUpload), b.Records}, nil
}

// Delete implements [storage.Blobs].
func (b PlacedBlobs) Delete(ctx context.Context, d digest.Digest) error {
	if _, err := storage.ParseDigest(string(d)); err != nil {
		return err
	}
	place, err := b.Records.Unname(d)
	if err != nil {
		return err
	}
	return b.Remove(ctx, place)
}

type placedUpload struct {
	storage.PlacedUpload
	records *Records
}

func (u placedUpload) Commit(ctx context.Context, d digest.Digest) error {
	err := u.PlacedUpload.Commit(ctx, d)
	if err == nil {
		// The object of an earlier push stays: it may be read, and what no record names is swept.
		u.records.Name(d, u.Place())
	}
	return err
}

// Records are Records in memory. It is safe for concurrent use.
type Records struct {
	mu       sync.Mutex // guards all below
	places   map[digest.Digest]string
	sessions map[[2]string][]byte
	change   func(old, value []byte) (before bool, err error)
}

// NewRecords returns empty Records.
func NewRecords() *Records {
	return &Records{places: map[digest.Digest]string{}, sessions: map[[2]string][]byte{}}
}

// Fail makes f decide about each SetSession from now on: an error is returned, before the change or after it. nil: none
// fails.
func (r *Records) Fail(f func(old, value []byte) (before bool, err error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.change = f
}

// Name records which object has the bytes of d.
func (r *Records) Name(d digest.Digest, place string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.places[d] = place
}

// Unname deletes the record of an object, and returns its place. Error: ErrNotFound.
func (r *Records) Unname(d digest.Digest) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	place, ok := r.places[d]
	if !ok {
		return "", fmt.Errorf("blob %s: %w", d, storage.ErrNotFound)
	}
	delete(r.places, d)
	return place, nil
}

// Place implements [storage.Records].
func (r *Records) Place(_ context.Context, d digest.Digest) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	place, ok := r.places[d]
	if !ok {
		return "", storage.ErrNotFound
	}
	return place, nil
}

// Places implements [storage.Records].
func (r *Records) Places() iter.Seq2[digest.Digest, string] {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.All(maps.Clone(r.places))
}

// NewPlace implements [storage.Records].
func (r *Records) NewPlace() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // it never fails
	return fmt.Sprintf("%08x/%x", 1, random)
}

// Session implements [storage.Records].
func (r *Records) Session(_ context.Context, repo, id string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	value, ok := r.sessions[[2]string{repo, id}]
	if !ok {
		return nil, storage.ErrNotFound
	}
	return slices.Clone(value), nil
}

// SetSession implements [storage.Records].
func (r *Records) SetSession(_ context.Context, repo, id string, old, value []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, failed := false, error(nil)
	if r.change != nil {
		before, failed = r.change(old, value)
	}
	if failed != nil && before {
		return failed
	}
	k := [2]string{repo, id}
	now, ok := r.sessions[k]
	switch {
	case ok != (old != nil) || !bytes.Equal(now, old):
		return storage.ErrConflict
	case value == nil:
		delete(r.sessions, k)
	default:
		r.sessions[k] = slices.Clone(value)
	}
	return failed
}

// Sessions implements [storage.Records].
func (r *Records) Sessions() iter.Seq[storage.SessionRecord] {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []storage.SessionRecord
	for k, value := range r.sessions {
		all = append(all, storage.SessionRecord{Repo: k[0], ID: k[1], Value: slices.Clone(value)})
	}
	return slices.Values(all)
}
