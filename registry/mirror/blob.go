package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/upstream"
	"trow/storage"
)

// BlobStore is the registry, for what is done with blobs.
type BlobStore interface {
	// Blob reports whether a repository holds a blob.
	Blob(ctx context.Context, repo string, d digest.Digest) (held bool, err error)
	// Elsewhere returns the size of a blob that other repositories hold.
	Elsewhere(ctx context.Context, d digest.Digest) (size int64, held bool, err error)
	// Described returns how many bytes a blob has by the manifests of a repository that refer to it; -1: none says it,
	// or they disagree.
	Described(ctx context.Context, repo string, d digest.Digest) int64
	// Adopt makes a repository hold a blob that others hold. It reports false if none does any more.
	Adopt(ctx context.Context, repo string, d digest.Digest) (bool, error)
	// Resume returns an upload of Create for the same upstream, of any of its repositories, that was closed with a part
	// of the blob, also before a restart. Errors: there is none.
	Resume(ctx context.Context, repo, upstream string, d digest.Digest) (storage.Upload, error)
	// Resumes reports whether closed uploads can be continued; otherwise the Fetcher keeps the bytes.
	Resumes() bool
	// Create creates the upload for a blob; Keep commits it, and makes the repository hold the blob.
	Create(ctx context.Context, repo, upstream string, d digest.Digest) (storage.Upload, error)
	Keep(ctx context.Context, repo string, d digest.Digest, u storage.Upload) error
}

// Blob returns a reader of a blob that a repository does not hold, which reads while the blob is fetched and stored. It
// is nil if the repository has no upstream, or holds the blob by now. The caller closes the reader. Errors: those of
// package upstream, of the BlobStore, of the context. Later failures are errors of the reads.
//
// The bytes may be stored, or on their way, for another repository. Then they are served only after the upstream of
// this one has answered for the digest with the same size: otherwise a client that knows a digest could read content
// that only another upstream gives.
func (m *Mirror) Blob(ctx context.Context, repo string, d digest.Digest) (Source, error) {
	b, err := m.fetch(repo, d)
	if b == nil || err != nil {
		return nil, err
	}
	// An upstream must not fill the cache, and evict what others need, with more than the image is said to have.
	b.size = m.options.Blobs.Described(ctx, repo, d)
	if held, err := b.adopt(ctx); held || err != nil {
		return nil, err
	}
	return b.join(ctx)
}

// Source reads a blob while it is fetched.
type Source interface {
	io.ReadSeekCloser
	// Size returns the number of bytes. It waits until the upstream has answered; -1 if that does not say, until all
	// was read. Errors: those of package upstream; that of the context.
	Size() (int64, error)
}

// Size returns the number of bytes of a blob that a repository does not hold, as its upstream says, and fetches
// nothing; -1 if the upstream does not say. known is false if the repository has no upstream. Errors: those of package
// upstream.
func (m *Mirror) Size(ctx context.Context, repo string, d digest.Digest) (size int64, known bool, err error) {
	b, err := m.fetch(repo, d)
	if b == nil || err != nil {
		return 0, false, err
	}
	size, err = b.up.Size(ctx, b.there, d)
	if err != nil { // a positive answer is not cached: check takes one to mean that the size was compared as well
		b.remember(b.q, err)
	}
	return size, err == nil, err
}

// fetch returns what is needed to ask for a blob; nil if the repository has no upstream. Errors: a negative answer that
// is cached; those of Find.
func (m *Mirror) fetch(repo string, d digest.Digest) (*fetch, error) {
	name, ok := m.options.Names.Upstream(repo)
	if !ok || m.options.Fetcher == nil {
		return nil, nil
	}
	up, there, err := m.options.Upstreams.Find(name.Host, name.Repo)
	if err != nil {
		return nil, err
	}
	b := &fetch{m, up, there, repo, d, -1, question{repo, "blob " + d.String()}}
	if last, ok := m.answers.Get(b.q); ok && last.err != nil && last.counts(false, 0) {
		return nil, last.err
	}
	return b, nil
}

// fetch is a blob of an upstream that a client asks for.
type fetch struct {
	*Mirror
	up          *upstream.Upstream
	there, repo string
	d           digest.Digest
	size        int64 // by the descriptor; -1: not known
	q           question
}

// open opens the blob at the upstream, and caches the answer.
func (b *fetch) open(ctx context.Context, from int64, etag string) (*upstream.Blob, error) {
	blob, err := b.up.Blob(ctx, b.there, b.d, from, etag)
	if err != nil {
		b.remember(b.q, err)
		return nil, err
	}
	b.has(blob.Size)
	return blob, nil
}

// has caches that the upstream has the blob, with this size; -1 if it does not say.
func (b *fetch) has(size int64) { b.answers.Add(b.q, answer{at: time.Now(), size: size}) }

