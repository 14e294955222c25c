package admission_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"trow/admission"
	"trow/registry/upstream"
)

// alike are names that look like those of another image: a repository of this registry that is called as another
// registry is, and paths below f/ that are no local name where they stand. Each line is one image.
var alike = [][]string{
	{"quay.io/team/app"},
	{host + "/quay.io/team/app", "trow:31000/quay.io/team/app"},
	{"docker.io/quay.io/team/app", hubSite + "/quay.io/team/app"},
	{hubSite + "/f/quay.io/team/app", "docker.io/f/quay.io/team/app"},
	{"docker.io/team/app"},
	{host + "/team/app"},
	{host + "/f/team"},
	{"lan.example/f/quay.io/team/app"},
	{"nginx", "docker.io/library/nginx", host + "/f/" + hubSite + "/nginx"},
	{host + "/f/" + hubSite + "/f/docker.io/library/nginx"},
}

// TestARuleForANameThatLooksLikeAnother holds for that name alone, whichever setting it is in.
func TestARuleForANameThatLooksLikeAnother(t *testing.T) {
	m := newMirrored(t)
	for n, names := range alike {
		for _, name := range names {
			deny, allow := rulesAbout(name)
			for what, o := range deny {
				p := newPolicy(t, o)
				forAlike(func(g int, image string) {
					if v := p.Decide(t.Context(), m, image); (v.Reason == admission.OnDenyList) != (g == n) {
						t.Errorf("%s: a rule for %s: %s: %s", what, name, image, v.Reason)
					}
				})
			}
			for what, o := range allow {
				p := newPolicy(t, o)
				forAlike(func(g int, image string) {
					if v := p.Decide(t.Context(), m, image); v.Allowed != (g == n) {
						t.Errorf("%s: a rule for %s: %s: %s, allowed %v", what, name, image, v.Reason, v.Allowed)
					}
				})
			}
		}
	}
}

func forAlike(do func(n int, image string)) {
	for n, images := range alike {
		for _, image := range images {
			do(n, image)
		}
	}
}

// TestAPrefixThatIsNoLocalName covers what is below it, and no other registry.
func TestAPrefixThatIsNoLocalName(t *testing.T) {
	m := newMirrored(t)
	for prefix, want := range map[string][]string{ // the images that it covers
		host + "/f/team":              {host + "/f/team", host + "/f/team/app"},
		host + "/quay.io":             {host + "/quay.io/team/app"},
		host + "/f/trow__31000":       {host + "/f/trow__31000/app"},
		"docker.io/f/docker.io/nginx": nil, // no image has that name
		"quay.io/f/quay.io":           nil,
		hubSite + "/f/quay.io":        {hubSite + "/f/quay.io/a", "docker.io/f/quay.io/a"},
	} {
		p := newPolicy(t, admission.PolicyOptions{AllowPrefixes: []string{prefix}})
		for _, image := range []string{host + "/f/team", host + "/f/team/app", host + "/quay.io/team/app",
			host + "/f/trow__31000/app", host + "/app", host + "/a", "quay.io/a", host + "/f/quay.io/a", "nginx", "a",
			host + "/f/docker.io/library/nginx", hubSite + "/f/quay.io/a", "docker.io/f/quay.io/a",
			"quay.io/team/app"} {
			if v := p.Decide(t.Context(), m, image); v.Allowed != slices.Contains(want, image) {
				t.Errorf("%s: %s: allowed %v, %s", prefix, image, v.Allowed, v.Reason)
			}
		}
	}
}

// TestARepositoryOfThisRegistryIsNotThatOfAnother with the same name: a push of team/app here makes neither
// quay.io/team/app held, nor what is cached of it look pushed.
func TestARepositoryOfThisRegistryIsNotThatOfAnother(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "quay.io", MayRun: upstream.MayRunHeld})
	d := m.hold("team/app", "1", "mine", false, true)
	m.hold("f/quay.io/team/app", "2", "theirs", true, true)
	long := strings.Repeat("a", 247) // too long for a repository below f/quay.io
	m.hold(long, "1", "mine", false, true)
	for image, want := range map[string]bool{
		"quay.io/team/app:1":                 false,
		"quay.io/team/app@" + d.String():     false,
		host + "/f/quay.io/team/app:1":       false,
		host + "/team/app:1":                 true,
		"quay.io/team/app:2":                 true,
		host + "/f/quay.io/team/app:2":       true,
		host + "/team/app:2":                 false,
		"quay.io/" + long + ":1":             false,
		"quay.io/" + long + "@" + d.String(): false,
		host + "/" + long + ":1":             true,
	} {
		if v := m.decide(admission.PolicyOptions{}, image); v.Allowed != want || !want && v.Digest != "" {
			t.Errorf("%s: allowed %v: %s, %s", image, v.Allowed, v.Reason, v.Digest)
		}
	}
}

