package auth

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"trow/registry/audit"
)

// Options are what a Guard is made of.
type Options struct {
	// Dir is the guard's own directory: the keys that sign tokens, and the robots. It is made if need be.
	Dir string
	// User may do everything. Empty: there is no such user.
	User, Password string
	// Htpasswd is a file of users, with bcrypt hashes. It is read again when it changes. Optional.
	Htpasswd string
	// Rules say who may do what; PolicyOptions what holds beside them.
	Rules []Rule
	PolicyOptions
	// URL is how clients reach us, https://host[:port], where that is not what they put into Host. Optional.
	URL string
	// Name is the host[:port] that is told to those whose Host is none.
	Name string
	// Reviewer and Accesses ask the Kubernetes API. Optional. With Accesses, PolicyOptions.Access has to be set.
	Reviewer Reviewer
	Accesses AccessReviewer
	// Annotate attaches a fact to the request's line in the access log, for the token endpoint. Optional.
	Annotate func(ctx context.Context, key, value string)
	// Certificate returns the certificate that a request's connection has shown, verified and good at the moment; nil:
	// none. Optional: without it certificates prove nothing.
	Certificate func(*http.Request) *x509.Certificate
	// Audit is told of logins that fail, and of what Protect refuses. Optional.
	Audit func(context.Context, audit.Event)
}

// Guard is the Authorizer of a server. Make it with [New].
type Guard struct {
	options  Options
	owner    *user
	url      *url.URL
	fallback string
	htpasswd []byte // the file as it was at the start

	secret   [32]byte // keys the memory of what was verified
	throttle *throttle
	reviewed *reviewed

	mu    sync.Mutex // of those who change the state
	state atomic.Pointer[state]
}

// state is all that decisions rest on. It never changes, but for the memory of what was verified; a change makes a new
// one.
type state struct {
	policy *Policy
	users  *users
	robots *robots
	keys   keyring
	tokens *known

	logins bool // there is somebody who could log in
	asks   bool // GET /v2/ asks for a login
}

// The files in Options.Dir.
const (
	robotsFile = "robots.json"
	keysFile   = "token-keys.json"
)

// New reads what there is. Errors: what cannot be meant, and files that cannot be used, with the remedy.
func New(o Options) (*Guard, error) {
	if o.Annotate == nil {
		o.Annotate = func(context.Context, string, string) {}
	}
	if o.Audit == nil {
		o.Audit = func(context.Context, audit.Event) {}
	}
	g := &Guard{options: o, fallback: o.Name, throttle: newThrottle()}
	rand.Read(g.secret[:]) // never fails
	if !ValidHost(g.fallback) {
		g.fallback = "localhost"
	}
	if o.Reviewer != nil {
		g.reviewed = newReviewed(o.Reviewer)
	}
	var err error
	if g.url, err = parseURL(o.URL); err != nil {
		return nil, fmt.Errorf("public-url: %w", err)
	}
	if err := openDir(o.Dir); err != nil {
		return nil, fmt.Errorf("the directory of tokens: %w", err)
	}
	s, err := g.read()
	if err != nil {
		return nil, err
	}
	s.settle(g)
	if !s.logins && s.policy.closed() {
		return nil, errors.New("user: nothing is allowed without a login, and there is no user who could log in (user, htpasswd, client-ca)")
	}
	g.state.Store(s)
	return g, g.turn(time.Now())
}

// read reads the first state.
func (g *Guard) read() (s *state, err error) {
	o := g.options
	s = &state{}
	if s.policy, err = Compile(o.Rules, o.PolicyOptions); err != nil {
		return nil, err
	}
	if g.owner, err = newOwner(o.User, o.Password); err != nil {
		return nil, fmt.Errorf("user: %w", err)
	}
	if g.htpasswd, err = g.readHtpasswd(); err != nil {
		return nil, err
	}
	if s.users, err = g.parseUsers(g.htpasswd); err != nil {
		return nil, err
	}
	if s.robots, err = readRobots(g.path(robotsFile)); err != nil {
		return nil, err
	}
	s.keys, err = readKeys(g.path(keysFile))
	return s, err
}

