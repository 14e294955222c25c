package admission

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// PolicyOptions says which images may run. The zero value allows Kubernetes' own images and nothing else.
//
// A prefix is host[:port][/path][/]: quay.io/team covers quay.io/team and quay.io/team/x but not
// quay.io/team-other; with a trailing slash only what lies beneath. Hosts are compared in canonical form. On
// Docker Hub a path of one component is both a user and an official image: docker.io/nginx covers both.
//
// An image is host/repo[:tag][@digest]; without tag and digest it is the tag latest. It means what is
// written: a tag is satisfied neither by another tag nor by a digest, and a digest only by that digest,
// whatever tag stands beside it.
//
// A rule whose host is one of Names holds for all of Names. A rule for a repository below f/ there, such as
// f/docker.io/library/nginx, is one for that repository of docker.io, and the reverse.
type PolicyOptions struct {
	// Names are the local names, host[:port] each: an image of such a host is in this registry or nowhere.
	// Compared in canonical form; a name without a port means the host with port 443.
	Names []string

	// AllowPrefixes and AllowImages allow images that the registry does not hold.
	AllowPrefixes []string
	AllowImages   []string

	// AllowDockerOfficial allows the official images of Docker Hub, those under docker.io/library/, and no
	// other image of Docker Hub.
	AllowDockerOfficial bool

	// DenyK8sImages ends the default that images under registry.k8s.io/ and k8s.gcr.io/ are allowed.
	DenyK8sImages bool

	// DisallowLocalPrefixes and DisallowLocalImages deny local images even if the registry holds them; no
	// other rule can allow them again. Both are accepted with and without a local name in front. An image
	// that is disallowed by its tag is denied under every tag and digest of its repository that has the same
	// manifest (but not as a part of an index, and not as a copy in another repository).
	DisallowLocalPrefixes []string
	DisallowLocalImages   []string

	// DenyShortNames denies images that name no host, whatever allows them: containerd and Docker take them from Docker
	// Hub, and CRI-O from any registry that the node names.
	DenyShortNames bool

	// Default is "Deny", also when empty, or "Allow". It concerns remote images that no rule names.
	Default string

	// Allow and Deny are prefixes. The longest one that covers an image rules, AllowPrefixes included; Deny
	// does if two are equally long. An entry of AllowImages is longer than any prefix.
	Allow []string
	Deny  []string

	// Platforms are those of the cluster's nodes, os/arch[/variant]. An image of another registry counts as held if all
	// that its index has for them is here or, without Platforms, if one of its platforms is.
	Platforms []string

	// EnforceTemplates denies workloads for the images of their templates. Otherwise they are allowed with warnings,
	// and their pods are denied.
	EnforceTemplates bool
}

// AddFlags registers the settings as flags.
func (o *PolicyOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringSliceVarP(&o.Names, "names", "n", nil,
		"local names, host[:port]: images of these hosts are looked up in this registry (default: see "+
			"admission/README.md)")
	fs.StringSliceVar(&o.AllowPrefixes, "allow-prefixes", nil,
		"remote images to allow, by host[/path]; whole path components")
	fs.StringSliceVar(&o.AllowImages, "allow-images", nil, "images to allow, by host/name[:tag][@digest]")
	fs.BoolVar(&o.AllowDockerOfficial, "allow-docker-official", false,
		"allow the official images of Docker Hub (docker.io/library/)")
	fs.BoolVar(&o.DenyK8sImages, "deny-k8s-images", false, "do not allow registry.k8s.io/ and k8s.gcr.io/")
	fs.StringSliceVar(&o.DisallowLocalPrefixes, "disallow-local-prefixes", nil,
		"local images to deny although the registry holds them, by prefix")
	fs.StringSliceVar(&o.DisallowLocalImages, "disallow-local-images", nil,
		"local images to deny although the registry holds them, by name[:tag]")
	fs.BoolVar(&o.DenyShortNames, "deny-short-names", false,
		"deny images that name no registry, as nginx: CRI-O may not pull them from docker.io")
	fs.StringVar(&o.Default, "default", "Deny", "Deny or Allow remote images that no rule covers")
	fs.StringSliceVar(&o.Allow, "allow", nil, "prefixes to allow; the longest of allow and deny wins")
	fs.StringSliceVar(&o.Deny, "deny", nil, "prefixes to deny; deny wins over an equally long allow")
	fs.StringSliceVar(&o.Platforms, "platforms", nil,
		"platforms of the nodes, os/arch[/variant], for which images of other registries must be held (empty: any one)")
	fs.BoolVar(&o.EnforceTemplates, "enforce-templates", false,
		"deny workloads whose pods would be denied; otherwise they are allowed with a warning")
}

// Validate reports every invalid entry, a line each. Without names it does not check the rules about local
// images: the default names depend on the port of the listener (see [PolicyOptions.Complete]), and such a rule may
// start with a name.
func (o *PolicyOptions) Validate() error {
	complete := *o
	if len(o.Names) == 0 {
		complete.Names = []string{"names.invalid"} // in the place of the default ones
		complete.DisallowLocalPrefixes, complete.DisallowLocalImages = nil, nil
	}
	_, err := NewPolicy(complete)
	return err
}

func (o *PolicyOptions) checkDefault() error {
	if o.Default == "" || strings.EqualFold(o.Default, "Allow") || strings.EqualFold(o.Default, "Deny") {
		return nil
	}
	return fmt.Errorf("default: %s: want Allow or Deny", quote(o.Default))
}

// summary says in one line which images may run.
func (o *PolicyOptions) summary() string {
	text := "images that this registry holds"
	rules := slices.Concat(o.AllowPrefixes, o.AllowImages, o.Allow)
	if o.AllowDockerOfficial {
		rules = append(rules, dockerOfficial)
	}
	if !o.DenyK8sImages {
		rules = append(rules, k8sPrefixes...)
	}
	if strings.EqualFold(o.Default, "Allow") {
		rules = append(rules, "all other remote images (default: Allow)")
	}
	if len(rules) > 0 {
		text += "; and " + strings.Join(rules, ", ")
	}
	denied := slices.Concat(o.DisallowLocalPrefixes, o.DisallowLocalImages, o.Deny)
	if o.DenyShortNames {
		denied = append(denied, "names without a registry")
	}
	if len(denied) > 0 {
		text += "; never " + strings.Join(denied, ", ")
	}
	return text
}
