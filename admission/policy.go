package admission

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/distribution/reference"

	"trow/storage"
)

// PolicyOptions says which images may run. The zero value allows Kubernetes' own images and nothing else.
//
// A prefix is host[:port][/path][/]: quay.io/team covers quay.io/team and quay.io/team/x but not
// quay.io/team-other; with a trailing slash only what lies beneath. The host is exact. On Docker Hub a path
// of one component is both a user and an official image: docker.io/nginx covers both.
//
// An image is host/repo[:tag][@digest]; without tag and digest it is the tag latest. It means what is
// written: a tag is satisfied neither by another tag nor by a digest, and a digest only by that digest,
// whatever tag stands beside it.
//
// A rule whose host is one of Names holds for all of Names.
type PolicyOptions struct {
	// Names are the local names, host[:port] each: an image of such a host is in this registry or nowhere.
	// Compared exactly but for the case of letters; a name without a port means the host without a port.
	Names []string

	// AllowPrefixes and AllowImages allow images that the registry does not hold.
	AllowPrefixes []string
	AllowImages   []string

	// AllowDockerOfficial allows the official images of Docker Hub, those under docker.io/library/, and no
	// other image of Docker Hub.
	AllowDockerOfficial bool

	// DenyK8sImages takes away that images under registry.k8s.io/ and k8s.gcr.io/ are allowed.
	DenyK8sImages bool

	// DisallowLocalPrefixes and DisallowLocalImages deny local images even if the registry holds them; no
	// other rule can allow them again. Both are accepted with and without a local name in front. An image
	// that is disallowed by its tag is denied under every tag and digest of its repository that has the same
	// manifest (but not as a part of an index, and not as a copy in another repository).
	DisallowLocalPrefixes []string
	DisallowLocalImages   []string

	// Default is "Deny", also when empty, or "Allow". It concerns remote images that no rule names.
	Default string

	// Allow and Deny are prefixes. The longest one that covers an image rules, AllowPrefixes included; Deny
	// does if two are equally long. An entry of AllowImages is longer than any prefix.
	Allow []string
	Deny  []string
}

// Policy decides which images may run. It is immutable and safe for concurrent use.
type Policy struct {
	names        map[string]bool // local names in lower case
	allow        []prefix
	deny         []prefix
	allowImages  map[Reference]bool // by key
	allowUnruled bool               // remote images that no rule names

	// What no rule can allow again.
	denyLocal       []prefix
	denyLocalImages map[string][]Reference // by repository

	references memory // what image strings mean
}

// k8sPrefixes is where Kubernetes publishes its own images, today and formerly.
var k8sPrefixes = []string{"registry.k8s.io/", "k8s.gcr.io/"}

