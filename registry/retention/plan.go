package retention

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/settings"
	"trow/storage"
)

// Removal is a tag or a manifest that is removed, and the reason.
type Removal struct {
	Repo   string        `json:"repository"`
	Tag    string        `json:"tag,omitempty"` // empty: the manifest is removed
	Digest digest.Digest `json:"digest"`        // of the manifest, or of the one that the tag points to
	Why    string        `json:"why"`           // for people

	of digest.Digest // a manifest that is removed before it, to which it belongs: it stays if that one has stayed
}

// Plan returns what is removed from a repository now: tags first, then manifests, each before what it consists of. It
// depends on h alone.
func (p *Policy) Plan(now time.Time, h storage.Holdings) []Removal {
	r := p.ruleOf(h.Repo)
	if r == nil {
		return nil
	}
	d := &decision{rule: r, policy: p, now: now, h: h, whyTag: map[string]string{},
		toDelete: map[digest.Digest]bool{}, kept: map[digest.Digest]bool{},
		index: map[digest.Digest]*storage.HeldManifest{}, parents: map[digest.Digest]int{},
		followers: map[digest.Digest][]digest.Digest{}, companions: map[string]digest.Digest{}}
	for i := range h.Manifests {
		of := h.Manifests[i].Digest
		d.index[of], d.companions[companionName(of)] = &h.Manifests[i], of
	}
	// Tags come first: a manifest is removed with its last tag.
	d.relate()
	d.tags()
	d.manifests()
	return d.removals()
}

// decision is a plan that is being made.
type decision struct {
	rule   *rule
	policy *Policy
	now    time.Time
	h      storage.Holdings

	index      map[digest.Digest]*storage.HeldManifest
	parents    map[digest.Digest]int             // manifests here that consist of it
	followers  map[digest.Digest][]digest.Digest // referrers and companions, which are kept and removed with it
	companions map[string]digest.Digest          // by the beginning of the names of their companions
	whyTag     map[string]string                 // why a tag is removed; no entry: it is kept
	toDelete   map[digest.Digest]bool            // removed unless a kept manifest needs it
	kept       map[digest.Digest]bool
}

// companion matches the names of companions: the beginning of a digest, which is the whole of a sha256 and the first
// half of a sha512 (distribution spec, "Referrers Tag Schema"), and an ending.
var companion = regexp.MustCompile(`^((?:sha256|sha512)-[0-9a-f]{64})(?:\.[a-z0-9.]+)?$`)

// companionName is how the names of the companions of a manifest begin.
func companionName(d digest.Digest) string {
	return d.Algorithm().String() + "-" + d.Encoded()[:min(len(d.Encoded()), 64)]
}

// companionOf returns the manifest whose companion a tag is; ok is false if the repository does not hold it.
func (d *decision) companionOf(tag string) (of digest.Digest, ok bool) {
	if m := companion.FindStringSubmatch(tag); m != nil {
		of, ok = d.companions[m[1]]
	}
	return of, ok
}

// isCompanion reports whether a tag has the name of a companion.
func isCompanion(tag string) bool { return companion.MatchString(tag) }

// relate records which manifests need which others.
func (d *decision) relate() {
	for _, m := range d.h.Manifests {
		for _, ref := range m.Refs {
			if d.index[ref] != nil && ref != m.Digest {
				d.parents[ref]++
			}
		}
		if m.Subject != "" {
			d.followers[m.Subject] = append(d.followers[m.Subject], m.Digest)
		}
		for _, t := range m.Tags {
			if of, ok := d.companionOf(t.Name); ok {
				d.followers[of] = append(d.followers[of], m.Digest)
			}
		}
	}
}

