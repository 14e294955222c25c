package auth_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"
	authenticationv1 "k8s.io/api/authentication/v1"

	"trow/registry/auth"
)

// order replaces bcrypt by comparisons of one second, and records their passwords in the order in which they begin.
func order(t *testing.T) (begun func() []string) {
	var mu sync.Mutex
	var all []string
	auth.SlowComparisons(t, func(_, password []byte) error {
		mu.Lock()
		all = append(all, string(password))
		mu.Unlock()
		time.Sleep(time.Second)
		if string(password) == "alice's" {
			return nil
		}
		return bcrypt.ErrMismatchedHashAndPassword
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// guessers let that many addresses guess, each for itself, one guess after another, until the context is done.
func guessers(ctx context.Context, g *auth.Guard, wg *sync.WaitGroup, addresses int) {
	for i := range addresses {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				r := from(withLogin(fmt.Sprint("user", n), "guess"), fmt.Sprintf("10.1.%d.%d", i>>8, i&255))
				if _, err := g.Identify(r.WithContext(ctx)); errors.Is(err, auth.ErrBusy) {
					time.Sleep(time.Second)
				}
			}
		})
	}
}

// TestManyGuessingAddressesDelayNoHonestLogin: 250 of them made one wait for 6 seconds, because a round of all of them
// came first.
func TestManyGuessingAddressesDelayNoHonestLogin(t *testing.T) {
	for _, row := range []struct {
		name      string
		addresses int
		after     time.Duration
	}{{"first guesses", 250, time.Second / 2}, {"later guesses", 250, 3*time.Minute + time.Second/2},
		{"all places are taken", 600, time.Minute + time.Second/2}} {
		synctest.Test(t, func(t *testing.T) {
			begun := order(t)
			g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice")})
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			guessers(ctx, g, &wg, row.addresses)
			time.Sleep(row.after)
			before := len(begun())
			_, err := g.Identify(from(withLogin("alice", "alice's"), "10.0.0.1"))
			at := slices.Index(begun()[before:], "alice's")
			// One on each lane may begin meanwhile.
			if err != nil || at < 0 || at > 2 {
				t.Errorf("%s: %v, after %d guesses", row.name, err, at)
			}
			stop()
			wg.Wait()
		})
	}
}

// TestAFloodOfFirstGuessesDelaysNoHonestLogin: before each address had failed once, those that tried again at once were
// always the newest, and an honest login waited until the addresses had taken turns.
func TestAFloodOfFirstGuessesDelaysNoHonestLogin(t *testing.T) {
	for _, row := range []struct {
		name   string
		before bool // the honest address has logged in before
	}{{"a known address", true}, {"a new address", false}} {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			auth.SlowComparisons(t, func(_, password []byte) error {
				// Not all take the same time, so that the two lanes become free one after the other.
				time.Sleep(time.Second + time.Duration(calls.Add(1)%7)*100*time.Millisecond)
				if string(password) == "right" {
					return nil
				}
				return bcrypt.ErrMismatchedHashAndPassword
			})
			g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice", "bob", "carol")})
			login := func(user string) (time.Duration, error) {
				begin := time.Now()
				_, err := g.Identify(from(withLogin(user, "right"), "10.0.0.1"))
				return time.Since(begin), err
			}
			if row.before {
				_, _ = login("alice")
			}
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for i := range 560 { // 250 addresses over several connections each: more than may wait
				wg.Go(func() {
					for n := 0; ctx.Err() == nil; n++ {
						r := from(withLogin(fmt.Sprint("user", i+n), "guess"), fmt.Sprintf("10.1.0.%d", i%250))
						if _, err := g.Identify(r.WithContext(ctx)); errors.Is(err, auth.ErrBusy) {
							time.Sleep(100 * time.Millisecond)
						}
					}
				})
			}
			time.Sleep(5*time.Second + time.Second/2)
			for _, user := range []string{"bob", "carol"} { // none is verified already
				// One comparison is under way, and then comes its own.
				if took, err := login(user); err != nil || took > 4*time.Second {
					t.Errorf("%s: the login of %s took %v: %v", row.name, user, took, err)
				}
			}
			stop()
			wg.Wait()
		})
	}
}

