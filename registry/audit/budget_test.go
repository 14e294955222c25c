package audit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"trow/registry/audit"
)

// recorded returns how many events of a name the log has, and how many are reported as left out.
func recorded(t *testing.T, text, name string) (n, leftOut int) {
	t.Helper()
	for one := range strings.Lines(text) {
		var l struct {
			Name, User string
			LeftOut    int
		}
		if err := json.Unmarshal([]byte(one), &l); err != nil {
			t.Fatalf("%q: %v", one, err)
		}
		if leftOut += l.LeftOut; l.Name == name || l.User == name {
			n++
		}
	}
	return n, leftOut
}

func denied(from string, authenticated bool, user, namespace, name string) audit.Event {
	return audit.Event{What: audit.Verdict, Outcome: audit.Denied, User: user, Kind: "cluster", From: from,
		Authenticated: authenticated, Object: audit.Object{Kind: "Pod", Namespace: namespace, Name: name}}
}

// TestOneClientDoesNotKeepOutTheLinesOfAnother: a flood of forged verdicts, logins and refusals, and what an honest
// client does during it.
func TestOneClientDoesNotKeepOutTheLinesOfAnother(t *testing.T) {
	request := func(kind, user, from string) audit.Event {
		return audit.Event{What: audit.Request, Outcome: audit.Denied, Kind: kind, User: user, From: from}
	}
	for what, c := range map[string]struct{ flood, honest func(i int) audit.Event }{
		"a forger of verdicts": {
			func(i int) audit.Event { return denied("10.0.0.6", false, fmt.Sprint("u", i), fmt.Sprint(i), "forged") },
			func(int) audit.Event { return denied("10.0.0.1", false, "alice", "a", "honest") }},
		"forgers with many addresses, and the API server": {
			func(i int) audit.Event {
				return denied(fmt.Sprint("10.0.", i/250, ".", i%250), false, "x", "a", "forged")
			},
			func(int) audit.Event { return denied("10.0.0.1", true, "alice", "a", "honest") }},
		"twenty forgers": {
			func(i int) audit.Event { return denied(fmt.Sprint("10.0.0.", i%20), false, "x", "a", "forged") },
			func(i int) audit.Event { return denied(fmt.Sprint("10.0.1.", i), false, "alice", "a", "honest") }},
		"four users": {
			func(i int) audit.Event { return request("user", fmt.Sprint("mallory", i%4), "10.0.0.1") },
			func(int) audit.Event { return request("user", "honest", "10.0.0.1") }},
		"an IPv6 host with many addresses": {
			func(i int) audit.Event { return denied(fmt.Sprintf("fd00::%x", i+1), false, "x", "a", "forged") },
			func(int) audit.Event { return denied("fd00:0:0:1::1", false, "x", "a", "honest") }},
		"another tenant of the same controller": {
			func(i int) audit.Event { return denied("10.0.0.1", true, "replicaset-controller", "noisy", "pod") },
			func(int) audit.Event { return denied("10.0.0.1", true, "replicaset-controller", "quiet", "honest") }},
		"another user from the same address": {
			func(int) audit.Event { return request("user", "mallory", "10.0.0.1") },
			func(int) audit.Event { return request("user", "honest", "10.0.0.1") }},
		"an anonymous client": {
			func(int) audit.Event { return request("unknown", "", "10.0.0.6") },
			func(int) audit.Event { return request("unknown", "honest", "10.0.0.1") }},
		"a failed login does not prove its name": {
			func(i int) audit.Event {
				return audit.Event{What: audit.Login, Outcome: audit.Failed, Kind: "user", User: fmt.Sprint(i),
					From: "10.0.0.6"}
			},
			func(i int) audit.Event {
				return audit.Event{What: audit.Login, Outcome: audit.Failed, Kind: "user", User: "honest",
					From: "10.0.0.1"}
			}},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var program bytes.Buffer
				l, err := audit.Open(audit.Options{}, zerolog.New(&program))
				if err != nil {
					t.Fatal(err)
				}
				for second := range 8 {
					for i := range 1000 {
						l.Record(t.Context(), c.flood(1000*second+i))
					}
					l.Record(t.Context(), c.honest(second))
					time.Sleep(time.Second)
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				n, leftOut := recorded(t, program.String(), "honest")
				if n != 8 || int64(leftOut) != l.LeftOut() || leftOut < 7000 {
					t.Errorf("%d of 8 lines of the honest client; %d left out, %d reported", n, l.LeftOut(), leftOut)
				}
			})
		})
	}
}

