package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/auth"
	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/ocierror"
	"trow/registry/upstream"
	"trow/storage"
)

// This file connects the repositories below f/ with their upstreams: package mirror decides when those are asked.

// refresh asks the upstream of a repository for what ref names, if the repository has one. stale says why held content
// may not be what the upstream has. Errors: as a client gets them.
func (r *Registry) refresh(ctx context.Context, repo, ref string) (stale, err error) {
	if r.mirror == nil || !namespace.Within(repo) || isOnlyHeld(ctx) {
		return nil, nil
	}
	if stale, err = r.mirror.Refresh(ctx, repo, ref); err != nil {
		return nil, mirrorError(manifestUnknown(repo, ref), err)
	}
	return stale, nil
}

// mirrorError returns the answer for content that is not held, and that its upstream does not give. It is unknown only
// if the upstream does not have the content, or asking again would be refused as well (ErrRefused): a client takes that
// as final.
func mirrorError(unknown *ocierror.Error, err error) error {
	e, ok := errors.AsType[*upstream.Error](err)
	if !ok {
		return err
	}
	err = upstream.Explained(err) // the log alone gets this text
	unknown.Message += ": " + e.Error()
	unknown.Cause = err
	switch {
	case errors.Is(err, upstream.ErrNotFound), errors.Is(err, upstream.ErrRefused):
		return unknown
	case errors.Is(err, upstream.ErrUnauthorized):
		return pullThere(e.Host, err, e.Error())
	case errors.Is(err, upstream.ErrUnavailable):
		wait, _ := upstream.RetryAfter(err)
		seconds := int(math.Ceil(max(wait, time.Second).Seconds()))
		return &ocierror.Error{Code: ocierror.Unavailable, Message: e.Error(), Cause: err,
			Header: ocierror.RetryAfter(seconds)}
	}
	bad := &ocierror.Error{Code: ocierror.Unavailable, Message: e.Error(), Cause: err}
	return bad.With(http.StatusBadGateway)
}

// pullThere returns the answer for what a login for this registry would not help to read. The realm names the upstream,
// to which the client can go with its own.
func pullThere(host string, cause error, message string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.Unauthorized, Message: message + "; pull it from there", Cause: cause,
		Header: http.Header{"Www-Authenticate": {fmt.Sprintf(`Basic realm="%s"`, host)}}}
}

// warnStale adds the headers that mark an answer as stale. The text has nothing of an error but that of an
// [upstream.Error], which is safe to show; the log gets the whole error.
func (r *Registry) warnStale(w http.ResponseWriter, req *http.Request, stale error) {
	if stale == nil {
		return
	}
	r.annotate(req.Context(), "err", upstream.Explained(stale).Error())
	text := "its upstream's answer could not be recorded"
	if e, ok := errors.AsType[*upstream.Error](stale); ok {
		text = e.Error()
	}
	warn(w, "stale: "+text)
	w.Header().Add("Trow-Stale", "upstream")
}

// mirrorStore implements the interfaces of package mirror.
type mirrorStore struct{ *Registry }

// mirrorName is the user that the history of a tag names for a change by the mirror.
const mirrorName = "(upstream)"

// Resolve implements mirror.Store. A damaged manifest counts as not held, so that it is fetched again, which heals it.
func (s mirrorStore) Resolve(ctx context.Context, repo, ref string) (mirror.Held, bool, error) {
	m, ok, err := s.lookup(ctx, repo, ref)
	if !ok || err != nil {
		return mirror.Held{}, false, err
	}
	d := m.Digest()
	return mirror.Held{Digest: d, Pushed: !s.options.Index.Cached(repo, d)}, m.Damaged() != d, nil
}

