package retention_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/retention"
	"trow/registry/settings"
	"trow/storage"
)

var now = time.Unix(2_000_000_000, 0)

const day = settings.Duration(24 * time.Hour)

func d(name string) digest.Digest { return digest.FromString(name) }

// held is a manifest that was pushed some days ago; tags are name=days.
func held(name string, days int, refs string, tags ...string) storage.HeldManifest {
	ago := func(days int) int64 { return now.Add(-time.Duration(days)*24*time.Hour - time.Minute).Unix() }
	m := storage.HeldManifest{Digest: d(name), MediaType: "application/a", Time: ago(days)}
	for ref := range strings.FieldsSeq(refs) {
		if subject, ok := strings.CutPrefix(ref, "subject:"); ok {
			m.Subject = d(subject)
		} else {
			m.Refs = append(m.Refs, d(ref))
		}
	}
	for _, t := range tags {
		var n int
		tag, since, _ := strings.Cut(t, "=")
		if _, err := fmt.Sscan(since, &n); err != nil {
			n = days
		}
		m.Tags = append(m.Tags, storage.HeldTag{Name: tag, Time: ago(n)})
	}
	return m
}

func policy(t *testing.T, rules []retention.Rule, immutable ...string) *retention.Policy {
	t.Helper()
	p, err := retention.Compile(rules, immutable)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func companion(name string) string { return "sha256-" + d(name).Encoded() }

// TestFirstTheSubject, however many manifests have one; but a chain of subjects, which a client can make as long as it
// likes, is followed for 1000 of them, so that nested calls do not take the memory.
func TestFirstTheSubject(t *testing.T) {
	plan := func(manifests ...storage.HeldManifest) map[digest.Digest]int {
		t.Helper()
		rule := retention.Rule{Repositories: []string{"**"}, DeleteUntagged: day}
		at := map[digest.Digest]int{}
		p := policy(t, []retention.Rule{rule})
		for i, r := range p.Plan(now, storage.Holdings{Repo: "x", Manifests: manifests}) {
			at[r.Digest] = i
		}
		if len(at) != len(manifests) {
			t.Fatalf("%d of %d manifests are removed", len(at), len(manifests))
		}
		return at
	}
	const n = 1100
	var referrers, subjects, chain []storage.HeldManifest
	for i := range n {
		referrers = append(referrers, held(fmt.Sprint("r", i), 9, fmt.Sprint("subject:s", i)))
		subjects = append(subjects, held(fmt.Sprint("s", i), 9, ""))
		chain = append(chain, held(fmt.Sprint(i), 9, fmt.Sprint("subject:", i+1)))
	}
	at := plan(append(referrers, subjects...)...)
	for i := range n {
		if at[referrers[i].Digest] < at[subjects[i].Digest] {
			t.Fatalf("%d comes before its subject", i)
		}
	}
	at = plan(chain...)
	for i := range n - 1 {
		if before := at[chain[i].Digest] < at[chain[i+1].Digest]; before != (i == 1000) {
			t.Fatalf("%d comes before its subject: %v", i, before)
		}
	}
}

func TestPlan(t *testing.T) {
	all := []string{"**"}
	last := func(n int) retention.Rule { return retention.Rule{Repositories: all, KeepLast: n} }
	untagged := retention.Rule{Repositories: all, DeleteUntagged: 7 * day}
	for _, row := range []struct {
		name      string
		rule      retention.Rule
		manifests []storage.HeldManifest
		want      string // tags and names of manifests that are removed
	}{
		{"the last two stay", last(2), []storage.HeldManifest{held("a", 3, "", "1"), held("b", 2, "", "2"),
			held("c", 1, "", "3")}, "1 a"},
		{"a tag is removed, another of the same manifest stays", last(1),
			[]storage.HeldManifest{held("a", 3, "", "1=3", "latest=1")}, "1"},
		{"younger ones stay", retention.Rule{Repositories: all, KeepYounger: 2 * day},
			[]storage.HeldManifest{held("a", 3, "", "1"), held("b", 1, "", "2")}, "1 a"},
		{"patterns stay", retention.Rule{Repositories: all, KeepTags: []string{"v*", `/^\d+\.\d+$/`}},
			[]storage.HeldManifest{held("a", 3, "", "v1"), held("b", 3, "", "1.2"), held("c", 3, "", "1.2.3")},
			"1.2.3 c"},
		{"any condition keeps", retention.Rule{Repositories: all, KeepLast: 1, KeepYounger: 2 * day,
			KeepTags: []string{"v*"}},
			[]storage.HeldManifest{held("a", 9, "", "v1"), held("b", 1, "", "x=1"), held("c", 1, "", "y=0"),
				held("e", 5, "", "z")}, "z e"},
		{"untagged ones stay without delete-untagged", last(1), []storage.HeldManifest{held("a", 99, "")}, ""},
		{"old untagged ones are removed", untagged,
			[]storage.HeldManifest{held("a", 8, ""), held("b", 6, ""), held("c", 9, "", "v")}, "a"},
		{"children of a kept index stay", untagged,
			[]storage.HeldManifest{held("child", 99, ""), held("index", 99, "child", "v")}, ""},
		{"children of an untagged index that stays", untagged,
			[]storage.HeldManifest{held("child", 99, ""), held("index", 1, "child")}, ""},
		{"children are removed with their index, which comes first", last(1),
			[]storage.HeldManifest{held("child", 9, ""), held("index", 9, "child", "1"), held("new", 1, "", "2")},
			"1 index child"},
		{"a child that another index needs stays", last(1),
			[]storage.HeldManifest{held("child", 9, ""), held("index", 9, "child", "1"), held("new", 1, "child", "2")},
			"1 index"},
		{"a child's own tag is removed, the child stays", last(1),
			[]storage.HeldManifest{held("child", 9, "", "amd64"), held("index", 1, "child", "1")}, "amd64"},
		{"a tagged child of an index that is removed stays", last(1),
			[]storage.HeldManifest{held("child", 1, "", "2"), held("index", 9, "child", "1")}, "1 index"},
		{"signatures stay with what they sign", untagged,
			[]storage.HeldManifest{held("a", 99, "", "v"), held("sig", 99, "subject:a")}, ""},
		{"and are removed with it", last(1),
			[]storage.HeldManifest{held("a", 9, "", "1"), held("sig", 9, "subject:a"), held("b", 1, "", "2")},
			"1 a sig"},
		{"signatures of signatures", last(1),
			[]storage.HeldManifest{held("a", 9, "", "1"), held("sig", 9, "subject:a"), held("sigsig", 9, "subject:sig"),
				held("b", 1, "", "2")}, "1 a sig sigsig"},
		{"a signature that has a tag of its own stays", last(1),
			[]storage.HeldManifest{held("a", 9, "", "1"), held("sig", 1, "subject:a", "s")}, "1 a"},
		{"signatures of what is not here are like others", untagged,
			[]storage.HeldManifest{held("sig", 99, "subject:gone"), held("sig2", 1, "subject:gone")}, "sig"},
		{"companions stay with their manifest", last(1),
			[]storage.HeldManifest{held("a", 1, "", "1"), held("sig", 9, "", companion("a")+".sig")}, ""},
		{"and are removed with it, uncounted", last(1),
			[]storage.HeldManifest{held("a", 9, "", "1"), held("sig", 0, "", companion("a")+".sig"),
				held("b", 1, "", "2")},
			"1 a " + companion("a") + ".sig sig"},
		{"companions of what is not here are tags like others", last(1),
			[]storage.HeldManifest{held("b", 1, "", "2"), held("sig", 9, "", companion("gone")+".sig")},
			companion("gone") + ".sig sig"},
		{"a missing child does not matter", last(1),
			[]storage.HeldManifest{held("a", 9, "gone", "1"), held("b", 1, "gone", "2")}, "1 a"},
		{"manifests that need each other stay", last(1),
			[]storage.HeldManifest{held("child", 9, ""), held("index", 9, "child subject:child")}, ""},
		{"also if they are old and have no tag", untagged,
			[]storage.HeldManifest{held("child", 9, ""), held("index", 9, "child subject:child")}, ""},
		{"a manifest that names itself is like others", untagged, []storage.HeldManifest{held("a", 9, "a")}, "a"},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := storage.Holdings{Repo: "team/app", Manifests: row.manifests}
			names := map[digest.Digest]string{}
			for _, name := range []string{"a", "b", "c", "e", "child", "index", "new", "sig", "sig2", "sigsig"} {
				names[d(name)] = name
			}
			var got []string
			for _, r := range policy(t, []retention.Rule{row.rule}).Plan(now, h) {
				got = append(got, r.Tag)
				if r.Tag == "" {
					got[len(got)-1] = names[r.Digest]
				}
				if r.Why == "" || r.Repo != h.Repo {
					t.Errorf("no reason for %+v", r)
				}
			}
			if strings.Join(got, " ") != row.want {
				t.Errorf("removes %v, want %s", got, row.want)
			}
		})
	}
}