// asking is a Kubernetes API that takes a tenth of a second for each token, and knows those of team-a's ci.
type asking struct {
	mu           sync.Mutex
	inside, most int
}

func (a *asking) count(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inside += n
	a.most = max(a.most, a.inside)
}

func (a *asking) Review(ctx context.Context, token string, enter turn) (
	user authenticationv1.UserInfo, ok bool, why string, err error) {
	done, err := enter(ctx)
	if err != nil {
		return user, false, "", err
	}
	a.count(1)
	time.Sleep(time.Second / 10)
	a.count(-1)
	claims, _ := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	ok = !strings.Contains(string(claims), "made up")
	done(ok, nil)
	return info(account("team-a", "ci")), ok, "made up", nil
}

// TestMadeUpTokensDelayNoFirstLogin: a good token that the Reviewer does not know yet waited with those of 250
// addresses that guess, and was refused when too many waited.
func TestMadeUpTokensDelayNoFirstLogin(t *testing.T) {
	for _, after := range []time.Duration{time.Second / 20, 3 * time.Second} { // first guesses, and later ones
		synctest.Test(t, func(t *testing.T) {
			a := &asking{}
			g := guard(t, auth.Options{Reviewer: a})
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for i := range 520 { // more than may wait
				wg.Go(func() {
					for n := 0; ctx.Err() == nil; n++ {
						token := clusterToken(fmt.Sprintf(`{"sub":"made up %d %d"}`, i, n))
						r := from(withLogin("x", token), fmt.Sprintf("10.1.0.%d", i%250))
						if _, err := g.Identify(r.WithContext(ctx)); errors.Is(err, auth.ErrBusy) {
							time.Sleep(100 * time.Millisecond)
						}
					}
				})
			}
			time.Sleep(after)
			for i := range 5 {
				begin := time.Now()
				_, err := g.Identify(from(withLogin("x", clusterToken(fmt.Sprintf(`{"sub":"ci %d"}`, i))), "10.0.0.1"))
				if took := time.Since(begin); err != nil || took > 3*time.Second/10 {
					t.Errorf("after %v: login %d took %v: %v", after, i, took, err)
				}
			}
			stop()
			wg.Wait()
			if a.most > 8 {
				t.Errorf("%d questions at once", a.most)
			}
		})
	}
}

// TestAnAddressWithFailuresMakesProgress while others that have not failed log in all the time.
func TestAnAddressWithFailuresMakesProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := order(t)
		g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice")})
		for range 3 {
			_, _ = g.Identify(from(withLogin("alice", "mistyped"), "10.0.0.1"))
		}
		var wg sync.WaitGroup
		for i := range 400 { // each address once, two a second more than there are turns
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Second / 4)
				_, _ = g.Identify(from(withLogin("x", "first"), fmt.Sprintf("10.1.%d.%d", i>>8, i&255)))
			})
		}
		time.Sleep(10 * time.Second)
		before := len(begun())
		if _, err := g.Identify(from(withLogin("alice", "alice's"), "10.0.0.1")); err != nil {
			t.Error(err)
		}
		// Those that waited already come first on the lane where the addresses take turns: it does not wait for all.
		if at := slices.Index(begun()[before:], "alice's"); at > 60 {
			t.Errorf("after %d others", at)
		}
		wg.Wait()
	})
}

// TestAClientThatGivesUpTakesNoTurn checks this for clients that wait for a turn and for clients that are delayed.
func TestAClientThatGivesUpTakesNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := order(t)
		g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice", "bob")})
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		guessers(ctx, g, &wg, 50)
		time.Sleep(time.Minute + time.Second/2)
		stop()
		wg.Wait()
		before := len(begun())
		for range 3 { // the lanes are free
			begin := time.Now()
			_, err := g.Identify(from(withLogin("bob", "x"), "10.0.0.1"))
			if !errors.Is(err, auth.ErrUnauthorized) || time.Since(begin) > 2*time.Second {
				t.Errorf("%v after %v", err, time.Since(begin))
			}
		}
		if n := len(begun()) - before; n != 3 {
			t.Errorf("%d comparisons", n)
		}
	})
}

