package auth

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"trow/registry/glob"
)

// Level is what may be done without a login, where there are no rules. A higher level includes the lower ones.
type Level int

// The levels.
const (
	None Level = iota
	ReadOnly
	CreateOnly // pull, and push what is new
	ReadWrite
)

// ParseLevel reads none, pull, create or push.
func ParseLevel(s string) (Level, error) {
	switch s {
	case "none":
		return None, nil
	case "pull":
		return ReadOnly, nil
	case "create":
		return CreateOnly, nil
	case "push":
		return ReadWrite, nil
	}
	return None, fmt.Errorf("%.40q: want one of none, pull, create, push", s)
}

// Rule is one rule in the configuration file.
type Rule struct {
	// Who are the identities that it is about: user:NAME, robot:NAME, group:NAME, serviceaccount:NAMESPACE/NAME,
	// namespace:NAMESPACE (all of its service accounts), cert:CN, cert-group:O (of a certificate; %20 is a space, %2C a
	// comma), anonymous, authenticated, or * for all. A user whose name has a colon is a user of the cluster, others
	// are users of this registry: the cluster's alice may be another person than ours.
	Who []string `mapstructure:"who"`
	// May are actions; or none, alone, which forbids all actions.
	May []string `mapstructure:"may"`
	// Repositories are patterns; without any the rule is about every repository. Catalog, admin and metrics do not
	// depend on them.
	Repositories []string `mapstructure:"repositories"`
}

// Policy decides who may do what. Make it with [Compile].
type Policy struct {
	rules []rule
	PolicyOptions
}

// PolicyOptions are what decides beside the rules.
type PolicyOptions struct {
	Anonymous Level // what may be done without a login, where there are no rules
	Private   bool  // private requests may push and delete as well, see Guard.private
	Access    bool  // where no rule decides about an account of the cluster, the Kubernetes API does
	// Readers says who may read what is held of another registry, where its upstream says so (read:). Optional.
	Readers Readers
	// Restricted reports whether Readers decides about any repository now; nil: it does.
	Restricted func() bool
}

// rule is a Rule that was read.
type rule struct {
	who        Who
	may        []Action
	forbids    bool
	everywhere bool // the rule is about all repositories
	repos      glob.Set
	patterns   []string // the source of repos
}

// subject is one element of who.
type subject struct{ kind, name string }

// Compile reads rules. An error names the rule and the key.
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
	if includes(c.may, Mirror) && slices.ContainsFunc(c.who, func(s subject) bool { return s.kind == "anonymous" }) {
		return c, fmt.Errorf("may: mirror is never for clients without a login; name those who may, or leave it out")
	}
	c.patterns = r.Repositories
	c.everywhere = len(r.Repositories) == 0 || slices.Contains(r.Repositories, "**")
	return c, nil
}

// Who is the set of identities that a rule, or a limit, is about.
type Who []subject

// ParseWho reads the subjects of a Rule. Errors: an invalid subject; no subject at all.
func ParseWho(texts []string) (all Who, err error) {
	if len(texts) == 0 {
		return nil, fmt.Errorf("who: at least one identity is needed; * matches all")
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

// Match reports whether one of the subjects matches this identity.
func (w Who) Match(who *Identity) bool {
	return slices.ContainsFunc(w, func(s subject) bool { return s.matches(who) })
}

// All reports whether one of the subjects is *.
func (w Who) All() bool { return slices.Contains(w, subject{kind: "*"}) }

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
			return subject{}, fmt.Errorf("%.80q: want serviceaccount:NAMESPACE/NAME", text)
		}
		return subject{kind, serviceAccount + namespace + ":" + account}, nil
	}
	return subject{}, fmt.Errorf("%.80q: want one of user:NAME, robot:NAME, group:NAME, "+
		"serviceaccount:NAMESPACE/NAME, namespace:NAME, cert:CN, cert-group:O, anonymous, authenticated, *", text)
}

// serviceAccount begins the names of service accounts.
const serviceAccount = "system:serviceaccount:"

// parseMay reads actions, or "none", which forbids all.
func parseMay(texts []string) (may []Action, forbids bool, err error) {
	if len(texts) == 1 && texts[0] == "none" {
		return nil, true, nil
	}
	may, err = ParseActions(texts)
	return may, false, err
}

// ParseActions reads actions: pull, create, push, delete, mirror, catalog, admin, metrics. Errors: an invalid action;
// no action at all.
func ParseActions(texts []string) (all []Action, err error) {
	for _, text := range texts {
		a := Action(text)
		if !slices.Contains([]Action{Pull, Create, Push, Delete, Mirror, Catalog, Admin, Metrics}, a) {
			return nil, fmt.Errorf("%.40q: want one of pull, create, push, delete, mirror, catalog, admin, metrics",
				text)
		}
		all = append(all, a)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("at least one action is needed: pull, create, push, delete, mirror, catalog, " +
			"admin, metrics; or none, alone, to forbid everything")
	}
	return all, nil
}