// TestCompanionsOfEachAlgorithm: of a sha512 their names have the first half of the digest. They were tags like others,
// so that keep-last counted them and removed the signatures of what it kept.
func TestCompanionsOfEachAlgorithm(t *testing.T) {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		for _, end := range []string{"", ".sig", ".att"} {
			a := held("a", 9, "", "1")
			a.Digest = alg.FromString("a")
			name := alg.String() + "-" + a.Digest.Encoded()[:64] + end
			p := policy(t, []retention.Rule{{Repositories: []string{"**"}, KeepLast: 1}}, "**:sha*")
			h := storage.Holdings{Repo: "r", Manifests: []storage.HeldManifest{a, held("sig", 1, "", name)}}
			if got := p.Plan(now, h); len(got) != 0 {
				t.Errorf("%s: of a manifest that is kept: %+v", name, got)
			}
			h.Manifests = append(h.Manifests, held("b", 0, "", "2"))
			if got := p.Plan(now, h); len(got) != 4 { // the tag 1, the companion, and both manifests
				t.Errorf("%s: of a manifest that is removed: %+v", name, got)
			}
			h.Manifests = h.Manifests[1:]
			if got := p.Plan(now, h); len(got) != 2 || got[0].Tag != name {
				t.Errorf("%s: of a manifest that is gone, it is a tag like others: %+v", name, got)
			}
		}
	}
}