// TestWhoLosesItsPlace when all places are taken: the newest of those with the most reason to wait, if one has more
// than the request that comes. Otherwise guesses would keep others out.
func TestWhoLosesItsPlace(t *testing.T) {
	type w = auth.Waiting
	guess := func(addr string, failures int) w { return w{Addr: addr, Failures: failures} }
	for _, row := range []struct {
		name string
		all  []w // the last one comes
		want int
	}{
		{"others of the same rank, one from each address", []w{guess("a", 0), guess("b", 0), guess("c", 0)}, -1},
		{"one of a higher rank", []w{guess("a", 0), guess("b", 1), guess("c", 0), guess("d", 0)}, 1},
		{"one of a higher rank comes", []w{guess("a", 3), guess("b", 5)}, -1},
		{"two of an address", []w{guess("a", 0), guess("b", 0), guess("b", 0), guess("c", 0)}, 2},
		{"two of an address, and then another", []w{guess("b", 0), guess("b", 0), guess("a", 0), guess("c", 0)}, 1},
		{"a third of that address comes", []w{guess("a", 0), guess("a", 0), guess("a", 0)}, -1},
		{"a second comes while another address has two",
			[]w{guess("a", 0), guess("a", 0), guess("b", 0), guess("b", 0)}, -1},
		{"a second comes while another address has three",
			[]w{guess("a", 0), guess("a", 0), guess("a", 0), guess("b", 0),
				guess("b", 0)}, 2},
		{"rank counts more than their number", []w{guess("a", 2), guess("b", 1), guess("b", 1), guess("c", 0)}, 0},
		{"rank counts more, in another order", []w{guess("b", 1), guess("b", 1), guess("a", 2), guess("c", 0)}, 2},
		{"the highest rank, of two alike in number", []w{guess("a", 2), guess("b", 1), guess("c", 0)}, 0},
		{"an address that was right last comes", []w{guess("a", 0), {Addr: "b", AddrRight: true, Failures: 9}}, 0},
		{"a user who was right last comes", []w{guess("a", 1), {Addr: "b", OwnRight: true, Failures: 9}}, 0},
		{"and finds only others without failures", []w{guess("a", 0), {Addr: "b", OwnRight: true, Failures: 9}}, -1},
	} {
		if got := auth.Displaced(row.all...); got != row.want {
			t.Errorf("%s: %d loses its place, want %d", row.name, got, row.want)
		}
	}
}

// TestWhoIsNext on each of the two lanes.
func TestWhoIsNext(t *testing.T) {
	type w = auth.Waiting
	for _, row := range []struct {
		name         string
		all          []w
		quick, round int
	}{
		{"nobody", nil, -1, -1},
		{"the lowest rank, and the turn that is the longest ago",
			[]w{{Addr: "a", Failures: 2, Turn: 1}, {Addr: "b", Failures: 1, Turn: 2}}, 1, 0},
		{"of one rank the address that came last",
			[]w{{Addr: "a", First: 2, Turn: 2}, {Addr: "b", First: 1, Turn: 1}}, 0, 1},
		{"of one address the last on the quick lane, and the first on the other", []w{{Addr: "a"}, {Addr: "a"}}, 1, 0},
		{"whoever is not delayed", []w{{Addr: "a", Delayed: true}, {Addr: "b", Failures: 9, Turn: 9}}, 1, 1},
		{"only delayed ones", []w{{Addr: "a", Delayed: true}}, -1, -1},
		{"19 failures", []w{{Addr: "a", Failures: 19}}, 0, 0},
		{"20 failures bar an address from the quick lane", []w{{Addr: "a", Failures: 20}}, -1, 0},
		{"a user who was right last is not barred", []w{{Addr: "a", Failures: 20, OwnRight: true}}, 0, 0},
		{"an address that was right last comes before new ones",
			[]w{{Addr: "a", Failures: 20, AddrRight: true, First: 1, Turn: 2}, {Addr: "b", First: 2, Turn: 1}}, 0, 1},
	} {
		if quick, round := auth.Next(row.all...); quick != row.quick || round != row.round {
			t.Errorf("%s: %d and %d, want %d and %d", row.name, quick, round, row.quick, row.round)
		}
	}
}
