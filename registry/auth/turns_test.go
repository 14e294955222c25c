package auth_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

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
