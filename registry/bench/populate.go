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

// populating is over how many connections the content is brought in: enough for a server that commits in groups.
const populating = 8

// stage is a part of the content: n items that do not need each other, but all earlier stages.
type stage struct {
	name string
	need need
	n    int
	push func(w *worker, i int) error
}

// stages are the parts, in order.
func (c *content) stages() []stage {
	large := []piece{c.empty, c.large, c.small}
	return []stage{
		{"blobs", needBlobs, len(large), func(w *worker, i int) error { return w.ensureBlob(c.repo, large[i], "") }},
		{"blobs' image", needBlobs, 1, func(w *worker, _ int) error { return w.ensureManifest(c.repo, holderTag, c.holder) }},
		{"layers", needImages, len(c.blobs), func(w *worker, i int) error { return w.ensureBlob(c.repo, c.blobs[i], "") }},
		{"images", needImages, len(c.images), func(w *worker, i int) error { return w.ensureManifest(c.repo, c.images[i].digest, c.images[i]) }},
		{"tags", needTags, c.scale.Tags, func(w *worker, i int) error { return w.ensureManifest(c.repo, c.tags[i], c.tagged(i)) }},
		{"referrers' config", needReferrers, 1, func(w *worker, _ int) error { return w.ensureBlob(c.repo, c.empty, "") }},
		{"referrers", needReferrers, len(c.referrers), func(w *worker, i int) error { return w.ensureManifest(c.repo, c.referrers[i].digest, c.referrers[i]) }},
		{"repositories", needRepos, c.scale.Repos, func(w *worker, i int) error { return w.pushRepo(c, i) }},
	}
}

// populate brings in what the chosen scenarios read. What is there is left as it is. If scenarios were not asked for
// by name, those whose content is refused are left out. Errors: what the server says of the rest.
func (r *runner) populate(ctx context.Context) error {
	var needed need
	for _, s := range r.chosen() {
		needed |= s.needs
	}
	start := time.Now()
	for _, s := range r.content.stages() {
		if needed&s.need == 0 {
			continue
		}
		r.options.Tell(fmt.Sprintf("populating: %s (%d)", s.name, s.n))
		err := r.stage(ctx, s)
		if err == nil {
			continue
		}
		if why := refusalText(err); why != "" && s.need&(needReferrers|needRepos) != 0 && len(r.options.Scenarios) == 0 {
			r.skip(s.need, why)
			continue
		}
		if bad, ok := errors.AsType[*statusError](err); ok && bad.status == http.StatusMethodNotAllowed {
			err = fmt.Errorf("%w; a server that only reads gets its content as files, with --static, and is measured with --no-populate", err)
		}
		return fmt.Errorf("populating, %s: %w", s.name, err)
	}
	r.options.Tell(fmt.Sprintf("populated, in %s", time.Since(start).Round(time.Millisecond)))
	return nil
}

// skip leaves out all scenarios with a need.
func (r *runner) skip(n need, why string) {
	for _, s := range scenarios {
		if s.needs&n != 0 {
			r.skipped[s.name] = why
		}
	}
}

// stage pushes the items of one.
func (r *runner) stage(ctx context.Context, s stage) error {
	var next atomic.Int64
	return r.parallel(ctx, min(populating, s.n), func(w *worker) error {
		for {
			i := int(next.Add(1)) - 1
			if i >= s.n || w.ctx.Err() != nil {
				return nil
			}
			if err := patiently(w.ctx, func() error { return s.push(w, i) }); err != nil {
				return err
			}
		}
	})
}

// patiently does again, a little later, what a busy server asks to do later.
func patiently(ctx context.Context, do func() error) error {
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

// has asks whether something is there, in the size it should have; with a digest, of what content.
func (w *worker) has(repo, kind, ref string, p piece) (bool, error) {
	resp, err := w.do(&request{method: "HEAD", path: "/v2/" + repo + "/" + kind + "/" + ref, repo: repo, fields: []field{acceptField}})
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
	return false, w.refusal("HEAD", "/v2/"+repo+"/"+kind+"/"+ref, resp)
}

// ensureBlob makes a repository hold a blob, from another one that does if there is one.
func (w *worker) ensureBlob(repo string, p piece, from string) error {
	if there, err := w.has(repo, "blobs", p.digest, p); err != nil || there {
		return err
	}
	if from == "" {
		return w.push(repo, p.digest, [2][]byte{p.bytes})
	}
	resp, err := w.do(&request{method: "POST", repo: repo, path: "/v2/" + repo + "/blobs/uploads/?mount=" + p.digest + "&from=" + from})
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
	_, err = w.want(&request{method: "PUT", path: withDigest(at, p.digest), repo: repo, fields: octets, body: [2][]byte{p.bytes}}, http.StatusCreated)
	return err
}

func (w *worker) ensureManifest(repo, ref string, p piece) error {
	if there, err := w.has(repo, "manifests", ref, p); err != nil || there {
		return err
	}
	return w.putManifest(repo, ref, p.mediaType, p.bytes)
}

// pushRepo makes one of the many repositories.
func (w *worker) pushRepo(c *content, i int) error {
	repo := c.repoName(i)
	if there, err := w.has(repo, "manifests", "v1", c.minimal); err != nil || there {
		return err
	}
	if err := w.ensureBlob(repo, c.empty, c.repo); err != nil {
		return err
	}
	return w.putManifest(repo, "v1", v1.MediaTypeImageManifest, c.minimal.bytes)
}
