package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"trow/registry/platform"
	"trow/registry/upstream"
)

const (
	// parallel is how many parts of one image are fetched at once, as containerd does.
	parallel = 4
	// maxAhead bounds the downloads of all calls of Fetch together: the rest of the Fetcher's is for clients that wait.
	maxAhead = 16
	// maxManifests and maxBlobs bound the parts of one image: an upstream could answer with indexes of indexes.
	maxManifests = 2000
	maxBlobs     = 20_000
	// MaxSubjects bounds the manifests of one image whose referrers and signatures are fetched: each costs a few
	// requests. Indexes of real images have some dozen manifests.
	MaxSubjects = 100
	// again is how often a part is fetched that is not there after it was: another process may delete it.
	again = 3
)

// Platform is what an image runs on; see package platform.
type Platform = v1.Platform

// Part is what a manifest refers to.
type Part struct {
	Digest   digest.Digest
	Size     int64     // in bytes, by the descriptor
	Manifest bool      // a manifest, not a blob
	Platform *Platform // that the index names for it; nil: none
}

// Progress gets how many bytes of a content have arrived, and how many it has; -1: not known. The first call for a
// content that is held already has both, and the first one for a blob that is downloaded has 0 of them. Calls of one
// Fetch come one at a time.
type Progress func(d digest.Digest, got, size int64)

// Fetch makes a repository hold the manifest that ref, a tag or a digest, names at its upstream, and all that it
// consists of. Of an index these are the manifests for the platforms, or all if platforms is nil. The urls of foreign
// layers are not fetched. Contents are downloaded as for clients that ask at the same time, once for all. Until Fetch
// returns, nothing of the image is evicted. If the upstream cannot be asked about a tag that is held, Fetch completes
// the manifest that the tag names here. Referrers that the upstream lists, such as signatures, are fetched as well.
//
// A tag that is held moves as soon as the new manifest is held or, if MayRun.HoldsTags, at the end.
//
// Errors: which part is missing, and why, as Refresh and Blob; upstream.ErrNoRoom; that of the context. What has
// arrived until then stays.
func (m *Mirror) Fetch(ctx context.Context, repo, ref string, platforms []Platform, progress Progress) error {
	d, tag := digest.Digest(ref), ""
	if !isDigest(ref) {
		stale, err := m.refresh(ctx, repo, ref, patient{})
		if err != nil {
			return err
		}
		at, held, err := m.options.Store.Resolve(ctx, repo, ref)
		switch to := (*moved)(nil); {
		case err != nil:
			return err
		case errors.As(stale, &to):
			d, tag = to.to, ref
		case held:
			d = at.Digest
		default:
			return &upstream.Error{Kind: upstream.ErrNotFound, Repo: repo, Ref: ref,
				Reason: "it is not held, and the repository has no upstream"}
		}
	}
	f := &fetching{Mirror: m, repo: repo, platforms: platforms, progress: progress, seen: map[digest.Digest]bool{}}
	defer f.release()
	err := f.all(ctx, d)
	if err == nil {
		err = f.signatures(ctx)
	}
	if err == nil && tag != "" {
		err = m.options.Store.Record(ctx, repo, tag, d, nil)
		// Not remembered as confirmed: the tag may have moved on while the image was fetched.
		m.answers.Remove(question{repo, tag})
	}
	return err
}

// fetching is one call of Fetch.
type fetching struct {
	*Mirror
	repo      string
	platforms []Platform

	// These do not change while parts are fetched.
	seen      map[digest.Digest]bool
	parts     []Part // all that are known
	manifests int    // of parts

	mu       sync.Mutex // guards all below
	releases []func()
	progress Progress // called with mu held, so that calls come one at a time
}

func (f *fetching) report(d digest.Digest, got, size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.progress != nil {
		f.progress(d, got, size)
	}
}

// keep keeps a part from being evicted until release.
func (f *fetching) keep(release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.releases = append(f.releases, release)
}

func (f *fetching) release() {
	for _, release := range f.releases {
		release()
	}
}