// check makes sure that the upstream has answered for the digest with a size, that of the bytes that are to be served;
// -1: its own, which it does not say. An answer counts for as long as one for a tag. Errors: those of open; ErrDamaged
// if the upstream has something else.
func (b *fetch) check(ctx context.Context, size int64) error {
	// The size is compared each time: the answer may be that of a download that has failed because of wrong bytes.
	if last, ok := b.answers.Get(b.q); ok && last.err == nil && last.size == size && last.counts(true, b.up.Fresh) {
		return nil
	}
	blob, err := b.open(ctx, 0, "")
	if err != nil {
		return err
	}
	defer blob.Body.Close()
	same := size == blob.Size
	if blob.Size < 0 && size >= 0 {
		// It does not say how many bytes there are, so that all of them are the answer.
		v := b.d.Verifier()
		n, err := io.Copy(v, io.LimitReader(blob.Body, size+1))
		if err != nil {
			return b.failure(upstream.ErrUnavailable, "the connection failed", err)
		}
		if same = n == size && v.Verified(); same {
			b.has(size)
		}
	}
	if !same {
		// Without the sizes: with that of a blob that it does not have, an upstream could answer with it the next time.
		return b.failure(upstream.ErrDamaged, "the upstream has something else under this digest", nil)
	}
	return nil
}

// failure makes an error about the blob.
func (b *fetch) failure(kind error, reason string, cause error) error {
	return &upstream.Error{Kind: kind, Host: b.up.Host, Repo: b.there, Ref: b.d.String(), Reason: reason, Cause: cause}
}

// adopt makes the repository hold what another one holds. It reports whether the repository holds the blob.
func (b *fetch) adopt(ctx context.Context) (bool, error) {
	size, held, err := b.options.Blobs.Elsewhere(ctx, b.d)
	if err != nil || !held {
		return false, err
	}
	if err := b.check(ctx, size); err != nil {
		return false, err
	}
	return b.options.Blobs.Adopt(ctx, b.repo, b.d)
}

// join returns a reader of the download of the blob, and starts the download if there is none. If the cache has no
// room, the client gets the blob from the upstream, and nothing is stored.
func (b *fetch) join(ctx context.Context) (Source, error) {
	through := func(size int64) (Source, error) {
		t, err := b.options.Fetcher.Through(ctx, b.up, b.there, b.d, size)
		if err != nil {
			return nil, err
		}
		return t, nil
	}
	size := b.size
	r, err := b.download(ctx)
	if r != nil && err == nil {
		if size, err = r.Size(); err == nil && size <= upstream.HeldBack {
			// No byte of it can be read before all have arrived. So if that fails, the client gets the reason as the
			// answer, and not a connection that breaks.
			err = r.Wait(func(int64, int64) {})
		}
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}
	switch {
	case errors.Is(err, upstream.ErrNoRoom):
		return through(b.size)
	case r == nil || err != nil: // an untyped nil: a Source with a nil pointer would not be nil
		return nil, err
	}
	return &unbroken{Source: r, through: through, size: size}, nil
}

// download is join for a blob that can be stored; nil if the repository holds the blob by now.
func (b *fetch) download(ctx context.Context) (*upstream.Reader, error) {
	blobs, from := b.options.Blobs, b.up.Title()
	var resume func(context.Context) (storage.Upload, error)
	if blobs.Resumes() {
		resume = func(ctx context.Context) (storage.Upload, error) { return blobs.Resume(ctx, b.repo, from, b.d) }
	}
	d := upstream.Download{Digest: b.d, From: from, Size: b.size, Open: b.open, Resume: resume,
		Create: func(ctx context.Context) (storage.Upload, error) { return blobs.Create(ctx, b.repo, from, b.d) },
		Commit: func(ctx context.Context, u storage.Upload) error { return blobs.Keep(ctx, b.repo, b.d, u) },
		Held: func() bool {
			held, err := blobs.Blob(b.options.Context, b.repo, b.d)
			return err == nil && held
		}}
	for range again {
		r, err := b.options.Fetcher.Join(ctx, d)
		if errors.Is(err, upstream.ErrHeld) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		size, err := r.Size()
		if err != nil && r.Joined() && definite(err) {
			// The answer is about the repository that started the download, or about the size that its manifest says.
			// A client must not get it for this one: a request for a blob in a repository that lacks it could
			// otherwise make it unknown for all others at that moment.
			if err := r.Close(); err != nil {
				return nil, err
			}
			continue
		}
		// Once the size is known, the upstream of the download has answered. If this repository started the download,
		// check finds that answer in the cache; if another one did, check asks the upstream of this one.
		held := false
		if err == nil && size < 0 {
			// It is not known before all has arrived. Then the repository of the download holds it.
			if err = r.Wait(func(int64, int64) {}); err == nil {
				size, err = r.Size()
			}
			if err == nil {
				held, err = blobs.Blob(ctx, b.repo, b.d)
			}
		}
		if err == nil && !held {
			err = b.check(ctx, size)
		}
		if err == nil && size >= 0 && b.size >= 0 && size != b.size {
			err = b.failure(upstream.ErrDamaged,
				fmt.Sprintf("the upstream has %d bytes, and not %d", size, b.size), nil)
		}
		if err != nil || held {
			return nil, errors.Join(err, r.Close())
		}
		return r, nil
	}
	return nil, b.failure(upstream.ErrUnavailable,
		"it is asked for in repositories that do not have it at the same time", nil)
}

// definite reports whether an error is an answer about one repository, and not about the whole upstream or the cache.
func definite(err error) bool {
	for _, kind := range []error{upstream.ErrNotFound, upstream.ErrUnauthorized, upstream.ErrRefused,
		upstream.ErrTooLarge, upstream.ErrDamaged} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
