package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/auth"
	"trow/registry/limit"
	"trow/registry/ocierror"
	"trow/storage"
)

// The constructors of all errors that a client can get from the registry; package ocierror defines their form.

var errNoEndpoint = &ocierror.Error{Code: ocierror.Unsupported, Status: http.StatusNotFound,
	Message: "the OCI distribution API has no such path"}

func methodUnsupported(e endpoint) *ocierror.Error {
	var methods []string
	for method := range handlers[e] {
		methods = append(methods, method)
	}
	slices.Sort(methods)
	allowed := strings.Join(methods, ", ")
	return &ocierror.Error{Code: ocierror.Unsupported, Header: http.Header{"Allow": {allowed}},
		Message: "method not allowed; allowed: " + allowed}
}

// readOnly refuses to change anything. Not 503: clients would try again.
func readOnly(e endpoint) *ocierror.Error {
	var methods []string
	for method, h := range handlers[e] {
		if h.action == auth.Pull {
			methods = append(methods, method)
		}
	}
	slices.Sort(methods)
	return &ocierror.Error{Code: ocierror.Unsupported, Header: http.Header{"Allow": {strings.Join(methods, ", ")}},
		Message: "this registry is read-only: it cannot write to its storage, or must not (setting read-only); pull " +
			"from it, and push when its administrator has restarted it where it can"}
}

func nameInvalid(name string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.NameInvalid, Detail: map[string]string{"name": ocierror.Clip(name)},
		Message: "invalid repository name; want at most 255 characters: elements of lower-case letters and digits, " +
			"separated by '/', with '.', '_', '__' or '-' only inside an element"}
}

func nameUnknown(repo string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.NameUnknown, Detail: map[string]string{"name": repo},
		Message: "repository not found"}
}

func pageInvalid(n string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.Unsupported, Status: http.StatusBadRequest,
		Detail:  map[string]string{"n": ocierror.Clip(n)},
		Message: "invalid n; want the number of results, 0 or more"}
}

// cursorInvalid refuses a last that looks like a cursor and is not one.
func cursorInvalid(last string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.Unsupported, Status: http.StatusBadRequest,
		Detail:  map[string]string{"last": ocierror.Clip(last)},
		Message: "invalid last; want that of a Link header, as it is; begin again without last"}
}

func namespaceUnknown(ns string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.NameUnknown, Detail: map[string]string{"ns": ocierror.Clip(ns)},
		Message: "this registry is not a mirror of the one in ?ns=, and nothing of that name was imported; pull it " +
			"from there; if it is a name of this registry, add it to --names"}
}

// namespaceInvalid has the status 404: a client goes on to the registry that it means.
func namespaceInvalid(ns string, why error) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.NameUnknown, Detail: map[string]string{"ns": ocierror.Clip(ns)},
		Message: "this registry can have no such repository of the one in ?ns=: " + why.Error() +
			"; pull it from there"}
}

func namespaceTwice(one, other string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.NameInvalid,
		Detail:  map[string]string{"ns": ocierror.Clip(one) + ", " + ocierror.Clip(other)},
		Message: "ns is there twice, with different values; want one, the registry as images name it"}
}

func tagInvalid(tag string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.ManifestInvalid, Detail: map[string]string{"tag": ocierror.Clip(tag)},
		Message: "invalid tag; want at most 128 letters, digits, '_', '.' and '-', not starting with '.' or '-'"}
}

func queryInvalid(err error) *ocierror.Error {
	return manifestInvalid("the query cannot be read: %s; want ?NAME=VALUE, with further ones after &, percent-encoded",
		ocierror.Clip(err.Error()))
}

func tooManyTags(most int) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.ManifestInvalid, Status: http.StatusRequestURITooLong,
		Message: fmt.Sprintf("too many tags; want at most %d in one request", most)}
}

func digestInvalid(d string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.DigestInvalid, Detail: map[string]string{"digest": ocierror.Clip(d)},
		Message: "invalid digest; want sha256:<64 hex digits> or sha512:<128 hex digits>, in lower case"}
}