// all fetches a manifest and its parts: first all manifests, so that what is missing or too much is known before the
// layers are downloaded.
func (f *fetching) all(ctx context.Context, root digest.Digest) error {
	var blobs []Part
	level := f.add(nil, []Part{{Digest: root, Size: -1, Manifest: true}})
	for len(level) > 0 {
		found := make([][]Part, len(level))
		err := each(ctx, level, func(ctx context.Context, i int) (err error) {
			found[i], err = f.manifest(ctx, level[i])
			return err
		})
		if err != nil {
			return f.incomplete(ctx, err)
		}
		var next []Part
		for _, parts := range found {
			wanted, err := f.wanted(parts)
			if err != nil {
				return f.incomplete(ctx, err)
			}
			for _, p := range wanted {
				if p.Manifest {
					next = f.add(next, []Part{p})
				} else {
					blobs = f.add(blobs, []Part{p})
				}
			}
		}
		level = next
		if f.manifests > maxManifests || len(f.parts)-f.manifests > maxBlobs {
			return &upstream.Error{Kind: upstream.ErrTooLarge, Repo: f.repo, Ref: root.String(),
				Reason: fmt.Sprintf("it has more than %d manifests or %d blobs", maxManifests, maxBlobs)}
		}
	}
	err := each(ctx, blobs, func(ctx context.Context, i int) error { return f.blob(ctx, blobs[i]) })
	if err == nil && f.missing(ctx) > 0 { // deleted meanwhile, by a command or by another process
		err = errors.New("they were deleted while others were fetched; try again")
	}
	return f.incomplete(ctx, err)
}

// signatures fetches the manifests that refer to those that were fetched, such as signatures, as a whole. The image is
// here without them, so only the end of the context is an error.
func (f *fetching) signatures(ctx context.Context) error {
	var subjects []Part
	for _, p := range f.parts {
		if p.Manifest && len(subjects) < MaxSubjects {
			subjects = append(subjects, p)
		}
	}
	found := make([][]digest.Digest, len(subjects))
	_ = each(ctx, subjects, func(ctx context.Context, i int) (err error) {
		if err = f.Referrers(ctx, f.repo, subjects[i].Digest); errors.Is(err, upstream.ErrUnavailable) {
			return err // the upstream will not answer about the next one either
		}
		found[i], _ = f.options.Store.Referrers(ctx, f.repo, subjects[i].Digest)
		return nil
	})
	for _, all := range found {
		for _, d := range all {
			if ctx.Err() == nil && !f.seen[d] {
				_ = f.all(ctx, d)
			}
		}
	}
	return context.Cause(ctx)
}

// add appends those parts that were not seen yet.
func (f *fetching) add(to, parts []Part) []Part {
	for _, p := range parts {
		if !f.seen[p.Digest] {
			f.seen[p.Digest] = true
			to, f.parts = append(to, p), append(f.parts, p)
			if p.Manifest {
				f.manifests++
			}
		}
	}
	return to
}

