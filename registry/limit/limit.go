// Package limit bounds how much one identity may use the registry, and how much repositories may hold.
//
// # Words
//
//   - limit: states how many requests, bytes and uploads each of some identities may have. The first limit that names
//     an identity is the identity's limit; an identity that none names is not bounded.
//   - account: what one identity has used of its limit.
//   - pass: what an admitted request gets; it slows down the request's bytes, if their rate is bounded.
//   - quota: bounds the bytes that some repositories hold together. Package storage counts them.
//
// # Invariants
//
//  1. Each identity has one account, whatever its connections are.
//  2. Clients without a login have no account, unless their limit has by-address: then each address has one. Behind
//     trow node, and behind a proxy, all clients have the same address.
//  3. The memory is bounded: the account that was used least recently is removed first.
//  4. Without limits there is no cost, and without a rate a transfer is as fast as without limits.
//  5. Clients of the administration socket are not bounded.
//
// # What it does not do
//
// It does not decide who may do what. It does not protect against floods: a request is counted after its identity is
// known.
package limit

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"trow/registry/auth"
	"trow/registry/bounded"
)

const (
	// maxAccounts bounds the memory; an account takes about 500 bytes.
	maxAccounts = 8192
	// minRate is the lowest rate: below it, a single step would take longer than clients wait.
	minRate = 16 << 10
	// maxCount is the highest count.
	maxCount = 1_000_000
	// minStep and maxStep bound how many bytes pass at once: usually those of a quarter of a second, and at most as
	// many as leave memory small; with less than minStep a file would not go out by sendfile.
	minStep, maxStep = 16 << 10, 1 << 20
)

// limited is a Rule that was read.
type limited struct {
	Rule
	who        auth.Who
	number     int   // from 1
	pull, push int64 // bytes per second; 0: not bounded
}

func compile(rules []Rule) (all []limited, err error) {
	for i, r := range rules {
		l := limited{Rule: r, number: i + 1, pull: r.PullRate.Value(), push: r.PushRate.Value()}
		if l.who, err = auth.ParseWho(r.Who); err == nil {
			err = l.validate()
		}
		if err != nil {
			return nil, fmt.Errorf("limits: limit %d: %w", i+1, err)
		}
		if l.Burst == 0 {
			l.Burst = 2 * l.Requests
		}
		all = append(all, l)
	}
	return all, nil
}

// validate reports the first invalid key.
func (l *limited) validate() error {
	badRate := func(n int64) bool { return n < 0 || n > 0 && n < minRate }
	switch {
	case min(l.Requests, l.Burst, l.Uploads) < 0 || max(l.Requests, l.Burst, l.Uploads) > maxCount:
		return fmt.Errorf("requests, burst, uploads: want numbers from 0 (no limit) to %d", maxCount)
	case l.Burst > 0 && l.Requests == 0:
		return fmt.Errorf("burst: needs requests as well, the number of requests per second")
	case badRate(l.pull) || badRate(l.push):
		return fmt.Errorf("pull-rate, push-rate: want at least 16Ki bytes per second, or 0 for no limit")
	case l.Requests == 0 && l.pull == 0 && l.push == 0 && l.Uploads == 0:
		return nil // it exempts the identities that it names from the limits after it
	case l.who.Match(&auth.Identity{}) && !l.who.All() && !l.ByAddress:
		return fmt.Errorf("who: clients without a login are only distinguished by their address, " +
			"which all pods of a node share; set by-address: true if that is intended")
	}
	return nil
}

// Limits are the limits of a server. The zero value and nil have none. Safe for concurrent use.
type Limits struct {
	current atomic.Pointer[accounts]
}

// Set replaces the limits; all accounts start anew, and without rules there are none. Errors: as those of
// Options.Validate; then nothing changes.
func (l *Limits) Set(rules []Rule) error {
	limits, err := compile(rules)
	if err != nil {
		return err
	}
	if len(limits) == 0 { // no list to search and no lock to take for a request (invariant 4)
		l.current.Store(nil)
		return nil
	}
	// Accounts with uploads under way are in use, and stay: they are no more than there are requests.
	a := &accounts{limits: limits, all: bounded.New[Client](maxAccounts, func(a *account) bool {
		return a.uploads > 0
	})}
	l.current.Store(a)
	return nil
}

// accounts are the accounts of all identities.
type accounts struct {
	limits []limited

	mu  sync.Mutex // guards what follows, and account.uploads
	all *bounded.Map[Client, *account]
}

// Client is what bounds count as one client: an identity, whatever its connections are, or without a login an address.
// It can be compared.
type Client struct {
	kind, name string
	addr       netip.Addr // of clients without a login
}

