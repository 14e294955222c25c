package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/upstream"
)

// This file fetches images of other registries ahead of need, for the administration.

// Warmed is an image that is here as a whole, for the platforms that were asked for.
type Warmed struct {
	Image      string        `json:"image"`          // its name in full
	Host       string        `json:"host,omitempty"` // of its registry; empty: this one
	Name       string        `json:"name"`           // of its repository there
	Repository string        `json:"repository"`     // here
	Tag        string        `json:"tag,omitempty"`  // empty for an image that was named by its digest
	Digest     digest.Digest `json:"digest"`
	Bytes      int64         `json:"bytes"`           // of the image, with its signatures
	Fetched    int64         `json:"fetched"`         // of blobs that were not here before
	Notes      []string      `json:"notes,omitempty"` // about signatures that could not be fetched
}

// Find returns where an image, named as pods name it, is in this registry, whether it is held or not. Errors: the name
// is not valid, or the image cannot have a name here.
func (r *Registry) Find(image string) (w Warmed, i namespace.Image, err error) {
	if i, err = namespace.ParseImage(image); err != nil {
		return w, i, err
	}
	names := r.options.Namespaces
	up, within := names.Upstream(i.Repo)
	site, isSite := names.Site(i.Host)
	switch {
	// Without a host it is as trow ls prints it: Docker Hub has no such names.
	case within && (r.names[i.Host] || strings.HasPrefix(image, namespace.Prefix)):
		i.Name = up // f/docker.io/library/nginx of this registry is docker.io/library/nginx
	case r.names[i.Host]:
		return Warmed{Image: i.String(), Name: i.Repo, Repository: i.Repo, Tag: tagOf(i)}, i, nil
	case isSite:
		if i.Name, err = namespace.Parse(site, i.Repo); err != nil {
			return w, i, err
		}
	}
	w = Warmed{Image: i.String(), Host: i.Host, Name: i.Repo, Tag: tagOf(i)}
	if w.Repository, err = names.Local(i.Name); err != nil {
		return w, i, fmt.Errorf("%s: %w", i, err)
	}
	return w, i, nil
}

// Warm makes this registry hold an image, named as pods name it, with its signatures and other referrers as far as they
// can be fetched. Of an index it fetches the manifests for the platforms, or all if platforms is nil. report is called,
// one call at a time, with how many bytes are here and how many are known to be needed. Errors: the image is one of
// this registry, which does not hold it; as mirror.Mirror.Fetch.
func (r *Registry) Warm(ctx context.Context, image string, platforms []mirror.Platform,
	report func(here, known int64)) (Warmed, error) {
	w, i, err := r.Find(image)
	if err != nil {
		return w, err
	}
	if w.Host == "" {
		return w, r.warmLocal(ctx, &w, i)
	}
	if r.mirror == nil || r.options.ReadOnly {
		return w, fmt.Errorf("%s: this registry is read-only, and fetches nothing", i)
	}
	c := warming{report: report, contents: map[digest.Digest]*warmed{}}
	err = r.mirror.Fetch(ctx, w.Repository, i.Ref(), platforms, c.progress)
	if err != nil {
		return w, warmError(i, err)
	}
	m, held, err := r.lookup(ctx, w.Repository, i.Ref())
	if err != nil || !held {
		return w, errors.Join(err, fmt.Errorf("%s was evicted or deleted while it was fetched; try again", i))
	}
	w.Digest = m.Digest()
	w.Bytes, w.Fetched = c.sums()
	w.Notes = slices.Concat(r.staleNote(ctx, i, w), r.foreignNote(ctx, i, w),
		r.warmReferrers(ctx, i, w.Repository, w.Digest))
	return w, ctx.Err()
}

// staleNote says of a tag that it is what it was, and that the upstream no longer says so.
func (r *Registry) staleNote(ctx context.Context, i namespace.Image, w Warmed) []string {
	if w.Tag == "" {
		return nil
	}
	// It has just been asked, so that this is its answer of then, but for a tag that has moved.
	if stale, err := r.mirror.Refresh(ctx, w.Repository, w.Tag); err == nil && stale != nil {
		return []string{fmt.Sprintf("%s: it is what was here before: %v", i, upstream.Explained(stale))}
	}
	return nil
}

// foreignNote says of an image that layers of it are not here although all was fetched.
func (r *Registry) foreignNote(ctx context.Context, i namespace.Image, w Warmed) []string {
	h, _, err := r.options.Index.Holdings(ctx, w.Repository)
	if err != nil {
		return nil
	}
	s := newUpstreamRepo(h, i.Name)
	if s.manifests[w.Digest] == nil {
		return nil
	}
	var image HeldImage
	if r.whole(ctx, s, s.manifests[w.Digest], &image); !image.Foreign {
		return nil
	}
	return []string{fmt.Sprintf("%s: it has foreign layers (urls), which are never here: nodes get them from "+
		"elsewhere, and may-run: held denies it; allow it by name (allow-images)", i)}
}

