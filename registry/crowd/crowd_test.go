package crowd_test

import (
	"testing"

	"trow/registry/crowd"
)

func TestTheOldestOfWhoeverHoldsMostIsFirst(t *testing.T) {
	var c crowd.Crowd[string, int]
	if c.First() != nil || c.FirstOf("a") != nil || c.Of("a") != 0 {
		t.Error("an empty crowd has a member")
	}
	c.Add("b", 1, 1)
	a := c.Add("a", 1, 2)
	if first := c.First(); first.Value != 1 {
		t.Errorf("of equals %d, want the oldest", first.Value)
	}
	c.Add("a", 1, 3)
	if first := c.First(); first != a || c.Of("a") != 2 || c.Len() != 3 {
		t.Errorf("first %v, a holds %d, %d members", first, c.Of("a"), c.Len())
	}
	c.Add("c", 5, 4) // one that holds more than the three others
	if first := c.First(); first.Value != 4 || first.Group().Key != "c" || first.Group().Weight() != 5 {
		t.Errorf("first %v", first)
	}
	c.Remove(c.First())
	c.Remove(a)
	if first := c.First(); first.Value != 1 || c.FirstOf("a").Value != 3 || c.FirstOf("c") != nil || c.Len() != 2 {
		t.Errorf("first %v of %d", first, c.Len())
	}
	n := 0
	for g := range c.Groups() {
		for m := range g.Members() {
			n += m.Value
		}
	}
	if n != 4 {
		t.Errorf("members %d, want 1 and 3", n)
	}
}
