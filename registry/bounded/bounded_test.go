package bounded_test

import (
	"testing"

	"trow/registry/bounded"
)

func TestTheLeastRecentlyUsedEntryIsRemoved(t *testing.T) {
	m := bounded.New[string](2, func(bool) bool { return false })
	m.Add("a", true)
	m.Add("b", true)
	m.Get("a")
	m.Add("c", true)
	for key, want := range map[string]bool{"a": true, "b": false, "c": true} {
		if _, ok := m.Get(key); ok != want {
			t.Errorf("%s: %t; want %t", key, ok, want)
		}
	}
}

func TestEntriesInUseStay(t *testing.T) {
	inUse := map[int]bool{0: true, 1: true, 2: true}
	m := bounded.New[int](2, func(v int) bool { return inUse[v] })
	for i := range 3 {
		m.Add(i, i)
	}
	if m.Len() != 3 {
		t.Errorf("%d entries; want 3, all of them in use", m.Len())
	}
	m.Add(3, 3) // goes at once: all others are in use
	if _, ok := m.Get(3); ok || m.Len() != 3 {
		t.Errorf("%d entries; want 3", m.Len())
	}
	inUse[0], inUse[2] = false, false
	m.Add(4, 4)
	if _, ok := m.Get(1); !ok || m.Len() != 2 {
		t.Errorf("%d entries; want 2, and the one in use among them", m.Len())
	}
	m.Add(4, 5)
	if v, _ := m.Get(4); v != 5 || m.Len() != 2 {
		t.Errorf("the value is %d, of %d entries; want 5 of 2", v, m.Len())
	}
}
