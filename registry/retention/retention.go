// Package retention decides which tags and manifests of a repository have had their time, by rules that an
// administrator writes, and which tags may never change.
//
// # Words
//
//   - rule: says for some repositories what is kept. The first rule whose patterns match a repository is its rule; a
//     repository without one keeps everything.
//   - companion: a tag that names a manifest's digest, as cosign and the referrers' fallback have them
//     (sha256-<hex>, sha256-<hex>.sig). It lives and goes with that manifest and counts as no tag of its own.
//
// # Invariants
//
//  1. What a kept manifest consists of is kept, at any depth; so an index that somebody pins by digest stays whole.
//  2. What refers to a kept manifest (subject, companion) is kept: signatures live as long as what they sign.
//  3. A tag goes only by a rule that says what is kept of tags, and only if none of its conditions keeps it.
//  4. A manifest goes with its last tag, or when it has had none for long enough, or with all that needed it.
//  5. What has changed since the decision stays until the next run.
//
// How long a manifest has been without a tag is not recorded. So delete-untagged counts from the push: what was pushed
// long ago may go soon after its tag has moved on.
package retention

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"trow/registry/glob"
)

// Rule is one rule, as the configuration file has it.
type Rule struct {
	// Repositories are patterns of names: * stands for anything within a path element, ** for any number of them.
	Repositories []string `mapstructure:"repositories"`
	// KeepLast keeps the tags that were set last.
	KeepLast int `mapstructure:"keep-last"`
	// KeepYounger keeps tags that were set less than this ago.
	KeepYounger Duration `mapstructure:"keep-younger"`
	// KeepTags keeps tags of these patterns: with *, or regular expressions between slashes.
	KeepTags []string `mapstructure:"keep-tags"`
	// DeleteUntagged ends manifests without a tag, when they were pushed longer ago than this.
	DeleteUntagged Duration `mapstructure:"delete-untagged"`
}

// Duration is a time that can also be written in days: 30d.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return fmt.Errorf("%.40q is no time; write it as 30d or 12h", s)
		}
		*d = Duration(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	t, err := time.ParseDuration(s)
	if err != nil || t < 0 {
		return fmt.Errorf("%.40q is no time; write it as 30d or 12h", s)
	}
	*d = Duration(t)
	return nil
}

// String writes days as days.
func (d Duration) String() string {
	const day = 24 * time.Hour
	if t := time.Duration(d); t%day != 0 || t == 0 {
		return t.String()
	}
	return fmt.Sprintf("%dd", time.Duration(d)/day)
}

// Policy is a set of rules, and the tags that may never change. The zero value keeps everything.
type Policy struct {
	rules     []rule
	immutable []tagPattern
}

type rule struct {
	Rule
	repos, tags glob.Set
}

type tagPattern struct{ repo, tag glob.Set }

// Compile reads rules and the patterns of tags that may never change, repository:tag. Errors name the rule and what
// is wrong with it.
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
			return nil, fmt.Errorf("immutable-tags: %.80q is not repository:tag; for all tags of all repositories write **:*", text)
		}
		r, rerr := glob.Compile(repo)
		t, terr := glob.Compile(tag)
		if rerr != nil || terr != nil {
			return nil, fmt.Errorf("immutable-tags: %.80q is no pattern", text)
		}
		p.immutable = append(p.immutable, tagPattern{r, t})
	}
	return p, nil
}

func compile(r Rule) (c rule, err error) {
	c.Rule = r
	switch {
	case len(r.Repositories) == 0:
		return c, fmt.Errorf("repositories: name those it is for; ** is all")
	case r.KeepLast < 0:
		return c, fmt.Errorf("keep-last: %d is no number of tags", r.KeepLast)
	case !r.endsTags() && r.DeleteUntagged == 0:
		return c, fmt.Errorf("it ends nothing; give keep-last, keep-younger, keep-tags or delete-untagged")
	}
	if c.repos, err = glob.Compile(r.Repositories...); err != nil {
		return c, fmt.Errorf("repositories: %w", err)
	}
	if c.tags, err = glob.Compile(r.KeepTags...); err != nil {
		return c, fmt.Errorf("keep-tags: %w", err)
	}
	return c, nil
}

// endsTags tells whether the rule says what is kept of tags, so that others go.
func (r *Rule) endsTags() bool { return r.KeepLast > 0 || r.KeepYounger > 0 || len(r.KeepTags) > 0 }

// Rules tells whether there is any rule.
func (p *Policy) Rules() bool { return len(p.rules) > 0 }

// Immutable tells whether a tag, once set, may never name anything else, nor end.
func (p *Policy) Immutable(repo, tag string) bool {
	for _, i := range p.immutable {
		if i.repo.Match(repo) && i.tag.Match(tag) {
			return true
		}
	}
	return false
}

func (p *Policy) ruleOf(repo string) *rule {
	for i := range p.rules {
		if p.rules[i].repos.Match(repo) {
			return &p.rules[i]
		}
	}
	return nil
}
