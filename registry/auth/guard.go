package auth

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"trow/registry/address"
	"trow/registry/audit"
	"trow/storage/files"
)

// Guard is the Authorizer of a server. Make it with [New], and then call [Guard.Load] once: until that has returned,
// credentials of robots and tokens can be neither accepted nor refused (ErrUnavailable).
type Guard struct {
	options  Options
	owner    *user
	url      *url.URL         // the setting public-url; nil: it is not set
	proxies  address.Networks // the setting trusted-proxies
	fallback string           // the host of challenges for clients without a valid Host header
	htpasswd []byte           // what the file held at the start

	secret        [32]byte            // part of the keys of verified credentials
	throttle      *throttle           // of passwords
	elsewhere     *throttle           // of those on requests for other registries
	reviews       *throttle           // of tokens of the cluster
	tokenRequests *semaphore.Weighted // places of the token endpoint

	mu    sync.Mutex // held while the state is replaced
	state atomic.Pointer[state]

	news      atomic.Uint64 // counts changes of what the state has read of the records
	misses    confirmer
	temporary *signingKey       // signs where nothing may be written; guarded by mu
	unread    map[string]string // by id, records of keys that were reported; guarded by mu

	changes sync.Mutex // held while records are changed; never together with a request
	old     *oldFiles  // nil: there are none whose content counts; set by Load alone
	cleanup func(context.Context) error
}

// state is everything that decisions are based on. It never changes, except for what it remembers of verified
// credentials; a change makes a new one.
type state struct {
	policy *Policy
	users  *users
	tokens known
	lives  lives

	records Records // nil until Load
	shared  bool    // other processes change the records
	seen    uint64  // Guard.news when the records were read
	robots  *robots
	keys    keyring
	taken   bool // the files of earlier versions are in the records

	logins bool // some credentials are valid
	people bool // not only those of robots
}

// New reads the users and makes a Guard. Errors: invalid options, and files that cannot be used, with the remedy.
func New(o Options) (*Guard, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Forms == nil {
		o.Forms = unboundedBodies{}
	}
	if o.Annotate == nil {
		o.Annotate = func(context.Context, string, string) {}
	}
	if o.Audit == nil {
		o.Audit = func(context.Context, audit.Event) {}
	}
	g := &Guard{options: o, unread: map[string]string{}, fallback: o.Name, throttle: newThrottle(1, 1),
		elsewhere: newThrottle(1, 1), reviews: newThrottle(6, 2),
		tokenRequests: semaphore.NewWeighted(maxTokenRequests)}
	rand.Read(g.secret[:]) // never fails
	if !ValidHost(g.fallback) {
		g.fallback = "localhost"
	}
	var err error
	if g.url, err = parseURL(o.PublicURL); err != nil {
		return nil, err
	}
	if g.proxies, err = parseProxies(o.TrustedProxies); err != nil {
		return nil, err
	}
	s, err := g.read()
	if err != nil {
		return nil, err
	}
	s.derive(g)
	g.state.Store(s)
	return g, nil
}

// read reads the first state.
func (g *Guard) read() (s *state, err error) {
	o := &g.options
	s = &state{lives: o.lives(), robots: newRobots(nil, nil, nil)}
	if s.policy, err = o.Policy(); err != nil {
		return nil, err
	}
	if g.owner, err = newOwner(o.User, o.Password); err != nil {
		return nil, fmt.Errorf("user: %w", err)
	}
	if o.Htpasswd != "" {
		if g.htpasswd, err = files.Read(o.Htpasswd, files.MaxSize); err != nil {
			return nil, fmt.Errorf("htpasswd: %w", err)
		}
	}
	s.users, err = g.parseUsers(g.htpasswd)
	return s, err
}

func (g *Guard) parseUsers(content []byte) (*users, error) {
	u, err := newUsers(g.owner, content)
	if err != nil {
		return nil, fmt.Errorf("htpasswd: %s: %w", g.options.Htpasswd, err)
	}
	return u, nil
}

// derive recomputes logins and people, and forgets which tokens were verified: what they proved may be wrong now.
func (s *state) derive(g *Guard) {
	s.tokens = newKnown()
	s.people = len(s.users.list) > 0 || g.options.Reviewer != nil || g.options.Certificate != nil
	s.logins = s.people || len(s.robots.byName) > 0
}

