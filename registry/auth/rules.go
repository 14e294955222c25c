package auth

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"trow/registry/glob"
)

// Level says what may be done without a login, where there are no rules. A higher one includes the lower ones.
type Level int

// The levels.
const (
	None Level = iota
	ReadOnly
	ReadWrite
)

// ParseLevel understands none, pull and push.
func ParseLevel(s string) (Level, error) {
	switch s {
	case "none":
		return None, nil
	case "pull":
		return ReadOnly, nil
	case "push":
		return ReadWrite, nil
	}
	return None, fmt.Errorf("%.40q is none of none, pull, push", s)
}

// Rule is one rule, as the configuration file has it.
type Rule struct {
	// Who it is about: user:NAME, robot:NAME, group:NAME, serviceaccount:NAMESPACE/NAME, namespace:NAMESPACE (all of
	// its service accounts), cert:CN, cert-group:O (of a certificate; %20 is a space, %2C a comma), anonymous,
	// authenticated, or * for everybody. A user is one of ours, or, if his name has a
	// colon, which ours have not, one of the cluster's: the cluster's alice may be somebody else than ours.
	Who []string `mapstructure:"who"`
	// May has actions, or none, alone: then it forbids all.
	May []string `mapstructure:"may"`
	// Repositories are patterns; none at all means every repository. They say nothing about catalog and admin.
	Repositories []string `mapstructure:"repositories"`
}

// Policy is what decides. Make it with [Compile].
type Policy struct {
	rules []rule
	PolicyOptions
}

// PolicyOptions say what holds beside the rules.
type PolicyOptions struct {
	Anonymous       Level // what may be done without a login, where there are no rules
	AnonymousDelete bool  // deleting needs no login where pushing needs none; for loopback listeners
	Access          bool  // what accounts of the cluster may do that no rule decides, the cluster decides
}

// rule is a Rule, read.
type rule struct {
	who        Who
	may        []Action
	forbids    bool
	everywhere bool // it is about all repositories
	repos      glob.Set
	patterns   []string // what repos was made of
}

// subject is one whom a rule is about.
type subject struct{ kind, name string }

// Compile reads rules. Errors name the rule and what is wrong with it.
func Compile(rules []Rule, o PolicyOptions) (*Policy, error) {
	p := &Policy{PolicyOptions: o}
	for i, r := range rules {
		c, err := compile(r)
		if err != nil {
			return nil, fmt.Errorf("rules: rule %d: %w", i+1, err)
		}
		p.rules = append(p.rules, c)
	}
	return p, nil
}

func compile(r Rule) (c rule, err error) {
	if c.who, err = ParseWho(r.Who); err != nil {
		return c, err
	}
	if c.may, c.forbids, err = parseMay(r.May); err != nil {
		return c, fmt.Errorf("may: %w", err)
	}
	if c.repos, err = glob.Compile(r.Repositories...); err != nil {
		return c, fmt.Errorf("repositories: %w", err)
	}
	c.patterns = r.Repositories
	c.everywhere = len(r.Repositories) == 0 || slices.Contains(r.Repositories, "**")
	return c, nil
}

// Who is a number of subjects: those whom a rule, or whatever else has a who, is about.
type Who []subject

// ParseWho reads subjects as a Rule has them. Errors name the one that is none; none at all is one, too.
func ParseWho(texts []string) (all Who, err error) {
	if len(texts) == 0 {
		return nil, fmt.Errorf("who: say whom it is about; * is everybody")
	}
	for _, text := range texts {
		s, err := parseSubject(text)
		if err != nil {
			return nil, fmt.Errorf("who: %w", err)
		}
		all = append(all, s)
	}
	return all, nil
}

// Means tells whether one of the subjects is this identity.
func (w Who) Means(who *Identity) bool {
	return slices.ContainsFunc(w, func(s subject) bool { return s.is(who) })
}

// Everybody tells whether one of the subjects is *.
func (w Who) Everybody() bool { return slices.Contains(w, subject{kind: "*"}) }

func parseSubject(text string) (subject, error) {
	if text == "*" || text == "anonymous" || text == "authenticated" {
		return subject{kind: text}, nil
	}
	kind, name, _ := strings.Cut(text, ":")
	switch kind {
	case "user", "group", "robot", "namespace":
		if name == "" {
			return subject{}, fmt.Errorf("%.80q has no name", text)
		}
		return subject{kind, name}, nil
	case "cert", "cert-group":
		plain, err := url.PathUnescape(name)
		if err != nil || plain == "" {
			return subject{}, fmt.Errorf("%.80q has no name", text)
		}
		return subject{kind, plain}, nil
	case "serviceaccount":
		namespace, account, ok := strings.Cut(name, "/")
		if !ok || namespace == "" || account == "" {
			return subject{}, fmt.Errorf("%.80q is not serviceaccount:NAMESPACE/NAME", text)
		}
		return subject{kind, serviceAccount + namespace + ":" + account}, nil
	}
	return subject{}, fmt.Errorf("%.80q is none of user:, robot:, group:, serviceaccount:, namespace:, cert:, cert-group: with a name, anonymous, authenticated, *", text)
}

