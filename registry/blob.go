package registry

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry/audit"
	"trow/registry/auth"
	"trow/registry/namespace"
	"trow/storage"
)

// immutable is the Cache-Control of content that is addressed by digest: a year, the longest that caches honour.
const immutable = "max-age=31536000, immutable"

// sends reports whether a request is a HEAD of a client that may push to a repository below f/: it asks what it need
// not send. A blob that only the upstream has, it would refer to in vain.
func (r *Registry) sends(req *http.Request, c *call) bool {
	return req.Method == http.MethodHead && namespace.Within(c.repo) &&
		r.options.Auth.Authorize(req.Context(), c.who, c.repo, auth.Push) == nil
}

// getBlob answers end-2, GET and HEAD.
func (r *Registry) getBlob(w http.ResponseWriter, req *http.Request, c *call) error {
	defer r.use(c.repo, c.digest)() // before it is looked up: what is found then is not evicted while it is read
	b, err := r.blob(req.Context(), c.repo, c.digest)
	if err == nil && req.Method == http.MethodHead {
		// A client that learns that the blob is here will not push it, and will refer to it later. The lease keeps the
		// Collector off. It comes before the second look: what that finds, the Collector leaves alone.
		if err := r.options.Index.Lease(req.Context(), c.repo, c.digest); err != nil {
			return err
		}
		b, err = r.blob(req.Context(), c.repo, c.digest)
	}
	if err != nil && !r.sends(req, c) {
		b, err = r.fetchBlob(req.Context(), c.repo, c.digest, req.Method == http.MethodHead, err)
	}
	if err != nil {
		return err
	}
	defer b.close()
	etag := `"` + c.ref + `"`
	if matches(req.Header["If-None-Match"], etag) {
		setBlobHeader(w.Header(), b.digest, etag)
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if req.Method == http.MethodHead { // ranges are defined for GET alone
		setBlobHeader(w.Header(), b.digest, etag)
		writeBlobHeader(w, span{0, b.size}, false, b.size)
		return nil
	}
	parts, satisfiable := requestedRanges(req.Header, etag, b.size)
	switch {
	case satisfiable && r.redirect(w, req, b, len(parts)):
		return nil
	case !satisfiable:
		return rangeInvalid(b.size)
	case len(parts) > 1:
		return r.sendRanges(w, req, b, etag, parts)
	case len(parts) == 1:
		return r.sendBlob(w, req, b, etag, parts[0], true)
	}
	return r.sendBlob(w, req, b, etag, span{0, b.size}, false)
}

// sendBlob answers with a part of a blob.
func (r *Registry) sendBlob(w http.ResponseWriter, req *http.Request, b blob, etag string, part span,
	ranged bool) error {
	content, err := r.openBlob(req.Context(), b, part)
	if err != nil {
		return err
	}
	defer content.Close()
	// After the last step that can fail with an answer: a cache would keep an error with these headers for a year.
	setBlobHeader(w.Header(), b.digest, etag)
	writeBlobHeader(w, part, ranged, b.size)
	if _, err := content.WriteTo(w); err != nil {
		r.cutShort(req.Context(), b, err)
		panic(http.ErrAbortHandler) // a clean end would make a truncated body look complete
	}
	return nil
}

// setBlobHeader sets the headers that all answers with a blob have.
func setBlobHeader(h http.Header, d digest.Digest, etag string) {
	h.Set("Docker-Content-Digest", d.String())
	h.Set("ETag", etag)
	h.Set("Accept-Ranges", "bytes")
	h.Set("Cache-Control", immutable)
}

// writeBlobHeader sends status and headers of a blob of size bytes, or of a part of it.
func writeBlobHeader(w http.ResponseWriter, part span, ranged bool, size int64) {
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(part.length, 10))
	if !ranged {
		w.WriteHeader(http.StatusOK)
		return
	}
	h.Set("Content-Range", part.contentRange(size))
	w.WriteHeader(http.StatusPartialContent)
}

// matches reports whether the values of a header that lists entity tags (If-Match, If-None-Match; RFC 9110, section
// 13.1) include etag.
func matches(values []string, etag string) bool {
	for _, v := range values {
		for tag := range strings.SplitSeq(v, ",") {
			if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
				return true
			}
		}
	}
	return false
}

// digits reports whether s has no other characters than digits.
func digits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// number parses digits. For a number that is too large it returns the largest, which exceeds the size of any blob.
func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1
	}
	return n
}

// deleteBlob answers end-10. The bytes stay until no repository and no manifest names them; the Collector deletes them.
func (r *Registry) deleteBlob(w http.ResponseWriter, req *http.Request, c *call) error {
	err := r.options.Index.Update(req.Context(), c.repo, func(tx *storage.Tx) error {
		if !tx.Linked(c.digest) {
			return blobUnknown(c.repo, c.digest)
		}
		if by, ok := tx.ReferredBy(c.digest); ok {
			return inUse("blob", by)
		}
		return tx.Unlink(c.digest)
	})
	if err != nil {
		return err
	}
	r.audit(req, c, audit.Event{What: audit.Delete, Digest: c.ref})
	w.WriteHeader(http.StatusAccepted)
	return nil
}
