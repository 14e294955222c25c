package admission_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/admission"
	"trow/registry/upstream"
	"trow/storage"
)

// hintsOf returns the hints on an image of which not all is held.
func (m *mirrored) hintsOf(o admission.PolicyOptions, image string) []string {
	m.Helper()
	v := m.decide(o, image)
	if v.Allowed || v.Reason != admission.NotHeld {
		m.Errorf("%.80s: allowed %v: %s", image, v.Allowed, v.Reason)
	}
	for _, hint := range v.Hints {
		if len(hint) > 120 {
			m.Errorf("%.80s: a hint has %d characters: %s", image, len(hint), hint)
		}
	}
	return v.Hints
}

// TestAShortNameThatMayRun gets the hint that other nodes may take it for another image, whatever allows it.
func TestAShortNameThatMayRun(t *testing.T) {
	const hint = "nginx names no host: CRI-O may pull it from elsewhere; write docker.io/nginx"
	for _, tt := range []struct {
		mayRun upstream.MayRun
		policy admission.PolicyOptions
		want   admission.Reason
	}{
		{"", admission.PolicyOptions{AllowPrefixes: []string{"docker.io"}}, admission.AllowPrefixes},
		{"", admission.PolicyOptions{}, admission.Held},
		{upstream.MayRunAllow, admission.PolicyOptions{}, admission.MayRunAllow},
		{upstream.MayRunHeld, admission.PolicyOptions{}, admission.Held},
		{upstream.MayRunFetch, admission.PolicyOptions{}, admission.MayRunFetch},
	} {
		m := newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: tt.mayRun})
		m.hold("f/docker.io/library/nginx", "1", "x", tt.mayRun != "", true)
		for image, short := range map[string]bool{"nginx:1": true, "docker.io/nginx:1": false,
			hubSite + "/nginx:1": false} {
			v := m.decide(tt.policy, image)
			if v.Reason != tt.want || slices.Contains(v.Hints, hint) != short {
				t.Errorf("may-run %q, %s: %s, %q", tt.mayRun, image, v.Reason, v.Hints)
			}
		}
	}
}

// TestAHintNamesTheImageWhereThatFits into a warning, to the last character.
func TestAHintNamesTheImageWhereThatFits(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "quay.io", MayRun: upstream.MayRunHeld})
	const text = "not held: pull it once through this registry (trow warm)"
	fits := "quay.io/" + strings.Repeat("a", 120-len(text+": quay.io/"))
	for image, want := range map[string]string{fits: text + ": " + fits, fits + "a": text, "quay.io/a": text +
		": quay.io/a"} {
		if got := m.hintsOf(admission.PolicyOptions{}, image); len(got) != 1 || got[0] != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestWhatIsMissingOfAnIndex is named as far as it fits: at most three platforms.
func TestWhatIsMissingOfAnIndex(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "quay.io", MayRun: upstream.MayRunHeld})
	const repo = "f/quay.io/a"
	here := m.hold(repo, "", "here", true, true)
	lacks := func(names ...string) (all []child) {
		for _, name := range names {
			all = append(all, child{name, digest.FromString("lacks " + name)})
		}
		return all
	}
	// Two of these and the text around them have 120 characters.
	a := "linux/" + strings.Repeat("a", 34)
	b := "linux/" + strings.Repeat("b", 120-len("not here for all of its platforms (missing: , )")-len(a+"linux/"))
	all := []string{"linux/arm64", "linux/s390x", "linux/ppc64le", "linux/riscv64", "linux/386"}
	for _, tt := range []struct {
		children []child
		wanted   []string
		want     string
	}{
		{lacks(all[:1]...), nil, " (missing: linux/arm64)"},
		{lacks(all[:2]...), nil, " (missing: linux/arm64, linux/s390x)"},
		{lacks(all[:3]...), nil, " (missing: linux/arm64, linux/s390x, linux/ppc64le)"},
		{lacks(all[:4]...), nil, " (missing: linux/arm64, linux/s390x, linux/ppc64le, ...)"},
		{lacks(all...), nil, " (missing: linux/arm64, linux/s390x, linux/ppc64le, ...)"},
		{append(lacks(all[:3]...), child{"linux/amd64", here}), append(all, "linux/amd64"),
			" (missing: linux/arm64, linux/s390x, linux/ppc64le)"},
		{append(lacks(all[:4]...), child{"linux/amd64", here}), append(all, "linux/amd64"),
			" (missing: linux/arm64, linux/s390x, linux/ppc64le, ...)"},
		{append(lacks(all...), child{"linux/amd64", here}), append(all, "linux/amd64"),
			" (missing: linux/arm64, linux/s390x, linux/ppc64le, ...)"},
		{append(lacks("linux/arm64", "linux/arm64"), child{"linux/amd64", here}), all, " (missing: linux/arm64)"},
		{lacks(a, b), nil, " (missing: " + a + ", " + b + ")"},
		{lacks(a, b+"b"), nil, " (missing: " + a + ", ...)"},
		{lacks(a, b, "linux/386"), nil, " (missing: " + a + ", ...)"},
		{nil, nil, ""}, // an index of nothing
	} {
		d := m.multi(repo, "v", true, true, tt.children...)
		want := "not here for all of its platforms" + tt.want
		if image := ": quay.io/a:v"; len(want)+len(image) <= 120 {
			want += image
		}
		if got := m.hintsOf(admission.PolicyOptions{Platforms: tt.wanted}, "quay.io/a:v"); len(got) != 2 ||
			got[0] != want {
			t.Errorf("%v: %q, want %q", tt.children, got, want)
		}
		// What is damaged itself, or has too many parts, lacks no platform in particular.
		if err := m.index.Quarantine(t.Context(), d, "a test"); err != nil {
			t.Fatal(err)
		}
		if got := m.hintsOf(admission.PolicyOptions{}, "quay.io/a:v"); len(got) != 2 ||
			got[0] != "not here for all of its platforms: quay.io/a:v" {
			t.Errorf("damaged: %q", got)
		}
	}
}

