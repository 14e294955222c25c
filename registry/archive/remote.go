package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/admin"
	"trow/registry/client"
	"trow/registry/inventory"
	"trow/storage"
)

// remote is a running registry.
type remote struct{ *client.Client }

// administer sends a request without a body to a path of the administration. The caller closes the body of the answer.
func (r remote) administer(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, r.URL()+"/admin/"+path, nil)
	if err != nil {
		return nil, err
	}
	return r.Do(req)
}

// repositories calls each with what every repository holds.
func (r remote) repositories(ctx context.Context, each func(storage.Holdings) error) error {
	return inventory.Read(ctx, admin.NewRemote(r.URL(), r), nil, each)
}

// holds reports whether a repository holds a manifest, also one that it does not hand out because it is damaged.
func (r remote) holds(ctx context.Context, repo string, d digest.Digest) (held bool, err error) {
	err = inventory.Read(ctx, admin.NewRemote(r.URL(), r), []string{repo}, func(h storage.Holdings) error {
		held = slices.ContainsFunc(h.Manifests, func(m storage.HeldManifest) bool { return m.Digest == d })
		return nil
	})
	return held, err
}

// kind is what a repository holds.
type kind int

const (
	manifestKind kind = iota
	blobKind
)

// get opens a manifest or a blob. A failure of the registry that is about this content is a problem: other content may
// be readable. One that has too much to do, or stops, answers otherwise.
func (r remote) get(ctx context.Context, repo string, k kind, d digest.Digest, size int64) (io.ReadCloser, error) {
	var body io.ReadCloser
	var err error
	if k == blobKind {
		body, err = r.Blob(ctx, repo, d, size)
	} else {
		_, body, err = r.Manifest(ctx, repo, d.String())
	}
	if e, ok := errors.AsType[*client.Error](err); ok && e.Status == http.StatusInternalServerError {
		err = problem{err}
	}
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

// holdEvery is the time between two requests of an import that keep retention from removing. The registry believes each
// for a minute.
const holdEvery = 20 * time.Second

// run imports, and keeps the registry's retention from removing what the import brings: until its end, and in the first
// run after it, which only reports. Errors: as [importer.end]; the registry cannot hold its retention.
func (i *importer) run(ctx context.Context, do func() error) (Progress, error) {
	if err := i.to.holdRetention(ctx); err != nil {
		return Progress{}, err
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		t := time.NewTicker(holdEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				_ = i.to.holdRetention(ctx) // the first was recorded; another one follows
			case <-stop:
				return
			}
		}
	}()
	err := do()
	close(stop)
	<-stopped
	// Once more, because a run may have counted meanwhile; also after an import that was cut short.
	if herr := i.to.holdRetention(context.WithoutCancel(ctx)); err == nil {
		err = herr
	}
	return i.end("imported", err)
}

// holdRetention asks the registry to let its retention only report for a while. One that does not know the request is
// of an earlier version, and has nothing to hold.
func (r remote) holdRetention(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, holdEvery)
	defer cancel()
	resp, err := r.administer(ctx, http.MethodPost, "retention-hold")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusNotFound {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("the registry cannot hold its retention for an import: %s: %.300s", resp.Status, text)
	}
	return nil
}