// serviceAccount begins the names of service accounts.
const serviceAccount = "system:serviceaccount:"

// parseMay reads actions, or none.
func parseMay(texts []string) (may []Action, forbids bool, err error) {
	if len(texts) == 1 && texts[0] == "none" {
		return nil, true, nil
	}
	may, err = ParseActions(texts)
	return may, false, err
}

// ParseActions reads actions: pull, push, delete, catalog, admin, metrics. Errors: one that is none, and none at all.
func ParseActions(texts []string) (all []Action, err error) {
	for _, text := range texts {
		a := Action(text)
		if !slices.Contains([]Action{Pull, Push, Delete, Catalog, Admin, Metrics}, a) {
			return nil, fmt.Errorf("%.40q is none of pull, push, delete, catalog, admin, metrics", text)
		}
		all = append(all, a)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("say what: pull, push, delete, catalog, admin, metrics; or none, alone, to forbid everything")
	}
	return all, nil
}

// is tells whether the subject means this identity.
func (s subject) is(who *Identity) bool {
	switch s.kind {
	case "*":
		return true
	case "anonymous":
		return who.Anonymous()
	case "authenticated":
		return !who.Anonymous()
	case "robot":
		return who.robot != nil && who.Name == robotPrefix+s.name
	case "group":
		return slices.Contains(who.Groups, s.name)
	case "namespace":
		rest, ok := strings.CutPrefix(who.Name, serviceAccount+s.name)
		return ok && who.Cluster && strings.HasPrefix(rest, ":")
	case "serviceaccount":
		return who.Cluster && who.Name == s.name
	case "cert":
		return who.cert && who.Name == certPrefix+s.name
	case "cert-group":
		return who.cert && slices.Contains(who.orgs, s.name)
	}
	return who.robot == nil && !who.cert && who.Name == s.name && who.Cluster == strings.Contains(s.name, ":") // a user
}

// decides tells whether the rule is about this. A rule that forbids is about the catalog and the administration only if
// it is about all repositories; otherwise one that hides a single repository would take the catalog away.
func (r *rule) decides(who *Identity, repo string, a Action) bool {
	switch {
	case !r.who.Means(who):
		return false
	case a.Whole():
		return r.forbids && r.everywhere || slices.Contains(r.may, a)
	}
	return (r.forbids || slices.Contains(r.may, a)) && (r.everywhere || r.repos.Match(repo))
}

// basis is what a decision rests on.
type basis int

const (
	onNothing basis = iota // no rule decided, and nothing else
	onOwner                // the user of the settings may do everything
	onRobot                // what the robot was made for
	onRule
	onLevel   // the setting anonymous
	onLogin   // what every user may do, where there are no rules
	onCluster // the Kubernetes API decided
)

// Verdict is a decision.
type Verdict struct {
	Allowed bool
	Rule    int // the number of the rule that decided, from 1; 0: none did
	on      basis
}

// Judge decides about any action but Login. It never asks the Kubernetes API.
func (p *Policy) Judge(who *Identity, repo string, a Action) Verdict {
	switch {
	case who.owner:
		return Verdict{Allowed: true, on: onOwner}
	case who.robot != nil && !who.robot.may(repo, a):
		return Verdict{on: onRobot}
	}
	for i := range p.rules {
		if p.rules[i].decides(who, repo, a) {
			return Verdict{Allowed: !p.rules[i].forbids, Rule: i + 1, on: onRule}
		}
	}
	switch {
	case who.robot != nil:
		return Verdict{Allowed: true, on: onRobot}
	case len(p.rules) > 0:
		return Verdict{}
	case p.withoutLogin(a):
		return Verdict{Allowed: true, on: onLevel}
	case who.Anonymous():
		return Verdict{on: onLevel}
	case who.Cluster && p.Access:
		return Verdict{}
	case who.Cluster || who.cert: // many can prove that they are of the cluster, or of the firm; that is not what lets people push
		return Verdict{Allowed: a == Pull || a == Catalog, on: onLogin}
	}
	return Verdict{Allowed: a != Admin, on: onLogin}
}

// withoutLogin tells what everybody may do where there are no rules.
func (p *Policy) withoutLogin(a Action) bool {
	switch a {
	case Pull, Catalog:
		return p.Anonymous >= ReadOnly
	case Push:
		return p.Anonymous >= ReadWrite
	case Delete:
		return p.Anonymous >= ReadWrite && p.AnonymousDelete
	}
	return false
}

// readsAll tells whether who may pull from every repository without anybody having to look at each.
func (p *Policy) readsAll(who *Identity) bool {
	return who.owner || len(p.rules) == 0 && who.robot == nil && (p.Anonymous >= ReadOnly || !who.Anonymous() && !who.Cluster)
}

// closed tells whether nothing may be done without a login.
func (p *Policy) closed() bool {
	if len(p.rules) == 0 {
		return p.Anonymous == None
	}
	return !slices.ContainsFunc(p.rules, func(r rule) bool {
		return !r.forbids && r.who.Means(nobody)
	})
}

// Rules is how many there are.
func (p *Policy) Rules() int { return len(p.rules) }
