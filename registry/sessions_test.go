package registry

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry/auth"
	"trow/registry/limit"
)

func (s *sessions) parsed(t *testing.T, text string) sessionID {
	t.Helper()
	id, ok := s.parse("a", text)
	if !ok {
		t.Fatalf("%s is not valid", text)
	}
	return id
}

func TestAnIDOfAnUploadCarriesTheAlgorithm(t *testing.T) {
	s := newSessions(nil, 0, 0)
	for _, alg := range algorithms {
		text := s.begin("a", alg)
		if id := s.parsed(t, text); id.alg != alg || len(text) > maxUploadID || !s.open(id) {
			t.Errorf("%s: %+v", text, id)
		}
		for name, other := range map[string]*sessions{"another key": newSessions(nil, 0, 0),
			"the same key": newSessions(s.key, 0, 0)} {
			if _, ok := other.parse("a", text); ok != (name == "the same key") {
				t.Errorf("%s: valid: %v", name, ok)
			}
		}
	}
}

// TestAnUploadHasOneID: another text for the same UUID was an upload of its own without bytes, which could be
// cancelled.
func TestAnUploadHasOneID(t *testing.T) {
	s := newSessions(nil, 0, 0)
	text := s.begin("a", digest.SHA256)
	s.parsed(t, text)
	name, rest, _ := strings.Cut(text, ".")
	for _, other := range []string{
		"F" + strings.Repeat("0", 7) + "-0000-4000-8000-000000000000", // of an earlier version
		strings.ToUpper(name[:8]) + name[8:] + "." + rest,
		"-" + strings.Replace(name, "-", "", 1) + "." + rest,
		strings.ReplaceAll(name, "-", "") + "----." + rest,
		text + "=", text + ".", "." + text,
	} {
		if _, ok := s.parse("a", other); ok && other != text {
			t.Errorf("%s is valid, as is %s", other, text)
		}
	}
}

// TestAForgottenUploadDoesNotStartAgain: only a bounded number of ended IDs is remembered.
func TestAForgottenUploadDoesNotStartAgain(t *testing.T) {
	s := newSessions(nil, 0, 0)
	first := s.parsed(t, s.begin("a", digest.SHA256))
	first.made -= 5 // ms
	s.floor -= 10
	s.end(first)
	s.end(first) // counts once
	for range maxEnded {
		id := s.parsed(t, s.begin("a", digest.SHA256))
		s.end(id)
		if s.open(id) {
			t.Fatal("an ID that has just ended is open")
		}
	}
	if len(s.ended) != maxEnded || len(s.ring) != maxEnded || s.ended[first.id] {
		t.Errorf("%d and %d IDs are remembered, want %d without the first", len(s.ended), len(s.ring), maxEnded)
	}
	if s.open(first) {
		t.Error("an ID that was forgotten is open")
	}
	fresh := s.parsed(t, s.begin("a", digest.SHA256))
	if fresh.made = first.made + 1; !s.open(fresh) {
		t.Error("an ID that was made later is not open")
	}
}

// TestTheListsOfUploadsAreBounded: uploads that end leave no entry, and neither do those that storage drops because
// they are idle.
func TestTheListsOfUploadsAreBounded(t *testing.T) {
	s := newSessions(nil, 1, 2) // a timeout of 1 ns
	for i := range 100 {
		owner := limit.ClientOf(auth.Named(fmt.Sprint(i), nil), netip.Addr{})
		u, victim, err := s.admit("a", s.parsed(t, s.begin("a", digest.SHA256)), owner)
		if err != nil || victim != nil {
			t.Fatal(victim, err)
		}
		s.leave(u, i%2 == 0)
	}
	if len(s.stored) > 1 || len(s.owners) > 1 || s.used.Len() > 1 {
		t.Errorf("%d, %d, %d uploads are listed", len(s.stored), len(s.owners), s.used.Len())
	}
}
