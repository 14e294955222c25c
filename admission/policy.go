package admission

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/address"
	"trow/registry/platform"
)

// Policy decides which images may run. It is immutable and safe for concurrent use.
type Policy struct {
	names        map[string]bool // local names, in canonical form
	allow        []prefix
	deny         []prefix
	allowImages  map[Reference]Rule // by key
	allowUnruled bool               // remote images that no rule covers

	// Local images that are denied; no other rule can allow them.
	denyLocal       []prefix
	denyLocalImages map[string][]deniedImage // by repository

	denyShort        bool // images that name no host
	enforceTemplates bool
	summary          string

	platforms []v1.Platform // whose manifests of an index must be here; nil: of any one

	parsed *lru.Cache[string, Reference] // see parse
	folded atomic.Pointer[rules]         // see rulesFor
}

// deniedImage is an image of disallow-local-images.
type deniedImage struct {
	Reference
	rule Rule
}

// maxParsed bounds the references that are kept. With maxReference bytes each they take 2 MiB at most; real ones take a
// quarter of that.
const maxParsed = 2048

// dockerOfficial is where Docker Hub has its official images.
const dockerOfficial = hub + "/" + official

// k8sPrefixes is where Kubernetes publishes its own images, today and formerly.
var k8sPrefixes = []string{"registry.k8s.io/", "k8s.gcr.io/"}

