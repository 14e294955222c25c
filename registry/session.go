package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/auth"
	"trow/registry/ocierror"
	"trow/storage"
)

// session is an upload as one request holds it. Every request that has one calls end, which alone decides how it ends.
type session struct {
	storage.Upload
	index *storage.Index
	drop  bool // cancel it: no client can go on with it
	ended bool // Commit has ended it, whether it failed or not
}

// create starts an upload that ends within this request.
// free: no quota bounds it.
func (r *Registry) create(ctx context.Context, repo string, alg digest.Algorithm, free bool) (*session, error) {
	if free {
		ctx = storage.Unbounded(ctx)
	}
	u, err := r.options.Blobs.Create(ctx, repo, alg)
	if err != nil {
		return nil, err
	}
	return &session{Upload: u, index: r.options.Index}, nil
}

// commit makes the upload the blob d. The Collector leaves its bytes alone until release is called.
func (s *session) commit(ctx context.Context, d digest.Digest) (release func(), err error) {
	s.ended = true
	return s.index.Commit(ctx, s.Upload, d)
}

// endTimeout bounds how long an engine may take to end an upload.
const endTimeout = 10 * time.Second

// end ends the session: it cancels the upload if drop is set, and keeps it for the client's next request otherwise. It
// adds its own error to err.
func (s *session) end(ctx context.Context, err *error) {
	// The client may have gone already, and the upload has to end all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	switch {
	case s.ended:
	case s.drop:
		*err = errors.Join(*err, s.Cancel(ctx))
	default:
		*err = errors.Join(*err, s.Close(ctx))
	}
}

// dropIfOver drops a session that was begun and that a quota has no room for. Its bytes count, so if they stayed until
// it has been idle for long enough, one push that is too large would keep others from pushing until then.
func (s *session) dropIfOver(err error, begun bool) {
	if e := ocierror.As(err); e != nil && e.Code == ocierror.Denied {
		s.drop = begun
	}
}

// chunk is what a request brings of a blob.
type chunk struct {
	body   io.Reader
	offset int64 // where it starts; -1: where the upload ends
	length int64 // in bytes; -1: up to the end of body
	coming int64 // the length that the request announces, for quotas; 0: unknown
}

// openSession starts an upload for later requests, and returns its ID. Nothing is stored: see sessions.
func (r *Registry) openSession(ctx context.Context, c *call, alg digest.Algorithm, coming int64) (string, error) {
	if err := r.roomFor(c.who, c.repo, "", 0, coming); err != nil {
		return "", err
	}
	if err := r.options.Blobs.Room(ctx); err != nil {
		return "", err
	}
	return r.sessions.begin(c.repo, alg), nil
}

// pushBlob makes a chunk the blob d of the repo.
func (r *Registry) pushBlob(ctx context.Context, c *call, all chunk, d digest.Digest) (err error) {
	if err := r.roomFor(c.who, c.repo, d, 0, all.coming); err != nil {
		return err
	}
	s, err := r.create(ctx, c.repo, d.Algorithm(), r.unbounded(c.who, c.repo, d))
	if err != nil {
		return err
	}
	defer s.end(ctx, &err)
	s.drop = true // the client does not know the session, and cannot go on with it
	if err := receive(s, all.body, all.length); err != nil {
		return err
	}
	return r.finish(ctx, c, s, d)
}

// extend appends a chunk to the call's upload, and returns the upload's size.
func (r *Registry) extend(ctx context.Context, c *call, next chunk) (size int64, err error) {
	s, err := r.resumeAt(ctx, c, next.offset)
	if err != nil {
		return 0, err
	}
	defer s.end(ctx, &err)
	if err = r.roomFor(c.who, c.repo, "", s.Size(), next.coming); err == nil {
		err = receive(s, next.body, next.length)
	}
	size = s.Size()
	s.dropIfOver(err, size > 0)
	return size, err
}

// complete appends the last chunk, which may be empty, to the call's upload, and makes that the blob d of the repo.
func (r *Registry) complete(ctx context.Context, c *call, last chunk, d digest.Digest) (err error) {
	s, err := r.resumeAt(ctx, c, last.offset)
	if err != nil {
		return err
	}
	defer s.end(ctx, &err)
	if err := r.roomFor(c.who, c.repo, d, s.Size(), last.coming); err != nil {
		s.dropIfOver(err, s.Size() > 0)
		return err
	}
	s.endsHere(last.coming)
	if err := receive(s, last.body, last.length); err != nil {
		s.dropIfOver(err, true) // nothing that the client could append would make this fit
		return err
	}
	return r.finish(ctx, c, s, d)
}