// each calls do for each part, for several at once, until one fails.
func each(ctx context.Context, parts []Part, do func(ctx context.Context, i int) error) error {
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := range parts {
		if group.Err() != nil {
			break
		}
		g.Go(func() error { return do(group, i) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// incomplete returns err, which is about one part, with how many are missing.
func (f *fetching) incomplete(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	n := f.missing(ctx)
	if n == 0 { // there is nothing to be had
		return err
	}
	return fmt.Errorf("%s@%s is not here as a whole, %d of %d known parts are missing: %w", f.repo, f.parts[0].Digest,
		n, len(f.parts), err)
}

// missing returns how many of the known parts the repository does not hold.
func (f *fetching) missing(ctx context.Context) (n int) {
	for _, p := range f.parts {
		if held, err := f.held(ctx, p); err != nil || !held {
			n++
		}
	}
	return n
}

func (f *fetching) held(ctx context.Context, p Part) (held bool, err error) {
	if p.Manifest {
		_, held, err = f.options.Store.Resolve(ctx, f.repo, p.Digest.String())
		return held, err
	}
	return f.options.Blobs.Blob(ctx, f.repo, p.Digest)
}

// wanted returns the parts of one manifest without the manifests of other platforms. A manifest for which the index
// names no platform is always wanted. Errors: ErrNotFound if the index has platforms, but none that is wanted.
func (f *fetching) wanted(parts []Part) (some []Part, err error) {
	if f.platforms == nil {
		return parts, nil
	}
	var others []Platform
	for _, p := range parts {
		if p.Manifest && p.Platform != nil && !platform.Wanted(f.platforms, *p.Platform) {
			others = append(others, *p.Platform)
			continue
		}
		some = append(some, p)
	}
	if len(others) > 0 && len(some) == 0 {
		return nil, &upstream.Error{Kind: upstream.ErrNotFound, Repo: f.repo, Ref: f.parts[0].Digest.String(),
			Reason: fmt.Sprintf("the image has no manifest for the platforms that are wanted, %s: it is for %s",
				platformList(f.platforms), platformList(others))}
	}
	return some, nil
}

// maxListedPlatforms bounds the platforms that a sentence names.
const maxListedPlatforms = 8

// platformList names platforms, each once. Those that have no valid name are left out: an index may name what it likes.
func platformList(all []Platform) string {
	var names []string
	for _, p := range all {
		name := platform.Text(&p)
		if _, err := platform.Parse(name); err == nil && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	switch {
	case len(names) == 0:
		return "others"
	case len(names) > maxListedPlatforms:
		names = append(names[:maxListedPlatforms], "others")
	}
	return strings.Join(names, ", ")
}

// manifest makes the repository hold a manifest, and returns what it refers to.
func (f *fetching) manifest(ctx context.Context, p Part) ([]Part, error) {
	for range again {
		if _, err := f.refresh(ctx, f.repo, p.Digest.String(), patient{}); err != nil {
			return nil, err
		}
		release := f.options.Store.Use(f.repo, p.Digest)
		parts, size, held, err := f.options.Store.Parts(ctx, f.repo, p.Digest)
		if held && err == nil {
			f.keep(release)
			f.report(p.Digest, size, size)
			return parts, nil
		}
		release()
		if err != nil {
			return nil, err
		}
	}
	return nil, f.absent(p)
}

// absent returns the error for a part that is not held and has no upstream, or that is deleted again and again.
func (f *fetching) absent(p Part) error {
	return &upstream.Error{Kind: upstream.ErrNotFound, Repo: f.repo, Ref: p.Digest.String(),
		Reason: "it is not held, and has no upstream or was deleted at once"}
}

// blob makes the repository hold a blob.
func (f *fetching) blob(ctx context.Context, p Part) error {
	for range again {
		release := f.options.Store.Use(f.repo, p.Digest)
		if held, err := f.held(ctx, p); held || err != nil {
			f.keep(release)
			if err == nil {
				f.report(p.Digest, p.Size, p.Size)
			}
			return err
		}
		release()
		if err := f.download(ctx, p); err != nil {
			return err
		}
	}
	return f.absent(p)
}

// download downloads a blob, unless another repository has it. It waits while too many downloads are under way.
func (f *fetching) download(ctx context.Context, p Part) error {
	b, err := f.fetch(f.repo, p.Digest)
	if err != nil {
		return err
	}
	if b == nil {
		return f.absent(p)
	}
	b.size = p.Size
	if held, err := b.adopt(ctx); held || err != nil {
		return err
	}
	select {
	case f.ahead <- struct{}{}:
		defer func() { <-f.ahead }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	r, err := b.download(ctx)
	for errors.Is(err, upstream.ErrBusy) {
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		r, err = b.download(ctx)
	}
	if r == nil || err != nil { // nil: it is held by now
		return err
	}
	f.report(p.Digest, 0, p.Size)
	err = r.Wait(func(got, size int64) { f.report(p.Digest, got, size) })
	return errors.Join(err, r.Close())
}
