package limit_test

import (
	"fmt"
	"sync"
	"testing"

	"trow/registry/auth"
	"trow/registry/limit"
)

// hold takes places for a client until one is refused, and returns how many it holds.
func hold(p *limit.Places, c limit.Client) (n int) {
	for {
		taken := p.Take()
		held, ok := p.Hold(c)
		if !taken || !ok {
			held.Release()
			p.Leave()
			return n
		}
		n++
	}
}

// TestNoClientTakesAllPlaces: each client takes what it can get, one after the other; the next one always finds a
// place.
func TestNoClientTakesAllPlaces(t *testing.T) {
	p := limit.NewPlaces(1000)
	for i, want := range []int{500, 250, 125, 63, 31, 16, 8, 4} {
		c := limit.ClientOf(anonymous, from(fmt.Sprintf("10.0.0.%d:1", i)))
		if n := hold(p, c); n != want {
			t.Errorf("client %d holds %d places, want %d", i, n, want)
		}
	}
}

func TestWhoIsOneClient(t *testing.T) {
	a, b := from("10.0.0.1:1"), from("10.0.0.2:1")
	for _, row := range []struct {
		name      string
		one, two  limit.Client
		different bool
	}{
		{"a login from two addresses", limit.ClientOf(alice, a), limit.ClientOf(alice, b), false},
		{"two logins from one address", limit.ClientOf(alice, a), limit.ClientOf(bob, a), true},
		{"a login and no login", limit.ClientOf(alice, a), limit.ClientOf(anonymous, a), true},
		{"no login from two addresses", limit.ClientOf(anonymous, a), limit.ClientOf(anonymous, b), true},
		{"no login from one address", limit.ClientOf(anonymous, a),
			limit.ClientOf(anonymous, from("10.0.0.1:9")), false},
		{"the same name of another kind", limit.ClientOf(alice, a),
			limit.ClientOf(auth.Named("cert:alice", nil), a), true},
		{"credentials that are not verified yet", limit.Unverified(a), limit.ClientOf(anonymous, a), true},
	} {
		if (row.one != row.two) != row.different {
			t.Errorf("%s: different clients: %v", row.name, row.one != row.two)
		}
	}
}

// TestPlacesAreGivenBack has many clients take and leave places; afterwards all are free.
func TestPlacesAreGivenBack(t *testing.T) {
	p := limit.NewPlaces(50)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			c := limit.ClientOf(auth.Named(fmt.Sprint("user", i), nil), home)
			for range 500 {
				p.Take()
				held, _ := p.Hold(c)
				held.Release()
				p.Leave()
			}
		})
	}
	wg.Wait()
	// Each row by itself: the lower of a client's two counters counts, so that a row which only grows would hide.
	if sums := p.Counts(); sums != [2]int64{} {
		t.Errorf("counters of places that were given back: %d", sums)
	}
	if n := hold(p, limit.ClientOf(alice, home)); n != 25 {
		t.Errorf("a client holds %d of 50 places afterwards, want 25", n)
	}
}

func TestASinglePlaceCanBeTaken(t *testing.T) {
	if n := hold(limit.NewPlaces(1), limit.ClientOf(alice, home)); n != 1 {
		t.Errorf("%d of one place could be taken", n)
	}
	p := limit.NewPlaces(0)
	for range 5000 {
		held, ok := p.Hold(limit.ClientOf(alice, home))
		if !p.Take() || !ok {
			t.Fatal("a bound without a bound")
		}
		held.Release()
		p.Leave()
	}
}

func BenchmarkPlaces(b *testing.B) {
	p := limit.NewPlaces(1000)
	b.ReportAllocs()
	for b.Loop() {
		p.Take()
		held, _ := p.Hold(limit.ClientOf(alice, home))
		held.Release()
		p.Leave()
	}
}