func algorithmInvalid() *ocierror.Error {
	return &ocierror.Error{Code: ocierror.DigestInvalid, Message: "invalid digest-algorithm; want sha256 or sha512"}
}

func digestMismatch(want digest.Digest, cause error) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.DigestInvalid, Cause: cause,
		Detail:  map[string]string{"digest": want.String()},
		Message: "the content does not match the digest; nothing was stored, push it again"}
}

func blobUnknown(repo string, d digest.Digest) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.BlobUnknown,
		Detail:  map[string]string{"name": repo, "digest": d.String()},
		Message: "blob not found in this repository"}
}

func rangeInvalid(size int64) *ocierror.Error {
	n := strconv.FormatInt(size, 10)
	return &ocierror.Error{Code: ocierror.SizeInvalid, Status: http.StatusRequestedRangeNotSatisfiable,
		Header:  http.Header{"Content-Range": {"bytes */" + n}},
		Message: "the range is outside of the blob, which has " + n + " bytes"}
}

func manifestUnknown(repo, ref string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.ManifestUnknown,
		Detail:  map[string]string{"name": repo, "reference": ref},
		Message: "manifest not found: the repository does not have this tag or digest"}
}

func manifestInvalid(format string, args ...any) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.ManifestInvalid, Message: fmt.Sprintf(format, args...)}
}

func mediaTypeInvalid(where, value string) *ocierror.Error {
	return manifestInvalid("%s is %q, which is not a media type; want one type/subtype of RFC 6838, at most 255 "+
		"bytes, such as %s", where, ocierror.Clip(value), typeOCIManifest)
}

func typeNotStorable(mediaType string) *ocierror.Error {
	return manifestInvalid("the media type %s is not that of a manifest; want a specific application/ type as "+
		"Content-Type, such as %s", mediaType, typeOCIManifest)
}

// mediaTypeHeld refuses to change the media type of a manifest that the repository holds.
func mediaTypeHeld(d digest.Digest, held, other string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.ManifestInvalid, Status: http.StatusConflict,
		Detail: map[string]string{"digest": d.String(), "mediaType": held},
		Message: fmt.Sprintf("the repository holds this manifest as %s, not as %s; push it as that, or delete it first",
			held, other)}
}

func tooManyReferences(n, most int, because string) *ocierror.Error {
	return manifestInvalid("the manifest refers to %d blobs and manifests; at most %d are accepted (%s)", n,
		most, because)
}

// foreignRefused refuses an image with the foreign layer d.
func foreignRefused(d digest.Digest) *ocierror.Error {
	e := manifestInvalid("the layer %s is foreign: it has urls or a non-distributable type, and this registry accepts "+
		"only images that it holds whole (setting foreign-layers); push the layer as an ordinary one", d)
	e.Detail = map[string]string{"digest": d.String()}
	return e
}

func manifestTooLarge() *ocierror.Error {
	return &ocierror.Error{Code: ocierror.ManifestInvalid, Status: http.StatusRequestEntityTooLarge,
		Message: fmt.Sprintf("manifest too large; want at most %d bytes", maxManifest)}
}

// partMissing refuses a manifest because the repository does not hold d, or not intact.
func partMissing(d digest.Digest) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.ManifestBlobUnknown, Detail: map[string]string{"digest": d.String()},
		Message: "the manifest refers to content that the repository does not hold; push that first"}
}

// conditionFailed reports that If-Match or If-None-Match of a write does not hold. current is empty if what the request
// addresses does not exist.
func conditionFailed(current digest.Digest) *ocierror.Error {
	state := "the manifest does not exist"
	if current != "" {
		state = "the manifest is now " + current.String()
	}
	return &ocierror.Error{Code: ocierror.Denied, Status: http.StatusPreconditionFailed,
		Message: "precondition failed: " + state}
}