// matches reports whether the subject matches this identity.
func (s subject) matches(who *Identity) bool {
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
	// A user: of the cluster if the name has a colon, else of this registry (invariant 8).
	return who.robot == nil && !who.cert && who.Name == s.name && who.Cluster == strings.Contains(s.name, ":")
}

// decides reports whether the rule is about this identity, repository and action. A rule that forbids is about catalog,
// admin and metrics only if it is about all repositories; otherwise a rule that hides one repository would also forbid
// to list the others.
func (r *rule) decides(who *Identity, repo string, a Action) bool {
	switch {
	case !r.who.Match(who):
		return false
	case a.Whole():
		return r.forbids && r.everywhere || includes(r.may, a)
	}
	return (r.forbids || includes(r.may, a)) && (r.everywhere || r.repos.Match(repo))
}

// basis is what a decision is based on.
type basis int

const (
	onNothing basis = iota // neither a rule nor anything else decided
	onOwner                // the user of the settings may do everything
	onSocket               // so may clients of the administration socket
	onRobot                // what the robot was created for
	onRule
	onLevel   // the setting anonymous
	onLogin   // what every user may do, where there are no rules
	onCluster // the Kubernetes API decided
	onMirror  // no rule gives mirror
	onReaders // read: of an upstream
)

// Verdict is a decision.
type Verdict struct {
	Allowed bool
	Rule    int // the number of the rule that decided, from 1; 0: no rule decided
	on      basis
	private bool // it depends on the request, see Guard.private
	// upstream is the one whose read: has decided.
	upstream string
}

// Judge decides about any action but Login. It does not ask the Kubernetes API.
func (p *Policy) Judge(who *Identity, repo string, a Action) Verdict {
	if guarded(repo, a) {
		return p.judgeMirror(who, repo)
	}
	if a == Pull {
		if readers, upstream, ok := p.readers(repo); ok {
			return p.judgeRead(who, repo, readers, upstream)
		}
	}
	switch {
	case who.owner:
		return Verdict{Allowed: true, on: onOwner}
	case who.socket:
		return Verdict{Allowed: true, on: onSocket}
	case who.robot != nil && !who.robot.may(repo, a):
		return Verdict{on: onRobot}
	}
	// The order of the rules is their meaning: the first that decides wins (invariant 5).
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
	case p.withoutLogin(who, a):
		return Verdict{Allowed: true, on: onLevel, private: a == Delete || a == Push && p.Anonymous < ReadWrite}
	case who.Anonymous():
		return Verdict{on: onLevel}
	case who.Cluster && p.Access:
		return Verdict{}
	// Every pod of the cluster and every employee of an organization may have such an identity. That is no reason to
	// let them push.
	case who.Cluster || who.cert:
		return Verdict{Allowed: a == Pull || a == Catalog, on: onLogin}
	}
	return Verdict{Allowed: a != Admin, on: onLogin}
}

// includes reports whether one of the actions is a, or includes it: push includes create.
func includes(all []Action, a Action) bool {
	return slices.Contains(all, a) || a == Create && slices.Contains(all, Push)
}

// withoutLogin reports whether an action needs no login where there are no rules.
func (p *Policy) withoutLogin(who *Identity, a Action) bool {
	switch a {
	case Pull, Catalog:
		return p.Anonymous >= ReadOnly
	case Create:
		return p.Anonymous >= CreateOnly
	case Push:
		return p.Anonymous >= ReadWrite || p.Private && who.local
	case Delete: // not from elsewhere, even with anonymous: push
		return p.Private && who.local
	}
	return false
}

// readsAll reports whether who may pull from every repository, whatever its name is.
func (p *Policy) readsAll(who *Identity) bool {
	restricted := p.Readers != nil && (p.Restricted == nil || p.Restricted())
	return who.owner || who.socket || !restricted && len(p.rules) == 0 && who.robot == nil &&
		(p.Anonymous >= ReadOnly || !who.Anonymous() && !who.Cluster)
}

// closed reports whether nothing may be done without a login.
func (p *Policy) closed() bool {
	if len(p.rules) == 0 {
		return p.Anonymous == None
	}
	return !slices.ContainsFunc(p.rules, func(r rule) bool {
		return !r.forbids && r.who.Match(anonymous)
	})
}

// Rules returns the number of rules.
func (p *Policy) Rules() int { return len(p.rules) }
