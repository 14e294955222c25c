// Package retention decides which tags and manifests of a repository are removed, by rules of the administrator, and
// which tags are immutable.
//
// # Words
//
//   - rule: states for some repositories what is kept. The first rule whose patterns match a repository is its rule; a
//     repository without one keeps everything.
//   - companion: a tag whose name contains the digest of a manifest, as cosign and the referrers tag schema make them
//     (sha256-<hex>, sha256-<hex>.sig; sha512-<first 64 digits>, because a tag has no room for more). It is kept and
//     removed together with that manifest, and not counted as a tag.
//
// # Invariants
//
//  1. What a kept manifest consists of is kept, at any depth, so that an index that is pinned by digest stays intact.
//  2. What refers to a kept manifest (subject, companion) is kept: signatures stay as long as what they sign.
//  3. A tag is removed only by a rule that states which tags are kept, and only if none of its conditions keeps it.
//  4. A manifest is removed together with its last tag, or after delete-untagged without a tag, or together with
//     everything that needed it.
//  5. What has changed since the decision is kept until the next run.
//
// # What it does not do
//
// It does not record since when a manifest has had no tag. So delete-untagged counts from the push: a manifest that was
// pushed long ago may be removed soon after its tag was moved. It removes no blobs; package storage collects them.
package retention

import (
	"fmt"
	"strings"

	"trow/registry/glob"
	"trow/registry/namespace"
)

// Policy is a list of rules, and the immutable tags. The zero value keeps everything, and has no immutable tags.
type Policy struct {
	rules     []rule
	immutable []tagPattern
}

type rule struct {
	Rule
	repos, tags glob.Set
}

type tagPattern struct{ repo, tag glob.Set }

// Compile reads rules and the patterns of immutable tags, repository:tag. An error names the rule and the key.
func Compile(rules []Rule, immutable []string) (*Policy, error) {
	p := &Policy{}
	for i, r := range rules {
		c, err := compile(r)
		if err != nil {
			return nil, fmt.Errorf("retention: rule %d: %w", i+1, err)
		}
		p.rules = append(p.rules, c)
	}
	for _, text := range immutable {
		repo, tag, ok := strings.Cut(text, ":")
		if !ok || repo == "" || tag == "" {
			return nil, fmt.Errorf("immutable-tags: %.80q: want repository:tag; **:* matches all tags of all "+
				"repositories", text)
		}
		r, rerr := glob.Compile(repo)
		t, terr := glob.Compile(tag)
		if rerr != nil || terr != nil {
			return nil, fmt.Errorf("immutable-tags: %.80q: repository or tag is not a valid pattern", text)
		}
		p.immutable = append(p.immutable, tagPattern{r, t})
	}
	return p, nil
}

func compile(r Rule) (c rule, err error) {
	c.Rule = r
	switch {
	case len(r.Repositories) == 0:
		return c, fmt.Errorf("repositories: at least one pattern is needed; ** matches all")
	case r.KeepLast < 0:
		return c, fmt.Errorf("keep-last: %d is negative", r.KeepLast)
	case !r.removesTags() && r.DeleteUntagged == 0:
		return c, fmt.Errorf("the rule removes nothing; set keep-last, keep-younger, keep-tags or delete-untagged")
	}
	if c.repos, err = glob.Compile(r.Repositories...); err != nil {
		return c, fmt.Errorf("repositories: %w", err)
	}
	if c.tags, err = glob.Compile(r.KeepTags...); err != nil {
		return c, fmt.Errorf("keep-tags: %w", err)
	}
	return c, nil
}

// removesTags reports whether the rule states which tags are kept, so that it removes others.
func (r *Rule) removesTags() bool { return r.KeepLast > 0 || r.KeepYounger > 0 || len(r.KeepTags) > 0 }

// Rules reports whether there is any rule.
func (p *Policy) Rules() bool { return len(p.rules) > 0 }

// Immutable reports whether a tag can be neither moved nor deleted once it is set.
func (p *Policy) Immutable(repo, tag string) bool {
	for _, i := range p.immutable {
		if i.repo.Match(repo) && i.tag.Match(tag) {
			return true
		}
	}
	return false
}

// ruleOf returns the first rule that matches a repository, or nil. None does below f/: what is cached of other
// registries goes when the room is needed, and what was imported stays.
func (p *Policy) ruleOf(repo string) *rule {
	if namespace.Within(repo) {
		return nil
	}
	for i := range p.rules {
		if p.rules[i].repos.Match(repo) {
			return &p.rules[i]
		}
	}
	return nil
}