// TestAnIndexWithTooManyManifests is not held: a verdict does not look at all of them.
func TestAnIndexWithTooManyManifests(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "quay.io", MayRun: upstream.MayRunHeld})
	here := m.hold("f/quay.io/a", "", "here", true, true)
	index := func(n int) storage.Manifest {
		s := storage.Manifest{Digest: digest.FromString("index"), Refs: []digest.Digest{here}, Cached: true,
			MediaType: "application/vnd.oci.image.index.v1+json"}
		for i := range n - 1 {
			s.Refs = append(s.Refs, digest.FromBytes([]byte{byte(i), byte(i >> 8)}))
		}
		s.Digest = digest.FromString(s.Refs[n-1].String())
		return s
	}
	m.put("f/quay.io/a", "1000", index(1000), false)
	m.put("f/quay.io/a", "1001", index(1001), false)
	long := " (missing: sha256:"
	if got := m.hintsOf(admission.PolicyOptions{}, "quay.io/a:1000"); !strings.Contains(got[0], long) {
		t.Errorf("%q", got)
	}
	if got := m.hintsOf(admission.PolicyOptions{}, "quay.io/a:1001"); strings.Contains(got[0], long) {
		t.Errorf("%q", got)
	}
}

// TestAPlatformThatBeginsAsAnother is another one, and one that is written otherwise is the same.
func TestAPlatformThatBeginsAsAnother(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "quay.io", MayRun: upstream.MayRunHeld})
	here := m.hold("f/quay.io/a", "", "here", true, true)
	for _, tt := range []struct {
		wanted, here, gone string
		held               bool
	}{
		{"linux/arm", "linux/arm/v7", "linux/arm64", true},
		{"linux/arm", "linux/arm64", "linux/arm/v7", false},
		{"linux/arm", "linux/arm64", "linux/s390x", false},
		{"linux/arm64/v8", "linux/arm64/8", "linux/arm/v8", true},
		{"linux/arm/v8", "linux/arm64/v8", "linux/arm/v8", false},
		{"linux/arm64/v9", "linux/arm64/v8", "linux/arm64/v9", false},
		{"linux/amd64/v2", "linux/amd64/v1", "linux/amd64/v2", false},
		{"linux/arm64/8", "linux/arm64", "linux/s390x", true},
		{"linux/amd64/v1", "linux/amd64", "linux/s390x", true},
		{"linux/amd64", "linux/amd64/v1", "linux/386/v1", true},
		{"linux/amd64", "windows/amd64", "linux/amd64", false},
	} {
		m.multi("f/quay.io/a", "v", true, true, child{tt.here, here}, child{tt.gone, digest.FromString("gone")})
		v := m.decide(admission.PolicyOptions{Platforms: []string{tt.wanted}}, "quay.io/a:v")
		if v.Allowed != tt.held {
			t.Errorf("for %s, with %s and without %s: %v", tt.wanted, tt.here, tt.gone, v.Hints)
		}
	}
}