// NewPolicy compiles a policy. The error names every invalid entry, a line each, with the key of the setting and the
// remedy.
func NewPolicy(o PolicyOptions) (*Policy, error) {
	parsed, err := lru.New[string, Reference](maxParsed)
	if err != nil {
		return nil, err
	}
	p := &Policy{
		names:            map[string]bool{},
		allowImages:      map[Reference]Rule{},
		denyLocalImages:  map[string][]deniedImage{},
		allowUnruled:     strings.EqualFold(o.Default, "Allow"),
		denyShort:        o.DenyShortNames,
		enforceTemplates: o.EnforceTemplates,
		summary:          o.summary(),
		parsed:           parsed,
	}
	named := each("names", o.Names, p.addName) // first, because rules may name a local host
	err = errors.Join(named,
		each("allow-prefixes", o.AllowPrefixes, p.prefixAdder(&p.allow)),
		each("allow-images", o.AllowImages, p.addAllowImage),
		each("disallow-local-prefixes", o.DisallowLocalPrefixes, p.addDenyLocal),
		each("disallow-local-images", o.DisallowLocalImages, p.addDenyLocalImage),
		each("allow", o.Allow, p.prefixAdder(&p.allow)),
		each("deny", o.Deny, p.prefixAdder(&p.deny)),
		o.checkDefault(),
		each("platforms", o.Platforms, p.addPlatform),
	)
	if o.AllowDockerOfficial {
		err = errors.Join(err, each("allow-docker-official", []string{dockerOfficial}, p.prefixAdder(&p.allow)))
	}
	if !o.DenyK8sImages {
		err = errors.Join(err, each("deny-k8s-images", k8sPrefixes, p.prefixAdder(&p.allow)))
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Summary says in one line which images may run.
func (p *Policy) Summary() string { return p.summary }

// Platforms returns those of the cluster's nodes, normalized by [platform.Parse]; nil if the setting is empty.
func (p *Policy) Platforms() []v1.Platform { return p.platforms }

// parse is [ParseReference] with a cache: the pods of a cluster name the same few images, and parsing one costs as much
// as all the rest of a verdict. A reference always means the same, so no entry is ever stale. Strings that are not
// references are not kept. Errors: *InvalidError.
func (p *Policy) parse(image string) (Reference, error) {
	if r, ok := p.parsed.Get(image); ok {
		return r, nil
	}
	r, err := ParseReference(image)
	if err == nil {
		p.parsed.Add(image, r)
	}
	return r, err
}

// Local reports whether the reference means an image of this registry, by the local names.
func (p *Policy) Local(r Reference) bool { return p.names[r.Domain] }

// each adds the entries of a list as rules. Errors name the key of the setting and the entry.
func each(key string, list []string, add func(Rule) error) error {
	var errs []error
	for _, s := range list {
		if err := add(Rule{key, s}); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", key, quote(s), err))
		}
	}
	return errors.Join(errs...)
}

func (p *Policy) addName(rule Rule) error {
	if lower := strings.ToLower(rule.Entry); !address.LooksLikeHost(lower) {
		return fmt.Errorf("%s/app would mean an image of Docker Hub; write the name with its port or domain", lower)
	}
	name, err := settingHost(rule.Entry)
	if err != nil {
		return err
	}
	if name == hub {
		return errors.New("this is Docker Hub, which cannot be local; remove it")
	}
	p.names[name] = true
	return nil
}

func (p *Policy) addPlatform(rule Rule) error {
	parsed, err := platform.Parse(rule.Entry)
	p.platforms = append(p.platforms, parsed)
	return err
}

func (p *Policy) prefixAdder(list *[]prefix) func(Rule) error {
	return func(rule Rule) error {
		x, err := parsePrefix(rule.Entry)
		if err != nil {
			return err
		}
		x.rule = rule
		if p.names[x.host] {
			x.host = self
		}
		*list = append(*list, x)
		return nil
	}
}

func (p *Policy) addAllowImage(rule Rule) error {
	r, err := ParseReference(rule.Entry)
	if err != nil {
		return errors.New(err.(*InvalidError).Reason)
	}
	if r.Short {
		return fmt.Errorf("no host; write docker.io/%s", rule.Entry)
	}
	p.allowImages[p.subject(r).key()] = rule
	return nil
}

func (p *Policy) addDenyLocal(rule Rule) error {
	rest, err := p.withoutLocalName(rule.Entry)
	if err != nil {
		return err
	}
	x, err := parsePath(rest)
	if err != nil {
		return err
	}
	x.host, x.rule = self, rule
	p.denyLocal = append(p.denyLocal, x)
	return nil
}

func (p *Policy) addDenyLocalImage(rule Rule) error {
	rest, err := p.withoutLocalName(rule.Entry)
	if err != nil {
		return err
	}
	r, err := ParseReference("localhost/" + rest)
	if err != nil {
		return errors.New(err.(*InvalidError).Reason)
	}
	p.denyLocalImages[r.Path] = append(p.denyLocalImages[r.Path], deniedImage{r, rule})
	return nil
}

// withoutLocalName removes a local name from an entry that may start with one. A host without a port that is not a
// local name is taken for the first component of a repository, which may contain dots.
func (p *Policy) withoutLocalName(s string) (string, error) {
	host, rest, slash := strings.Cut(s, "/")
	canonical, err := settingHost(host)
	switch {
	case err == nil && address.LooksLikeHost(strings.ToLower(host)) && p.names[canonical]:
		return rest, nil
	case slash && strings.Contains(host, ":"):
		return "", fmt.Errorf("%s is not one of names; remove the host or add it to names", quote(host))
	case s == "":
		return "", errors.New("empty; write a repository, or a local name for all repositories")
	}
	return s, nil
}

// subject returns the reference as rules see it: with one host for all local names.
func (p *Policy) subject(r Reference) Reference {
	if p.Local(r) {
		r.Domain = self
	}
	return r
}

// ruling is what the rules say about an image.
type ruling int

const (
	unruled ruling = iota
	allowedByRule
	deniedByRule
)

// ruling returns what the rules say of a subject, and which of them decided: the longest prefix, or the one that denies
// when two are equally long.
func (p *Policy) ruling(r Reference) (ruling, Rule) {
	allow, allowRule := longest(p.allow, r)
	if rule, ok := p.allowImages[r.key()]; ok {
		allow, allowRule = math.MaxInt, rule
	}
	deny, denyRule := longest(p.deny, r)
	return weigh(allow, deny, allowRule, denyRule)
}

// weigh decides between the longest rule that allows an image and the longest one that denies it, by how much of its
// name each covers.
func weigh(allow, deny int, allowRule, denyRule Rule) (ruling, Rule) {
	switch {
	case deny > 0 && deny >= allow:
		return deniedByRule, denyRule
	case allow > 0:
		return allowedByRule, allowRule
	}
	return unruled, Rule{}
}

// reasonOf returns the reason that a rule gives to allow an image.
func reasonOf(rule Rule) Reason {
	if rule.Setting == "deny-k8s-images" { // which allows these prefixes by being off
		return K8sImages
	}
	return Reason(rule.Setting)
}
