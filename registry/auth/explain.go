package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"trow/storage/files"
)

// Explanation is a decision and its reason, for people.
type Explanation struct {
	Allowed bool   `json:"allowed"`
	Why     string `json:"why"`
}

// Explain decides about any action but Login, and returns the reason as well.
func (p *Policy) Explain(who *Identity, repo string, a Action) Explanation {
	v := p.Judge(who, repo, a)
	return Explanation{v.Allowed, p.why(v)}
}

// whoReads is what decides who may read what is held of an upstream.
const whoReads = "read: (or, without that, whether the registry itself wants a login)"

func (p *Policy) why(v Verdict) string {
	switch v.on {
	case onOwner:
		return "the user of the setting user may do everything"
	case onSocket:
		return "clients of the administration socket may do everything"
	case onRule:
		return fmt.Sprintf("rule %d decides: %s", v.Rule, p.rules[v.Rule-1])
	case onRobot:
		if v.Allowed {
			return "the robot was created for that, and no rule forbids it"
		}
		return "the robot was not created for that"
	case onLevel:
		if v.private {
			return "there are no rules, and clients without a login may do that where the registry listens on a " +
				"loopback address, and the request has a loopback Host and has not come through a proxy"
		}
		return "there are no rules, and the setting anonymous decides for clients without a login"
	case onLogin:
		return "there are no rules: users may do everything but administer the registry, " +
			"and accounts of the cluster and holders of certificates may pull"
	case onReaders:
		if v.Allowed {
			return fmt.Sprintf("%s of the upstream %s allows it", whoReads, v.upstream)
		}
		return fmt.Sprintf("%s of the upstream %s does not allow it", whoReads, v.upstream)
	case onMirror:
		return whyMirror
	case onCluster:
		return "no rule decides, and the Kubernetes API does"
	}
	if len(p.rules) == 0 {
		return "there are no rules, and the Kubernetes API does not allow it"
	}
	return fmt.Sprintf("none of the %d rules allows it", len(p.rules))
}

// Explain returns what the guard would decide, and why. Errors: ErrUnavailable.
func (g *Guard) Explain(ctx context.Context, who *Identity, repo string, a Action) (Explanation, error) {
	p := g.state.Load().policy
	v := p.Judge(who, repo, a)
	if v.on != onNothing || g.options.Accesses == nil || !who.Cluster {
		return Explanation{v.Allowed, p.why(v)}, nil
	}
	allowed, reason, err := g.ask(ctx, who, repo, a)
	if a == Create && err == nil && !allowed {
		allowed, reason, err = g.ask(ctx, who, repo, Push)
	}
	return Explanation{allowed, strings.TrimSuffix(p.why(Verdict{on: onCluster})+": "+reason, ": ")}, err
}

// Impersonate returns the identity with this name, for Explain: a user, robot:NAME, cert:CN, an account of the cluster
// (any other name with a colon, or with groups), or anonymous for the empty name. Errors: there is no such robot or
// user.
func (g *Guard) Impersonate(name string, groups []string) (*Identity, error) {
	s := g.current()
	if robot, ok := strings.CutPrefix(name, robotPrefix); ok {
		if r := s.robots.byName[robot]; r != nil {
			return r.who, nil
		}
		return nil, fmt.Errorf("robot %q does not exist", robot)
	}
	if u, ok := s.users.list[name]; ok && len(groups) == 0 {
		return u.who, nil
	}
	if localUser(name, groups) {
		return nil, unknownUser(name)
	}
	return Named(name, groups), nil
}

// localUser reports whether a name can be that of a user of this registry alone: a user of the cluster has a colon in
// the name, or groups.
func localUser(name string, groups []string) bool {
	return name != "" && len(groups) == 0 && !strings.Contains(name, ":")
}

func unknownUser(name string) error {
	return fmt.Errorf("user %q does not exist; for a user of the cluster, name its groups as well (--as-group)",
		name)
}

// Impersonate is that of [Guard.Impersonate] by the settings, where no server runs. Without a htpasswd file, or where
// it cannot be read, as on another machine than the server's, each name may be that of a user. Errors: there is no such
// user; robots, which only the server knows; the file is not valid.
func (o *Options) Impersonate(name string, groups []string) (*Identity, error) {
	switch {
	case strings.HasPrefix(name, robotPrefix):
		return nil, errors.New("only the server knows what a robot may do; omit --config")
	case name != "" && name == o.User:
		return Owner(name), nil
	case o.Htpasswd == "" || !localUser(name, groups):
		return Named(name, groups), nil
	}
	content, err := files.Read(o.Htpasswd, files.MaxSize)
	if err != nil {
		return Named(name, groups), nil
	}
	u := users{list: map[string]user{}}
	if err := u.read(content); err != nil {
		return nil, fmt.Errorf("htpasswd: %s: %w", o.Htpasswd, err)
	}
	if _, ok := u.list[name]; !ok {
		return nil, unknownUser(name)
	}
	return Named(name, groups), nil
}

// Named returns an identity of which only the name and the groups are known. Of its requests, it stands for those that
// may do the most.
func Named(name string, groups []string) *Identity {
	if strings.HasPrefix(name, certPrefix) {
		return &Identity{Name: name, cert: true, orgs: groups, local: true}
	}
	return &Identity{Name: name, Groups: groups, local: true, Cluster: strings.Contains(name, ":") || len(groups) > 0}
}

// Owner returns the identity of the user who may do everything, for Explain.
func Owner(name string) *Identity { return &Identity{Name: name, owner: true} }

// String returns the rule in one line.
func (r rule) String() string {
	var who []string
	for _, s := range r.who {
		who = append(who, s.String())
	}
	may, repos := joinActions(r.may, ", "), "all repositories"
	if r.forbids {
		may = "nothing"
	}
	if !r.everywhere {
		repos = strings.Join(r.patterns, ", ")
	}
	return fmt.Sprintf("%s may %s in %s", strings.Join(who, ", "), may, repos)
}

// String returns the subject as a Rule has it.
func (s subject) String() string {
	switch {
	case s.kind == "cert" || s.kind == "cert-group":
		return s.kind + ":" + strings.NewReplacer("%", "%25", " ", "%20", ",", "%2C").Replace(s.name)
	case s.kind == "serviceaccount":
		return s.kind + ":" + strings.Replace(strings.TrimPrefix(s.name, serviceAccount), ":", "/", 1)
	case s.name == "":
		return s.kind
	}
	return s.kind + ":" + s.name
}