func TestReasonsAreForPeople(t *testing.T) {
	rule := retention.Rule{Repositories: []string{"**"}, KeepLast: 1, KeepYounger: 30 * day, KeepTags: []string{"v*"}}
	h := storage.Holdings{Repo: "a", Manifests: []storage.HeldManifest{held("a", 45, "", "x"), held("b", 1, "", "y")}}
	got := policy(t, []retention.Rule{rule}).Plan(now, h)
	if want := "not among the last 1; set 1080h1m0s ago, not less than 30d; not one of v*"; len(got) != 2 ||
		got[0].Why != want || got[1].Why != "its last tag is removed" {
		t.Errorf("got %+v", got)
	}
}

// TestAReasonNamesTheConditionsThatAreSet, and no others.
func TestAReasonNamesTheConditionsThatAreSet(t *testing.T) {
	h := storage.Holdings{Repo: "a", Manifests: []storage.HeldManifest{held("a", 45, "", "x"), held("b", 1, "", "v")}}
	for want, rule := range map[string]retention.Rule{
		"not among the last 1":                 {KeepLast: 1},
		"set 1080h1m0s ago, not less than 30d": {KeepYounger: 30 * day},
		"not one of v*":                        {KeepTags: []string{"v*"}},
	} {
		rule.Repositories = []string{"**"}
		got := policy(t, []retention.Rule{rule}).Plan(now, h)
		if len(got) != 2 || got[0].Tag != "x" || got[0].Why != want {
			t.Errorf("got %+v, want %q", got, want)
		}
	}
}

func TestTheReasonForAManifestIsItsOwn(t *testing.T) {
	rule := retention.Rule{Repositories: []string{"**"}, KeepLast: 1, DeleteUntagged: 7 * day}
	h := storage.Holdings{Repo: "a", Manifests: []storage.HeldManifest{held("index", 9, "child", "1"),
		held("child", 9, ""), held("sig", 9, "subject:index"), held("orphan", 9, "subject:gone"), held("old", 9, ""),
		held("new", 1, "", "2")}}
	got := map[digest.Digest]string{}
	for _, r := range policy(t, []retention.Rule{rule}).Plan(now, h) {
		if r.Tag == "" {
			got[r.Digest] = r.Why
		}
	}
	for name, want := range map[string]string{
		"index": "its last tag is removed", "child": "the index that contains it is removed",
		"sig": "the manifest that it refers to is removed", "orphan": "it has no tag and was pushed",
		"old": "it has no tag and was pushed",
	} {
		if !strings.HasPrefix(got[d(name)], want) {
			t.Errorf("%s: %q, want %q", name, got[d(name)], want)
		}
	}
}

