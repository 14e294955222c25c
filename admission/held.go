package admission

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// This file decides on images of other registries, by the rules, by what is held of them here, and by the setting
// may-run of their upstreams.

// The values of may-run, see registry/upstream.
const (
	mayRunDeny  = "deny"
	mayRunAllow = "allow"
	mayRunHeld  = "held"
	mayRunFetch = "fetch"
)

// decideOther decides on an image of another registry. Rules that deny come first, then rules that allow, then may-run,
// then default. What was pushed or imported into a repository below f/ counts as held whatever may-run is, but for
// deny: somebody who may has put it there.
func (p *Policy) decideOther(o others, v *Verdict, x *other) {
	ruling, rule := x.ruling()
	if ruling == deniedByRule {
		v.deny(OnDenyList, rule, v.title()+" on deny list")
		return
	}
	if n, rule := x.longest(x.rules.denyLocal); n > 0 {
		v.deny(OnDenyList, rule, v.title()+" on deny list")
		return
	}
	if x.denied(o, v); v.decided() {
		return
	}
	if p.denyShort && v.Reference.Short {
		v.denyShortName()
		return
	}
	mayRun, entry := o.MayRun(x.Domain, x.Path)
	// That images of Kubernetes may run by default is no rule that somebody has written, so may-run counts more.
	if ruling == allowedByRule && (mayRun == "" || reasonOf(rule) != K8sImages) {
		v.allow(reasonOf(rule), rule)
		v.hintShort()
		return
	}
	upstream := Rule{"upstreams", entry}
	switch mayRun {
	case mayRunDeny:
		v.deny(MayRunDeny, upstream, v.title()+" disallowed by may-run: deny of upstream "+entry+
			"; allow it by name (allow-images), or change may-run")
		return
	case mayRunAllow:
		v.allow(MayRunAllow, upstream)
		v.hintShort()
		return
	}
	var m storage.Descriptor
	here := false
	if v.repo = x.repoOf(o); v.repo != "" {
		m, here = o.Lookup(v.repo, v.Reference.Ref())
	}
	var missing []string
	whole := false
	if here {
		whole, missing = p.whole(o, v.repo, m)
	}
	v.whole, v.at = whole, m
	imported := here && !o.Cached(v.repo, m.Digest())
	switch {
	case whole && (imported || mayRun == mayRunHeld):
		v.Digest = m.Digest()
		if v.allow(Held, Rule{}); mayRun == mayRunHeld {
			v.Rule = upstream
		}
		v.hintShort()
		v.hintTag(o)
	case mayRun == mayRunFetch:
		v.allow(MayRunFetch, upstream)
		v.hintShort()
		// A tag may have moved: the fetch asks. Nothing changes what a digest names.
		v.fetch = v.repo != "" && (!whole || v.Reference.Digest == "")
	case mayRun == mayRunHeld:
		v.deny(NotHeld, upstream, v.title()+v.ref()+" disallowed as not held here (may-run: held of upstream "+entry+
			")")
		v.hintFetch(m, here, missing)
	case p.allowUnruled:
		v.allow(DefaultAllow, Rule{"default", "Allow"})
	case x.local:
		v.deny(NotHeld, Rule{}, v.title()+notContained)
		v.hintCached(x, here, imported)
	default:
		v.deny(NotAllowed, Rule{"default", "Deny"}, v.title()+notContained)
		v.hintCached(x, here, imported)
	}
}

// denied denies the image if it is one of the disallowed images of its repository: by its name, or because the manifest
// that is held under that name is the same.
func (x *other) denied(o others, v *Verdict) {
	if len(x.rules.denied) == 0 {
		return
	}
	for _, image := range x.rules.denied[Reference{Domain: x.Domain, Path: x.Path}] {
		same := image.Ref() == x.Ref()
		if !same {
			repo := x.repoOf(o)
			m, here := o.Lookup(repo, x.Ref())
			other, also := o.Lookup(repo, image.Ref())
			same = here && also && m.Digest() == other.Digest()
		}
		if same {
			v.deny(OnDenyList, image.rule, v.title()+" on deny list")
			return
		}
	}
}

// title begins the sentences about an image.
func (v *Verdict) title() string {
	if v.Local {
		return "Local image " + v.Image
	}
	return "Remote image " + v.name()
}

// ref is what the title of a remote image leaves out of its name.
func (v *Verdict) ref() string {
	switch {
	case v.Local:
		return ""
	case v.Reference.Digest != "":
		return "@" + v.Reference.Digest.String()
	}
	return ":" + v.Reference.Tag
}

// hintFit adds a hint with the image, or without it where that would not fit into a warning.
func (v *Verdict) hintFit(text, image string) {
	if len(text)+len(": ")+len(image) <= maxWarning {
		text += ": " + image
	}
	v.hint(text)
}

