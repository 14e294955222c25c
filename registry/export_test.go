package registry

import (
	"context"
	"errors"
)

// Poll fetches ahead what keep: of all upstreams names, once; see [mirror.Mirror.Poll]. Errors: those of all upstreams.
func (r *Registry) Poll(ctx context.Context) error {
	if r.mirror == nil {
		return nil
	}
	var errs []error
	for _, up := range r.options.Upstreams.All() {
		errs = append(errs, r.mirror.Poll(ctx, up))
	}
	return errors.Join(errs...)
}
