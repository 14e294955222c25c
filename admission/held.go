package admission

import (
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry/platform"
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
// then default. Content that was pushed or imported into a repository below f/ counts as held with every may-run except
// deny: a client with the right to do so has put it there.
func (p *Policy) decideOther(o others, v *Verdict, x *other) {
	ruling, rule := x.ruling()
	if ruling == deniedByRule {
		v.denyListed(rule)
		return
	}
	if n, rule := x.longest(x.rules.denyLocal); n > 0 {
		v.denyListed(rule)
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
	// The rule for images of Kubernetes is a default that no administrator has written, so may-run takes precedence
	// over it.
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
		// A tag may have moved, so the fetch asks the upstream. What a digest names never changes.
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
			v.denyListed(image.rule)
			return
		}
	}
}

// ref returns the tag or digest of a remote image, which its title leaves out.
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

// hintTag warns about a tag: nodes that do not pull through this registry may get another image than the held one. It
// adds no hint to a digest, which names the same image everywhere, nor to a name of this registry or of a host that
// stands for another one here, because nodes pull those from this registry.
func (v *Verdict) hintTag(o others) {
	if _, ours := o.Stands(v.Reference.Domain); v.Reference.Digest == "" && !v.Local && !ours {
		v.hintFit("nodes that do not pull through this registry get the tag of the origin; a digest is exact", v.Image)
	}
}

// hintFetch adds hints on how to get an image that is not held. Of an index they name as many of the missing platforms
// as fit.
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

// hintCached explains to an image that no rule allows why it may not run although it is here.
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

// whole reports whether all parts of an image are here. Of an index these are the parts for the platforms of the
// setting or, without that setting, for any one platform. missing names the platforms of which parts are missing. A
// manifest whose platform is not known counts for each platform.
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
		known, runsOn := names[i] != "", platform.Split(names[i])
		switch {
		case !platform.Runs(runsOn):
		case c.Whole:
			some = some || !known || platform.Wanted(p.platforms, runsOn)
		case !known || p.platforms != nil && platform.Wanted(p.platforms, runsOn):
			if len(lacks) <= maxPlatforms && !slices.Contains(lacks, c.Digest) {
				lacks = append(lacks, c.Digest) // one more than a hint names
			}
		}
	}
	if some && len(lacks) == 0 {
		return true, nil
	}
	if len(lacks) == 0 { // no platform is whole: name them all
		lacks = digests[:min(len(digests), maxPlatforms+1)]
	}
	return false, plainNames(lacks, o.Platforms(m.Digest(), lacks))
}
