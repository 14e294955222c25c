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
	"trow/storage"
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
	Notes      []string      `json:"notes,omitempty"` // what could not be fetched and is no part of the image
}

// Find returns where an image, named as pods name it, is in this registry. Errors: the name is not valid; it has none
// here.
func (r *Registry) Find(image string) (w Warmed, i namespace.Image, err error) {
	if i, err = namespace.ParseImage(image); err != nil {
		return w, i, err
	}
	names := r.options.Namespaces
	if r.names[i.Host] {
		up, ok := names.Upstream(i.Repo)
		if !ok {
			return Warmed{Image: i.String(), Name: i.Repo, Repository: i.Repo, Tag: tagOf(i)}, i, nil
		}
		i.Name = up // f/docker.io/library/nginx of this registry is docker.io/library/nginx
	} else if site, ok := names.Site(i.Host); ok {
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

// Warm makes this registry hold an image, named as pods name it: of an index the manifests for the platforms, or all if
// there are none; and its signatures and other referrers, as far as they can be fetched. report gets how many bytes are
// here, of those that are known to be needed; its calls come one at a time. Errors: the image is one of this registry,
// which does not hold it; as mirror.Mirror.Fetch.
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
		return []string{fmt.Sprintf("%s: it is what was here before: %v", i, stale)}
	}
	return nil
}

// foreignNote says of an image that layers of it are not here although all was fetched.
func (r *Registry) foreignNote(ctx context.Context, i namespace.Image, w Warmed) []string {
	s, err := r.shelf(ctx, w.Repository, i.Name)
	if err != nil || s.manifests[w.Digest] == nil {
		return nil // another command says it
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
	switch {
	case errors.Is(err, upstream.ErrRefused) && strings.Contains(e.Reason, "no entry of upstreams"):
		return fmt.Errorf("%s: %w; add the host to the setting upstreams, or import the image", i, err)
	case errors.Is(err, upstream.ErrUnauthorized):
		return fmt.Errorf("%s: %w; add a login to its entry of upstreams", i, err)
	case errors.Is(err, upstream.ErrNoRoom):
		return fmt.Errorf("%s: %w; raise the setting cache-size", i, err)
	}
	return fmt.Errorf("%s: %w", i, err)
}

// shortError is an error of an upstream without what it is about.
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
// here; other referrers have come along with them. It returns what may be missing: an image is whole without.
func (r *Registry) warmReferrers(ctx context.Context, i namespace.Image, repo string, root digest.Digest) (
	notes []string) {
	if !r.options.Index.Cached(repo, root) { // imported, and so are its signatures
		return nil
	}
	subjects := []digest.Digest{root}
	if h, _, err := r.options.Index.Holdings(ctx, repo); err == nil {
		subjects = append(subjects, newHeldRepo(h).children(root)...)
	}
	for _, d := range subjects[:min(len(subjects), maxSubjects)] {
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

// maxSubjects bounds the manifests whose signatures are fetched with one image.
const maxSubjects = 100

// platformText is os/arch[/variant]; empty for none, and for unknown, which attestations have.
func platformText(p *mirror.Platform) string {
	if p == nil || p.OS == "" || p.OS == "unknown" {
		return ""
	}
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

// heldRepo is what one repository holds, with what leads from one content to another.
type heldRepo struct {
	repo      string
	manifests map[digest.Digest]*storage.HeldManifest
	blobs     map[digest.Digest]int64
	isChild   map[digest.Digest]bool            // of an index that is held
	referrers map[digest.Digest][]digest.Digest // by subject: those of the manifest, and its companions
}

func newHeldRepo(h storage.Holdings) *heldRepo {
	r := &heldRepo{repo: h.Repo, manifests: map[digest.Digest]*storage.HeldManifest{},
		blobs: map[digest.Digest]int64{}, isChild: map[digest.Digest]bool{},
		referrers: map[digest.Digest][]digest.Digest{}}
	for _, b := range h.Blobs {
		r.blobs[b.Digest] = b.Size
	}
	tags := map[string]digest.Digest{} // under which companions are kept
	for i := range h.Manifests {
		m := &h.Manifests[i]
		r.manifests[m.Digest] = m
		tags[fallbackTag(m.Digest)] = m.Digest
	}
	for _, m := range r.manifests {
		for _, ref := range m.Refs {
			if r.manifests[ref] != nil {
				r.isChild[ref] = true
			}
		}
		if r.manifests[m.Subject] != nil {
			r.referrers[m.Subject] = append(r.referrers[m.Subject], m.Digest)
		}
		for _, tag := range m.Tags {
			name := tag.Name
			for _, end := range companions[1:] {
				name = strings.TrimSuffix(name, end)
			}
			if of, ok := tags[name]; ok && of != m.Digest {
				r.referrers[of] = append(r.referrers[of], m.Digest)
			}
		}
	}
	return r
}

// children returns the manifests that are held of those that a manifest consists of.
func (r *heldRepo) children(d digest.Digest) (all []digest.Digest) {
	if m := r.manifests[d]; m != nil {
		for _, ref := range m.Refs {
			if r.manifests[ref] != nil {
				all = append(all, ref)
			}
		}
	}
	return all
}

// reach returns all that is held of these manifests: the parts, and with referrers also what refers to them.
func (r *heldRepo) reach(roots []digest.Digest, referrers bool) map[digest.Digest]int64 {
	all := map[digest.Digest]int64{}
	var walk func(d digest.Digest)
	walk = func(d digest.Digest) {
		if _, seen := all[d]; seen {
			return
		}
		m := r.manifests[d]
		if m == nil {
			if size, held := r.blobs[d]; held {
				all[d] = size
			}
			return
		}
		all[d] = m.Size
		for _, ref := range m.Refs {
			walk(ref)
		}
		if referrers {
			for _, ref := range r.referrers[d] {
				walk(ref)
			}
		}
	}
	for _, d := range roots {
		walk(d)
	}
	return all
}

// bytes returns how much of an image is held, each content once, without its referrers.
func (r *heldRepo) bytes(d digest.Digest) (n int64) {
	for _, size := range r.reach([]digest.Digest{d}, false) {
		n += size
	}
	return n
}

// tagOf returns the tag by which an image is named; empty if it is named by a digest.
func tagOf(i namespace.Image) string {
	if i.Digest != "" {
		return ""
	}
	return i.Tag
}