func (g *Guard) readHtpasswd() ([]byte, error) {
	if g.options.Htpasswd == "" {
		return nil, nil
	}
	b, err := readFile(g.options.Htpasswd, maxFile)
	if err != nil {
		return nil, fmt.Errorf("htpasswd: %w", err)
	}
	return b, nil
}

func (g *Guard) parseUsers(content []byte) (*users, error) {
	u, err := newUsers(g.owner, content)
	if err != nil {
		return nil, fmt.Errorf("htpasswd: %s: %w", g.options.Htpasswd, err)
	}
	return u, nil
}

// settle works out what follows from the parts, and forgets what tokens have proved.
func (s *state) settle(g *Guard) {
	s.tokens = newKnown()
	people := len(s.users.list) > 0 || g.reviewed != nil || g.options.Certificate != nil
	s.logins = people || len(s.robots.byName) > 0
	p := s.policy
	// Where everything is open, a robot's login is taken, but not asked for: clients go on as they did before.
	s.asks = people || s.logins && !(len(p.rules) == 0 && p.Anonymous >= ReadWrite && p.AnonymousDelete)
}

// change makes a new state of the present one, and lets it count unless f fails.
func (g *Guard) change(f func(*state) error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := *g.state.Load()
	if err := f(&next); err != nil {
		return err
	}
	next.settle(g)
	g.state.Store(&next)
	return nil
}

// SetRules puts rules in the place of those before. Errors: as Compile's; then those before stay.
func (g *Guard) SetRules(rules []Rule, o PolicyOptions) error {
	p, err := Compile(rules, o)
	if err != nil {
		return err
	}
	return g.change(func(s *state) error { s.policy = p; return nil })
}

// Policy is what decides now.
func (g *Guard) Policy() *Policy { return g.state.Load().policy }

// Logins tells whether there is anybody who could log in.
func (g *Guard) Logins() bool { return g.state.Load().logins }

// Run follows the htpasswd file and does with the keys what is due, until ctx ends. It calls tell for what it did, with
// a nil error, and for what it could not do.
func (g *Guard) Run(ctx context.Context, tell func(what string, err error)) {
	const often = time.Hour
	var wg sync.WaitGroup
	if path := g.options.Htpasswd; path != "" {
		wg.Go(func() { Follow(ctx, path, g.htpasswd, g.setUsers, func(err error) { tell("users", err) }) })
	}
	for t := time.NewTicker(often); ; {
		select {
		case <-ctx.Done():
			t.Stop()
			wg.Wait()
			return
		case <-t.C:
		}
		if err := g.turn(time.Now()); err != nil {
			tell("keys", err)
		}
	}
}

func (g *Guard) setUsers(content []byte) error {
	u, err := g.parseUsers(content)
	if err != nil {
		return err
	}
	return g.change(func(s *state) error { s.users = u; return nil })
}

// maxHeader bounds an Authorization header: a token, encoded once more as a password.
const maxHeader = maxToken*4/3 + 1<<10

// Identify implements Authorizer. It is the one place where a request gets its identity. Credentials in its header count
// before a certificate.
func (g *Guard) Identify(r *http.Request) (*Identity, error) {
	who, err := g.identify(r)
	if err != nil {
		g.loginFailed(r, err)
	}
	return who, err
}

func (g *Guard) identify(r *http.Request) (*Identity, error) {
	s := g.state.Load()
	if !s.logins { // credentials, which some clients send all the same, mean nothing
		return nobody, nil
	}
	given := r.Header["Authorization"]
	switch {
	case len(given) == 0:
		return g.certified(r), nil
	case len(given) > 1: // which one counts would depend on who reads it
		return nil, fmt.Errorf("%w: more than one Authorization header", ErrUnauthorized)
	case len(given[0]) > maxHeader:
		return nil, fmt.Errorf("%w: the Authorization header is too long", ErrUnauthorized)
	}
	scheme, rest, _ := strings.Cut(given[0], " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return g.bearer(r, s, strings.TrimLeft(rest, " "))
	case strings.EqualFold(scheme, "Basic"):
		return g.basic(r, s, strings.TrimLeft(rest, " "))
	}
	return nil, fmt.Errorf("%w: only Basic and Bearer credentials are understood", ErrUnauthorized)
}

