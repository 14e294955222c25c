// Package ocierror is the error form of the OCI distribution specification ("Error Codes"): the codes, what they mean
// in HTTP, and the one function that writes such an answer. All code that answers a client of the registry uses it: the
// registry, the token endpoint, the listener before a request is parsed, and the proxy on a node.
//
// # Words
//
// code, message and detail are the members of an error in the specification. The cause is for the log alone.
//
// # Invariants
//
//   - Every answer has a JSON body with at least one error, the Content-Type application/json, and a Content-Length.
//   - The cause of an error is never part of the answer.
//   - No answer has a header that describes a content or makes caches keep it, except those of the error itself.
//
// # What it does not do
//
// It does not log, and it does not decide what a client may know.
package ocierror

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Code is an error code of the specification. UNKNOWN and UNAVAILABLE are not in its table; they are
// codes of Docker's registry that clients know.
type Code string

// The codes.
const (
	BlobUnknown         Code = "BLOB_UNKNOWN"
	UploadInvalid       Code = "BLOB_UPLOAD_INVALID"
	UploadUnknown       Code = "BLOB_UPLOAD_UNKNOWN"
	DigestInvalid       Code = "DIGEST_INVALID"
	ManifestBlobUnknown Code = "MANIFEST_BLOB_UNKNOWN"
	ManifestInvalid     Code = "MANIFEST_INVALID"
	ManifestUnknown     Code = "MANIFEST_UNKNOWN"
	NameInvalid         Code = "NAME_INVALID"
	NameUnknown         Code = "NAME_UNKNOWN"
	SizeInvalid         Code = "SIZE_INVALID"
	Unauthorized        Code = "UNAUTHORIZED"
	Denied              Code = "DENIED"
	Unsupported         Code = "UNSUPPORTED"
	TooManyRequests     Code = "TOOMANYREQUESTS"
	Unavailable         Code = "UNAVAILABLE"
	Unknown             Code = "UNKNOWN"
)

// statuses is the one table of what a code means in HTTP. Where a case needs another status, the Error says so.
var statuses = map[Code]int{
	BlobUnknown:         http.StatusNotFound,
	UploadInvalid:       http.StatusBadRequest,
	UploadUnknown:       http.StatusNotFound,
	DigestInvalid:       http.StatusBadRequest,
	ManifestBlobUnknown: http.StatusNotFound,
	ManifestInvalid:     http.StatusBadRequest,
	ManifestUnknown:     http.StatusNotFound,
	NameInvalid:         http.StatusBadRequest,
	NameUnknown:         http.StatusNotFound,
	SizeInvalid:         http.StatusBadRequest,
	Unauthorized:        http.StatusUnauthorized,
	Denied:              http.StatusForbidden,
	Unsupported:         http.StatusMethodNotAllowed,
	TooManyRequests:     http.StatusTooManyRequests,
	Unavailable:         http.StatusServiceUnavailable,
	Unknown:             http.StatusInternalServerError,
}

// Error is an error that a client can get as an answer. Code and Message must be set.
type Error struct {
	Code    Code
	Status  int // 0: the status of the code
	Message string
	Detail  any         // encoded as JSON; nil: none
	More    []*Error    // further errors of the same answer; their Status, Header and More do not count
	Header  http.Header // of the answer, beside those of the body
	Cause   error       // for the log alone
}

func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Cause)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// With returns e with another HTTP status.
func (e *Error) With(status int) *Error { e.Status = status; return e }

// HTTPStatus returns the status of the answer.
func (e *Error) HTTPStatus() int {
	if e.Status != 0 {
		return e.Status
	}
	if status, ok := statuses[e.Code]; ok {
		return status
	}
	return http.StatusInternalServerError
}

// wire is the form of one error in the specification.
type wire struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

// Body returns the body of the answer.
func (e *Error) Body() []byte {
	var body struct {
		Errors []wire `json:"errors"`
	}
	body.Errors = append(make([]wire, 0, 1+len(e.More)), wire{e.Code, e.Message, e.Detail})
	for _, m := range e.More {
		body.Errors = append(body.Errors, wire{m.Code, m.Message, m.Detail})
	}
	text, err := JSON(&body)
	if err != nil { // a Detail that JSON cannot express is a mistake in the program: answer without any
		body.Errors = []wire{{e.Code, e.Message, nil}}
		text, _ = JSON(&body)
	}
	return text
}

// JSON returns v in JSON for people: <, > and & stay as they are, because no answer of the registry is a page. Errors:
// those of json.Marshal.
func JSON(v any) ([]byte, error) {
	var b bytes.Buffer
	out := json.NewEncoder(&b)
	out.SetEscapeHTML(false)
	err := out.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// ofSuccess are the headers of a success. A handler may have set one before the step that failed: with a validator or a
// digest, a cache would keep the error as the content, and a client would compare it with that.
var ofSuccess = []string{"Etag", "Last-Modified", "Docker-Content-Digest", "Content-Range", "Content-Encoding",
	"Accept-Ranges", "Location", "Link", "Expires", "Oci-Subject", "Oci-Tag", "Oci-Filters-Applied", "Warning",
	"Trow-Stale"}

// Write answers a request with e. The answer to a HEAD has no body. An error while writing means that the client has
// gone; it is not returned, because nothing can be done about it.
func Write(w http.ResponseWriter, r *http.Request, e *Error) {
	body := e.Body()
	h := w.Header()
	for _, name := range ofSuccess {
		h.Del(name)
	}
	if h.Get("Cache-Control") != "no-store" {
		h.Del("Cache-Control")
	}
	for name, values := range e.Header {
		h[name] = values
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(e.HTTPStatus())
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// IsPath reports whether a URL's path belongs to the distribution API, whose errors have the form of this package.
func IsPath(path string) bool { return path == "/v2" || strings.HasPrefix(path, "/v2/") }

// RetryAfter returns the header that says after how many seconds a client should try again.
func RetryAfter(seconds int) http.Header {
	return http.Header{"Retry-After": {strconv.Itoa(seconds)}}
}

// Clip bounds what an answer repeats of the input of a client: at most 300 bytes, valid UTF-8.
func Clip(s string) string {
	const max = 300
	if len(s) > max {
		return strings.ToValidUTF8(s[:max], "") + "…"
	}
	return s
}

// As finds the Error in err's tree. It returns nil without one.
func As(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}
