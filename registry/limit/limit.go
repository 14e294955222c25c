// Package limit bounds how much one identity may take of the registry, and how much repositories may hold.
//
// # Words
//
//   - limit: says for some identities how many requests, bytes and uploads each of them may have. The first that names
//     an identity is its limit; an identity without one is not bounded.
//   - pass: what a request gets that may go on; it slows down the request's bytes, if they are bounded.
//   - quota: bounds the bytes that some repositories hold together. Package storage counts them.
//
// # Invariants
//
//  1. Each identity has its own account of a limit, whatever its connections are.
//  2. Those without a login have no account, unless a limit says by-address: then each address has one. Through trow
//     node, and behind a proxy, everybody has the same address.
//  3. The memory is bounded: who has made no request for the longest goes first.
//  4. Without limits there is no cost, and where no rate is set, a transfer is as it would be without.
//
// # What it does not do
//
// It does not decide who may do what, and it is no shield from a flood: a request is counted when it is known whose it is.
package limit

import (
	"container/list"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"trow/registry/auth"
)

// Rule is one limit, as the configuration file has it. What is 0 is not bounded.
type Rule struct {
	// Who it is about, as in an auth.Rule.
	Who []string `mapstructure:"who"`
	// ByAddress: it is about those without a login as well, each address by itself.
	ByAddress bool `mapstructure:"by-address"`
	// Requests is how many each may make in a second on average, and Burst how many at once; 0: twice as many.
	Requests int `mapstructure:"requests"`
	Burst    int `mapstructure:"burst"`
	// PullRate and PushRate are bytes per second, of all connections together.
	PullRate Size `mapstructure:"pull-rate"`
	PushRate Size `mapstructure:"push-rate"`
	// Uploads is how many requests that bring bytes of blobs each may have under way.
	Uploads int `mapstructure:"uploads"`
}

// limited is a Rule, read.
type limited struct {
	Rule
	who    auth.Who
	number int // from 1
}

const (
	// maxAccounts bounds the memory; an account takes about 500 bytes.
	maxAccounts = 8192
	// minRate bounds rates from below: with less a single piece would take longer than clients wait.
	minRate = 16 << 10
	// maxCount bounds counts from above: more is no limit.
	maxCount = 1_000_000
	// leastStep and mostStep bound what goes through at once: a quarter of a second's bytes, and so much that a file
	// still goes out by sendfile.
	leastStep, mostStep = 16 << 10, 1 << 20
)