// Record implements mirror.Store. Errors: the manifest is not one that clients understand alike; those of the Index.
func (s mirrorStore) Record(ctx context.Context, repo, tag string, d digest.Digest, m *upstream.Manifest) error {
	p := &push{repo: repo, who: auth.Socket, digest: d} // what is cached counts for no quota
	if m != nil {
		var err error
		if p.parsed, err = parseManifest(m.MediaType, m.Body); err == nil {
			err = s.checkReferences(len(p.parsed.refs))
		}
		if err != nil {
			return &upstream.Error{Kind: upstream.ErrDamaged, Repo: repo, Ref: d.String(), Reason: err.Error()}
		}
		p.body = m.Body
		// Without room the manifest is stored all the same: it has at most 4 MiB, and nothing could be pulled without
		// it.
		if reserved, ok := s.options.Cache.Reserve(int64(len(m.Body))); ok {
			defer reserved()
		}
		release, err := s.store(ctx, p)
		if err != nil {
			return err
		}
		defer release()      // pinned until the facts are committed: before that, the Collector could delete the bytes
		s.contents.remove(d) // the bytes in memory may be the damaged ones
	}
	err := s.options.Index.Update(ctx, repo, func(tx *storage.Tx) error {
		tx.ForCache()
		tx.As(mirrorName)
		if m != nil {
			found := p.manifest()
			found.Cached = true
			if err := tx.PutManifest(found); err != nil {
				return err
			}
		} else if _, ok := tx.Manifest(d); !ok { // deleted or evicted since Resolve: a tag must not name nothing
			return fmt.Errorf("manifest %s: %w", d, storage.ErrNotFound)
		}
		if at, set := tx.Tag(tag); tag == "" || set && !tx.Cached(at.Digest()) { // a tag of pushed content is not moved
			return nil
		}
		return tx.SetTag(tag, d)
	})
	if err == nil && m != nil {
		s.options.Cache.Added(d, int64(len(m.Body)))
	}
	return err
}

// Blob implements mirror.BlobStore.
func (s mirrorStore) Blob(ctx context.Context, repo string, d digest.Digest) (bool, error) {
	_, held, err := s.sizeOf(ctx, repo, d)
	return held, err
}

// Elsewhere implements mirror.BlobStore.
func (s mirrorStore) Elsewhere(ctx context.Context, d digest.Digest) (size int64, held bool, err error) {
	holders, err := s.options.Index.HoldersInTurn(ctx, d, maxSources)
	if err != nil {
		return 0, false, err
	}
	for _, repo := range holders {
		if size, held, err = s.sizeOf(ctx, repo, d); held || err != nil {
			return size, held, err
		}
	}
	return 0, false, nil
}

// maxDescribing bounds the manifests that Described reads.
const maxDescribing = 16

// Described implements mirror.BlobStore. The size 0 says nothing: it may have been left out.
func (s mirrorStore) Described(ctx context.Context, repo string, d digest.Digest) int64 {
	size := int64(-1)
	for _, m := range s.options.Index.ReferredBy(repo, d, maxDescribing) {
		body, err := s.content(ctx, m)
		if err != nil { // what is lost is found when a client reads it
			continue
		}
		for _, p := range fetchedParts(body) {
			switch {
			case p.Digest != d || p.Manifest || p.Size <= 0:
			case size >= 0 && size != p.Size:
				return -1
			default:
				size = p.Size
			}
		}
	}
	return size
}

// Adopt implements mirror.BlobStore.
func (s mirrorStore) Adopt(ctx context.Context, repo string, d digest.Digest) (bool, error) {
	// The pin comes before the look-up of the holders: bytes that a repository holds after it stay until the link is
	// committed, even if that repository lets them go in between.
	release, err := s.options.Index.Pin(ctx, d)
	if err != nil {
		return false, err
	}
	defer release()
	size, held, err := s.Elsewhere(ctx, d)
	if err != nil || !held {
		return false, err
	}
	err = s.linkCached(ctx, repo, d, size)
	if errors.Is(err, storage.ErrNotFound) { // its bytes were deleted meanwhile, by another process
		return false, nil
	}
	if err == nil {
		s.options.Cache.Added(d, size)
	}
	return err == nil, err
}

// Create implements mirror.BlobStore. The ID of an upload that may be continued is made of the digest and the upstream,
// which find it again after a restart: as downloads are shared by these, two of them have two uploads. No client can
// name it: the IDs of sessions are authenticated.
func (s mirrorStore) Create(ctx context.Context, repo, from string, d digest.Digest) (storage.Upload, error) {
	ctx = storage.Unbounded(ctx)
	if s.Resumes() {
		u, err := s.options.Blobs.CreateAs(ctx, uploadsOf(repo), downloadID(from, d), d.Algorithm())
		if !errors.Is(err, storage.ErrBusy) && !errors.Is(err, storage.ErrConflict) {
			return u, err
		}
		// Clients' uploads have all places, or a download of the blob is about to end: this one cannot be continued.
	}
	return s.options.Blobs.Create(ctx, uploadsOf(repo), d.Algorithm())
}

// uploadsOf returns where the uploads for a repository below f/ are: together with those of the others of its host, as
// each of them may continue what another one has begun.
func uploadsOf(repo string) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(repo, namespace.Prefix), "/")
	return namespace.Prefix + host
}

