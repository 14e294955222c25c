package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// populating is the number of connections that push the content: enough for a server that commits in groups.
const populating = 8

// stage is a part of the content: n items that depend on the earlier stages, but not on each other.
type stage struct {
	name string
	need need
	n    int
	push func(w *worker, i int) error
}

// stages returns the parts in the order in which they are pushed.
func (c *content) stages() []stage {
	blobs := func(all []piece) func(*worker, int) error {
		return func(w *worker, i int) error { return w.ensureBlob(c.repo, all[i], "") }
	}
	manifests := func(all []piece) func(*worker, int) error {
		return func(w *worker, i int) error { return w.ensureManifest(c.repo, all[i].digest, all[i]) }
	}
	large := []piece{c.empty, c.large, c.small}
	return []stage{
		{"blobs", needBlobs, len(large), blobs(large)},
		{"blobs' image", needBlobs, 1, func(w *worker, _ int) error {
			return w.ensureManifest(c.repo, holderTag, c.holder)
		}},
		{"layers", needImages, len(c.blobs), blobs(c.blobs)},
		{"images", needImages, len(c.images), manifests(c.images)},
		{"tags", needTags, c.scale.Tags, func(w *worker, i int) error {
			return w.ensureManifest(c.repo, c.tags[i], c.tagged(i))
		}},
		{"referrers' config", needReferrers, 1, blobs([]piece{c.empty})},
		{"referrers", needReferrers, len(c.referrers), manifests(c.referrers)},
		{"repositories", needRepos, c.scale.Repos, func(w *worker, i int) error { return w.pushRepo(c, i) }},
	}
}

// populate pushes what the selected scenarios read, unless it exists. If no scenario was asked for by name, those whose
// content the server does not support are skipped. Errors: what the server refuses of the rest.
func (r *runner) populate(ctx context.Context) error {
	var needed need
	for _, s := range r.selected() {
		needed |= s.needs
	}
	start := time.Now()
	for _, s := range r.content.stages() {
		if needed&s.need == 0 {
			continue
		}
		r.options.Progress(fmt.Sprintf("populating: %s (%d)", s.name, s.n))
		err := r.stage(ctx, s)
		if err == nil {
			continue
		}
		optional := s.need&(needReferrers|needRepos) != 0 && len(r.options.Scenarios) == 0
		if why := refusalText(err); why != "" && optional {
			r.skip(s.need, why)
			continue
		}
		if bad, ok := errors.AsType[*statusError](err); ok && bad.status == http.StatusMethodNotAllowed {
			err = fmt.Errorf("%w; for a read-only server, write the content with --static and use --no-populate", err)
		}
		return fmt.Errorf("populating, %s: %w", s.name, err)
	}
	r.options.Progress(fmt.Sprintf("populated, in %s", time.Since(start).Round(time.Millisecond)))
	return nil
}

// skip skips all scenarios with a need.
func (r *runner) skip(n need, why string) {
	for _, s := range scenarios {
		if s.needs&n != 0 {
			r.skipped[s.name] = why
		}
	}
}

// stage pushes the items of a stage.
func (r *runner) stage(ctx context.Context, s stage) error {
	var next atomic.Int64
	return r.parallel(ctx, min(populating, s.n), func(w *worker) error {
		for {
			i := int(next.Add(1)) - 1
			if i >= s.n || w.ctx.Err() != nil {
				return nil
			}
			if err := retryWhileBusy(w.ctx, func() error { return s.push(w, i) }); err != nil {
				return err
			}
		}
	})
}

// retryWhileBusy calls do again after a second if the server answers 429 or 503, at most 30 times.
func retryWhileBusy(ctx context.Context, do func() error) error {
	for range 30 {
		err := do()
		bad, ok := errors.AsType[*statusError](err)
		if !ok || bad.status != http.StatusTooManyRequests && bad.status != http.StatusServiceUnavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return do()
}

// exists reports whether the repository has a blob or manifest with the size and, as far as the answer has one, the
// digest of p.
func (w *worker) exists(repo, kind, ref string, p piece) (bool, error) {
	path := "/v2/" + repo + "/" + kind + "/" + ref
	resp, err := w.do(&request{method: "HEAD", path: path, repo: repo, fields: []field{acceptField}})
	if err != nil {
		return false, err
	}
	switch resp.status {
	case http.StatusOK:
		same := string(resp.digest) == p.digest || len(resp.digest) == 0 && ref == p.digest
		return same && resp.length == int64(len(p.bytes)), nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, w.refusal("HEAD", path, resp)
}

// ensureBlob pushes a blob unless the repository has it. If from is not empty, it is mounted from that repository.
func (w *worker) ensureBlob(repo string, p piece, from string) error {
	if there, err := w.exists(repo, "blobs", p.digest, p); err != nil || there {
		return err
	}
	if from == "" {
		return w.push(repo, p.digest, [2][]byte{p.bytes})
	}
	resp, err := w.do(mountRequest(repo, p.digest, from))
	switch {
	case err != nil:
		return err
	case resp.status == http.StatusCreated:
		return nil
	case resp.status != http.StatusAccepted:
		return w.refusal("POST", "/v2/"+repo+"/blobs/uploads/", resp)
	}
	at, err := w.location(resp)
	if err != nil {
		return err
	}
	return w.finish(repo, at, p.digest, [2][]byte{p.bytes})
}

func (w *worker) ensureManifest(repo, ref string, p piece) error {
	if there, err := w.exists(repo, "manifests", ref, p); err != nil || there {
		return err
	}
	return w.putManifest(repo, ref, p.mediaType, p.bytes)
}

// pushRepo creates one of the many repositories.
func (w *worker) pushRepo(c *content, i int) error {
	repo := c.repoName(i)
	if there, err := w.exists(repo, "manifests", "v1", c.minimal); err != nil || there {
		return err
	}
	// c.repo has the empty blob if other scenarios need it; otherwise the server answers with an upload.
	if err := w.ensureBlob(repo, c.empty, c.repo); err != nil {
		return err
	}
	return w.putManifest(repo, "v1", v1.MediaTypeImageManifest, c.minimal.bytes)
}