func TestATagOfExactlyKeepYoungerIsRemoved(t *testing.T) {
	rule := retention.Rule{Repositories: []string{"**"}, KeepYounger: 2 * day}
	for second, want := range map[int64]int{-1: 2, 0: 2, 1: 0} { // a tag and its manifest
		m := held("a", 2, "", "1")
		m.Tags[0].Time = now.Add(-48*time.Hour).Unix() + second
		h := storage.Holdings{Repo: "a", Manifests: []storage.HeldManifest{m}}
		if got := policy(t, []retention.Rule{rule}).Plan(now, h); len(got) != want {
			t.Errorf("%d s after the bound: %d removals, want %d: %+v", second, len(got), want, got)
		}
	}
}

func TestAManifestOfExactlyDeleteUntaggedIsRemoved(t *testing.T) {
	rule := retention.Rule{Repositories: []string{"**"}, DeleteUntagged: 2 * day}
	for second, want := range map[int64]int{-1: 1, 0: 1, 1: 0} {
		m := held("a", 2, "")
		m.Time = now.Add(-48*time.Hour).Unix() + second
		h := storage.Holdings{Repo: "a", Manifests: []storage.HeldManifest{m}}
		if got := policy(t, []retention.Rule{rule}).Plan(now, h); len(got) != want {
			t.Errorf("%d s after the bound: %d removals, want %d: %+v", second, len(got), want, got)
		}
	}
}

func TestTheFirstRuleThatMatchesDecides(t *testing.T) {
	rules := []retention.Rule{{Repositories: []string{"team/keep"}, KeepLast: 9},
		{Repositories: []string{"team/*", "x/**"}, KeepLast: 1}}
	for repo, want := range map[string]int{"team/keep": 0, "team/app": 2, "team/app/deep": 0, "x/a/b": 2, "x": 0,
		"other": 0} {
		h := storage.Holdings{Repo: repo, Manifests: []storage.HeldManifest{held("a", 2, "", "1"),
			held("b", 1, "", "2")}}
		if got := policy(t, rules).Plan(now, h); len(got) != want {
			t.Errorf("%s: %d removals, want %d", repo, len(got), want)
		}
	}
}

func TestImmutableTags(t *testing.T) {
	p := policy(t, []retention.Rule{{Repositories: []string{"**"}, KeepLast: 1}}, "prod/**:*", "*:v*")
	for at, want := range map[string]bool{"prod/a:x": true, "prod/a/b:x": true, "a:v1": true, "a/b:v1": false,
		"a:1": false, "prod:x": false} {
		repo, tag, _ := strings.Cut(at, ":")
		if got := p.Immutable(repo, tag); got != want {
			t.Errorf("%s: %v", at, got)
		}
	}
	h := storage.Holdings{Repo: "a", Manifests: []storage.HeldManifest{held("a", 2, "", "v1"), held("b", 1, "", "2")}}
	if got := p.Plan(now, h); len(got) != 0 {
		t.Errorf("an immutable tag is removed: %+v", got)
	}
	// A companion lives as long as its manifest.
	p = policy(t, []retention.Rule{{Repositories: []string{"**"}, KeepLast: 1}}, "**:*")
	h = storage.Holdings{Repo: "a", Manifests: []storage.HeldManifest{held("a", 2, ""),
		held("sig", 1, "", companion("a")+".sig")}}
	if got := p.Plan(now, h); len(got) != 0 {
		t.Errorf("the companion of a manifest that is here is removed: %+v", got)
	}
	h.Manifests = []storage.HeldManifest{held("b", 1, "", "v1"), held("sig", 2, "", companion("a")+".sig")}
	if got := p.Plan(now, h); len(got) != 2 || got[0].Tag != companion("a")+".sig" {
		t.Errorf("the companion of a manifest that is gone stays: %+v", got)
	}
}

func TestInvalidRules(t *testing.T) {
	all := []string{"**"}
	for want, rule := range map[string]retention.Rule{
		"rule 1: repositories": {KeepLast: 1},
		"keep-last: -1":        {Repositories: all, KeepLast: -1},
		"removes nothing":      {Repositories: all},
		`"[" is not a valid`:   {Repositories: []string{"["}, KeepLast: 1},
		`"/(/" is not a val`:   {Repositories: all, KeepTags: []string{"/(/"}},
		`keep-tags: ""`:        {Repositories: all, KeepTags: []string{""}},
	} {
		if _, err := retention.Compile([]retention.Rule{rule}, nil); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
	for text, want := range map[string]string{"": "want repository:tag", "a": "want repository:tag",
		"a:": "want repository:tag", ":v": "want repository:tag", "a b:c": "not a valid", "/(/:x": "not a valid"} {
		_, err := retention.Compile(nil, []string{text})
		if err == nil || !strings.Contains(err.Error(), "immutable-tags") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %s", text, err, want)
		}
	}
}