// NewPolicy checks the options. An error names every entry that cannot be meant, each with the setting's key
// and the remedy.
func NewPolicy(o PolicyOptions) (*Policy, error) {
	p := &Policy{
		names:           map[string]bool{},
		allowImages:     map[Reference]bool{},
		denyLocalImages: map[string][]Reference{},
		allowUnruled:    strings.EqualFold(o.Default, "Allow"),
	}
	named := each("names", o.Names, p.addName) // before the rules, which may name a local host
	err := errors.Join(named,
		each("allow-prefixes", o.AllowPrefixes, p.prefixAdder(&p.allow)),
		each("allow-images", o.AllowImages, p.addAllowImage),
		each("disallow-local-prefixes", o.DisallowLocalPrefixes, p.addDenyLocal),
		each("disallow-local-images", o.DisallowLocalImages, p.addDenyLocalImage),
		each("allow", o.Allow, p.prefixAdder(&p.allow)),
		each("deny", o.Deny, p.prefixAdder(&p.deny)),
	)
	if o.Default != "" && !p.allowUnruled && !strings.EqualFold(o.Default, "Deny") {
		err = errors.Join(err, fmt.Errorf("default: %s is neither Allow nor Deny", quote(o.Default)))
	}
	if o.AllowDockerOfficial {
		p.allow = append(p.allow, prefix{host: hub, path: strings.TrimSuffix(official, "/"), beneath: true})
	}
	if !o.DenyK8sImages {
		err = errors.Join(err, each("k8s", k8sPrefixes, p.prefixAdder(&p.allow)))
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Local tells whether the reference means an image of this registry, by the local names.
func (p *Policy) Local(r Reference) bool { return p.names[r.Domain] }

// each adds the entries of a list, and puts the setting's key and the entry in front of what is wrong.
func each(key string, list []string, add func(string) error) error {
	var errs []error
	for _, s := range list {
		if err := add(s); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", key, quote(s), err))
		}
	}
	return errors.Join(errs...)
}

func (p *Policy) addName(s string) error {
	name := strings.ToLower(s)
	if !looksLikeHost(name) {
		return fmt.Errorf("an image %s/app is one of Docker Hub; give the name with its port or domain", name)
	}
	if n, err := reference.WithName(name + "/x"); err != nil || reference.Domain(n) != name {
		return errors.New("it is not host[:port]; give the name alone, without scheme and path")
	}
	if canonicalHost(name) == hub {
		return errors.New("it is Docker Hub; leave it out")
	}
	p.names[name] = true
	return nil
}

func (p *Policy) prefixAdder(list *[]prefix) func(string) error {
	return func(s string) error {
		x, err := parsePrefix(s)
		if err != nil {
			return err
		}
		if p.names[x.host] {
			x.host = self
		}
		*list = append(*list, x)
		return nil
	}
}

func (p *Policy) addAllowImage(s string) error {
	r, err := ParseReference(s)
	if err != nil {
		return errors.New(err.(*InvalidError).Reason)
	}
	if r.Short {
		return fmt.Errorf("it names no host; write docker.io/%s", s)
	}
	p.allowImages[p.subject(r).key()] = true
	return nil
}

func (p *Policy) addDenyLocal(s string) error {
	rest, err := p.withoutLocalName(s)
	if err != nil {
		return err
	}
	x, err := parsePath(rest)
	if err != nil {
		return err
	}
	x.host = self
	p.denyLocal = append(p.denyLocal, x)
	return nil
}

func (p *Policy) addDenyLocalImage(s string) error {
	rest, err := p.withoutLocalName(s)
	if err != nil {
		return err
	}
	r, err := ParseReference("localhost/" + rest)
	if err != nil {
		return errors.New(err.(*InvalidError).Reason)
	}
	p.denyLocalImages[r.Path] = append(p.denyLocalImages[r.Path], r)
	return nil
}

// withoutLocalName cuts a local name off an entry that may start with one. A repository's first component may
// have dots, so a host without a port that is no local name cannot be told from one.
func (p *Policy) withoutLocalName(s string) (string, error) {
	host, rest, slash := strings.Cut(s, "/")
	switch {
	case p.names[strings.ToLower(host)]:
		return rest, nil
	case slash && strings.Contains(host, ":"):
		return "", fmt.Errorf("%s is not one of names; leave the host out or add it there", quote(host))
	case s == "":
		return "", errors.New("it is empty; name a repository, or a local name to mean all of them")
	}
	return s, nil
}

// subject returns the reference as rules see it.
func (p *Policy) subject(r Reference) Reference {
	if p.Local(r) {
		r.Domain = self
	}
	return r
}

// ruling is what the rules say of an image.
type ruling int

const (
	unruled ruling = iota
	allowedByRule
	deniedByRule
)

// rule asks the rules for what concerns a subject: the longest prefix, Deny when two are equally long.
func (p *Policy) rule(r Reference) ruling {
	allow := longest(p.allow, r)
	if p.allowImages[r.key()] {
		allow = math.MaxInt
	}
	deny := longest(p.deny, r)
	// host:443 is host. A rule that allows has to be exact, one that denies must not be got around.
	if r.Domain != self {
		r.Domain = withoutDefaultPort(r.Domain)
		deny = max(deny, longest(p.deny, r))
	}
	switch {
	case deny > 0 && deny >= allow:
		return deniedByRule
	case allow > 0:
		return allowedByRule
	}
	return unruled
}

// verdict is the decision on one image.
type verdict struct {
	image    string // as written
	ref      Reference
	local    bool
	ruled    bool // a rule allows it
	allowed  bool
	present  bool               // the registry holds it
	absent   bool               // the registry was asked and does not hold it; never both
	manifest storage.Descriptor // if present
	sentence string             // why it is denied
}

const notContained = " disallowed as not contained in this registry and not in allow list"

// judge decides on the image of a verdict. Errors: those of images, which leave it undecided.
func (p *Policy) judge(ctx context.Context, images Images, v *verdict) error {
	var err error
	if v.ref, err = p.references.reference(v.image); err != nil {
		invalid := err.(*InvalidError)
		v.sentence = "Invalid image reference " + invalid.Quoted + ": " + invalid.Reason
		return nil
	}
	if v.local = p.Local(v.ref); v.local {
		return p.judgeLocal(ctx, images, v)
	}
	p.judgeRemote(v)
	return nil
}

func (p *Policy) judgeRemote(v *verdict) {
	switch p.rule(v.ref) {
	case deniedByRule:
		v.sentence = "Remote image " + v.ref.Name() + " on deny list"
	case allowedByRule:
		v.allowed, v.ruled = true, true
	default:
		v.allowed = p.allowUnruled
		if !v.allowed {
			v.sentence = "Remote image " + v.ref.Name() + notContained
		}
	}
}

func (p *Policy) judgeLocal(ctx context.Context, images Images, v *verdict) error {
	subject := p.subject(v.ref)
	ruling := p.rule(subject)
	denied := ruling == deniedByRule || longest(p.denyLocal, subject) > 0
	if !denied {
		var err error
		if v.manifest, v.present, err = images.Resolve(ctx, v.ref.Path, v.ref.Ref()); err != nil {
			return err
		}
		v.absent = !v.present
		if denied, err = p.deniesManifest(ctx, images, v); err != nil {
			return err
		}
	}
	v.ruled = ruling == allowedByRule
	switch {
	case denied:
		v.sentence = "Local image " + v.image + " on deny list"
	case v.present || v.ruled:
		v.allowed = true
	default:
		v.sentence = "Local image " + v.image + notContained
	}
	return nil
}

// deniesManifest tells whether one of the disallowed images of the repository is this one, by its name or
// because its tag has the same manifest.
func (p *Policy) deniesManifest(ctx context.Context, images Images, v *verdict) (bool, error) {
	for _, r := range p.denyLocalImages[v.ref.Path] {
		if r.Ref() == v.ref.Ref() {
			return true, nil
		}
		if !v.present {
			continue
		}
		d, found, err := images.Resolve(ctx, r.Path, r.Ref())
		if err != nil {
			return false, err
		}
		if found && d.Digest() == v.manifest.Digest() {
			return true, nil
		}
	}
	return false, nil
}