// finish makes a session, which has all its bytes, the blob d of the repo.
func (r *Registry) finish(ctx context.Context, c *call, s *session, d digest.Digest) error {
	size := s.Size()
	s.drop = true // nothing that the client could append would make these bytes fit
	if err := r.roomFor(c.who, c.repo, d, size, 0); err != nil {
		return err
	}
	release, err := s.commit(ctx, d)
	if err != nil {
		return uploadError(s.ID(), d, err)
	}
	defer release()
	return r.link(ctx, c, d, size)
}

// link records that the repo holds the blob d, of size bytes, which the caller has pinned or just committed.
func (r *Registry) link(ctx context.Context, c *call, d digest.Digest, size int64) error {
	// The client will refer to the blob later. The lease comes before the link: from its first moment on the Collector
	// must leave the link alone.
	if err := r.options.Index.Lease(ctx, c.repo, d); err != nil {
		return err
	}
	return r.options.Index.Update(ctx, c.repo, func(tx *storage.Tx) error {
		if err := withinQuota(tx, c.who, d, size); err != nil {
			return err
		}
		tx.Link(d, size)
		return nil
	})
}

// maxSources is how many repositories a mount that names none tries. The first will do, unless it loses the blob
// meanwhile.
const maxSources = 8

// mount makes the repo hold a blob that another one holds, if the client may pull that. from names the other one; if it
// is empty, any will do, for clients that may pull from all: for others each repository that holds the blob would have
// to be asked about, and how long that takes would reveal that hidden ones hold it. No answer says why a mount was not
// possible, for the same reason.
func (r *Registry) mount(ctx context.Context, c *call, from string, d digest.Digest) (bool, error) {
	sources := []string{from}
	if from == "" {
		if r.options.Auth.Readable(ctx, c.who) != nil {
			return false, nil
		}
		sources = r.options.Index.Holders(d, maxSources)
	}
	for _, source := range sources {
		if !ValidName(source) || r.options.Auth.Authorize(ctx, c.who, source, auth.Pull) != nil {
			continue
		}
		if mounted, err := r.mountFrom(ctx, c, source, d); err != nil || mounted {
			return mounted, err
		}
	}
	return false, nil
}

// mountFrom mounts a blob from one repository.
func (r *Registry) mountFrom(ctx context.Context, c *call, source string, d digest.Digest) (bool, error) {
	// The pin comes before the look at the source: bytes that are there after it stay until the link is committed.
	release, err := r.options.Index.Pin(ctx, d)
	if err != nil {
		return false, err
	}
	defer release()
	b, err := r.blob(ctx, source, d)
	if e := ocierror.As(err); e != nil && e.Code == ocierror.BlobUnknown {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = r.link(ctx, c, d, b.size)
	if errors.Is(err, storage.ErrNotFound) { // its bytes were deleted meanwhile, by another process
		return false, nil
	}
	return err == nil, err
}

// resumeAt continues the call's upload at offset. If it does not end there, the error says where, so that the client
// need not ask.
func (r *Registry) resumeAt(ctx context.Context, c *call, offset int64) (*session, error) {
	s, err := r.resume(ctx, c, offset)
	if !errors.Is(err, storage.ErrOffset) {
		return s, err
	}
	size, serr := r.uploadSize(ctx, c)
	if serr != nil {
		return nil, serr
	}
	header := http.Header{}
	r.setProgress(header, c, c.ref, size)
	return nil, chunkOutOfOrder(header, err)
}

// uploadSize returns how many bytes of the call's upload are here.
func (r *Registry) uploadSize(ctx context.Context, c *call) (size int64, err error) {
	s, err := r.resume(ctx, c, -1)
	if err != nil {
		return 0, err
	}
	defer s.end(ctx, &err)
	return s.Size(), nil
}

// cancel ends the call's upload and drops its bytes.
func (r *Registry) cancel(ctx context.Context, c *call) error {
	s, err := r.resume(ctx, c, -1)
	if err != nil {
		return err
	}
	s.drop = true
	s.end(ctx, &err)
	return uploadError(c.ref, "", err)
}