func compile(rules []Rule) (all []limited, err error) {
	for i, r := range rules {
		l := limited{Rule: r, number: i + 1}
		if l.who, err = auth.ParseWho(r.Who); err == nil {
			err = l.check()
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

// check finds what cannot be meant.
func (l *limited) check() error {
	switch {
	case min(l.Requests, l.Burst, l.Uploads) < 0 || max(l.Requests, l.Burst, l.Uploads) > maxCount:
		return fmt.Errorf("requests, burst and uploads are numbers from 0 (no limit) to %d", maxCount)
	case l.Burst > 0 && l.Requests == 0:
		return fmt.Errorf("burst: it needs requests, the number of them per second")
	case l.PullRate < 0 || l.PushRate < 0 || l.PullRate > 0 && l.PullRate < minRate || l.PushRate > 0 && l.PushRate < minRate:
		return fmt.Errorf("pull-rate, push-rate: at least 16Ki bytes per second, or 0 for no limit")
	case l.Requests == 0 && l.PullRate == 0 && l.PushRate == 0 && l.Uploads == 0:
		return nil // whoever is named here, and not further down, is not bounded
	case l.who.Means(&auth.Identity{}) && !l.who.Everybody() && !l.ByAddress:
		return fmt.Errorf("who: those without a login can only be told apart by their address, and all of a node have one; say by-address: true if that is meant")
	}
	return nil
}

// Check finds mistakes in limits. Errors name the limit.
func Check(rules []Rule) error {
	_, err := compile(rules)
	return err
}

// Limits are those of a server. The zero value and nil have none. Safe for concurrent use.
type Limits struct {
	now atomic.Pointer[accounts]
}

// Set puts limits in the place of those before; accounts begin anew. Errors: as Check's; then those before stay.
func (l *Limits) Set(rules []Rule) error {
	all, err := compile(rules)
	if err != nil {
		return err
	}
	var a *accounts
	if len(all) > 0 {
		a = &accounts{limits: all, all: map[holder]*list.Element{}}
	}
	l.now.Store(a)
	return nil
}

// accounts are what identities have taken.
type accounts struct {
	limits []limited

	mu    sync.Mutex // guards what follows, and the counts of uploads
	all   map[holder]*list.Element
	order list.List // of *account, the one that was used last in front
}

// holder is whose an account is.
type holder struct {
	kind, name string
	addr       netip.Addr // of those without a login
}

// account is what one of them has taken.
type account struct {
	holder
	limit      *limited
	requests   *rate.Limiter // nil: not bounded, as the next two
	pull, push *rate.Limiter
	uploads    int // under way
}

// Exceeded says which limit a request has come to.
type Exceeded struct {
	text string
	// RetryAfter is after how many seconds it is worth trying again.
	RetryAfter int
}

func (e *Exceeded) Error() string { return e.text }

// Pass is what a request has that may go on. A nil Pass bounds nothing.
type Pass struct {
	accounts *accounts
	account  *account
	upload   bool
}

// Enter counts a request of who from addr; upload says whether it brings bytes of a blob. The caller calls Leave when the
// request ends. Errors: *Exceeded.
func (l *Limits) Enter(who *auth.Identity, addr netip.Addr, upload bool) (*Pass, error) {
	if l == nil || who.Unlimited() {
		return nil, nil
	}
	a := l.now.Load()
	if a == nil {
		return nil, nil
	}
	limit := a.limitOf(who)
	if limit == nil {
		return nil, nil
	}
	h := holder{kind: who.Kind(), name: who.Name}
	if who.Anonymous() {
		h.addr = addr
	}
	return a.enter(limit, h, upload, time.Now())
}

// limitOf finds whose first limit it is. nil: there is none.
func (a *accounts) limitOf(who *auth.Identity) *limited {
	for i := range a.limits {
		if l := &a.limits[i]; l.who.Means(who) && (l.ByAddress || !who.Anonymous()) {
			return l
		}
	}
	return nil
}

func (a *accounts) enter(l *limited, h holder, upload bool, now time.Time) (*Pass, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	this := a.account(l, h)
	if upload = upload && l.Uploads > 0; upload && this.uploads >= l.Uploads {
		return nil, this.exceeded("%d uploads under way at once", l.Uploads, "uploads", 1)
	}
	if this.requests != nil {
		turn := this.requests.ReserveN(now, 1)
		if wait := turn.DelayFrom(now); wait > 0 {
			turn.CancelAt(now)
			return nil, this.exceeded("%d requests per second", l.Requests, "requests", int(math.Ceil(wait.Seconds())))
		}
	}
	if upload {
		this.uploads++
	}
	return &Pass{a, this, upload}, nil
}

// exceeded names the limit and the setting.
func (a *account) exceeded(format string, n int, key string, seconds int) error {
	name := a.name
	if name == "" {
		name = a.addr.String()
	}
	return &Exceeded{fmt.Sprintf("%s may have "+format+", and not more (setting limits, limit %d: %s); nothing was lost, try again in a moment",
		name, n, a.limit.number, key), max(seconds, 1)}
}

// account finds or opens an account. The caller has mu.
func (a *accounts) account(l *limited, h holder) *account {
	if e := a.all[h]; e != nil && e.Value.(*account).limit == l {
		a.order.MoveToFront(e)
		return e.Value.(*account)
	}
	this := &account{holder: h, limit: l, pull: limiter(l.PullRate), push: limiter(l.PushRate)}
	if l.Requests > 0 {
		this.requests = rate.NewLimiter(rate.Limit(l.Requests), l.Burst)
	}
	if e := a.all[h]; e != nil { // whose groups have changed
		a.order.Remove(e)
	}
	a.all[h] = a.order.PushFront(this)
	for e := a.order.Back(); len(a.all) > maxAccounts && e != nil; {
		last := e
		e = e.Prev()
		if one := last.Value.(*account); one.uploads == 0 && one != this { // the others are as many as there may be requests
			a.order.Remove(last)
			delete(a.all, one.holder)
		}
	}
	return this
}

// limiter lets a quarter of a second's bytes through at once. nil: there is no limit.
func limiter(bytes Size) *rate.Limiter {
	if bytes == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytes), int(min(max(bytes/4, leastStep), mostStep)))
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

// Shape slows down what the request brings and what it is answered, if that is bounded.
func (p *Pass) Shape(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request) {
	if p == nil {
		return w, r
	}
	if l := p.account.push; l != nil && r.Body != nil && r.Body != http.NoBody {
		slow := *r
		slow.Body = &body{r.Body, r.Context(), l}
		r = &slow
	}
	if l := p.account.pull; l != nil {
		w = &writer{w, r.Context(), l}
	}
	return w, r
}
