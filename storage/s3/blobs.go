// Package s3 keeps blobs as objects of an S3-compatible service, for any number of processes at once.
//
// # Words
//
//   - place: the name of an object, used once: see [storage.Placed]. Its key is PREFIX/objects/PLACE.
//   - session: an upload that continues in later requests. Its record is in the Journal; see record.
//   - part: what is uploaded at once of a multipart upload, from 5 MiB on.
//   - tail: the bytes of a session that are too few for a part.
//   - epoch: the number of a session's writer.
//
// # Invariants
//
//  1. An object is complete when it appears: it is made by one PutObject, or by a CompleteMultipartUpload. No object of
//     a place is copied or overwritten with other bytes; only the identity is replaced.
//  2. The parts that an object is made of are those that the record of its session names, or that its only writer has
//     uploaded. Parts of two epochs have different numbers.
//  3. Only the writer whose commit is in the record completes a session.
//  4. No request relies on conditions that the service would have to check (If-Match, If-None-Match).
//  5. Bytes of parts in memory are bounded by [Options].Memory and 64 KiB for each upload.
//
// # Why
//
// minio-go and not the AWS SDK: measured with the same calls, the program is 3 MB smaller with it, and the requests
// that are made here are the same for any service; see README.md.
//
// # What it does not do
//
// It keeps no bytes in memory for readers: the registry has a cache. It does not delete what no fact names: that is for
// the Index, which knows the facts. It does not verify what it reads: [storage.Scrubber] does.
package s3

import (
	"context"
	_ "crypto/sha512" // go-digest computes the algorithms that are linked in
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// Blobs is the engine. Open it with [Open]. It implements [storage.Placed].
type Blobs struct {
	options Options
	client  *client
	sizes   sizes
	memory  *memory

	news    atomic.Bool  // records of sessions have changed since they were counted
	recount atomic.Int64 // when they were counted because of that, Unix ns

	counting sync.Mutex // held by count; taken before mu

	mu       sync.Mutex          // guards all below; never held across I/O
	writers  map[session]*writer // open in this process
	counted  map[session]counted // of sessions that are not open in this process
	creating int                 // calls of CreateAs that have no record yet
	swept    time.Time           // when multipart uploads were listed last
}

// session identifies an upload.
type session struct{ repo, id string }

// Open opens the blobs in a bucket. Unless ReadOnly is set it tries what the engine needs; an error names what the
// service does not do.
func Open(ctx context.Context, o Options) (*Blobs, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("S3: %w", err)
	}
	if o.Records == nil {
		return nil, errors.New("S3: there are no Records: which object has which digest is a fact")
	}
	if o.Warn == nil {
		o.Warn = func(error) {}
	}
	core, err := o.dial()
	if err != nil {
		return nil, fmt.Errorf("S3: %w", err)
	}
	c := &client{core: core, bucket: o.Bucket, prefix: o.Prefix, endpoint: core.EndpointURL().Host,
		encrypted: o.encryption(), patience: o.Timeout}
	if c.prefix != "" {
		c.prefix += "/"
	}
	c.circuit.warn = func(requests int, last error) {
		o.Warn(fmt.Errorf("%s, so requests fail at once until one succeeds; the last one: %w",
			failedInARow(requests), c.error("request", last)))
	}
	b := &Blobs{options: o, client: c, memory: newMemory(o.Memory, o.PartSize),
		sizes:   sizes{least: o.minPart, first: o.PartSize, largest: o.Memory / 2},
		writers: map[session]*writer{}, counted: map[session]counted{}}
	if !o.ReadOnly {
		if err := c.probe(ctx, o.Warn); err != nil {
			return nil, err
		}
	}
	if r, ok := o.Records.(interface{ NotifySessions(func()) }); ok {
		r.NotifySessions(func() { b.news.Store(true) })
	}
	o.Uploads.CountWith(b.count)
	b.count()
	return b, nil
}

// place returns the object of a blob.
func (b *Blobs) place(ctx context.Context, d digest.Digest) (string, error) {
	if _, err := storage.ParseDigest(string(d)); err != nil {
		return "", err
	}
	place, err := b.options.Records.Place(ctx, d)
	if err != nil {
		return "", fmt.Errorf("blob %s: %w", d, err)
	}
	return place, nil
}