// bearer takes a token of ours, a robot's secret, a token of the cluster.
func (g *Guard) bearer(r *http.Request, s *state, token string) (*Identity, error) {
	if len(token) > maxToken {
		return nil, errBadToken
	}
	now := time.Now()
	if robot := s.robots.find(token, now); robot != nil {
		return robot.who, nil
	}
	if g.reviewed != nil && foreign(token) {
		return g.reviewed.identity(r.Context(), token, now)
	}
	key := sumOf(&g.secret, token)
	p, ok := s.tokens.get(key, now)
	if !ok {
		var err error
		if p, err = s.verify(token, now); err != nil {
			return nil, err
		}
		s.tokens.put(key, p, now)
	}
	if p.aud == r.Host { // as it was when the token was made; otherwise it may still mean the same
		return p.who, nil
	}
	if _, host := g.base(r); p.aud != host {
		return nil, errBadToken
	}
	return p.who, nil
}

// basic takes a user's name and a password.
func (g *Guard) basic(r *http.Request, s *state, encoded string) (*Identity, error) {
	key := sumOf(&g.secret, encoded)
	if p, ok := s.users.known.get(key, time.Time{}); ok {
		return p.who, nil
	}
	if p, ok := s.tokens.get(key, time.Now()); ok {
		return p.who, nil
	}
	b, err := base64.StdEncoding.DecodeString(encoded)
	name, password, ok := strings.Cut(string(b), ":")
	if err != nil || !ok {
		return nil, fmt.Errorf("%w: these are no Basic credentials", ErrUnauthorized)
	}
	return g.password(r.Context(), s, Address(r), key, name, password)
}

// errWrong says nothing of which of the two it is.
var errWrong = fmt.Errorf("%w: user or password is wrong", ErrUnauthorized)

// password takes what is a secret by itself, whatever the name; or a user's.
func (g *Guard) password(ctx context.Context, s *state, from netip.Addr, key [32]byte, name, password string) (*Identity, error) {
	now := time.Now()
	if robot := s.robots.find(password, now); robot != nil {
		s.tokens.put(key, proof{who: robot.who, until: robot.Expires}, now)
		return robot.who, nil
	}
	if g.reviewed != nil && foreign(password) {
		return g.reviewed.identity(ctx, password, now)
	}
	if len(s.users.list) == 0 || len(name) > maxUserName {
		return nil, errWrong
	}
	done, err := g.throttle.enter(ctx, name, from)
	if err != nil {
		return nil, err
	}
	who, ok := s.users.login(key, name, password, now)
	done(ok)
	if !ok {
		return nil, s.wrong(name)
	}
	return who, nil
}

// Authorize implements Authorizer.
func (g *Guard) Authorize(ctx context.Context, who *Identity, repo string, a Action) error {
	s := g.state.Load()
	if a == Login {
		if s.asks && who == nobody { // clients take the answer for the whole registry: told 200, they bring no credentials
			return ErrUnauthorized
		}
		return nil
	}
	allowed, err := g.allows(ctx, s, who, repo, a)
	switch {
	case err != nil:
		return err
	case allowed && who.grant != nil && !who.grant.has(repo, a):
		return errScope
	case allowed:
		return nil
	case who.Anonymous() && !s.logins:
		return fmt.Errorf("%w: %s needs a login, and the registry has no user (start it with --user)", ErrDenied, a)
	case who.Anonymous() && who.grant != nil:
		return errLogin
	case who.Anonymous():
		return ErrUnauthorized
	case a == Pull:
		return ErrHidden
	}
	return fmt.Errorf("%w: %s may not %s here", ErrDenied, who.Name, a)
}

// allows judges, and asks the Kubernetes API if nothing else decides.
func (g *Guard) allows(ctx context.Context, s *state, who *Identity, repo string, a Action) (bool, error) {
	v := s.policy.Judge(who, repo, a)
	if v.on != onNothing || g.options.Accesses == nil || !who.Cluster {
		return v.Allowed, nil
	}
	allowed, _, err := g.ask(ctx, who, repo, a)
	return allowed, err
}