// random returns a repository of any form.
func random(r *rand.Rand) storage.Holdings {
	h := storage.Holdings{Repo: "a"}
	tags := 0
	for i := range 12 {
		var refs []string
		for j := range i {
			switch r.IntN(8) {
			case 0:
				refs = append(refs, fmt.Sprint(j))
			case 1:
				refs = append(refs, fmt.Sprint("subject:", j))
			}
		}
		var names []string
		for range r.IntN(3) {
			tags++
			names = append(names, fmt.Sprintf("t%d=%d", tags, r.IntN(20)))
		}
		if r.IntN(5) == 0 && i > 0 {
			names = append(names, companion(fmt.Sprint(r.IntN(i)))+fmt.Sprintf(".x%d", i))
		}
		h.Manifests = append(h.Manifests, held(fmt.Sprint(i), r.IntN(20), strings.Join(refs, " "), names...))
	}
	return h
}

// TestWhatStaysIsIntact: whatever the repository and the rule are, no kept manifest misses a part or loses what refers
// to it, and a second run removes no tags.
func TestWhatStaysIsIntact(t *testing.T) {
	removed := 0
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 0))
		h := random(r)
		rule := retention.Rule{Repositories: []string{"**"}, KeepLast: r.IntN(4),
			KeepYounger: settings.Duration(r.IntN(10)) * day, DeleteUntagged: settings.Duration(r.IntN(10)+1) * day}
		p := policy(t, []retention.Rule{rule})
		plan := p.Plan(now, h)
		removed += len(plan)
		left := after(t, h, plan)
		gone := map[digest.Digest]bool{}
		for _, g := range plan {
			gone[g.Digest] = gone[g.Digest] || g.Tag == ""
		}
		for _, m := range left.Manifests {
			for _, ref := range m.Refs {
				if gone[ref] {
					t.Fatalf("seed %d: a part of %s is removed", seed, m.Digest)
				}
			}
		}
		for _, m := range h.Manifests {
			if gone[m.Digest] && m.Subject != "" && !gone[m.Subject] {
				t.Fatalf("seed %d: a referrer of what stays is removed", seed)
			}
		}
		if again := p.Plan(now, left); len(again) > 0 && rule.KeepLast == 0 {
			for _, a := range again { // a manifest that has lost its parent has no tag now
				if a.Tag != "" {
					t.Fatalf("seed %d: a second run finds %+v", seed, again)
				}
			}
		}
	}
	if removed < 1000 {
		t.Errorf("only %d removals: the test proves nothing", removed)
	}
}

// after returns a repository without what is removed. Each step must be possible: a manifest is removed when it has no
// tag, and when no other manifest consists of it.
func after(t *testing.T, h storage.Holdings, plan []retention.Removal) storage.Holdings {
	t.Helper()
	left := storage.Holdings{Repo: h.Repo}
	for _, m := range h.Manifests {
		m.Tags = slices.Clone(m.Tags)
		left.Manifests = append(left.Manifests, m)
	}
	for _, r := range plan {
		i := slices.IndexFunc(left.Manifests, func(m storage.HeldManifest) bool { return m.Digest == r.Digest })
		m := &left.Manifests[i]
		if r.Tag != "" {
			m.Tags = slices.DeleteFunc(m.Tags, func(t storage.HeldTag) bool { return t.Name == r.Tag })
			continue
		}
		needed := slices.ContainsFunc(left.Manifests,
			func(m storage.HeldManifest) bool { return slices.Contains(m.Refs, r.Digest) })
		if len(m.Tags) > 0 || needed {
			t.Fatalf("%s is removed, and has tags %v, or is needed: %v", r.Digest, m.Tags, needed)
		}
		left.Manifests = slices.Delete(left.Manifests, i, i+1)
	}
	return left
}

func FuzzPattern(f *testing.F) {
	f.Add("team/**", "team/a/b")
	f.Add(`/^v\d+$/`, "v1")
	f.Fuzz(func(t *testing.T, text, name string) {
		p, err := retention.Compile(nil, []string{text + ":*"})
		if err != nil {
			return
		}
		if !strings.ContainsAny(text, "*?/") && p.Immutable(name, "x") != (name == text) {
			t.Errorf("%q and %q", text, name)
		}
	})
}