// Stat implements [storage.Blobs].
func (b *Blobs) Stat(ctx context.Context, d digest.Digest) (storage.BlobInfo, error) {
	place, err := b.place(ctx, d)
	if err != nil {
		return storage.BlobInfo{}, err
	}
	info, err := b.client.head(ctx, b.client.key(place))
	if err != nil {
		return storage.BlobInfo{}, fmt.Errorf("blob %s: %w", d, err)
	}
	return storage.BlobInfo{Digest: d, Size: info.Size, ModTime: info.LastModified}, nil
}

// Open implements [storage.Blobs]. It makes the first request, so that an object that is not there, or a service that
// does not answer, is an error here, where a server can still say so to its client.
func (b *Blobs) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	place, err := b.place(ctx, d)
	if err != nil {
		return nil, err
	}
	r := newReader(ctx, b.client, b.client.key(place))
	if err := r.open(); err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	return r, nil
}

// Redirect implements [storage.Redirector]. It makes no request to the service: the URL is signed here. Temporary
// credentials may have to be fetched first, and the URL ends with them.
func (b *Blobs) Redirect(ctx context.Context, d digest.Digest, ttl time.Duration) (string, error) {
	place, err := b.place(ctx, d)
	if err != nil {
		return "", err
	}
	u, err := b.client.core.PresignedGetObject(ctx, b.client.bucket, b.client.key(place), ttl, nil)
	if err != nil {
		return "", b.client.error("sign a URL", err)
	}
	return u.String(), nil
}

// Room implements [storage.Blobs]. It makes no request: what the service has room for is not to be known beforehand.
func (b *Blobs) Room(context.Context) error {
	if b.options.ReadOnly {
		return fmt.Errorf("blobs: %w", storage.ErrReadOnly)
	}
	return nil
}

// Remove implements [storage.Placed].
func (b *Blobs) Remove(ctx context.Context, places ...string) error {
	if err := b.Room(ctx); err != nil || len(places) == 0 {
		return err
	}
	keys := make([]string, len(places))
	for i, place := range places {
		keys[i] = b.client.key(place)
	}
	return b.client.remove(ctx, keys)
}

// Objects implements [storage.Placed].
func (b *Blobs) Objects(ctx context.Context) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		prefix, stopped := b.client.key(""), false
		err := b.client.list(ctx, prefix, func(info minio.ObjectInfo) bool {
			place := strings.TrimPrefix(info.Key, prefix)
			if strings.HasSuffix(place, "/") { // a folder that a console has made
				return true
			}
			stopped = !yield(storage.Object{Place: place, Size: info.Size, ModTime: info.LastModified}, nil)
			return !stopped
		})
		if err != nil && !stopped {
			yield(storage.Object{}, err)
		}
	}
}

// Delete implements [storage.Blobs]: which object a digest has is a fact, and Remove deletes objects.
func (b *Blobs) Delete(_ context.Context, d digest.Digest) error {
	if _, err := storage.ParseDigest(string(d)); err != nil {
		return err
	}
	return fmt.Errorf("blob %s: %w: objects are removed by their place", d, errors.ErrUnsupported)
}

// All implements [storage.Blobs]. It lists the objects that the Records name: of others nothing is known but their
// length, see Objects. It holds all names in memory meanwhile, some 300 bytes for each blob.
func (b *Blobs) All(ctx context.Context) iter.Seq2[storage.BlobInfo, error] {
	return func(yield func(storage.BlobInfo, error) bool) {
		named := map[string][]digest.Digest{}
		for d, place := range b.options.Records.Places() {
			named[place] = append(named[place], d)
		}
		for o, err := range b.Objects(ctx) {
			if err != nil {
				yield(storage.BlobInfo{}, err)
				return
			}
			for _, d := range named[o.Place] {
				if !yield(storage.BlobInfo{Digest: d, Size: o.Size, ModTime: o.ModTime}, nil) {
					return
				}
			}
		}
	}
}
