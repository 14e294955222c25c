package registry

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/ocierror"
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

// Use implements mirror.Store.
func (s mirrorStore) Use(repo string, d digest.Digest) (release func()) { return s.use(repo, d) }

// fetchedParts returns what a manifest refers to, without foreign layers.
func fetchedParts(body []byte) (parts []mirror.Part) {
	c, err := decodeManifest(body)
	if err != nil { // a manifest of an unknown type need not be JSON
		return nil
	}
	add := func(text string, size int64, manifest bool, platform *mirror.Platform) {
		d, err := parseDigest(text)
		if err == nil { // known types have no other; of unknown ones only what can be fetched
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
