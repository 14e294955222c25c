package service

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/maintenance"
	"trow/registry/namespace"
	"trow/registry/upstream"
	"trow/storage"
)

// Images are what verdicts ask of a running registry. Their fetches end with the service.
type Images struct {
	registry.Images
	ahead *ahead
}

// Fetch is [registry.Images.Fetch]. Errors: also that the service is closed.
func (i Images) Fetch(ctx context.Context, repo, ref string) error {
	return i.ahead.do(ctx, func(ctx context.Context) error {
		return upstream.Explained(i.Images.Fetch(ctx, repo, ref)) // the webhook logs it
	})
}

// ahead bounds the life of work that no request waits for, so that the data is not closed under it.
type ahead struct {
	under sync.WaitGroup

	mu      sync.Mutex // guards all below; Add of under comes before wait
	closed  bool
	next    int
	cancels map[int]context.CancelCauseFunc // of the work under way
}

var errClosed = errors.New("the registry is being stopped")

// do calls work with a context that also ends with the service.
func (a *ahead) do(ctx context.Context, work func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return errClosed
	}
	a.under.Add(1)
	defer a.under.Done()
	if a.cancels == nil {
		a.cancels = map[int]context.CancelCauseFunc{}
	}
	a.next++
	n := a.next
	a.cancels[n] = cancel
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.cancels, n)
	}()
	return work(ctx)
}

// stop cancels the work, and refuses more; wait returns when it has ended.
func (a *ahead) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for _, cancel := range a.cancels {
		cancel(errClosed)
	}
}

func (a *ahead) wait() { a.under.Wait() }

// Judged returns what verdicts ask of the data of a registry, without running it. The index has its facts, and dir is
// its data directory; content that is elsewhere is read as the settings say. Errors: settings that cannot be used.
func (o *Options) Judged(x *storage.Index, dir string) (registry.Images, error) {
	names := namespace.NewTable(o.Namespaces.Sites)
	up := upstream.New(upstream.Config{Names: names, Offline: true})
	entries := slices.Clone(o.Upstream.Entries())
	for i := range entries { // nothing is asked, and the files that they name are those of the server
		entries[i].CAFile, entries[i].Endpoints = "", nil
	}
	if err := up.Set(entries); err != nil {
		return registry.Images{}, err
	}
	engines := o.Data.Engines
	engines.DataDir = dir
	blobs := sync.OnceValues(func() (storage.Blobs, error) { // few checks need it
		return engines.OpenBlobs(context.Background(), maintenance.Use{ReadOnly: true}, x)
	})
	return registry.StoredImages(x, names, up, func(ctx context.Context, d digest.Digest) ([]byte, error) {
		b, err := blobs()
		if err != nil {
			return nil, err
		}
		return registry.ReadSmall(ctx, b, d)
	}), nil
}