// challenges reports whether GET /v2/ asks who, who is anonymous, for a login. Where everything is open, robots can log
// in, but no client is asked to: all clients go on as before there were robots.
func (s *state) challenges(who *Identity) bool {
	open := len(s.policy.rules) == 0 && s.policy.withoutLogin(who, Delete)
	return s.people || s.logins && !open
}

// change makes a new state from the current one, and puts it in place unless f fails.
func (g *Guard) change(f func(*state) error) error {
	g.mu.Lock() // or one of two changes at once would be lost
	defer g.mu.Unlock()
	next := *g.state.Load()
	if err := f(&next); err != nil {
		return err
	}
	next.derive(g)
	g.state.Store(&next)
	return nil
}

// SetRules replaces the rules and the setting anonymous. Errors: as those of Options.Validate; then nothing changes.
func (g *Guard) SetRules(rules []Rule, anonymous string) error {
	o := g.options
	o.Rules, o.Anonymous = rules, anonymous
	if err := o.Validate(); err != nil {
		return err
	}
	p, err := o.Policy()
	if err != nil {
		return err
	}
	return g.change(func(s *state) error { s.policy = p; return nil })
}

// Policy returns what decides now.
func (g *Guard) Policy() *Policy { return g.state.Load().policy }

// Summary returns what may be done without a login, for people: the end of a sentence that begins "without a login:".
func (g *Guard) Summary() string {
	if g.options.ReadOnly {
		return g.readOnlySummary()
	}
	s := g.current()
	p, rest := s.policy, "needs a login"
	if !s.logins {
		rest = "is not possible, because there are no users"
	}
	switch {
	case p.Rules() > 0:
		return fmt.Sprintf("what the %d rules of the configuration file allow; ask with trow can-i", p.Rules())
	case p.Private:
		return "pull, push and delete (only this machine can connect)"
	case p.Anonymous == None:
		return "nothing"
	case p.Anonymous == ReadOnly:
		return "pull; everything else " + rest
	case p.Anonymous == CreateOnly:
		return "pull, and push of what is new; to move or delete a tag " + rest
	}
	return "pull and push, for every client that can connect; delete " + rest
}

// readOnlySummary is Summary for a read-only registry: whatever the settings allow, nothing is pushed or deleted.
func (g *Guard) readOnlySummary() string {
	const only = "; to push and to delete is not possible, because the registry is read-only"
	switch p := g.current().policy; {
	case p.Rules() > 0:
		return fmt.Sprintf("pull, as the %d rules of the configuration file allow (ask with trow can-i)", p.Rules()) +
			only
	case p.Private || p.Anonymous >= ReadOnly:
		return "pull" + only
	}
	return "nothing" + only
}

// Run follows the htpasswd file and rotates the keys until ctx is done, and logs what changes.
func (g *Guard) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if path := g.options.Htpasswd; path != "" {
		wg.Go(func() { files.Follow(ctx, path, g.htpasswd, g.setUsers, func(err error) { g.logChange("users", err) }) })
	}
	for next := time.Minute; ; next = g.keepKeys(ctx) { // Load has looked, perhaps in vain
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(next):
		}
	}
}

// keepKeys looks whether a key is due, and returns when to look again.
func (g *Guard) keepKeys(ctx context.Context) time.Duration {
	if err := g.rotateKeys(ctx, time.Now()); err != nil {
		if ctx.Err() == nil {
			g.options.Log.Error().Err(err).Msg("the keys of tokens cannot be renewed; the next attempt is in a minute")
		}
		return time.Minute
	}
	return time.Hour // far below keyLife
}

// logChange logs the outcome of a change to users or keys.
func (g *Guard) logChange(what string, err error) {
	if err != nil {
		g.options.Log.Error().Err(err).Str("what", what).Msg("credentials not reloaded; the previous ones stay valid")
		return
	}
	g.options.Log.Info().Str("what", what).Msg("credentials reloaded")
}

func (g *Guard) setUsers(content []byte) error {
	u, err := g.parseUsers(content)
	if err != nil {
		return err
	}
	return g.change(func(s *state) error { s.users = u; return nil })
}
