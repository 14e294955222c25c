package auth

import (
	"context"
	"crypto/ed25519"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/crypto/bcrypt"
)

func init() { ownCost = bcrypt.MinCost }

// Key returns the key that signs now.
func (g *Guard) Key() (id string, key ed25519.PrivateKey) { return g.KeyAt(time.Now()) }

// KeyAt returns the key that signs at that time.
func (g *Guard) KeyAt(now time.Time) (id string, key ed25519.PrivateKey) {
	k := g.current().keys.signer(now)
	return k.ID, k.private()
}

// Proof returns what a token that Key signs says about a user's password.
func (g *Guard) Proof(name string) []byte {
	s := g.current()
	u := s.users.list[name]
	return u.proof(s.keys.signer(time.Now()))
}

// RotateKeys does what Run does with the keys at that time.
func (g *Guard) RotateKeys(now time.Time) error { return g.rotateKeys(context.Background(), now) }

// Keys returns the number of keys.
func (g *Guard) Keys() int { return len(g.current().keys) }

// Sign makes a token with any claims and any method.
func Sign(t *testing.T, method jwt.SigningMethod, kid string, key any, claims map[string]any) string {
	t.Helper()
	token := jwt.NewWithClaims(method, jwt.MapClaims(claims))
	token.Header["kid"] = kid
	s, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// CountComparisons counts the work of bcrypt until the test ends. Its unit is a comparison of the lowest cost.
func CountComparisons(t *testing.T) (work func() int) {
	n, original := 0, compare
	compare = func(hash, password []byte) error {
		cost, err := bcrypt.Cost(hash)
		if err != nil {
			t.Errorf("%s is not a valid hash: %v", hash, err)
		}
		n += 1 << (cost - bcrypt.MinCost)
		return original(hash, password)
	}
	t.Cleanup(func() { compare = original })
	return func() int { done := n; n = 0; return done }
}

// SlowComparisons replaces bcrypt until the test ends, for tests with a fake clock.
func SlowComparisons(t *testing.T, f func(hash, password []byte) error) {
	original := compare
	compare = f
	t.Cleanup(func() { compare = original })
}

// Base returns the address in challenges.
func (g *Guard) Base(r *http.Request) (scheme, host string) { return g.base(r) }

// Scores returns how many scores the throttle remembers.
func (g *Guard) Scores() (pairs, addresses int) {
	g.throttle.mu.Lock()
	defer g.throttle.mu.Unlock()
	return g.throttle.pairs.Len(), g.throttle.addresses.Len()
}

// The bounds, for tests that reach them.
const (
	MaxScores        = maxScores
	MaxKnown         = maxKnown
	MaxToken         = maxToken
	MaxTokenRequests = maxTokenRequests
	MaxHeader        = maxHeader
	MaxRobots        = maxRobots
)

// CheckHash is checkHash.
var CheckHash = checkHash

// ReviewFailures returns how many tokens of the cluster from an address were not accepted.
func (g *Guard) ReviewFailures(addr netip.Addr) int {
	g.reviews.mu.Lock()
	defer g.reviews.mu.Unlock()
	return g.reviews.address(addr, time.Now()).failures
}

// Known returns how many verified credentials are remembered.
func (g *Guard) Known() (users, tokens int) {
	s := g.state.Load()
	return s.users.known.Len(), s.tokens.Len()
}

// Waiting is a request that waits for its turn.
type Waiting struct {
	Addr                string // its address; the first of an address says what is known of it:
	Failures            int
	AddrRight, OwnRight bool
	First, Turn         uint64
	Delayed             bool
}

// waiters returns the requests, as those that wait in this order.
func waiters(all []Waiting) (list []*waiter) {
	addresses := map[string]*score{}
	for _, one := range all {
		addr := addresses[one.Addr]
		if addr == nil {
			addr = &score{failures: one.Failures, right: one.AddrRight, first: one.First, turn: one.Turn}
			addresses[one.Addr] = addr
		}
		addr.waiting++
		list = append(list, &waiter{own: &score{right: one.OwnRight, waiting: 1}, addr: addr, ready: !one.Delayed,
			answer: make(chan lane, 1)})
	}
	return list
}

// Displaced returns which of the requests that wait loses its place to one that comes, the last of all; -1: none does.
func Displaced(all ...Waiting) int {
	list := waiters(all)
	last := len(list) - 1
	list[last].addr.waiting--
	t := turns{waiting: slices.Clone(list[:last])}
	if !t.displace(list[last]) {
		return -1
	}
	return slices.IndexFunc(list, func(w *waiter) bool {
		select {
		case <-w.answer: // it is closed
			return true
		default:
			return false
		}
	})
}

// Next returns which of the requests gets the next turn on the quick lane, and on the other one; -1: none does.
func Next(all ...Waiting) (onQuick, onRound int) {
	t := turns{waiting: waiters(all)}
	return slices.Index(t.waiting, t.pick(quick)), slices.Index(t.waiting, t.pick(round))
}

// WayIn is wayIn.
func (g *Guard) WayIn(repo string, a Action) string { return g.wayIn(repo, a) }

// Private is private.
func (g *Guard) Private(r *http.Request) bool { return g.private(r) }