// TestANameOfThisRegistryBelowF is no other registry, also if an entry of upstreams says so by mistake.
func TestANameOfThisRegistryBelowF(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "trow:31000", MayRun: upstream.MayRunAllow})
	for _, image := range []string{host + "/f/trow__31000/app:1", "trow:31000/f/trow__31000/app:1"} {
		if v := m.decide(admission.PolicyOptions{}, image); v.Allowed || v.Reason != admission.NotHeld {
			t.Errorf("%s: allowed %v: %s", image, v.Allowed, v.Reason)
		}
	}
}

// TestTheNarrowerOfTwoBroadRules counts: all that is below f/ is less than the whole registry.
func TestTheNarrowerOfTwoBroadRules(t *testing.T) {
	m := newMirrored(t)
	for _, o := range []admission.PolicyOptions{
		{Allow: []string{host + "/f"}, Deny: []string{host}},
		{Allow: []string{host}, Deny: []string{host + "/f"}},
	} {
		want := o.Deny[0] == host
		for _, image := range []string{host + "/f/quay.io/a", host + "/f/docker.io/library/nginx",
			host + "/f/team/app"} {
			if v := m.decide(o, image); v.Allowed != want {
				t.Errorf("allow %q, deny %q: %s: allowed %v: %s", o.Allow, o.Deny, image, v.Allowed, v.Reason)
			}
		}
	}
}

// TestANameWithNoNameHere: the repository with the name that is written counts if something was pushed to it.
func TestANameWithNoNameHere(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: upstream.MayRunHeld})
	written := "f/" + hubSite + "/" + strings.Repeat("a", 236) // that of docker.io/library/aaa... is longer by one
	if v := m.decide(admission.PolicyOptions{}, host+"/"+written+":1"); v.Allowed || len(v.Hints) != 1 ||
		!strings.HasPrefix(v.Hints[0], "it cannot be held: its name here is too long") {
		t.Errorf("%s, %q", v.Reason, v.Hints)
	}
	m.hold(written, "1", "x", false, true)
	if v := m.decide(admission.PolicyOptions{}, host+"/"+written+":1"); v.Reason != admission.Held {
		t.Errorf("%s, %q", v.Reason, v.Hints)
	}
}

// TestAnAllowedImageBeatsADeniedRepository, whichever of its names the two rules and the pod have.
func TestAnAllowedImageBeatsADeniedRepository(t *testing.T) {
	m := newMirrored(t)
	names := []string{"docker.io/library/nginx", host + "/f/docker.io/library/nginx", hubSite + "/nginx"}
	for _, allow := range names {
		for _, deny := range names {
			p := newPolicy(t, admission.PolicyOptions{AllowImages: []string{allow + ":1"}, Deny: []string{deny}})
			for _, name := range append(names, "nginx") {
				if v := p.Decide(t.Context(), m, name+":1"); v.Reason != admission.AllowImages {
					t.Errorf("allow %s:1, deny %s: %s:1: %s", allow, deny, name, v.Reason)
				}
				if v := p.Decide(t.Context(), m, name+":2"); v.Reason != admission.OnDenyList {
					t.Errorf("allow %s:1, deny %s: %s:2: %s", allow, deny, name, v.Reason)
				}
			}
		}
	}
}

