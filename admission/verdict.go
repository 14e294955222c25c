package admission

import (
	"context"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// Images is what a decision asks of the registry; *storage.Index satisfies it. Implementations must be safe for
// concurrent use. If one also has the methods Tags and Incomplete of *storage.Index, hints list the tags that exist,
// and say that an image is not here as a whole. See others and fetcher for the content of other registries.
type Images interface {
	// Resolve looks up a manifest. ref is a tag or a digest; a digest must be one of this repo. An error means that it
	// cannot be known whether the registry holds the manifest.
	Resolve(ctx context.Context, repo, ref string) (storage.Descriptor, bool, error)
}

// lister is what Images may implement as well.
type lister interface {
	Tags(ctx context.Context, repo, after string, n int) (tags []string, found bool, err error)
}

// completer is what Images may implement as well.
type completer interface {
	// Incomplete reports whether a manifest that the repo holds consists of anything that the repo does not hold.
	Incomplete(repo string, m storage.Descriptor) bool
	// Absent returns which parts of it are not there, at most n.
	Absent(repo string, m storage.Descriptor, n int) []digest.Digest
	// IncompleteChild reports whether a manifest of an index that is there is incomplete.
	IncompleteChild(repo string, m storage.Descriptor) bool
}

// platforms is what Images may implement as well.
type platforms interface {
	// Platforms returns the platforms that an index names for these manifests; empty where that is not known in memory.
	Platforms(index digest.Digest, of []digest.Digest) []string
}

// Reason is why an image is allowed or denied, for programs. The set is closed.
type Reason string

// The reasons to allow an image.
const (
	Held                Reason = "held"                  // the registry holds it; of another registry's: as a whole
	AllowPrefixes       Reason = "allow-prefixes"        // the setting of this name has a prefix of it
	AllowImages         Reason = "allow-images"          // the setting of this name has the image
	AllowDockerOfficial Reason = "allow-docker-official" // it is an official image, and the setting of this name is on
	Allow               Reason = "allow"                 // the setting of this name has a prefix of it
	K8sImages           Reason = "k8s-images"            // it is one of Kubernetes, and deny-k8s-images is off
	DefaultAllow        Reason = "default-allow"         // it is remote, no rule covers it, and default is Allow
	MayRunAllow         Reason = "may-run-allow"         // may-run of its upstream is allow
	MayRunFetch         Reason = "may-run-fetch"         // may-run of its upstream is fetch
)

// The reasons not to allow an image.
const (
	NotHeld          Reason = "not-held"          // the registry must hold it and does not, and no rule allows it
	NotAllowed       Reason = "not-allowed"       // it is remote, no rule covers it, and default is Deny
	OnDenyList       Reason = "on-deny-list"      // a rule denies it
	MayRunDeny       Reason = "may-run-deny"      // no rule allows it, and may-run of its upstream is deny
	ShortName        Reason = "short-name"        // it names no host, and deny-short-names is on
	InvalidReference Reason = "invalid-reference" // it is not an image reference
	Unavailable      Reason = "unavailable"       // the registry could not say whether it holds it; see Verdict.Err
)

// Rule is the rule that decided. The zero value means that none did.
type Rule struct {
	Setting string // the key, as in allow-prefixes
	Entry   string // the entry of that list, as written, or the value
}

// Verdict is the decision on one image.
type Verdict struct {
	Image     string    // as written
	Reference Reference // what the image means; zero if it is not a reference
	Local     bool      // the image names a host of this registry
	Allowed   bool
	Reason    Reason
	Rule      Rule
	Digest    digest.Digest // of the manifest, if the image is local or may run as held, and the registry holds it
	Sentence  string        // why it is denied, for people; empty if it is allowed
	Hints     []string      // what to do about it, for people, one line each

	repo     string // where the image is here; empty if it was not looked for
	absent   bool   // it is local, and the registry does not hold it
	fetch    bool   // it may be fetched ahead of the pull
	whole    bool   // it is one of another registry, and here as a whole: at
	at       storage.Descriptor
	contents int // how many of the last Hints name tags or digests of the registry

	// Err is why the registry could not be asked. Then Reason is Unavailable, and Allowed is false although the image
	// may be fine: report a failure, not a denial.
	Err error
}

const notContained = " disallowed as not contained in this registry and not in allow list"

// Decide decides whether an image may run. reference is the image as a pod names it. Every part of the program that
// has to know asks this function.
func (p *Policy) Decide(ctx context.Context, images Images, reference string) Verdict {
	v := Verdict{Image: reference}
	var err error
	if v.Reference, err = p.parse(reference); err != nil {
		invalid := err.(*InvalidError)
		v.deny(InvalidReference, Rule{}, "Invalid image reference "+invalid.Quoted+": "+invalid.Reason)
		return v
	}
	v.Local = p.Local(v.Reference)
	if v.Local && !strings.HasPrefix(v.Reference.Path, below) { // most images: they are of no other registry
		p.decideLocal(ctx, images, &v)
		return v
	}
	o, ok := images.(others)
	if ok {
		if reading, ok := twofold(o, v.Reference); ok && !v.Local {
			v.deny(InvalidReference, Rule{}, "Invalid image reference "+quote(reference)+": a mirror takes it for "+
				reading+"; write that")
			return v
		}
		x := other{written: v.Reference.Path, local: v.Local}
		if x.Reference, ok = p.originOf(o, v.Reference, v.Local); ok {
			x.rules = p.rulesFor(o)
			p.decideOther(o, &v, &x)
			return v
		}
	}
	if v.Local {
		p.decideLocal(ctx, images, &v)
	} else {
		p.decideRemote(&v)
	}
	return v
}

// name is the name of a remote image in sentences: that of the reference, but with the host as it is written, in lower
// case. All names of Docker Hub are docker.io.
func (v *Verdict) name() string {
	if v.Reference.Domain == hub {
		return v.Reference.Name()
	}
	host, _, _ := strings.Cut(v.Image, "/")
	return strings.ToLower(host) + "/" + v.Reference.Path
}

// fullName is a short name as written, with the host and the path that containerd and Docker take it for.
func (v *Verdict) fullName() string {
	if strings.Contains(v.Image, "/") {
		return hub + "/" + v.Image
	}
	return hub + "/" + official + v.Image
}

// title begins the sentences about an image.
func (v *Verdict) title() string {
	if v.Local {
		return "Local image " + v.Image
	}
	return "Remote image " + v.name()
}

func (v *Verdict) allow(why Reason, rule Rule) { v.Allowed, v.Reason, v.Rule = true, why, rule }

func (v *Verdict) deny(why Reason, rule Rule, sentence string) {
	v.Reason, v.Rule, v.Sentence = why, rule, sentence
}

// denyListed denies an image that a rule denies.
func (v *Verdict) denyListed(rule Rule) { v.deny(OnDenyList, rule, v.title()+" on deny list") }

// fail leaves the image undecided.
func (v *Verdict) fail(err error) { v.Reason, v.Err = Unavailable, err }

func (v *Verdict) decided() bool { return v.Reason != "" }

func (p *Policy) decideRemote(v *Verdict) {
	ruling, rule := p.ruling(v.Reference)
	switch {
	case ruling == deniedByRule:
		v.denyListed(rule)
	case p.denyShort && v.Reference.Short:
		v.denyShortName()
	case ruling == allowedByRule:
		v.allow(reasonOf(rule), rule)
		v.hintShort()
	case p.allowUnruled:
		v.allow(DefaultAllow, Rule{"default", "Allow"})
	default:
		v.deny(NotAllowed, Rule{"default", "Deny"}, v.title()+notContained)
	}
}

func (v *Verdict) denyShortName() {
	v.deny(ShortName, Rule{"deny-short-names", "true"}, "Image "+v.Image+
		" denied because it names no registry, and nodes may ask any (setting deny-short-names); write "+
		v.fullName())
}

// hintShort says that a name without a host, which was judged as one of Docker Hub, may be pulled from elsewhere.
func (v *Verdict) hintShort() {
	if name := v.Reference.familiar(); v.Reference.Short {
		v.hint(name + " names no host: CRI-O may pull it from elsewhere; write " + hub + "/" + name)
	}
}

func (p *Policy) decideLocal(ctx context.Context, images Images, v *Verdict) {
	v.repo = v.Reference.Path
	subject := p.subject(v.Reference)
	ruling, rule := p.ruling(subject)
	// Rules that deny by name come first: for them the registry need not be asked, so they hold even when it cannot be.
	if ruling == deniedByRule {
		v.denyListed(rule)
		return
	}
	if n, rule := longest(p.denyLocal, subject); n > 0 {
		v.denyListed(rule)
		return
	}
	m, held, err := images.Resolve(ctx, v.Reference.Path, v.Reference.Ref())
	if err != nil {
		v.fail(err)
		return
	}
	if held {
		v.Digest = m.Digest()
	}
	if p.denyManifest(ctx, images, v); v.decided() {
		return
	}
	switch {
	case held:
		v.allow(Held, Rule{})
		if m.Damaged() != "" {
			v.hint("damaged here, push it again: " + v.Image) // a node may have it in its cache all the same
		}
		if c, ok := images.(completer); ok && c.Incomplete(v.Reference.Path, m) {
			missing := absentPlatforms(images, c, v.Reference.Path, m)
			if len(missing) > 0 {
				v.hintPlatforms(missing)
			}
			if len(missing) == 0 || c.IncompleteChild(v.Reference.Path, m) {
				v.hintElsewhere()
			}
		}
		return
	case ruling == allowedByRule:
		v.allow(reasonOf(rule), rule)
	default:
		v.deny(NotHeld, Rule{}, v.title()+notContained)
	}
	v.hintAbsent(ctx, images)
}

// denyManifest denies the image if it is one of the disallowed images of its repository: by its name, or because that
// name has the same manifest.
func (p *Policy) denyManifest(ctx context.Context, images Images, v *Verdict) {
	for _, denied := range p.denyLocalImages[v.Reference.Path] {
		if denied.Ref() == v.Reference.Ref() {
			v.denyListed(denied.rule)
			return
		}
		if v.Digest == "" {
			continue
		}
		m, held, err := images.Resolve(ctx, denied.Path, denied.Ref())
		if err != nil {
			v.fail(err)
			return
		}
		if held && m.Digest() == v.Digest {
			v.denyListed(denied.rule)
			return
		}
	}
}

func (v *Verdict) hint(text string) { v.Hints = append(v.Hints, text) }

// hintElsewhere says that a part of an image is not in the registry, such as a foreign layer, also of an image that an
// index names. It names the image if that fits into a warning: a long name must not suppress the hint.
func (v *Verdict) hintElsewhere() {
	v.hintFitOr("not all of it is here, nodes get the rest from elsewhere",
		"not all of an image is here, nodes get the rest from elsewhere")
}

// hintPlatforms says that manifests of an index are not here: nodes of these platforms cannot pull it. It names them as
// far as they fit.
func (v *Verdict) hintPlatforms(missing []string) {
	const text = "not here for all of its platforms"
	for n := len(missing); n > 0; n-- {
		list := strings.Join(missing[:n], ", ")
		if n < len(missing) || n > maxPlatforms {
			list = strings.Join(missing[:min(n, maxPlatforms)], ", ") + ", ..."
		}
		if hint := text + " (missing: " + list + "): " + v.Image; len(hint) <= maxWarning {
			v.hint(hint)
			return
		}
	}
	v.hintFitOr(text, "an image is not here for all of its platforms")
}

// hintFitOr adds a hint with the image, or a shorter one where that would not fit into a warning.
func (v *Verdict) hintFitOr(text, short string) {
	if text += ": " + v.Image; len(text) > maxWarning {
		text = short
	}
	v.hint(text)
}

func isIndex(mediaType string) bool {
	return mediaType == "application/vnd.oci.image.index.v1+json" ||
		mediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

// maxPlatforms is how many of the platforms that are missing a hint names.
const maxPlatforms = 3

// absentPlatforms names the manifests of an index that are not here, one more than a hint names if there are as many:
// by their platforms, or by their digests where these are not known.
func absentPlatforms(images Images, c completer, repo string, m storage.Descriptor) []string {
	if !isIndex(m.MediaType) {
		return nil
	}
	absent := c.Absent(repo, m, maxPlatforms+1)
	names := make([]string, len(absent))
	if p, ok := images.(platforms); ok && len(absent) > 0 {
		names = p.Platforms(m.Digest(), absent)
	}
	return plainNames(absent, names)
}

// plainNames returns the platforms of manifests as hints show them. Clients have pushed these texts, so for one that is
// empty, too long, or has characters that no platform has, it returns the beginning of the digest.
func plainNames(manifests []digest.Digest, names []string) []string {
	for i, d := range manifests {
		if names[i] == "" || len(names[i]) > maxPlatformName || strings.ContainsFunc(names[i], notInPlatform) {
			names[i] = d.String()[:min(len(d), shortDigest)]
		}
	}
	return names
}

const (
	maxPlatformName = 40
	shortDigest     = len("sha256:") + 12
)

func notInPlatform(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("/._-", c)
}

// hintAbsent says how to get a local image that the registry does not hold. Hints are a courtesy: errors of the
// registry leave them out.
func (v *Verdict) hintAbsent(ctx context.Context, images Images) {
	r := v.Reference
	switch {
	case strings.HasPrefix(r.Path, below): // clients may not push there
		v.hintFit("no registry has this name here; name the image as its own registry does", v.Image)
	case r.Digest == "":
		v.hint("push it: docker push " + v.Image)
	}
	v.absent = true
	before := len(v.Hints)
	v.hintContents(ctx, images)
	v.contents = len(v.Hints) - before
}

// hintContents names what the registry holds instead of an image.
func (v *Verdict) hintContents(ctx context.Context, images Images) {
	r := v.Reference
	if r.Digest != "" && r.Tag != "" {
		if m, held, err := images.Resolve(ctx, r.Path, r.Tag); err == nil && held {
			v.hint(r.Path + ":" + r.Tag + " is here as " + m.Digest().String())
		}
	}
	l, ok := images.(lister)
	if !ok {
		return
	}
	tags, found, err := l.Tags(ctx, r.Path, "", maxTags+1)
	if text := tagList(r.Path, tags); err == nil && found && text != "" {
		v.hint(text)
	}
}

// tagList lists tags, as many as fit into a warning; more than maxTags stand for many. It returns "" if none fits.
func tagList(repo string, tags []string) string {
	const sep, more = ", ", "..."
	text := ""
	for i, tag := range tags {
		if i == maxTags || len("tags of "+repo+" here: "+text+tag+sep+more) > maxWarning {
			text += more
			break
		}
		text += tag + sep
	}
	if text == "" || text == more {
		return ""
	}
	return "tags of " + repo + " here: " + strings.TrimSuffix(text, sep)
}