// tags decides which tags are removed. Companions follow their manifest.
func (d *decision) tags() {
	if !d.rule.removesTags() {
		return
	}
	var all []storage.HeldTag
	for _, m := range d.h.Manifests {
		for _, t := range m.Tags {
			if !d.accompanies(t.Name) {
				all = append(all, t)
			}
		}
	}
	newer := 0 // tags that were set later
	for _, group := range slices.Backward(storage.TagsInOrder(all)) {
		for _, t := range group {
			age := d.now.Sub(time.Unix(t.Time, 0))
			switch {
			// Each condition keeps the tag. They are independent of each other, so that none can make another remove
			// more. Tags whose order is not known have the same number of newer ones, so that keep-last keeps all of
			// them or none.
			case newer < d.rule.KeepLast, age < time.Duration(d.rule.KeepYounger), d.rule.tags.Match(t.Name),
				d.policy.Immutable(d.h.Repo, t.Name) && !isCompanion(t.Name): // of these only orphans come here
			default:
				d.whyTag[t.Name] = d.why(age)
			}
		}
		newer += len(group)
	}
}

// why returns which conditions did not keep a tag.
func (d *decision) why(age time.Duration) string {
	var parts []string
	if n := d.rule.KeepLast; n > 0 {
		parts = append(parts, fmt.Sprintf("not among the last %d", n))
	}
	if d.rule.KeepYounger > 0 {
		rounded := settings.Duration(age.Truncate(time.Minute))
		parts = append(parts, fmt.Sprintf("set %s ago, not less than %s", rounded, d.rule.KeepYounger))
	}
	if len(d.rule.KeepTags) > 0 {
		parts = append(parts, "not one of "+strings.Join(d.rule.KeepTags, ", "))
	}
	return strings.Join(parts, "; ")
}

// manifests decides which manifests are removed: those that expire and everything that belongs to them, except what a
// kept manifest needs.
func (d *decision) manifests() {
	for _, m := range d.h.Manifests {
		if d.expires(&m) {
			d.mark(d.toDelete, m.Digest)
		}
	}
	// Second, because to be kept is stronger: mark also keeps what was to be deleted (invariants 1 and 2).
	for _, m := range d.h.Manifests {
		if !d.toDelete[m.Digest] || d.hasKeptTag(&m) {
			d.mark(d.kept, m.Digest)
		}
	}
}

// expires reports whether a manifest is to be removed by itself, not because of another one.
func (d *decision) expires(m *storage.HeldManifest) bool {
	if d.hasKeptTag(m) {
		return false
	}
	for _, t := range m.Tags {
		if !d.accompanies(t.Name) {
			return true // its last tag is removed
		}
	}
	if len(m.Tags) > 0 || d.parents[m.Digest] > 0 || d.index[m.Subject] != nil { // no manifest has an empty digest
		return false // it is removed with what it belongs to
	}
	after := time.Duration(d.rule.DeleteUntagged)
	return after > 0 && d.now.Sub(time.Unix(m.Time, 0)) >= after
}

// hasKeptTag reports whether a manifest has a tag, other than a companion, that is kept.
func (d *decision) hasKeptTag(m *storage.HeldManifest) bool {
	return slices.ContainsFunc(m.Tags, func(t storage.HeldTag) bool {
		return !d.accompanies(t.Name) && d.whyTag[t.Name] == ""
	})
}

// accompanies reports whether a tag is a companion. If its manifest is not in the repository it is a tag like others.
func (d *decision) accompanies(tag string) bool {
	_, ok := d.companionOf(tag)
	return ok
}

// mark adds a manifest to a set, with what it consists of and what follows it, at any depth.
func (d *decision) mark(set map[digest.Digest]bool, at digest.Digest) {
	for todo := []digest.Digest{at}; len(todo) > 0; {
		at, todo = todo[len(todo)-1], todo[:len(todo)-1]
		m := d.index[at]
		if m == nil || set[at] {
			continue
		}
		set[at] = true
		todo = append(append(todo, m.Refs...), d.followers[at]...)
	}
}

func (d *decision) whyManifest(m *storage.HeldManifest) string {
	switch {
	case len(m.Tags) > 0:
		return "its last tag is removed"
	case m.Subject != "" && d.index[m.Subject] != nil:
		return "the manifest that it refers to is removed"
	case d.parents[m.Digest] > 0:
		return "the index that contains it is removed"
	}
	age := settings.Duration(d.now.Sub(time.Unix(m.Time, 0)).Truncate(time.Minute))
	return fmt.Sprintf("it has no tag and was pushed %s ago, not less than %s", age, d.rule.DeleteUntagged)
}
