package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/limit"
	"trow/storage"
)

// code is an error code of the distribution spec ("Error Codes"). UNKNOWN is Docker's, for 5xx.
type code string

const (
	codeBlobUnknown         code = "BLOB_UNKNOWN"
	codeUploadInvalid       code = "BLOB_UPLOAD_INVALID"
	codeUploadUnknown       code = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       code = "DIGEST_INVALID"
	codeManifestBlobUnknown code = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     code = "MANIFEST_INVALID"
	codeManifestUnknown     code = "MANIFEST_UNKNOWN"
	codeNameInvalid         code = "NAME_INVALID"
	codeNameUnknown         code = "NAME_UNKNOWN"
	codeSizeInvalid         code = "SIZE_INVALID"
	codeUnauthorized        code = "UNAUTHORIZED"
	codeDenied              code = "DENIED"
	codeUnsupported         code = "UNSUPPORTED"
	codeTooManyRequests     code = "TOOMANYREQUESTS"
	codeUnknown             code = "UNKNOWN"
)

// status is the one table of what a code means in HTTP. Where a case needs another status, the fault says so.
var status = map[code]int{
	codeBlobUnknown:         http.StatusNotFound,
	codeUploadInvalid:       http.StatusBadRequest,
	codeUploadUnknown:       http.StatusNotFound,
	codeDigestInvalid:       http.StatusBadRequest,
	codeManifestBlobUnknown: http.StatusNotFound,
	codeManifestInvalid:     http.StatusBadRequest,
	codeManifestUnknown:     http.StatusNotFound,
	codeNameInvalid:         http.StatusBadRequest,
	codeNameUnknown:         http.StatusNotFound,
	codeSizeInvalid:         http.StatusBadRequest,
	codeUnauthorized:        http.StatusUnauthorized,
	codeDenied:              http.StatusForbidden,
	codeUnsupported:         http.StatusMethodNotAllowed,
	codeTooManyRequests:     http.StatusTooManyRequests,
	codeUnknown:             http.StatusInternalServerError,
}

// fault is an error that a client is told, in the spec's form.
type fault struct {
	code    code
	status  int // 0: as the table says
	message string
	detail  any
	more    []*fault    // told in the same answer
	header  http.Header // beside the body
	cause   error       // for the log alone
}

func (f *fault) Error() string {
	if f.cause != nil {
		return fmt.Sprintf("%s: %s: %v", f.code, f.message, f.cause)
	}
	return fmt.Sprintf("%s: %s", f.code, f.message)
}

func (f *fault) Unwrap() error { return f.cause }

func (f *fault) with(status int) *fault { f.status = status; return f }

var errNoEndpoint = &fault{code: codeUnsupported, status: http.StatusNotFound,
	message: "no endpoint of the OCI distribution API has this path"}

func nameInvalid(name string) *fault {
	return &fault{code: codeNameInvalid, detail: map[string]string{"name": clip(name)},
		message: "a repository's name has at most 255 characters: lower-case letters and digits, with '.', '_', '__' or '-' between them, in elements separated by '/'"}
}

func tagInvalid(tag string) *fault {
	return &fault{code: codeManifestInvalid, detail: map[string]string{"tag": clip(tag)},
		message: "a tag has at most 128 characters: letters, digits, '_', '.', '-', and does not begin with '.' or '-'"}
}

func digestInvalid(d string) *fault {
	return &fault{code: codeDigestInvalid, detail: map[string]string{"digest": clip(d)},
		message: "a digest is sha256:<64 hex digits> or sha512:<128 hex digits>, in lower case"}
}

func digestMismatch(promised digest.Digest, cause error) *fault {
	return &fault{code: codeDigestInvalid, cause: cause, detail: map[string]string{"digest": promised.String()},
		message: "the content does not have the digest that was promised; nothing was stored, push it again"}
}

func blobUnknown(repo string, d digest.Digest) *fault {
	return &fault{code: codeBlobUnknown, detail: map[string]string{"name": repo, "digest": d.String()},
		message: "the repository does not hold this blob"}
}

func manifestUnknown(repo, ref string) *fault {
	return &fault{code: codeManifestUnknown, detail: map[string]string{"name": repo, "reference": ref},
		message: "the repository does not hold a manifest of this tag or digest"}
}

func uploadUnknown(id string) *fault {
	return &fault{code: codeUploadUnknown, detail: map[string]string{"upload": clip(id)},
		message: "no such upload here: it was completed, cancelled or idle for too long; begin a new one"}
}

// limitFault is what somebody is told who has come to a limit of his own.
func limitFault(err error) error {
	var e *limit.Exceeded
	if !errors.As(err, &e) {
		return err
	}
	return &fault{code: codeTooManyRequests, message: e.Error(), header: retryAfter(e.RetryAfter)}
}

