package registry

import (
	"bytes"
	"errors"
	"net/http"

	"trow/registry/ocierror"
)

// Bodies bounds the memory of the manifests that are read and processed at once.
type Bodies interface {
	// Read reads the body of a request, of at most most bytes, into a buffer. It reserves factor times the size of the
	// body until release is called. Errors: *http.MaxBytesError if the body is larger; one with a method RetryAfter()
	// int, in seconds, if there is no memory; those of the body. On an error there is nothing to release.
	Read(into *bytes.Buffer, w http.ResponseWriter, req *http.Request, most int64,
		factor int) (release func(), err error)
}

// manifestFactor is how many times its size a manifest takes in memory, the body included; a test measures it.
const manifestFactor = 16

// readManifestBody reads a request's body, up to maxManifest bytes. The caller calls release when it is done with the
// body; on an error there is nothing to release.
func (r *Registry) readManifestBody(w http.ResponseWriter, req *http.Request) (body []byte, release func(), err error) {
	var buf bytes.Buffer
	if release, err = r.options.Bodies.Read(&buf, w, req, maxManifest, manifestFactor); err == nil {
		return buf.Bytes(), release, nil
	}
	var later interface{ RetryAfter() int }
	switch tooLarge := (*http.MaxBytesError)(nil); {
	case errors.As(err, &tooLarge):
		return nil, nil, manifestTooLarge()
	case errors.As(err, &later):
		return nil, nil, &ocierror.Error{Code: ocierror.TooManyRequests, Message: err.Error(),
			Header: ocierror.RetryAfter(later.RetryAfter())}
	}
	return nil, nil, bodyEnded(err)
}
