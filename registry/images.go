package registry

import (
	"context"
	"errors"

	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/platform"
	"trow/registry/upstream"
	"trow/storage"
)

// Images is what verdicts ask of a registry: the index, the names and settings of other registries, and the platforms
// of the indexes of images. All methods but Fetch answer from memory. The webhook uses the Images of a running
// registry, and trow check those of a data directory.
type Images struct {
	*storage.Index
	names     *namespace.Table
	upstreams *upstream.Upstreams // nil: there are no entries
	platforms *platforms
	registry  *Registry // nil: nothing is fetched
}

// Images returns the images for the webhook.
func (r *Registry) Images() Images {
	return Images{r.options.Index, r.options.Namespaces, r.options.Upstreams, r.platforms, r}
}

// StoredImages returns Images of the facts in x, without a registry: Fetch is an error. read returns the bytes of an
// index.
func StoredImages(x *storage.Index, names *namespace.Table, up *upstream.Upstreams, read ReadContent) Images {
	return Images{x, names, up, newPlatforms(nil, read, true), nil}
}

// Generation returns a number that changes whenever Origin may answer otherwise.
func (i Images) Generation() uint64 { return i.names.Generation() }

// Origin returns the registry and the name there of the repository whose local name this is, in canonical form. ok is
// false if it is not the local name of such a repository.
func (i Images) Origin(repo string) (host, there string, ok bool) {
	n, ok := i.names.Upstream(repo)
	return n.Host, n.Repo, ok
}

// Stands returns the registry for which a host name of this one stands.
func (i Images) Stands(host string) (upstream string, ok bool) { return i.names.Site(host) }

// LocalName returns the name here of a repository of another registry. Errors: the repository cannot have a name here.
func (i Images) LocalName(host, there string) (repo string, err error) {
	n, err := namespace.Parse(host, there)
	if err != nil {
		return "", err
	}
	return i.names.Local(n)
}

// MayRun returns the setting may-run for a repository of another registry, and the entry that has it.
func (i Images) MayRun(host, there string) (mayRun, entry string) {
	m, entry := i.upstreams.MayRun(host, there)
	return string(m), entry
}

// Used notes that an image may run, as its pull is about to begin: its contents are evicted after all others.
func (i Images) Used(repo string, m storage.Descriptor) {
	if i.registry != nil && i.registry.options.Cache != nil {
		i.registry.options.Cache.Touch(i.Consists(repo, m))
	}
}

// Fetch makes a repository below f/ hold what ref, a tag or a digest, names at its upstream, as a whole: of an index
// for the platforms of the cluster, or if those are not known, for that of this server. Errors: as Registry.Fetch.
func (i Images) Fetch(ctx context.Context, repo, ref string) error {
	if i.registry == nil {
		return errors.New("this server fetches nothing from other registries")
	}
	wanted := i.registry.options.Platforms
	if wanted == nil {
		wanted = []mirror.Platform{platform.Server()}
	}
	return i.registry.Fetch(ctx, repo, ref, wanted, nil)
}