// hintTag says of a tag that what is held decides only for nodes that pull through this registry. A digest is the same
// everywhere, and a name of this registry, also one that stands for another registry, leads here.
func (v *Verdict) hintTag(o others) {
	if _, ours := o.Stands(v.Reference.Domain); v.Reference.Digest == "" && !v.Local && !ours {
		v.hintFit("nodes that do not pull through this registry get the tag of the origin; a digest is exact", v.Image)
	}
}

// hintFetch says how to get what is not held. What is missing of an index is named as far as it fits.
func (v *Verdict) hintFetch(m storage.Descriptor, here bool, missing []string) {
	switch {
	case v.repo == "":
		v.hintFit("it cannot be held: its name here is too long, or that of another upstream (as)", v.Image)
		return
	case here && isIndex(m.MediaType):
		text := "not here for all of its platforms"
		for n := min(len(missing), maxPlatforms); n > 0; n-- {
			list := strings.Join(missing[:n], ", ")
			if n < len(missing) {
				list += ", ..."
			}
			if more := text + " (missing: " + list + ")"; len(more) <= maxWarning {
				text = more
				break
			}
		}
		v.hintFit(text, v.Image)
	case here:
		v.hintFit("held only in part; foreign layers (urls) never are", v.Image)
	}
	v.hintFit("not held: pull it once through this registry (trow warm)", v.Image)
}

// hintCached says of an image that no rule allows that its being here does not help.
func (v *Verdict) hintCached(x *other, here, imported bool) {
	switch {
	case here && imported:
		v.hintFit("imported, but not here as a whole", v.Image)
	case here:
		v.hintFit("cached here, which allows nothing: allow it, or set may-run of its upstream", x.Name())
	}
}

// maxChildren bounds the manifests of an index that a verdict looks at. Real ones have a few dozen.
const maxChildren = 1000

// whole reports whether what an image consists of is here: of an index, what it has for the platforms of the setting,
// or for one platform without that setting. missing names the platforms of which not all is here. A manifest whose
// platform is not known counts for each platform.
func (p *Policy) whole(o others, repo string, m storage.Descriptor) (whole bool, missing []string) {
	if !isIndex(m.MediaType) {
		return o.Whole(repo, m), nil
	}
	children, ok := o.Children(repo, m, maxChildren)
	if !ok || m.Damaged() == m.Digest() {
		return false, nil
	}
	digests := make([]digest.Digest, len(children))
	for i, c := range children {
		digests[i] = c.Digest
	}
	some, lacks := false, []digest.Digest(nil)
	names := o.Platforms(m.Digest(), digests)
	for i, c := range children {
		platform := usualPlatform(names[i])
		switch {
		case platform == notAPlatform:
		case c.Whole:
			some = some || platform == "" || p.wants(platform)
		case platform == "" || len(p.platforms) > 0 && p.wants(platform):
			if len(lacks) <= maxPlatforms && !slices.Contains(lacks, c.Digest) {
				lacks = append(lacks, c.Digest) // one more than a hint names
			}
		}
	}
	if some && len(lacks) == 0 {
		return true, nil
	}
	if len(lacks) == 0 { // of no platform is everything here: name them all
		lacks = digests[:min(len(digests), maxPlatforms+1)]
	}
	return false, plainNames(lacks, o.Platforms(m.Digest(), lacks))
}

// wants reports whether nodes of the cluster run manifests of a platform, in its usual form. A platform without a
// variant stands for all of its variants.
func (p *Policy) wants(platform string) bool {
	return len(p.platforms) == 0 || slices.ContainsFunc(p.platforms, func(wanted string) bool {
		rest, ok := strings.CutPrefix(platform, wanted)
		return ok && (rest == "" || rest[0] == '/')
	})
}

// notAPlatform is that of manifests that nothing runs, such as the attestations of BuildKit.
const notAPlatform = "unknown/unknown"

// architectures are other names of architectures (github.com/containerd/platforms, normalizeArch).
var architectures = map[string]string{
	"i386": "386", "x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm/v7", "armel": "arm/v6",
}

// usualPlatform returns the form of os/arch[/variant] in which platforms are compared.
func usualPlatform(text string) string {
	text = strings.ToLower(text)
	system, arch, _ := strings.Cut(text, "/")
	name, variant, more := strings.Cut(arch, "/")
	if usual, ok := architectures[name]; ok {
		name = usual
	}
	if name == "arm64" && (variant == "8" || variant == "v8") || name == "amd64" && variant == "v1" {
		more = false
	}
	switch {
	case arch == "":
		return text
	case more:
		name += "/" + variant
	}
	return system + "/" + name
}

var validPlatform = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9_-]+(/[a-z0-9]+)?$`)

func checkPlatform(text string) error {
	if !validPlatform.MatchString(strings.ToLower(text)) {
		return errors.New("not of the form os/arch[/variant], such as linux/arm64")
	}
	return nil
}