// immutableTag refuses to move or delete a tag that must not change.
func immutableTag(tag string, at digest.Digest) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.Denied, Detail: map[string]string{"tag": tag, "digest": at.String()},
		Message: "tag " + tag + " is immutable (setting immutable-tags) and names " + at.String() +
			"; push another tag"}
}

// inUse refuses to delete a part of a manifest that the repository holds: pulls of that manifest would fail.
func inUse(what string, by digest.Digest) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.Unsupported, Detail: map[string]string{"manifest": by.String()},
		Message: "this " + what + " is part of manifest " + by.String() +
			" in the same repository; delete that one first"}
}

func uploadUnknown(id string) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.UploadUnknown, Detail: map[string]string{"upload": ocierror.Clip(id)},
		Message: "upload not found: it was completed, cancelled or idle for too long; start a new one"}
}

// uploadError gives an error of an upload its code. d is the digest that the upload was to have.
func uploadError(id string, d digest.Digest, err error) error {
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return uploadUnknown(id)
	case errors.Is(err, storage.ErrDigest):
		return digestMismatch(d, err)
	case errors.Is(err, storage.ErrClosed):
		return &ocierror.Error{Code: ocierror.UploadInvalid, Status: http.StatusConflict, Cause: err,
			Message: "another request has taken over this upload; ask for its status and continue from there"}
	}
	if e := (*storage.QuotaError)(nil); errors.As(err, &e) {
		return overQuota(e.Excess)
	}
	return err
}

// chunkOutOfOrder refuses a chunk that does not start where the upload ends. header says where that is.
func chunkOutOfOrder(header http.Header, cause error) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.UploadInvalid, Status: http.StatusRequestedRangeNotSatisfiable, Cause: cause,
		Header: header, Message: "the chunk does not start where the upload ends; see the Range header"}
}

// contentRangeInvalid refuses a chunk whose Content-Range cannot be read.
func contentRangeInvalid() *ocierror.Error {
	return &ocierror.Error{Code: ocierror.UploadInvalid, Status: http.StatusRequestedRangeNotSatisfiable,
		Message: "invalid Content-Range; want <first>-<last>, in bytes, both included; the Range header says what is " +
			"here"}
}

func sizeInvalid(format string, args ...any) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.SizeInvalid, Message: fmt.Sprintf(format, args...)}
}

// bodyEnded is the error for a body that ends before its Content-Length, or stalls. Of an upload, what came before is
// kept.
func bodyEnded(cause error) *ocierror.Error {
	if errors.Is(cause, os.ErrDeadlineExceeded) {
		return &ocierror.Error{Code: ocierror.SizeInvalid, Status: http.StatusRequestTimeout, Cause: cause,
			Message: "the body came too slowly: nothing of it arrived for a while (setting stall-timeout); send it " +
				"again, or ask for the status of the upload and continue from there"}
	}
	return &ocierror.Error{Code: ocierror.SizeInvalid, Cause: cause, Message: "the body ended early; send it again"}
}

// tooManyRequests refuses a request because as many as Options.MaxRequests are under way.
func tooManyRequests() *ocierror.Error {
	return &ocierror.Error{Code: ocierror.TooManyRequests, Header: ocierror.RetryAfter(1),
		Message: "the registry is busy with too many requests; retry in a moment"}
}

// tooManyOfClient refuses a request because its client has as many under way as are free for all.
func tooManyOfClient(who limit.Client) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.TooManyRequests, Header: ocierror.RetryAfter(1),
		Message: who.String() + " has as many requests under way as one client may have (setting max-requests); " +
			"retry when some have ended"}
}

// tooManyUploads refuses an upload because all that its client may have are being written to.
func tooManyUploads(who limit.Client, most int) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.TooManyRequests, Header: ocierror.RetryAfter(5),
		Message: fmt.Sprintf("%s has %d uploads under way, which is the limit (setting max-uploads-per-client); "+
			"retry when some have ended", who, most)}
}