// ask asks the Kubernetes API. Only its own identities: a user of ours may have the name of another of the cluster's.
func (g *Guard) ask(ctx context.Context, who *Identity, repo string, a Action) (allowed bool, reason string, err error) {
	verb := map[Action]string{Pull: "get", Push: "update", Delete: "delete", Catalog: "list", Admin: "admin", Metrics: "metrics"}[a]
	namespace, name, ok := strings.Cut(repo, "/")
	if !ok {
		namespace, name = "", repo
	}
	return g.options.Accesses.Access(ctx, *who, verb, namespace, name)
}

// Explain says what the guard would decide, and why. Errors: ErrUnavailable.
func (g *Guard) Explain(ctx context.Context, who *Identity, repo string, a Action) (Explanation, error) {
	p := g.state.Load().policy
	v := p.Judge(who, repo, a)
	if v.on != onNothing || g.options.Accesses == nil || !who.Cluster {
		return Explanation{v.Allowed, p.why(v)}, nil
	}
	allowed, reason, err := g.ask(ctx, who, repo, a)
	return Explanation{allowed, strings.TrimSuffix(p.why(Verdict{on: onCluster})+": "+reason, ": ")}, err
}

// Impersonate is the identity of this name, to be asked about: a user, robot:NAME, cert:CN, a name of the cluster's (any
// other with a colon), or nobody. Errors: a robot that does not exist.
func (g *Guard) Impersonate(name string, groups []string) (*Identity, error) {
	s := g.state.Load()
	if robot, ok := strings.CutPrefix(name, robotPrefix); ok {
		if r := s.robots.byName[robot]; r != nil {
			return r.who, nil
		}
		return nil, fmt.Errorf("there is no robot %q", robot)
	}
	if u, ok := s.users.list[name]; ok && len(groups) == 0 {
		return u.who, nil
	}
	return Named(name, groups), nil
}

// Named is an identity of which nothing but name and groups is known.
func Named(name string, groups []string) *Identity {
	if strings.HasPrefix(name, certPrefix) {
		return &Identity{Name: name, cert: true, orgs: groups}
	}
	return &Identity{Name: name, Groups: groups, Cluster: strings.Contains(name, ":") || len(groups) > 0}
}

// Readable implements Authorizer.
func (g *Guard) Readable(ctx context.Context, who *Identity) func(repo string) bool {
	s := g.state.Load()
	if s.policy.readsAll(who) {
		return nil
	}
	return func(repo string) bool {
		ok, err := g.allows(ctx, s, who, repo, Pull)
		return ok && err == nil
	}
}

// Protect lets only those in who may do something to the registry as a whole. Whoever has no login is asked for one.
func (g *Guard) Protect(a Action, next http.Handler) http.Handler {
	refuse := func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "this needs another origin", http.StatusForbidden)
	}
	same := http.NewCrossOriginProtection() // a browser that has logged in must not do what another page wants
	same.SetDenyHandler(http.HandlerFunc(refuse))
	return same.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := g.Identify(r)
		if err == nil {
			g.options.Annotate(r.Context(), "user", who.Name)
			if err = g.Authorize(r.Context(), who, "", a); err != nil {
				g.refused(r, who, a, err)
			}
		}
		if err == nil {
			next.ServeHTTP(w, r)
			return
		}
		status := statusOf(err)
		switch status {
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", basicChallenge)
		case http.StatusServiceUnavailable, http.StatusTooManyRequests:
			w.Header().Set("Retry-After", "1")
		}
		http.Error(w, err.Error(), status)
	}))
}

// statusOf is what an error means in HTTP, outside of the distribution API.
func statusOf(err error) int {
	switch {
	case errors.Is(err, ErrUnauthorized):
		return http.StatusUnauthorized
	case errors.Is(err, ErrBusy):
		return http.StatusTooManyRequests
	case errors.Is(err, ErrDenied), errors.Is(err, ErrHidden):
		return http.StatusForbidden
	}
	return http.StatusServiceUnavailable
}

// Owner is the identity of the user who may do everything, to be asked about.
func Owner(name string) *Identity { return &Identity{Name: name, owner: true} }