// Resumes implements mirror.BlobStore.
func (s mirrorStore) Resumes() bool {
	_, ok := s.options.Blobs.(storage.Grows)
	return ok
}

// Resume implements mirror.BlobStore.
func (s mirrorStore) Resume(ctx context.Context, repo, from string, d digest.Digest) (storage.Upload, error) {
	return s.options.Blobs.Resume(storage.Unbounded(ctx), uploadsOf(repo), downloadID(from, d), -1)
}

// downloadID returns the ID of the upload for a blob of an upstream, of the form of a UUID.
func downloadID(from string, d digest.Digest) string {
	b := sha256.Sum256([]byte("download " + from + " " + d.String()))
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// Keep implements mirror.BlobStore.
func (s mirrorStore) Keep(ctx context.Context, repo string, d digest.Digest, u storage.Upload) error {
	size := u.Size()
	release, err := s.options.Index.Commit(ctx, u, d)
	if err != nil {
		return err
	}
	defer release()
	if err := s.keepCached(ctx, repo, d, size); err != nil {
		return err
	}
	s.options.Cache.Added(d, size)
	return nil
}

// linkCached records that a repository has a blob from its upstream. The caller has pinned the bytes.
func (s mirrorStore) linkCached(ctx context.Context, repo string, d digest.Digest, size int64) error {
	return s.options.Index.Update(ctx, repo, func(tx *storage.Tx) error {
		tx.ForCache()
		tx.LinkCached(d, size)
		return nil
	})
}

// keepCached is linkCached for bytes that were reserved. Errors: upstream.ErrNoRoom if other replicas have taken the
// room, because this one was suspended.
func (s mirrorStore) keepCached(ctx context.Context, repo string, d digest.Digest, size int64) error {
	if !s.options.Cache.Shared() {
		return s.linkCached(ctx, repo, d, size)
	}
	return s.options.Index.Update(ctx, repo, func(tx *storage.Tx) error {
		tx.ForCache()
		if !s.options.Cache.Covers(tx.Record(mirror.BoardRecord)) {
			return upstream.ErrNoRoom
		}
		tx.LinkCached(d, size)
		return nil
	})
}

// fetchBlob is blob for a blob that the repository does not hold: it returns the one of the upstream. unknown is the
// error of blob, and is returned if there is no upstream. For a HEAD the upstream is asked for the size only; if it
// does not say that, the blob is downloaded.
func (r *Registry) fetchBlob(ctx context.Context, repo string, d digest.Digest, head bool,
	unknown error) (blob, error) {
	if e := ocierror.As(unknown); r.mirror == nil || !namespace.Within(repo) || isOnlyHeld(ctx) || e == nil ||
		e.Code != ocierror.BlobUnknown {
		return blob{}, unknown
	}
	if head {
		size, known, err := r.mirror.Size(ctx, repo, d)
		switch {
		case err != nil:
			return blob{}, mirrorError(blobUnknown(repo, d), err)
		case known && size >= 0:
			return blob{repo: repo, digest: d, size: size}, nil
		case !known:
			return blob{}, unknown
		}
	}
	source, err := r.mirror.Blob(ctx, repo, d)
	if err != nil {
		return blob{}, mirrorError(blobUnknown(repo, d), err)
	}
	if source == nil {
		return r.blob(ctx, repo, d)
	}
	size, err := source.Size()
	if err == nil && size < 0 { // the answer needs a Content-Length: read it to the end, and then once more
		if _, err = io.Copy(io.Discard, source); err == nil {
			size, err = source.Size()
		}
		if err == nil {
			_, err = source.Seek(0, io.SeekStart)
		}
	}
	if err != nil {
		return blob{}, mirrorError(blobUnknown(repo, d), errors.Join(err, source.Close()))
	}
	return blob{repo, d, size, source}, nil
}

// newMirror returns the Mirror of the upstreams; nil if the options have none.
func (r *Registry) newMirror() *mirror.Mirror {
	if r.options.Upstreams == nil {
		return nil
	}
	if r.options.Cache != nil {
		r.options.Cache.Attach(mirrorStore{r})
	}
	return mirror.New(mirror.Options{Names: r.options.Namespaces, Upstreams: r.options.Upstreams, Store: mirrorStore{r},
		Fetcher: r.options.Fetcher, Blobs: mirrorStore{r}, Platforms: r.options.Platforms,
		Report: r.options.FetchFailed})
}
