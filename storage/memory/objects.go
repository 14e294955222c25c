package memory

import (
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// Service is what several [Objects] share, as processes share a service for objects. Make one with [NewService].
type Service struct {
	uploads *Blobs

	mu       sync.Mutex // guards all below
	objects  map[string]blob
	identity string
	copies   map[string][]byte // of the facts
}

// NewService returns a service without objects.
func NewService() *Service { return &Service{uploads: NewBlobs(), objects: map[string]blob{}} }

// Len returns the number of objects.
func (s *Service) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.objects)
}

// Has reports whether the object of a place exists and has the bytes of d.
func (s *Service) Has(place string, d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	object, ok := s.objects[place]
	return ok && d.Algorithm().FromBytes(object.data) == d
}

// Objects is a [storage.Placed] engine: one process's access to a Service.
type Objects struct {
	*Service
	Records storage.Records
}

var (
	_ storage.Placed     = (*Objects)(nil)
	_ storage.Identified = (*Objects)(nil)
)

// Stat implements [storage.Blobs].
func (o *Objects) Stat(ctx context.Context, d digest.Digest) (storage.BlobInfo, error) {
	b, err := o.find(ctx, d)
	info := b.info
	info.Digest = d
	return info, err
}

func (o *Objects) find(ctx context.Context, d digest.Digest) (blob, error) {
	place, err := o.Records.Place(ctx, d)
	if err != nil {
		return blob{}, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	b, ok := o.objects[place]
	if !ok {
		return blob{}, fmt.Errorf("object %s: %w", place, storage.ErrNotFound)
	}
	return b, nil
}

// Open implements [storage.Blobs].
func (o *Objects) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	b, err := o.find(ctx, d)
	if err != nil {
		return nil, err
	}
	return b.open(), nil
}

// Room implements [storage.Blobs].
func (o *Objects) Room(context.Context) error { return nil }

// Create implements [storage.Blobs].
func (o *Objects) Create(ctx context.Context, repo string, alg digest.Algorithm) (storage.Upload, error) {
	return o.upload(o.uploads.Create(ctx, repo, alg))
}

// CreateAs implements [storage.Blobs].
func (o *Objects) CreateAs(ctx context.Context, repo, id string, alg digest.Algorithm) (storage.Upload, error) {
	return o.upload(o.uploads.CreateAs(ctx, repo, id, alg))
}

// Resume implements [storage.Blobs].
func (o *Objects) Resume(ctx context.Context, repo, id string, offset int64) (storage.Upload, error) {
	return o.upload(o.uploads.Resume(ctx, repo, id, offset))
}

func (o *Objects) upload(u storage.Upload, err error) (storage.Upload, error) {
	if err != nil {
		return nil, err
	}
	return &objectWriter{writer: u.(*writer), objects: o, place: o.Records.NewPlace()}, nil
}

// Expire implements [storage.Blobs].
func (o *Objects) Expire(ctx context.Context, before time.Time) (int64, error) {
	return o.uploads.Expire(ctx, before)
}

// Delete implements [storage.Blobs].
func (o *Objects) Delete(ctx context.Context, d digest.Digest) error {
	place, err := o.Records.Place(ctx, d)
	if err != nil {
		return err
	}
	return o.Remove(ctx, place)
}

// All implements [storage.Blobs]. It lists nothing: the digest of an object is not known here.
func (o *Objects) All(context.Context) iter.Seq2[storage.BlobInfo, error] {
	return func(func(storage.BlobInfo, error) bool) {}
}

// Remove implements [storage.Placed].
func (o *Objects) Remove(_ context.Context, places ...string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, place := range places {
		delete(o.objects, place)
	}
	return nil
}

// Objects implements [storage.Placed].
func (o *Objects) Objects(context.Context) iter.Seq2[storage.Object, error] {
	o.mu.Lock()
	all := maps.Clone(o.objects)
	o.mu.Unlock()
	return func(yield func(storage.Object, error) bool) {
		for place, b := range all {
			if !yield(storage.Object{Place: place, Size: b.info.Size, ModTime: b.info.ModTime}, nil) {
				return
			}
		}
	}
}

// Identity implements [storage.Identified].
func (s *Service) Identity(context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity, nil
}

// SetIdentity implements [storage.Identified].
func (s *Service) SetIdentity(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.identity = id
	return nil
}

// objectWriter is an upload that becomes an object.
type objectWriter struct {
	*writer
	objects *Objects
	place   string
}

// Commit implements [storage.Upload].
func (w *objectWriter) Commit(_ context.Context, d digest.Digest) error {
	return w.commit(d, func(b blob) {
		w.objects.mu.Lock()
		defer w.objects.mu.Unlock()
		w.objects.objects[w.place] = b
	})
}

// Place implements [storage.PlacedUpload].
func (w *objectWriter) Place() string { return w.place }

// Discard implements [storage.PlacedUpload].
func (w *objectWriter) Discard(ctx context.Context) error { return w.objects.Remove(ctx, w.place) }