// ClientOf returns the client with an identity; addr is its address (auth.Address).
func ClientOf(who *auth.Identity, addr netip.Addr) Client {
	c := Client{kind: who.Kind(), name: who.Name}
	if who.Anonymous() {
		c.addr = addr
	}
	return c
}

// Unverified returns the client that has sent credentials from an address, until they are verified: its requests count
// neither for the identity that it claims, nor for the clients without a login at that address.
func Unverified(addr netip.Addr) Client { return Client{kind: "unverified", addr: addr} }

// String names the client, for messages.
func (c Client) String() string {
	if c.name == "" {
		return c.addr.String()
	}
	return c.name
}

// account is what one identity has used of its limit.
type account struct {
	Client
	limit      *limited
	requests   *rate.Limiter // nil: not bounded, like the next two
	pull, push *rate.Limiter
	uploads    int // under way
}

// Exceeded is the error of a request that exceeds a limit. It names the limit.
type Exceeded struct {
	text string
	// RetryAfter is after how many seconds the client should retry.
	RetryAfter int
}

func (e *Exceeded) Error() string { return e.text }

// Pass is what an admitted request gets. A nil Pass bounds nothing.
type Pass struct {
	accounts *accounts
	account  *account
	upload   bool
}

// Enter counts a request. addr is the client's address (auth.Address); it matters only without a login. upload reports
// whether the request brings bytes of a blob. The caller calls Leave when the request has ended. Errors: *Exceeded.
func (l *Limits) Enter(who *auth.Identity, addr netip.Addr, upload bool) (*Pass, error) {
	if l == nil || who.Unlimited() {
		return nil, nil
	}
	a := l.current.Load()
	if a == nil {
		return nil, nil
	}
	limit := a.limitOf(who)
	if limit == nil {
		return nil, nil
	}
	return a.enter(limit, ClientOf(who, addr), upload, time.Now())
}

// limitOf returns the first limit that names who, or nil.
func (a *accounts) limitOf(who *auth.Identity) *limited {
	for i := range a.limits {
		if l := &a.limits[i]; l.who.Match(who) && (l.ByAddress || !who.Anonymous()) {
			return l
		}
	}
	return nil
}

func (a *accounts) enter(l *limited, h Client, upload bool, now time.Time) (*Pass, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	this := a.account(l, h)
	if upload = upload && l.Uploads > 0; upload && this.uploads >= l.Uploads {
		return nil, this.exceeded("%d uploads at once", l.Uploads, "uploads", 1)
	}
	if this.requests != nil {
		r := this.requests.ReserveN(now, 1)
		if wait := r.DelayFrom(now); wait > 0 {
			r.CancelAt(now) // a refused request does not count
			return nil, this.exceeded("%d requests per second", l.Requests, "requests", int(math.Ceil(wait.Seconds())))
		}
	}
	if upload {
		this.uploads++
	}
	return &Pass{a, this, upload}, nil
}

// exceeded returns the error that names the limit and the setting.
func (a *account) exceeded(format string, n int, key string, seconds int) error {
	text := fmt.Sprintf("%s may have "+format+" (setting limits, limit %d: %s); retry", a.Client, n,
		a.limit.number, key)
	return &Exceeded{text, max(seconds, 1)}
}

// account finds or makes an account. The caller holds mu.
func (a *accounts) account(l *limited, h Client) *account {
	// An account of another limit is replaced: the identity's groups have changed.
	if this, ok := a.all.Get(h); ok && this.limit == l {
		return this
	}
	this := &account{Client: h, limit: l, pull: limiter(l.pull), push: limiter(l.push)}
	if l.Requests > 0 {
		this.requests = rate.NewLimiter(rate.Limit(l.Requests), l.Burst)
	}
	a.all.Add(h, this)
	return this
}

// limiter passes at once the bytes of a quarter of a second. nil: the rate is not bounded.
func limiter(bytes int64) *rate.Limiter {
	if bytes == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytes), int(min(max(bytes/4, minStep), maxStep)))
}

// Leave ends the request.
func (p *Pass) Leave() {
	if p == nil || !p.upload {
		return
	}
	p.accounts.mu.Lock()
	defer p.accounts.mu.Unlock()
	p.account.uploads--
}

// Shape returns the writer of the response and the body of the request, slowed down if their rate is bounded. ctx ends
// waiting.
func (p *Pass) Shape(ctx context.Context, w http.ResponseWriter, in io.ReadCloser) (
	http.ResponseWriter, io.ReadCloser) {
	if p == nil {
		return w, in
	}
	if l := p.account.push; l != nil && in != nil && in != http.NoBody {
		in = &body{in, ctx, l}
	}
	if l := p.account.pull; l != nil {
		w = &writer{w, ctx, l}
	}
	return w, in
}
