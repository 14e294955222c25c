package registry

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry/auth"
	"trow/storage"
)

// startUpload answers end-4 and end-11: a mount if it is possible, a whole blob in one request, or a session.
func (r *Registry) startUpload(w http.ResponseWriter, req *http.Request, rt route) error {
	q := req.URL.Query()
	alg := digest.SHA256
	if name := q.Get("digest-algorithm"); name != "" {
		if alg = digest.Algorithm(name); !storage.Supported(alg) {
			return &fault{code: codeDigestInvalid, message: "the digest algorithms here are sha256 and sha512"}
		}
	}
	if q.Has("mount") {
		d, err := storage.ParseDigest(q.Get("mount"))
		if err != nil {
			return digestInvalid(q.Get("mount"))
		}
		if mounted, err := r.mount(req.Context(), rt, q.Get("from"), d); err != nil || mounted {
			return r.created(w, req, rt.repo, d, err)
		}
		alg = d.Algorithm()
	} else if q.Has("digest") {
		return r.singlePost(w, req, rt.repo, q.Get("digest"))
	}
	if err := r.roomFor(rt.repo, "", 0, req); err != nil {
		return err
	}
	u, err := r.options.Blobs.Create(req.Context(), rt.repo, alg)
	if err != nil {
		return err
	}
	id := u.ID()
	if err := u.Close(); err != nil {
		return err
	}
	progress(w.Header(), rt.repo, id, 0)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// mount makes the repo hold a blob that another one holds, if the caller may pull from that. Why it cannot be
// done is never told: that would tell what other repositories hold.
func (r *Registry) mount(ctx context.Context, rt route, from string, d digest.Digest) (bool, error) {
	sources := []string{from}
	if from == "" {
		sources = r.options.Index.Holders(d)
	}
	for _, source := range sources {
		if !ValidName(source) || r.options.Auth.Authorize(ctx, rt.who, source, auth.Pull) != nil {
			continue
		}
		if mounted, err := r.mountFrom(ctx, source, rt.repo, d); err != nil || mounted {
			return mounted, err
		}
	}
	return false, nil
}

// mountFrom pins the bytes before it looks whether the source holds them: then they stay until the link is in.
func (r *Registry) mountFrom(ctx context.Context, source, repo string, d digest.Digest) (bool, error) {
	release, err := r.options.Index.Pin(ctx, d)
	if err != nil {
		return false, err
	}
	defer release()
	size, ok, err := r.options.Index.Blob(ctx, source, d)
	if err != nil || !ok {
		return false, err
	}
	return true, r.link(ctx, repo, d, size)
}

// created answers that a blob is there.
func (r *Registry) created(w http.ResponseWriter, req *http.Request, repo string, d digest.Digest, err error) error {
	if err != nil {
		return err
	}
	r.annotate(req.Context(), "digest", d.String())
	h := w.Header()
	h.Set("Location", "/v2/"+repo+"/blobs/"+d.String())
	h.Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

// progress sets the headers that say where an upload is and how far it has come. The location has no host: it
// is right behind any proxy. Of an empty upload the spec has no range; clients parse 0-0.
func progress(h http.Header, repo, id string, size int64) {
	h.Set("Location", "/v2/"+repo+"/blobs/uploads/"+id)
	h.Set("Docker-Upload-UUID", id)
	h.Set("Range", "0-"+strconv.FormatInt(max(size-1, 0), 10))
}

// singlePost answers end-4b: the whole blob in one request.
func (r *Registry) singlePost(w http.ResponseWriter, req *http.Request, repo, promised string) error {
	d, err := storage.ParseDigest(promised)
	if err != nil {
		return digestInvalid(promised)
	}
	if err := r.roomFor(repo, d, 0, req); err != nil {
		return err
	}
	u, err := r.options.Blobs.Create(req.Context(), repo, d.Algorithm())
	if err != nil {
		return err
	}
	if err := receive(u, req.Body, -1); err != nil {
		return errors.Join(err, u.Cancel())
	}
	return r.created(w, req, repo, d, r.finish(req.Context(), repo, u, d))
}

// finish makes an upload a blob of the repo.
func (r *Registry) finish(ctx context.Context, repo string, u storage.Upload, d digest.Digest) error {
	id, size := u.ID(), u.Size()
	look := func(tx *storage.Tx) error { return r.withinQuota(tx, d, size) }
	if err := r.options.Index.View(repo, look); err != nil { // what is refused leaves no bytes
		return errors.Join(err, u.Cancel())
	}
	release, err := r.options.Index.Commit(ctx, u, d)
	if err != nil {
		return uploadFault(id, d, err)
	}
	defer release()
	return r.link(ctx, repo, d, size)
}

// contentRange reads the Content-Range of a chunk, first-last, as the spec has it; a stream has none, and
// begins wherever the upload ends.
func contentRange(req *http.Request) (offset, length int64, err error) {
	v := req.Header.Get("Content-Range")
	if v == "" {
		return -1, -1, nil
	}
	first, last, ok := strings.Cut(v, "-")
	start, serr := strconv.ParseInt(first, 10, 64)
	end, eerr := strconv.ParseInt(last, 10, 64)
	if !ok || serr != nil || eerr != nil || !digits(first) || !digits(last) || end < start || end == math.MaxInt64 {
		return 0, 0, &fault{code: codeUploadInvalid, status: http.StatusRequestedRangeNotSatisfiable,
			message: "Content-Range is <first>-<last>, in bytes, both included"}
	}
	length = end - start + 1
	if req.ContentLength >= 0 && req.ContentLength != length {
		return 0, 0, &fault{code: codeSizeInvalid,
			message: fmt.Sprintf("Content-Range speaks of %d bytes, Content-Length of %d", length, req.ContentLength)}
	}
	return start, length, nil
}

// resume finds the upload for a chunk or a stream. d is what it is to become, if that is known.
func (r *Registry) resume(req *http.Request, rt route, d digest.Digest) (u storage.Upload, length int64, err error) {
	offset, length, err := contentRange(req)
	if err != nil {
		return nil, 0, err
	}
	u, err = r.options.Blobs.Resume(req.Context(), rt.repo, rt.ref, offset)
	if errors.Is(err, storage.ErrOffset) {
		return nil, 0, r.outOfOrder(req.Context(), rt, err)
	}
	if err != nil {
		return nil, 0, uploadFault(rt.ref, "", err)
	}
	if err := r.roomFor(rt.repo, d, u.Size(), req); err != nil {
		return nil, 0, errors.Join(err, u.Close())
	}
	return u, length, nil
}

// outOfOrder says where the upload ends, so that the client need not ask.
func (r *Registry) outOfOrder(ctx context.Context, rt route, cause error) error {
	f := &fault{code: codeUploadInvalid, status: http.StatusRequestedRangeNotSatisfiable, cause: cause,
		message: "the chunk does not begin where the upload ends; see the Range header"}
	u, err := r.options.Blobs.Resume(ctx, rt.repo, rt.ref, -1)
	if err != nil {
		return uploadFault(rt.ref, "", err)
	}
	f.header = http.Header{}
	progress(f.header, rt.repo, rt.ref, u.Size())
	if err := u.Close(); err != nil {
		return err
	}
	return f
}

// patchUpload answers end-5, with a chunk or a stream.
func (r *Registry) patchUpload(w http.ResponseWriter, req *http.Request, rt route) error {
	u, length, err := r.resume(req, rt, "")
	if err != nil {
		return err
	}
	err = receive(u, req.Body, length)
	size := u.Size()
	if err := errors.Join(err, u.Close()); err != nil {
		return err
	}
	progress(w.Header(), rt.repo, rt.ref, size)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// putUpload answers end-6: the last chunk, or the whole blob, or nothing more, and then the digest of all.
func (r *Registry) putUpload(w http.ResponseWriter, req *http.Request, rt route) error {
	promised := req.URL.Query().Get("digest")
	d, err := storage.ParseDigest(promised)
	if err != nil {
		return digestInvalid(promised)
	}
	u, length, err := r.resume(req, rt, d)
	if err != nil {
		return err
	}
	if err := receive(u, req.Body, length); err != nil {
		return errors.Join(err, u.Close())
	}
	return r.created(w, req, rt.repo, d, r.finish(req.Context(), rt.repo, u, d))
}

// uploadStatus answers end-13.
func (r *Registry) uploadStatus(w http.ResponseWriter, req *http.Request, rt route) error {
	u, err := r.options.Blobs.Resume(req.Context(), rt.repo, rt.ref, -1)
	if err != nil {
		return uploadFault(rt.ref, "", err)
	}
	progress(w.Header(), rt.repo, rt.ref, u.Size())
	if err := u.Close(); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// cancelUpload answers end-14.
func (r *Registry) cancelUpload(w http.ResponseWriter, req *http.Request, rt route) error {
	u, err := r.options.Blobs.Resume(req.Context(), rt.repo, rt.ref, -1)
	if err != nil {
		return uploadFault(rt.ref, "", err)
	}
	if err := u.Cancel(); err != nil {
		return uploadFault(rt.ref, "", err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
