package upstream

import "testing"

// TestAnUpstreamLeavesPlacesToOthers, and gives back what it has taken.
func TestAnUpstreamLeavesPlacesToOthers(t *testing.T) {
	p := newPlaces(8)
	fill := func(from string) (n int) {
		for p.take(from, 1) {
			n++
		}
		return n
	}
	if a, b, c := fill("a"), fill("b"), fill("c"); a != 4 || b != 2 || c != 1 {
		t.Errorf("they got %d, %d and %d of 8", a, b, c)
	}
	for range 4 {
		p.leave("a", 1)
	}
	if n := fill("b"); n != 2 || len(p.by) != 2 {
		t.Errorf("then %d more of 5 that are free; %v", n, p.by)
	}
	if p = newPlaces(1); fill("a") != 1 {
		t.Error("the only place is taken by nobody")
	}
}
