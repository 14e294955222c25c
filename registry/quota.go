package registry

import (
	"context"
	"math"
	"net/http"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// withinQuota refuses d, of size bytes, if a quota has no room for it. d may be empty: it is not known yet.
func (r *Registry) withinQuota(tx *storage.Tx, d digest.Digest, size int64) error {
	if r.options.NoQuotas {
		return nil
	}
	if e, over := tx.Excess(d, size); over {
		return overQuota(e)
	}
	return nil
}

// roomFor refuses an upload that a quota has no room for, before its bytes are read or made a blob: have bytes are there,
// and the request announces more, or not. The change that names the blob decides, since others push meanwhile.
func (r *Registry) roomFor(repo string, d digest.Digest, have int64, req *http.Request) error {
	coming := min(max(req.ContentLength, 0), math.MaxInt64-have)
	return r.options.Index.View(repo, func(tx *storage.Tx) error {
		return r.withinQuota(tx, d, max(have+coming, 1)) // hardly anybody pushes less than a byte
	})
}

// link records that the repo holds a blob, which the caller has pinned or just committed.
func (r *Registry) link(ctx context.Context, repo string, d digest.Digest, size int64) error {
	r.options.Index.Lease(repo, d)
	return r.options.Index.Update(ctx, repo, func(tx *storage.Tx) error {
		if err := r.withinQuota(tx, d, size); err != nil {
			return err
		}
		tx.Link(d, size)
		return nil
	})
}