// overQuota refuses what is more than a quota leaves.
func overQuota(e storage.Excess) *fault {
	return &fault{code: codeDenied, message: limit.OverQuota(e),
		detail: map[string]string{"quota": e.Name, "bytes": strconv.FormatInt(e.Bytes, 10),
			"used": strconv.FormatInt(e.Used, 10), "added": strconv.FormatInt(e.Added, 10)}}
}

// clip bounds what is told back of what somebody sent.
func clip(s string) string {
	const most = 300
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// internal is what a client is told of errors that are not its own. The cause goes to the log.
func internal(err error) *fault {
	switch {
	case errors.Is(err, storage.ErrFull):
		return &fault{code: codeUnknown, status: http.StatusInsufficientStorage, cause: err, header: retryAfter(60),
			message: "the registry's storage is full; nothing was lost, try again when its administrator has made room"}
	case errors.Is(err, storage.ErrBusy):
		return &fault{code: codeTooManyRequests, cause: err, header: retryAfter(5),
			message: "too many uploads are open; nothing was lost, try again in a moment"}
	case errors.Is(err, storage.ErrClosed):
		return &fault{code: codeUnknown, status: http.StatusServiceUnavailable, cause: err, header: retryAfter(5),
			message: "the registry is stopping; try again"}
	}
	return &fault{code: codeUnknown, cause: err, message: "internal error"}
}

func retryAfter(seconds int) http.Header {
	return http.Header{"Retry-After": {strconv.Itoa(seconds)}}
}

// uploadFault gives an error of an upload its code.
func uploadFault(id string, d digest.Digest, err error) error {
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return uploadUnknown(id)
	case errors.Is(err, storage.ErrDigest):
		return digestMismatch(d, err)
	case errors.Is(err, storage.ErrClosed):
		return &fault{code: codeUploadInvalid, status: http.StatusConflict, cause: err,
			message: "another request has taken this upload over; ask for its status and go on from there"}
	}
	return err
}

// wireError is the form of one error on the wire.
type wireError struct {
	Code    code   `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

// writeError is the one place that turns an error into an answer.
func (r *Registry) writeError(w http.ResponseWriter, req *http.Request, err error) {
	if req.Context().Err() != nil && errors.Is(err, context.Cause(req.Context())) {
		panic(http.ErrAbortHandler) // nobody listens any more
	}
	var f *fault
	if !errors.As(err, &f) {
		f = internal(err)
	}
	at := f.status
	if at == 0 {
		at = status[f.code]
	}
	r.annotate(req.Context(), "code", string(f.code))
	message := f.message
	if at >= 500 || f.cause != nil {
		r.annotate(req.Context(), "err", err.Error())
	}
	if at >= 500 && r.options.RequestID != nil {
		message += " (request " + r.options.RequestID(req.Context()) + ")"
	}
	body := struct {
		Errors []wireError `json:"errors"`
	}{[]wireError{{f.code, message, f.detail}}}
	for _, m := range f.more {
		body.Errors = append(body.Errors, wireError{m.code, m.message, m.detail})
	}
	for name, values := range f.header {
		w.Header()[name] = values
	}
	if req.ContentLength == 0 {
		writeJSON(w, req, at, "application/json", body)
		return
	}
	// A client that is sending a body looks for the answer when it has sent it. If we closed the connection now, the
	// reset would overtake the answer. (HTTP/2 has a way to say so; an error of these calls changes nothing.)
	c := http.NewResponseController(w)
	_ = c.EnableFullDuplex()
	writeJSON(w, req, at, "application/json", body)
	_ = c.Flush()
	if req.ProtoMajor == 1 {
		linger(req.Body)
	}
}

// linger reads what is left of a body, for a while.
func linger(body io.Reader) {
	const piece = 1 << 20
	for end, n := time.Now().Add(lingerTime), 0; n < lingerBytes/piece && time.Now().Before(end); n++ {
		if _, err := io.CopyN(io.Discard, body, piece); err != nil {
			return
		}
	}
}

// What is read of a body after its request was refused, so that the client gets to the answer.
const (
	lingerTime  = 10 * time.Second
	lingerBytes = 256 << 20
)

// writeJSON answers with a body that is small enough to be made whole before anything is sent.
func writeJSON(w http.ResponseWriter, req *http.Request, status int, contentType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("registry: encode %T: %v", v, err)) // our own types: they encode
	}
	write(w, req, status, contentType, body)
}

func write(w http.ResponseWriter, req *http.Request, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if req.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that has gone is not our concern
	}
}
