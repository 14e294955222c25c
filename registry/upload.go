package registry

import (
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry/ocierror"
	"trow/storage"
)

// startUpload answers end-4 and end-11: it mounts a blob, takes a whole blob in one request, or opens a session.
func (r *Registry) startUpload(w http.ResponseWriter, req *http.Request, c *call) error {
	q := req.URL.Query()
	alg := digest.SHA256
	if name := q.Get("digest-algorithm"); name != "" {
		if alg = digest.Algorithm(name); !storage.Supported(alg) {
			return algorithmInvalid()
		}
	}
	if q.Has("mount") {
		d, err := parseDigest(q.Get("mount"))
		if err != nil {
			return err
		}
		if mounted, err := r.mount(req.Context(), c, q.Get("from"), d); err != nil || mounted {
			return r.answerCreated(w, req, c, d, err)
		}
		// A mount that is not possible becomes a session, in which the client pushes the blob.
		alg = d.Algorithm()
	} else if q.Has("digest") { // end-4b
		d, err := parseDigest(q.Get("digest"))
		if err != nil {
			return err
		}
		all := chunk{body: req.Body, length: -1, coming: req.ContentLength}
		return r.answerCreated(w, req, c, d, r.pushBlob(req.Context(), c, all, d))
	}
	id, err := r.openSession(req.Context(), c, alg, req.ContentLength)
	if err != nil {
		return err
	}
	r.setProgress(w.Header(), c, id, 0)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// answerCreated answers that the repo holds the blob d, unless err says that it could not be pushed.
func (r *Registry) answerCreated(w http.ResponseWriter, req *http.Request, c *call, d digest.Digest, err error) error {
	if err != nil {
		return err
	}
	r.annotate(req.Context(), "digest", d.String())
	h := w.Header()
	h.Set("Location", r.location(c, "/blobs/"+d.String()))
	h.Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

// setProgress sets the headers that say where an upload is and how many bytes of it are here. The location has no
// host, so that it is right behind any proxy. The spec has no range for an empty upload; clients parse 0-0.
func (r *Registry) setProgress(h http.Header, c *call, id string, size int64) {
	h.Set("Location", r.location(c, "/blobs/uploads/"+id))
	h.Set("Docker-Upload-UUID", id)
	h.Set("Range", "0-"+strconv.FormatInt(max(size-1, 0), 10))
}

// chunkOf returns the chunk that a PATCH or a PUT brings. Of the errors, those with the status 416 say where the upload
// ends.
func (r *Registry) chunkOf(req *http.Request, c *call) (chunk, error) {
	offset, length, err := contentRange(req.Header.Get("Content-Range"), req.ContentLength)
	if e := ocierror.As(err); e != nil && e.HTTPStatus() == http.StatusRequestedRangeNotSatisfiable {
		size, serr := r.uploadSize(req.Context(), c)
		if serr != nil {
			return chunk{}, serr
		}
		e.Header = http.Header{}
		r.setProgress(e.Header, c, c.ref, size)
	}
	return chunk{req.Body, offset, length, req.ContentLength}, err
}

// contentRange parses the Content-Range of a chunk, first-last in the form of the spec. bodyLength is negative if the
// request does not say it. Without a Content-Range the body is a stream: it starts where the upload ends, and its
// length is unknown.
func contentRange(v string, bodyLength int64) (offset, length int64, err error) {
	if v == "" {
		return -1, -1, nil
	}
	first, last, ok := strings.Cut(v, "-")
	start, serr := strconv.ParseInt(first, 10, 64)
	end, eerr := strconv.ParseInt(last, 10, 64)
	if !ok || serr != nil || eerr != nil || !digits(first) || !digits(last) || end < start || end == math.MaxInt64 {
		return 0, 0, contentRangeInvalid()
	}
	length = end - start + 1
	if bodyLength >= 0 && bodyLength != length {
		return 0, 0, sizeInvalid("Content-Range has %d bytes, but Content-Length is %d", length, bodyLength)
	}
	return start, length, nil
}

// patchUpload answers end-5, with a chunk or a stream.
func (r *Registry) patchUpload(w http.ResponseWriter, req *http.Request, c *call) error {
	next, err := r.chunkOf(req, c)
	if err != nil {
		return err
	}
	size, err := r.extend(req.Context(), c, next)
	if err != nil {
		return err
	}
	r.setProgress(w.Header(), c, c.ref, size)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// putUpload answers end-6. The body is the last chunk, the whole blob, or empty, if all chunks came before.
func (r *Registry) putUpload(w http.ResponseWriter, req *http.Request, c *call) error {
	d, err := parseDigest(req.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	last, err := r.chunkOf(req, c)
	if err != nil {
		return err
	}
	return r.answerCreated(w, req, c, d, r.complete(req.Context(), c, last, d))
}

// uploadStatus answers end-13.
func (r *Registry) uploadStatus(w http.ResponseWriter, req *http.Request, c *call) error {
	size, err := r.uploadSize(req.Context(), c)
	if err != nil {
		return err
	}
	r.setProgress(w.Header(), c, c.ref, size)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// cancelUpload answers end-14.
func (r *Registry) cancelUpload(w http.ResponseWriter, req *http.Request, c *call) error {
	if err := r.cancel(req.Context(), c); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
