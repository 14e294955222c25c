package admission

import (
	"context"
	"math"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// This file finds out which image of another registry a name means. The registry has such images in repositories below
// f/ (see registry/namespace), so that docker.io/library/nginx, nginx and <us>/f/docker.io/library/nginx are one image:
// a rule that is written for one name holds for all of them.

// below begins the names of the repositories that hold content of other registries.
const below = "f/"

// others is implemented by [Images] whose registry holds content of other registries. None of its methods uses the
// network. Without it, a name of a local host is always an image of this registry.
type others interface {
	// Generation changes whenever Origin may answer otherwise.
	Generation() uint64
	// Origin returns the registry and the name there of the repository whose local name this is, in canonical form. ok
	// is false if it is not the local name of such a repository.
	Origin(repo string) (host, there string, ok bool)
	// Stands returns the registry for which a host name of this registry stands.
	Stands(host string) (upstream string, ok bool)
	// LocalName returns the name here of a repository of another registry. Errors: the repository cannot have a name
	// here.
	LocalName(host, there string) (repo string, err error)
	// HasPushed reports whether a repository exists that has something that was pushed or imported.
	HasPushed(repo string) bool
	// MayRun returns the setting may-run for a repository of another registry, and the entry of upstreams that has it.
	// Both are empty if none has.
	MayRun(host, there string) (mayRun, entry string)

	// Lookup is Resolve, from memory alone.
	Lookup(repo, ref string) (storage.Descriptor, bool)
	// Cached reports whether a manifest came from the repository's upstream; false if it was pushed or imported.
	Cached(repo string, d digest.Digest) bool
	// Whole reports whether a repository holds a manifest with all that it consists of.
	Whole(repo string, m storage.Descriptor) bool
	// Children returns the manifests of an index, with Whole for each. ok is false if it has more than n.
	Children(repo string, m storage.Descriptor, n int) (all []storage.Child, ok bool)
	// Used notes that an image is about to be pulled, so that it is evicted after all others.
	Used(repo string, m storage.Descriptor)
	platforms
}

// fetcher is implemented by [Images] whose registry can fetch.
type fetcher interface {
	// Fetch makes a repository below f/ hold what ref, a tag or a digest, names at its upstream, with all that it
	// consists of for the platforms of the cluster. It returns once all of it is held. Errors: why it could not be
	// fetched.
	Fetch(ctx context.Context, repo, ref string) error
}

// rules are the rules of a policy as they apply to images of other registries: a rule that is written for a repository
// below f/, or for a host of ours that stands for another registry, becomes a rule for the repository of that registry.
type rules struct {
	generation uint64
	allow      []prefix
	deny       []prefix
	denyLocal  []prefix
	images     map[Reference]Rule          // allow-images
	denied     map[Reference][]deniedImage // disallow-local-images, by repository
}

// rulesFor returns the rules with the names that settings give to other registries now. They are derived anew after
// those names have changed (as:). A Policy is used with one registry.
func (p *Policy) rulesFor(o others) *rules {
	// Asked before the names are used: rules with names that change meanwhile are derived again by the next verdict.
	generation := o.Generation()
	if r := p.folded.Load(); r != nil && r.generation == generation {
		return r
	}
	fold := func(list []prefix) []prefix {
		all := make([]prefix, len(list))
		for i, x := range list {
			all[i] = p.foldPrefix(o, x)
		}
		return all
	}
	r := &rules{generation: generation, allow: fold(p.allow), deny: fold(p.deny), denyLocal: fold(p.denyLocal),
		images: map[Reference]Rule{}, denied: map[Reference][]deniedImage{}}
	for image, rule := range p.allowImages {
		if origin, ok := p.originOf(o, image, image.Domain == self); ok {
			image = origin.key()
		}
		r.images[image] = rule
	}
	for _, list := range p.denyLocalImages {
		for _, image := range list {
			if origin, ok := p.originOf(o, image.Reference, true); ok {
				at := Reference{Domain: origin.Domain, Path: origin.Path}
				r.denied[at] = append(r.denied[at], image)
			}
		}
	}
	p.folded.Store(r)
	return r
}

// foldPrefix returns the prefix as it applies to images of other registries. One that covers several registries (all of
// this one, or f) stays as it is: it applies to images that are written with a name of this registry, see
// [other.longest].
func (p *Policy) foldPrefix(o others, x prefix) prefix {
	host, path := x.host, x.path
	if up, ok := o.Stands(host); host != self && ok {
		host = up
	}
	rest, within := strings.CutPrefix(path, below)
	element, under, _ := strings.Cut(rest, "/")
	if of, _, ok := o.Origin(below + element + "/a/a"); within && ok && !p.names[of] {
		if up, ok := o.Stands(of); ok {
			of = up
		}
		if x.host == self || x.host != host && of == host {
			host, path = of, under
		}
	}
	x.host, x.path = host, path
	return x
}

// originOf returns a reference with the registry that it means as its host, and the name of the repository there. ok is
// false if that is this registry. local reports whether the reference is written with a local name as its host.
func (p *Policy) originOf(o others, r Reference, local bool) (origin Reference, ok bool) {
	if local {
		host, there, ok := o.Origin(r.Path)
		if !ok || p.names[host] { // f/<one of our names>/app is not our app: nothing answers for it
			return r, false
		}
		r.Domain, r.Path = host, there
	}
	if up, ok := o.Stands(r.Domain); ok {
		if host, there, ok := o.Origin(r.Path); ok && host == up && !local {
			r.Path = there
		}
		if r.Domain = up; up == hub && !strings.Contains(r.Path, "/") {
			r.Path = official + r.Path
		}
	}
	return r, true
}

// twofold returns the other meaning of a remote image whose path is the local name of a repository of its own host. A
// node that pulls through this registry gets that repository (a mirror may have the path f/<host> in its URL, so that
// both requests are the same), and any other node gets the one that is written.
func twofold(o others, r Reference) (other string, ok bool) {
	if !strings.HasPrefix(r.Path, below) {
		return "", false
	}
	host, there, ok := o.Origin(r.Path)
	if !ok || host != r.Domain {
		return "", false
	}
	return Reference{Domain: host, Path: there}.Name(), true
}

// other is an image of another registry, under any of its names.
type other struct {
	Reference        // as rules see it
	written   string // the path that is written
	local     bool   // it is written with a name of this registry
	rules     *rules
}

// repoOf returns the repository here of an image of another registry, "" if it can have none.
func (x *other) repoOf(o others) string {
	repo, err := o.LocalName(x.Domain, x.Path)
	switch {
	case x.local && x.written != repo && o.HasPushed(x.written):
		return x.written // an earlier version accepted it under exactly this name, and the registry prefers it
	case err != nil:
		return ""
	}
	return repo
}

// broad is the greatest length that counts for a rule for several registries. Any rule for one registry counts more.
const broad = 1 + len("f")

// longest is the function longest for an image of another registry. Rules for all of this registry, or for all that is
// below f/, apply if the image is written with a name of this registry, and count less than rules for the other
// registry.
func (x *other) longest(list []prefix) (n int, rule Rule) {
	for i := range list {
		m := list[i].covers(x.Reference)
		if m > 0 {
			m += broad
		} else if x.local && list[i].host == self && list[i].coversPath(x.written) {
			m = min(1+len(list[i].path), broad)
		}
		if m > n {
			n, rule = m, list[i].rule
		}
	}
	return n, rule
}

// ruling is Policy.ruling for an image of another registry.
func (x *other) ruling() (ruling, Rule) {
	allow, allowRule := x.longest(x.rules.allow)
	if rule, ok := x.rules.images[x.key()]; ok {
		allow, allowRule = math.MaxInt, rule
	}
	deny, denyRule := x.longest(x.rules.deny)
	return weigh(allow, deny, allowRule, denyRule)
}