// limitError gives an error of package limit its code.
func limitError(err error) error {
	var e *limit.Exceeded
	if !errors.As(err, &e) {
		return err
	}
	return &ocierror.Error{Code: ocierror.TooManyRequests, Message: e.Error(),
		Header: ocierror.RetryAfter(e.RetryAfter)}
}

// overQuota refuses content that is larger than what a quota leaves.
func overQuota(e storage.Excess) *ocierror.Error {
	return &ocierror.Error{Code: ocierror.Denied, Message: limit.OverQuota(e),
		Detail: map[string]string{"quota": e.Name, "bytes": strconv.FormatInt(e.Bytes, 10),
			"used": strconv.FormatInt(e.Used, 10), "added": strconv.FormatInt(e.Added, 10),
			"uploads": strconv.FormatInt(e.Open, 10), "waiting": strconv.FormatInt(e.Waiting, 10)}}
}

// overLimit refuses a new name because of a limit of the index.
func overLimit(e *storage.LimitError) *ocierror.Error {
	most := strconv.FormatInt(e.Max, 10)
	message := "the repository has " + most + " tags, as many as a repository may have (setting max-tags): " +
		"delete tags that are no longer needed, or ask the administrator to raise the limit"
	switch e.Limit {
	case storage.LimitRepos:
		message = "there are " + most + " repositories, as many as there may be (setting max-repositories): " +
			"delete what is no longer needed, or ask the administrator to raise the limit"
	case storage.LimitBytes:
		message = "the registry's index is full, at " + most +
			" bytes of memory (setting max-index): nothing that is new " +
			"is accepted; delete tags and manifests that are no longer needed, or ask the administrator to raise the " +
			"limit"
	}
	if e.Cache && e.Limit != storage.LimitTags {
		setting := map[storage.Limit]string{storage.LimitRepos: "max-repositories", storage.LimitBytes: "max-index"}
		message = "the index is full to three quarters of the setting " + setting[e.Limit] + ", and the rest is for " +
			"pushes, so nothing more of other registries is cached; the administrator can evict images (trow evict) " +
			"or raise the limit"
	}
	return &ocierror.Error{Code: ocierror.Denied, Status: http.StatusInsufficientStorage, Cause: e, Message: message}
}

// moved refuses to change anything after a migration. Not 503: clients would try again.
func moved(err *storage.SealedError) *ocierror.Error {
	where := "it is the target of a migration that has not finished"
	if err.Moved() {
		where = "its content has moved to " + err.Migration.To + ", and pulls go on here"
	}
	return &ocierror.Error{Code: ocierror.Unsupported, Status: http.StatusConflict, Cause: err,
		Message: "this registry refuses everything that changes it: " + where + "; push to the registry that its " +
			"administrator has started there"}
}

// internal returns what a client gets for an error that has no form for clients. The cause goes to the log alone.
func internal(err error) *ocierror.Error {
	if sealed := (*storage.SealedError)(nil); errors.As(err, &sealed) {
		return moved(sealed)
	}
	switch {
	case errors.Is(err, storage.ErrFull):
		return &ocierror.Error{Code: ocierror.Unknown, Status: http.StatusInsufficientStorage, Cause: err,
			Header: ocierror.RetryAfter(60), Message: "the registry's storage is full; its administrator must make " +
				"room"}
	case errors.Is(err, storage.ErrReadOnly): // it has become so, or the registry would not have got this far
		return &ocierror.Error{Code: ocierror.Unavailable, Cause: err, Header: ocierror.RetryAfter(60),
			Message: "the registry's storage has become read-only, as after an error of the disk; pulls go on, and " +
				"its administrator must look at the volume and restart the registry"}
	case errors.Is(err, storage.ErrUnavailable):
		return &ocierror.Error{Code: ocierror.Unavailable, Cause: err, Header: ocierror.RetryAfter(5),
			Message: "the registry's storage does not answer; retry in a moment"}
	case errors.Is(err, storage.ErrExpired):
		return &ocierror.Error{Code: ocierror.UploadUnknown, Cause: err,
			Message: "the upload took so long that its bytes may have been removed; push it again"}
	case errors.Is(err, storage.ErrTooLarge):
		return &ocierror.Error{Code: ocierror.SizeInvalid, Status: http.StatusRequestEntityTooLarge, Cause: err,
			Message: "the change is more than one commit of the registry's journal can take; push fewer tags at " +
				"once, or a manifest with fewer references"}
	case errors.Is(err, storage.ErrBusy):
		return &ocierror.Error{Code: ocierror.TooManyRequests, Cause: err,
			Header: ocierror.RetryAfter(5), Message: "too many uploads are open; retry in a moment"}
	case errors.Is(err, storage.ErrClosed):
		return &ocierror.Error{Code: ocierror.Unavailable, Cause: err,
			Header: ocierror.RetryAfter(5), Message: "the registry is stopping; retry"}
	}
	return &ocierror.Error{Code: ocierror.Unknown, Cause: err, Message: "internal error"}
}