// TestAShortNameIsDenied where deny-short-names is on, whatever else allows it: only names of Docker Hub can be short.
func TestAShortNameIsDenied(t *testing.T) {
	for _, mayRun := range []upstream.MayRun{"", upstream.MayRunDeny, upstream.MayRunAllow, upstream.MayRunHeld,
		upstream.MayRunFetch} {
		m := newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: mayRun})
		m.hold("f/docker.io/library/nginx", "latest", "x", false, true)
		for _, o := range []admission.PolicyOptions{{}, {Default: "Allow"}, {AllowPrefixes: []string{"docker.io"}},
			{AllowImages: []string{"docker.io/nginx"}}} {
			o.DenyShortNames = true
			for image, short := range map[string]bool{"nginx": true, "library/nginx": true, "docker.io/nginx": false,
				"index.docker.io/nginx": false, hubSite + "/nginx": false, host + "/f/docker.io/nginx": false} {
				if v := m.decide(o, image); (v.Reason == admission.ShortName) != short || short && v.Allowed {
					t.Errorf("may-run %q, %+v: %s: %s", mayRun, o, image, v.Reason)
				}
			}
			o.Deny = []string{"docker.io/library/nginx"} // the rule that somebody has written is the reason
			o.AllowImages = nil
			if v := m.decide(o, "nginx"); v.Reason != admission.OnDenyList {
				t.Errorf("may-run %q, %+v: %s", mayRun, o, v.Reason)
			}
		}
	}
}

// TestTheRuleOfAVerdict is the one that decided: audit logs name it.
func TestTheRuleOfAVerdict(t *testing.T) {
	type rule = admission.Rule
	for _, tt := range []struct {
		mayRun upstream.MayRun
		policy admission.PolicyOptions
		image  string
		want   rule
	}{
		{upstream.MayRunHeld, admission.PolicyOptions{}, "nginx:cached", rule{"upstreams", "docker.io"}},
		{upstream.MayRunHeld, admission.PolicyOptions{}, "nginx:imported", rule{"upstreams", "docker.io"}},
		{upstream.MayRunHeld, admission.PolicyOptions{}, "nginx:none", rule{"upstreams", "docker.io"}},
		{upstream.MayRunFetch, admission.PolicyOptions{}, "nginx:cached", rule{"upstreams", "docker.io"}},
		{upstream.MayRunFetch, admission.PolicyOptions{}, "nginx:imported", rule{}}, // it is what is held that decides
		{"", admission.PolicyOptions{}, "nginx:imported", rule{}},
		{"", admission.PolicyOptions{}, "nginx:none", rule{"default", "Deny"}},
		// Of rules that cover as much, it is the first.
		{"", admission.PolicyOptions{AllowPrefixes: []string{"docker.io/nginx"},
			Allow: []string{host + "/f/docker.io/library/nginx"}}, "nginx:none",
			rule{"allow-prefixes", "docker.io/nginx"}},
		{"", admission.PolicyOptions{Deny: []string{host + "/f/docker.io/library/nginx", "docker.io/nginx"}},
			"nginx:none", rule{"deny", host + "/f/docker.io/library/nginx"}},
	} {
		m := newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: tt.mayRun})
		m.hold("f/docker.io/library/nginx", "cached", "a", true, true)
		m.hold("f/docker.io/library/nginx", "imported", "b", false, true)
		if v := m.decide(tt.policy, tt.image); v.Rule != tt.want {
			t.Errorf("may-run %q, %s: %s by %+v, want %+v", tt.mayRun, tt.image, v.Reason, v.Rule, tt.want)
		}
	}
}

// TestWhoReadsARepositoryBelowFGetsItsDigests: who may read a repository here that is called as one there does not.
func TestWhoReadsARepositoryBelowFGetsItsDigests(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: upstream.MayRunHeld})
	m.hold("f/docker.io/library/nginx", "1", "x", true, true)
	for repo, want := range map[string]bool{"f/docker.io/library/nginx": true, "library/nginx": false, "nginx": false,
		"f/docker.io/nginx": false} {
		reads := func(*http.Request) (bool, func(string) bool) {
			return true, func(name string) bool { return name == repo }
		}
		w := newHook(admission.Options{Images: m, Policy: newPolicy(t, admission.PolicyOptions{}),
			Hints: admission.NewHints(admission.CallersOptions{}, nil, reads)})
		for _, image := range []string{"nginx:1", "docker.io/library/nginx:1", host + "/f/docker.io/library/nginx:1",
			host + "/f/docker.io/nginx:1", hubSite + "/nginx:1"} {
			r := answer(t, w, reviewOf(t, "", "Pod", podOf(image), nil))
			if got := strings.Contains(r.AuditAnnotations["images"], "@sha256:"); !r.Allowed || got != want {
				t.Errorf("who may read %s, %s: %q", repo, image, r.AuditAnnotations["images"])
			}
		}
	}
}