// warmLocal completes what is known of an image of this registry.
func (r *Registry) warmLocal(ctx context.Context, w *Warmed, i namespace.Image) error {
	m, held, err := r.lookup(ctx, w.Repository, i.Ref())
	switch {
	case err != nil:
		return err
	case !held:
		return fmt.Errorf("%s is an image of this registry, which does not hold it; push it", i)
	}
	w.Digest = m.Digest()
	h, _, err := r.options.Index.Holdings(ctx, w.Repository)
	if err != nil {
		return err
	}
	w.Bytes = newHeldRepo(h).bytes(w.Digest)
	return nil
}

// warmError adds the remedy to an error of a fetch, where one is known.
func warmError(i namespace.Image, err error) error {
	e, ok := errors.AsType[*upstream.Error](err)
	if !ok {
		return fmt.Errorf("%s: %w", i, err)
	}
	if error(e) == err { // its text would name the image twice
		err = &shortError{e}
	}
	err = upstream.Explained(err)
	switch {
	case errors.Is(err, upstream.ErrRefused) && strings.Contains(e.Reason, "no entry of upstreams"):
		return fmt.Errorf("%s: %w; add the host to the setting upstreams, or import the image", i, err)
	case errors.Is(err, upstream.ErrUnauthorized):
		return fmt.Errorf("%s: %w; give its entry of upstreams a login, or correct the one that it has", i, err)
	case errors.Is(err, upstream.ErrNoRoom):
		return fmt.Errorf("%s: %w; raise the setting cache-size", i, err)
	}
	return fmt.Errorf("%s: %w", i, err)
}

// shortError is an error of an upstream without the host, repository and reference.
type shortError struct{ of *upstream.Error }

func (e *shortError) Unwrap() error { return e.of }

func (e *shortError) Error() string {
	return strings.TrimSuffix(fmt.Sprintf("%v: %s", e.of.Kind, e.of.Reason), ": ")
}

// warming counts the bytes of one image.
type warming struct {
	report      func(here, known int64) // may be nil
	contents    map[digest.Digest]*warmed
	here, known int64 // of all contents
}

// warmed is a content of an image: how much of it is here, and how much there is as far as that is known.
type warmed struct {
	here, size int64
	fetched    bool // it was not here
}

// progress implements mirror.Progress.
func (c *warming) progress(d digest.Digest, got, size int64) {
	p := c.contents[d]
	if p == nil {
		p = &warmed{fetched: got == 0} // see mirror.Progress
		c.contents[d] = p
	}
	size = max(size, got)
	c.here, c.known = c.here+got-p.here, c.known+size-p.size
	p.here, p.size = got, size
	if c.report != nil {
		c.report(c.here, c.known)
	}
}

// sums returns how many bytes the image has, and how many of them were fetched.
func (c *warming) sums() (all, fetched int64) {
	for _, p := range c.contents {
		all += p.here
		if p.fetched {
			fetched += p.here
		}
	}
	return all, fetched
}

// warmReferrers fetches what cosign keeps under tags of its own for an image and the manifests of an index that are
// here; other referrers have come along with them. It returns notes about signatures that may be missing; the image is
// whole without them.
func (r *Registry) warmReferrers(ctx context.Context, i namespace.Image, repo string, root digest.Digest) (
	notes []string) {
	if !r.options.Index.Cached(repo, root) { // imported, and so are its signatures
		return nil
	}
	subjects := []digest.Digest{root}
	if h, _, err := r.options.Index.Holdings(ctx, repo); err == nil {
		subjects = append(subjects, newHeldRepo(h).children(root)...)
	}
	for _, d := range subjects[:min(len(subjects), mirror.MaxSubjects)] {
		err := r.mirror.Referrers(ctx, repo, d)
		for _, end := range companions[1:] {
			if err == nil {
				err = r.mirror.Fetch(ctx, repo, fallbackTag(d)+end, nil, nil)
			}
			if errors.Is(err, upstream.ErrNotFound) {
				err = nil
			}
		}
		if err != nil && ctx.Err() == nil {
			// The next question would be answered in the same way.
			return append(notes, fmt.Sprintf("%s: its signatures may be missing: %v", i, err))
		}
	}
	return notes
}

// tagOf returns the tag by which an image is named; empty if it is named by a digest.
func tagOf(i namespace.Image) string {
	if i.Digest != "" {
		return ""
	}
	return i.Tag
}