// Loading answers requests to /v2 while the index is loading and no Registry can serve them yet.
var Loading http.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
	refuse(w, req, &ocierror.Error{Code: ocierror.Unavailable,
		Header: ocierror.RetryAfter(1), Message: "the registry is loading its index; retry in a moment"})
})

// writeError is the one place where the registry turns an error into an answer.
func (r *Registry) writeError(w http.ResponseWriter, req *http.Request, err error) {
	ctx := req.Context()
	if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		panic(http.ErrAbortHandler) // the client has gone: an answer would only look like a failure in the log
	}
	e := ocierror.As(err)
	if l, ok := errors.AsType[*storage.LimitError](err); ok && e == nil {
		e = overLimit(l)
	}
	if e == nil {
		e = internal(err)
	}
	r.annotate(ctx, "code", string(e.Code))
	if e.HTTPStatus() >= 500 || e.Cause != nil {
		r.annotate(ctx, "err", err.Error())
	}
	if e.HTTPStatus() >= 500 && r.options.RequestID != nil {
		named := *e // a copy, because some errors are shared by all requests
		named.Message += " (request " + r.options.RequestID(ctx) + ")"
		e = &named
	}
	refuse(w, req, e)
}

// refuse answers with an error, also a client that is still sending its body.
func refuse(w http.ResponseWriter, req *http.Request, e *ocierror.Error) {
	if req.ContentLength == 0 {
		ocierror.Write(w, req, e)
		return
	}
	// A client looks for the answer when it has sent its body. Closing the connection now would reset it, and the reset
	// overtakes the answer. So the answer goes out first, and then the body is read. HTTP/2 has its own way to stop the
	// client; there these calls fail, which changes nothing.
	c := http.NewResponseController(w)
	_ = c.EnableFullDuplex()
	ocierror.Write(w, req, e)
	_ = c.Flush()
	if req.ProtoMajor == 1 {
		// The deadline is for the whole, because each byte of a body that dribbles would put off that of a stall.
		_ = c.SetReadDeadline(time.Now().Add(drainTime))
		_, _ = io.CopyN(io.Discard, req.Body, drainBytes)
	}
}

// These bound what is read of a body after its request was refused: long enough for a client that is slow to notice,
// and not so much that it pays to send bodies that are refused.
const (
	drainTime  = 10 * time.Second
	drainBytes = 256 << 20
)

// writeJSON answers with v in JSON. v is of a type of this package, small enough to be encoded before anything is sent.
func writeJSON(w http.ResponseWriter, req *http.Request, v any) {
	body, err := ocierror.JSON(v)
	if err != nil {
		panic(fmt.Sprintf("registry: encode %T: %v", v, err)) // a mistake in this package
	}
	write(w, req, "application/json", body)
}

// write answers with a body that is in memory.
func write(w http.ResponseWriter, req *http.Request, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if req.Method != http.MethodHead {
		_, _ = w.Write(body) // fails only if the client has gone
	}
}
