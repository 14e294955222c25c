package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/ocierror"
	"trow/registry/upstream"
)

// Fetch makes a repository below f/ hold an image as a whole; see [mirror.Mirror.Fetch]. Errors: also NAME_UNKNOWN, for
// another repository, or without upstreams.
func (r *Registry) Fetch(ctx context.Context, repo, ref string, platforms []mirror.Platform,
	progress mirror.Progress) error {
	if r.mirror == nil || !namespace.Within(repo) {
		return nameUnknown(repo)
	}
	return r.mirror.Fetch(ctx, repo, ref, platforms, progress)
}

// Parts implements mirror.Store.
func (s mirrorStore) Parts(ctx context.Context, repo string, d digest.Digest) (parts []mirror.Part, size int64,
	held bool, err error) {
	m, ok, err := s.lookup(ctx, repo, d.String())
	if !ok || err != nil || m.Damaged() == d {
		return nil, 0, false, err
	}
	body, err := s.manifestBytes(ctx, manifest{Descriptor: m, digest: d, repo: repo, ref: d.String()})
	if e := ocierror.As(err); e != nil && e.Code == ocierror.ManifestUnknown {
		return nil, 0, false, nil // the bytes are lost, which is recorded now; fetching them again heals that
	}
	if err != nil {
		return nil, 0, false, err
	}
	return fetchedParts(body), m.Size, true, nil
}

// Use implements mirror.Store. It does not count as a use by a client, so that a poll that finds nothing new changes no
// last use.
func (s mirrorStore) Use(repo string, d digest.Digest) (release func()) {
	return s.options.Cache.Hold(d)
}

// Whole implements mirror.Store. An index of which only some platforms are here is not whole.
func (s mirrorStore) Whole(ctx context.Context, repo string, d digest.Digest) bool {
	m, ok, err := s.lookup(ctx, repo, d.String())
	return ok && err == nil && m.Damaged() == "" && !s.options.Index.Incomplete(repo, m)
}

// Referrers implements mirror.Store.
func (s mirrorStore) Referrers(ctx context.Context, repo string, d digest.Digest) (all []digest.Digest, err error) {
	found, err := s.referrersOf(ctx, repo, d, "")
	for _, m := range found.list[:min(len(found.list), maxFetchedReferrers)] {
		all = append(all, m.Digest())
	}
	return all, err
}

// maxFetchedReferrers is how many referrers of a manifest come along with it.
const maxFetchedReferrers = 64

// FetchAhead polls and fetches until ctx is done, see [mirror.Mirror.Run], and then ends what runs in the background
// for tags that move. alone calls a function while this process is the one that polls.
func (r *Registry) FetchAhead(ctx context.Context,
	alone func(ctx context.Context, do func(context.Context) error) error) error {
	if r.mirror == nil || r.options.ReadOnly {
		return nil
	}
	defer r.mirror.Close()
	return alone(ctx, r.mirror.Run)
}

// onlyHeld reports whether a list has only what is held, without the upstream: for commands in the data directory,
// which work on what is stored, and for clients that ask for it (RFC 9111, section 5.2.1.7).
func onlyHeld(req *http.Request, c *call) bool {
	return c.who.Unlimited() || onlyIfCached(req.Header)
}

// upstreamTags returns the tags that a repository has at its upstream. found says that the repository is not empty
// here. stale is not nil if tags may be missing, and says why. Errors, for a repository that is empty here: those that
// the client gets.
func (r *Registry) upstreamTags(ctx context.Context, repo string, found bool) (tags []string, stale, err error) {
	if r.mirror == nil || !namespace.Within(repo) {
		return nil, nil, nil
	}
	tags, more, ok, err := r.mirror.Tags(ctx, repo, found)
	switch {
	case !ok: // there is no upstream
		return nil, nil, nil
	case found && errors.Is(err, upstream.ErrNotFound): // all its tags are those that are held
		return nil, nil, nil
	case found:
		stale = err
	case err != nil:
		return nil, nil, mirrorError(nameUnknown(repo), err)
	}
	if more {
		stale = &upstream.Error{Kind: upstream.ErrTooLarge, Repo: repo, Ref: "tags/list",
			Reason: fmt.Sprintf("the upstream has more than %d tags", len(tags))}
	}
	return tags, stale, nil
}

// refreshReferrers makes sure that the manifests whose subject is d are here as far as the upstream of the repository
// lists them.
func (r *Registry) refreshReferrers(ctx context.Context, repo string, d digest.Digest) (stale error) {
	if r.mirror == nil || !namespace.Within(repo) {
		return nil
	}
	return r.mirror.Referrers(ctx, repo, d)
}

// fetchedParts returns what a manifest refers to, without foreign layers.
func fetchedParts(body []byte) (parts []mirror.Part) {
	c, err := decodeManifest(body)
	if err != nil { // a manifest of an unknown type need not be JSON
		return nil
	}
	add := func(text string, size int64, manifest bool, platform *mirror.Platform) {
		d, err := parseDigest(text)
		if err == nil { // an invalid digest, of a manifest of an unknown type, cannot be fetched
			parts = append(parts, mirror.Part{Digest: d, Size: size, Manifest: manifest, Platform: platform})
		}
	}
	if c.Config != nil {
		add(c.Config.Digest, c.Config.Size, false, nil)
	}
	for _, d := range slices.Concat(c.Layers, c.Blobs) {
		if !foreign(d) {
			add(d.Digest, d.Size, false, nil)
		}
	}
	var index struct {
		Manifests []struct {
			Digest   string
			Size     int64
			Platform *mirror.Platform
		}
	}
	if json.Unmarshal(body, &index) != nil { // such as a platform that is text: it counts as none
		for _, d := range c.Manifests {
			add(d.Digest, d.Size, true, nil)
		}
		return parts
	}
	for _, d := range index.Manifests {
		add(d.Digest, d.Size, true, d.Platform)
	}
	return parts
}