// TestManyPeersStayWithinTheKind: peers that are forgotten do not get more than the kind has.
func TestManyPeersStayWithinTheKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var program bytes.Buffer
		l := openLog(t, "", &program)
		for i := range 20_000 {
			l.Record(t.Context(), denied(fmt.Sprint("10.1.", i/250, ".", i%250), false, "x", "a", "p"))
		}
		if n, _ := recorded(t, program.String(), "p"); n != 100 {
			t.Errorf("%d lines, want 100", n)
		}
	})
}

// TestAPeerAloneHasHalfOfItsKind: at once, and for long.
func TestAPeerAloneHasHalfOfItsKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var program bytes.Buffer
		l := openLog(t, "", &program)
		flood := func() {
			for range 1000 {
				l.Record(t.Context(), denied("10.0.0.6", false, "x", "a", "p"))
			}
		}
		flood()
		begin, _ := recorded(t, program.String(), "p")
		for range 600 {
			time.Sleep(time.Second)
			flood()
		}
		all, _ := recorded(t, program.String(), "p")
		if n := all - begin; begin != 50 || n < 2500 || n > 3050 {
			t.Errorf("%d lines at once, and %d in ten minutes; want 50, and at most 5 a second", begin, n)
		}
	})
}

// TestALineIsBounded, whatever a client sends; the entries left out are counted.
func TestALineIsBounded(t *testing.T) {
	var program bytes.Buffer
	l := openLog(t, "", &program)
	long := strings.Repeat("x", 10_000)
	var many, much []string
	for i := range 100 {
		many, much = append(many, fmt.Sprint("v", i)), append(much, long)
	}
	e := pushed
	e.Tags, e.User, e.Repo, e.Kind, e.Action, e.Request = many, long, long, long, long, long
	l.Record(t.Context(), e)
	l.Record(t.Context(), audit.Event{What: audit.Verdict, Outcome: audit.Denied, User: long, Reason: long,
		Object: audit.Object{Kind: long, Namespace: long, Name: long, Operation: long, UID: long,
			Images: much, Denied: many}})
	for one := range strings.Lines(program.String()) {
		if len(one) > 8<<10 {
			t.Errorf("a line of %d bytes", len(one))
		}
		var got struct {
			Tags, Images, Denied                      []string
			TagsLeftOut, ImagesLeftOut, DeniedLeftOut int
		}
		if err := json.Unmarshal([]byte(one), &got); err != nil {
			t.Fatal(err)
		}
		if n := len(got.Tags) + len(got.Denied); n != 20 || got.TagsLeftOut+got.DeniedLeftOut != 80 {
			t.Errorf("%d listed, %d and %d left out", n, got.TagsLeftOut, got.DeniedLeftOut)
		}
		if n := len(got.Images); n+got.ImagesLeftOut != 100 && n > 0 {
			t.Errorf("%d images listed, %d left out", n, got.ImagesLeftOut)
		}
	}
}

// TestAVerdictSaysWhetherItsCallerWasAuthenticated, and no other line does.
func TestAVerdictSaysWhetherItsCallerWasAuthenticated(t *testing.T) {
	for want, e := range map[string]audit.Event{
		`"authenticated":true`:  denied("10.0.0.1", true, "u", "a", "p"),
		`"authenticated":false`: denied("10.0.0.1", false, "u", "a", "p"),
		`"message":"audit"`:     {What: audit.Push, Outcome: audit.OK, Authenticated: true},
	} {
		var program bytes.Buffer
		openLog(t, "", &program).Record(t.Context(), e)
		if text := program.String(); !strings.Contains(text, want) ||
			strings.Contains(text, "authenticated") != strings.Contains(want, "authenticated") {
			t.Errorf("%s: %s", want, text)
		}
	}
}
