package s3

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/minio/minio-go/v7"

	"trow/storage"
	"trow/storage/internal/local"
)

// factsPrefix is followed by the name of a copy of the facts.
const factsPrefix = "facts/"

var _ storage.Keeper = (*Blobs)(nil)

func (b *Blobs) copyKey(name string) string { return b.client.prefix + factsPrefix + name }

// Copies implements [storage.Keeper].
func (b *Blobs) Copies(ctx context.Context) (all []storage.Copy, err error) {
	prefix := b.copyKey("")
	err = b.client.list(ctx, prefix, func(info minio.ObjectInfo) bool {
		if c, ok := storage.ParseCopy(strings.TrimPrefix(info.Key, prefix)); ok {
			all = append(all, c)
		}
		return true
	})
	return all, err
}

// OpenCopy implements [storage.Keeper].
func (b *Blobs) OpenCopy(ctx context.Context, name string) (io.ReadCloser, error) {
	r := newReader(ctx, b.client, b.copyKey(name))
	if err := r.open(); err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("copy %s of the facts: %w", name, err)
	}
	return r, nil
}

// OpenObject implements [storage.Keeper].
func (b *Blobs) OpenObject(ctx context.Context, place string) (io.ReadCloser, error) {
	r := newReader(ctx, b.client, b.client.key(place))
	if err := r.open(); err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("object %s: %w", place, err)
	}
	return r, nil
}

// RemoveCopies implements [storage.Keeper].
func (b *Blobs) RemoveCopies(ctx context.Context, names ...string) error {
	if err := b.Room(ctx); err != nil || len(names) == 0 {
		return err
	}
	keys := make([]string, len(names))
	for i, name := range names {
		keys[i] = b.copyKey(name)
	}
	return b.client.remove(ctx, keys)
}

// WriteCopy implements [storage.Keeper]. It holds one part in memory at a time, which counts for [Options].Memory. A
// copy of several parts appears when it is complete. Parts that a process leaves when it dies are swept as those of
// other uploads are.
func (b *Blobs) WriteCopy(ctx context.Context, name string, write func(io.Writer) error) (err error) {
	if err := b.Room(ctx); err != nil {
		return err
	}
	w := &copyWriter{b: b, ctx: ctx, key: b.copyKey(name), upload: local.NewUploadID()}
	defer func() {
		b.memory.give(w.buf)
		if err != nil && w.id != "" {
			// The first error is the one that matters, and ctx may be why.
			_ = b.client.abort(context.WithoutCancel(ctx), w.key, w.id)
		}
		if err != nil {
			err = fmt.Errorf("copy %s of the facts: %w", name, err)
		}
	}()
	if err := write(w); err != nil {
		return err
	}
	if w.id == "" {
		return b.client.put(ctx, w.key, w.upload, w.buf)
	}
	if len(w.buf) > 0 {
		if err := w.send(); err != nil {
			return err
		}
	}
	return b.client.complete(ctx, w.key, w.id, w.upload, w.parts)
}

// copyWriter sends a copy part by part.
type copyWriter struct {
	b      *Blobs
	ctx    context.Context
	key    string
	upload string // the random name in the object's metadata; see client.unlessMade
	id     string // of the multipart upload; empty while one request may do
	parts  []part
	buf    []byte
}

// Write implements [io.Writer]. It waits while there is no memory for a part.
func (w *copyWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if w.buf == nil {
			if w.buf, err = w.b.memory.take(w.ctx, w.b.sizes.of(len(w.parts)+1)); err != nil {
				return n, err
			}
		}
		c := min(len(p), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, p[:c]...)
		n, p = n+c, p[c:]
		if len(w.buf) == cap(w.buf) {
			if err := w.send(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// send sends the buffer as a part.
func (w *copyWriter) send() (err error) {
	if w.id == "" {
		if w.id, err = w.b.client.begin(w.ctx, w.key, w.upload); err != nil {
			return err
		}
	}
	p := part{number: len(w.parts) + 1, size: int64(len(w.buf))}
	if p.number > maxParts {
		return fmt.Errorf("%w: it has more than %d parts", storage.ErrTooLarge, maxParts)
	}
	if p.etag, err = w.b.client.putPart(w.ctx, w.key, w.id, p.number, w.buf); err != nil {
		return err
	}
	w.parts = append(w.parts, p)
	w.b.memory.give(w.buf)
	w.buf = nil
	return nil
}
