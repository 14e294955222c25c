package auth

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
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
