package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"

	"trow/registry/client"
	"trow/storage"
)

// remote is a running registry.
type remote struct{ *client.Client }

// repositories calls each with what every repository holds. The answer is a stream of JSON, one object for each
// repository, because all of them together may not fit into memory.
func (r remote) repositories(ctx context.Context, each func(storage.Holdings) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL()+"/admin/repositories", nil)
	if err != nil {
		return err
	}
	resp, err := r.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("cannot list the repositories: status %s", resp.Status)
	}
	for in := json.NewDecoder(resp.Body); ; {
		var h storage.Holdings
		if err := in.Decode(&h); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("cannot read the list of repositories: %w", err)
		}
		if err := each(h); err != nil {
			return err
		}
	}
}

// kind is what a repository holds.
type kind int

const (
	manifestKind kind = iota
	blobKind
)

// get opens a manifest or a blob.
func (r remote) get(ctx context.Context, repo string, k kind, d digest.Digest, size int64) (io.ReadCloser, error) {
	if k == blobKind {
		return r.Blob(ctx, repo, d, size)
	}
	_, body, err := r.Manifest(ctx, repo, d.String())
	return body, err
}

// manifest returns the digest of a manifest, empty if the repository does not hold it. ref may be a tag. The registry
// keeps what it reported to a client for a while, so that the import can rely on it.
func (r remote) manifest(ctx context.Context, repo, ref string) (digest.Digest, error) {
	desc, err := r.Resolve(ctx, repo, ref)
	if missing(err) {
		return "", nil
	}
	return desc.Digest, err
}

// hasBlob reports whether a repository holds a blob.
func (r remote) hasBlob(ctx context.Context, repo string, d digest.Digest) (bool, error) {
	_, err := r.ResolveBlob(ctx, repo, d)
	if missing(err) {
		return false, nil
	}
	return err == nil, err
}

// refused reports whether the registry refused the content of a request. Other requests may succeed all the same.
func refused(err error) bool {
	e, ok := errors.AsType[*client.Error](err)
	if !ok {
		return false
	}
	switch e.Status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusRequestedRangeNotSatisfiable:
		return true
	}
	return false
}
