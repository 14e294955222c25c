package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"trow/registry/audit"
	"trow/registry/auth"
	"trow/storage"
)

// getBlob answers end-2, GET and HEAD.
func (r *Registry) getBlob(w http.ResponseWriter, req *http.Request, rt route) error {
	size, ok, err := r.options.Index.Blob(req.Context(), rt.repo, rt.digest)
	if ok && req.Method == http.MethodHead { // who is told that it is here will not push it
		r.options.Index.Lease(rt.repo, rt.digest)
		size, ok, err = r.options.Index.Blob(req.Context(), rt.repo, rt.digest)
	}
	if err != nil {
		return err
	}
	if !ok {
		return blobUnknown(rt.repo, rt.digest)
	}
	etag := `"` + rt.ref + `"`
	h := w.Header()
	h.Set("Docker-Content-Digest", rt.ref)
	h.Set("ETag", etag)
	h.Set("Cache-Control", immutable)
	h.Set("Accept-Ranges", "bytes")
	if matches(req.Header, "If-None-Match", etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if req.Method == http.MethodHead { // a range is defined for GET alone
		blobHeader(w, span{0, size}, false, size)
		return nil
	}
	part, ranged, satisfiable := requestedRange(req, etag, size)
	if !satisfiable {
		return &fault{code: codeSizeInvalid, status: http.StatusRequestedRangeNotSatisfiable,
			message: "the blob has " + strconv.FormatInt(size, 10) + " bytes; the range asks for others",
			header:  http.Header{"Content-Range": {"bytes */" + strconv.FormatInt(size, 10)}}}
	}
	return r.sendBlob(w, req, rt, part, ranged, size)
}

// blobHeader sends status and headers of the whole blob or a part.
func blobHeader(w http.ResponseWriter, part span, ranged bool, size int64) {
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(part.length, 10))
	if !ranged {
		w.WriteHeader(http.StatusOK)
		return
	}
	h.Set("Content-Range", "bytes "+strconv.FormatInt(part.start, 10)+"-"+
		strconv.FormatInt(part.start+part.length-1, 10)+"/"+strconv.FormatInt(size, 10))
	w.WriteHeader(http.StatusPartialContent)
}

// smallBlob is up to which size, in bytes, a blob is kept in memory as manifests are: configs of images are, which every
// node asks for, and opening a file would be half of the work.
const smallBlob = 16 << 10

// sendBlob sends a part of a blob or all of it.
func (r *Registry) sendBlob(w http.ResponseWriter, req *http.Request, rt route, part span, ranged bool, size int64) error {
	if size > smallBlob {
		return r.sendFile(w, req, rt, part, ranged, size)
	}
	body, err := r.content(req.Context(), rt.digest)
	if errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrDigest) {
		return r.missing(req.Context(), rt, blobUnknown(rt.repo, rt.digest))
	}
	if err == nil && int64(len(body)) != size {
		err = fmt.Errorf("blob %s has %d bytes, and was recorded with %d", rt.digest, len(body), size)
	}
	if err != nil {
		return err
	}
	blobHeader(w, part, ranged, size)
	_, _ = w.Write(body[part.start : part.start+part.length]) // a client that has gone is not our concern
	return nil
}

// sendFile copies from the file to the client; on plain HTTP the kernel does it (sendfile).
func (r *Registry) sendFile(w http.ResponseWriter, req *http.Request, rt route, part span, ranged bool, size int64) error {
	f, err := r.options.Blobs.Open(req.Context(), rt.digest)
	if errors.Is(err, storage.ErrNotFound) {
		return r.missing(req.Context(), rt, blobUnknown(rt.repo, rt.digest))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if part.start > 0 {
		if _, err := f.Seek(part.start, io.SeekStart); err != nil {
			return err
		}
	}
	blobHeader(w, part, ranged, size)
	if _, err := io.CopyN(w, f, part.length); err != nil {
		r.annotate(req.Context(), "err", err.Error())
		panic(http.ErrAbortHandler) // a clean end would make a short body look whole
	}
	return nil
}

// missing is for bytes that are not there although the repository holds them: somebody has just deleted the fact,
// or the bytes are lost, which a check makes known. The client may push them again either way.
func (r *Registry) missing(ctx context.Context, rt route, unknown *fault) error {
	return errors.Join(unknown, r.options.Check(ctx, rt.digest))
}

// span is a part of a blob, in bytes.
type span struct{ start, length int64 }

// requestedRange reads Range and If-Range (RFC 9110, sections 14.2 and 13.1.5). A request for several ranges is
// answered with the whole blob, as is one that cannot be understood; both are in the RFC.
func requestedRange(req *http.Request, etag string, size int64) (part span, ranged, satisfiable bool) {
	whole := span{0, size}
	if since := req.Header.Get("If-Range"); since != "" && since != etag {
		return whole, false, true
	}
	spec, ok := strings.CutPrefix(req.Header.Get("Range"), "bytes=")
	if !ok {
		return whole, false, true
	}
	return parseRange(spec, size)
}

// parseRange reads first-last, first- or -length.
func parseRange(spec string, size int64) (part span, ranged, satisfiable bool) {
	whole := span{0, size}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok || !digits(first) || !digits(last) || first == "" && last == "" {
		return whole, false, true
	}
	if first == "" {
		n := min(number(last), size)
		return span{size - n, n}, true, n > 0
	}
	start, end := number(first), size-1
	if last != "" {
		end = min(number(last), end)
	}
	if start > end {
		return span{}, true, false
	}
	return span{start, end - start + 1}, true, true
}

func digits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// number reads digits; what is too large for any blob is as good as the largest number.
func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1
	}
	return n
}

// deleteBlob answers end-10. The bytes stay until nothing in the whole registry names them.
func (r *Registry) deleteBlob(w http.ResponseWriter, req *http.Request, rt route) error {
	err := r.options.Index.Update(req.Context(), rt.repo, func(tx *storage.Tx) error {
		if !tx.Linked(rt.digest) {
			return blobUnknown(rt.repo, rt.digest)
		}
		if by, ok := tx.ReferredBy(rt.digest); ok {
			return inUse("blob", by)
		}
		return tx.Unlink(rt.digest)
	})
	if err != nil {
		return err
	}
	r.audit(req, rt, auth.Delete, audit.Event{What: audit.Delete, Digest: rt.ref})
	w.WriteHeader(http.StatusAccepted)
	return nil
}
