package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Clean deletes the manifests that earlier runs created: those of the content, and all that have a tag in the
// repositories below Options.Repository, as far as the server lists them. It returns how many it deleted. It does not
// delete blobs, nor manifests without a tag that are left by a run that was stopped. Errors: those of [Run]; the server
// does not allow deletion.
func Clean(ctx context.Context, o Options) (int, error) {
	r, err := newRunner(ctx, o)
	if err != nil {
		return 0, err
	}
	var digests []string
	for _, p := range append(append([]piece{r.content.holder}, r.content.referrers...), r.content.images...) {
		digests = append(digests, p.digest)
	}
	n, err := r.remove(ctx, r.content.repo, digests)
	if err != nil {
		return n, err
	}
	repos, err := r.reposBelow(ctx)
	if err != nil {
		return n, err
	}
	for _, repo := range repos {
		r.options.Progress("cleaning " + repo)
		gone, err := r.removeTagged(ctx, repo)
		n += gone
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// reposBelow returns the repositories that exist. If the server has no catalog, it returns those that a run creates,
// except for those of the scenario mount.
func (r *runner) reposBelow(ctx context.Context) ([]string, error) {
	w, err := r.newWorker(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer w.close()
	w.conn.setDeadline(time.Time{})
	base := r.content.repo
	repos := []string{base}
	for last := base; ; {
		resp, err := w.do(&request{method: "GET", path: "/v2/_catalog?n=100&last=" + last})
		if err != nil {
			return nil, err
		}
		var page struct{ Repositories []string }
		if resp.status != http.StatusOK || json.Unmarshal(resp.body, &page) != nil {
			for i := range r.content.scale.Repos {
				repos = append(repos, r.content.repoName(i))
			}
			return append(repos, base+"/push", base+"/delete", base+"/upload"), nil
		}
		for _, name := range page.Repositories {
			if strings.HasPrefix(name, base+"/") && repositoryName.MatchString(name) {
				repos = append(repos, name)
			}
		}
		end := len(page.Repositories) - 1
		// Names are sorted, and "0" follows "/": beyond base+"0" there is nothing below base.
		if end < 0 || page.Repositories[end] <= last || page.Repositories[end] > base+"0" {
			return slices.Compact(slices.Sorted(slices.Values(repos))), nil
		}
		last = page.Repositories[end]
	}
}

// removeTagged deletes all manifests that have a tag, page by page.
func (r *runner) removeTagged(ctx context.Context, repo string) (int, error) {
	n := 0
	for {
		digests, err := r.taggedDigests(ctx, repo)
		if err != nil || len(digests) == 0 {
			return n, err
		}
		gone, err := r.remove(ctx, repo, digests)
		n += gone
		// Tags that deletion does not remove would be listed again and again.
		if err != nil || gone == 0 {
			return n, err
		}
	}
}

// taggedDigests returns the digests of the first page of tags.
func (r *runner) taggedDigests(ctx context.Context, repo string) ([]string, error) {
	w, err := r.newWorker(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer w.close()
	resp, err := w.do(&request{method: "GET", path: "/v2/" + repo + "/tags/list?n=1000", repo: repo})
	if err != nil || resp.status == http.StatusNotFound {
		return nil, err
	}
	if resp.status != http.StatusOK {
		return nil, w.refusal("GET", "/v2/"+repo+"/tags/list", resp)
	}
	var page struct{ Tags []string }
	if err := json.Unmarshal(resp.body, &page); err != nil {
		return nil, fmt.Errorf("/v2/%s/tags/list: not a valid list: %w", repo, err)
	}
	found := map[string]bool{}
	for _, tag := range page.Tags {
		resp, err := w.do(&request{method: "HEAD", path: "/v2/" + repo + "/manifests/" + tag, repo: repo,
			fields: []field{acceptField}})
		if err != nil {
			return nil, err
		}
		if resp.status == http.StatusOK && len(resp.digest) > 0 {
			found[string(resp.digest)] = true
		}
	}
	var digests []string
	for d := range found {
		digests = append(digests, d)
	}
	return digests, nil
}

// remove deletes manifests, and returns how many of them existed.
func (r *runner) remove(ctx context.Context, repo string, digests []string) (int, error) {
	var next, gone atomic.Int64
	err := r.parallel(ctx, populating, func(w *worker) error {
		for w.ctx.Err() == nil {
			i := int(next.Add(1)) - 1
			if i >= len(digests) {
				return nil
			}
			err := retryWhileBusy(w.ctx, func() error { return w.deleteManifest(repo, digests[i]) })
			if bad, ok := errors.AsType[*statusError](err); ok && bad.status == http.StatusNotFound {
				continue
			} else if err != nil {
				return fmt.Errorf("%w; check that the server allows deletion, and that the user may delete", err)
			}
			gone.Add(1)
		}
		return nil
	})
	return int(gone.Load()), err
}
