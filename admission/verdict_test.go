package admission_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/admission"
	"trow/storage"
)

// TestVerdictsNameReasonAndRule has a case for each Reason.
func TestVerdictsNameReasonAndRule(t *testing.T) {
	options := admission.PolicyOptions{
		AllowPrefixes:         []string{"quay.io", "QUAY.io/team/"}, // entries are reported as written
		AllowImages:           []string{"ghcr.io/one:1", host + "/soon:1"},
		AllowDockerOfficial:   true,
		DisallowLocalPrefixes: []string{"team"},
		DisallowLocalImages:   []string{"nginx:1.21.0"},
		Allow:                 []string{"gcr.io/", "gcr.io/distroless"},
		Deny:                  []string{"quay.io/evil", "docker.io/redis"},
	}
	type rule = admission.Rule
	for _, tt := range []struct {
		image   string
		allowed bool
		reason  admission.Reason
		rule    rule
		digest  string
	}{
		{host + "/app:1", true, admission.Held, rule{}, "app one"},
		{"quay.io/x", true, admission.AllowPrefixes, rule{"allow-prefixes", "quay.io"}, ""},
		{"quay.io/team/x", true, admission.AllowPrefixes, rule{"allow-prefixes", "QUAY.io/team/"}, ""},
		{"ghcr.io/one:1", true, admission.AllowImages, rule{"allow-images", "ghcr.io/one:1"}, ""},
		{"trow:31000/soon:1", true, admission.AllowImages, rule{"allow-images", host + "/soon:1"}, ""},
		{"nginx", true, admission.AllowDockerOfficial, rule{"allow-docker-official", "docker.io/library/"}, ""},
		{"gcr.io/distroless/static", true, admission.Allow, rule{"allow", "gcr.io/distroless"}, ""},
		{"registry.k8s.io/pause:3.10", true, admission.K8sImages, rule{"deny-k8s-images", "registry.k8s.io/"}, ""},
		{host + "/app:9", false, admission.NotHeld, rule{}, ""},
		{"ghcr.io/one:2", false, admission.NotAllowed, rule{"default", "Deny"}, ""},
		{"quay.io/evil/x", false, admission.OnDenyList, rule{"deny", "quay.io/evil"}, ""},
		{"redis", false, admission.OnDenyList, rule{"deny", "docker.io/redis"}, ""},
		{host + "/team/app:1", false, admission.OnDenyList, rule{"disallow-local-prefixes", "team"}, ""},
		{host + "/nginx:1.21.0", false, admission.OnDenyList, rule{"disallow-local-images", "nginx:1.21.0"}, "nginx"},
		{"NGINX", false, admission.InvalidReference, rule{}, ""},
	} {
		v := newPolicy(t, options).Decide(t.Context(), newRegistry(t, held), tt.image)
		if v.Image != tt.image || v.Allowed != tt.allowed || v.Reason != tt.reason || v.Rule != tt.rule ||
			v.Err != nil {
			t.Errorf("%s: %+v", tt.image, v)
		}
		if (v.Sentence == "") != v.Allowed {
			t.Errorf("%s: allowed is %v, and the sentence is %q", tt.image, v.Allowed, v.Sentence)
		}
		if want := digestOf(tt.digest); tt.digest == "" && v.Digest != "" ||
			tt.digest != "" && v.Digest.String() != want {
			t.Errorf("%s: the digest is %q", tt.image, v.Digest)
		}
		if tt.reason != admission.InvalidReference && v.Reference.String() == "" {
			t.Errorf("%s has no reference", tt.image)
		}
	}
	v := newPolicy(t, admission.PolicyOptions{Default: "allow"}).Decide(t.Context(), newRegistry(t, held), "quay.io/x")
	if !v.Allowed || v.Reason != admission.DefaultAllow || v.Rule != (rule{"default", "Allow"}) {
		t.Errorf("default Allow: %+v", v)
	}
}

func TestShortNamesMayBeDenied(t *testing.T) {
	p := newPolicy(t, admission.PolicyOptions{DenyShortNames: true, AllowDockerOfficial: true, Default: "Allow",
		Allow: []string{"docker.io"}, Deny: []string{"docker.io/redis"}})
	for image, full := range map[string]string{
		"nginx": "docker.io/library/nginx", "nginx:1.21.0": "docker.io/library/nginx:1.21.0",
		"library/nginx": "docker.io/library/nginx", "team/app:1": "docker.io/team/app:1",
		"nginx:1@sha256:" + hex64: "docker.io/library/nginx:1@sha256:" + hex64,
	} {
		v := p.Decide(t.Context(), newRegistry(t, held), image)
		if v.Allowed || v.Reason != admission.ShortName || v.Rule != (admission.Rule{"deny-short-names", "true"}) ||
			!strings.HasPrefix(v.Sentence, "Image "+image+" denied ") ||
			!strings.HasSuffix(v.Sentence, "; write "+full) {
			t.Errorf("%s: %+v", image, v)
		}
		if v := p.Decide(t.Context(), newRegistry(t, held), full); !v.Allowed {
			t.Errorf("%s: %+v", full, v)
		}
	}
	for image, reason := range map[string]admission.Reason{
		"redis": admission.OnDenyList, host + "/app:1": admission.Held, "quay.io/x": admission.DefaultAllow,
	} {
		if v := p.Decide(t.Context(), newRegistry(t, held), image); v.Reason != reason {
			t.Errorf("%s: %+v", image, v)
		}
	}
}

func TestAnErrorOfTheRegistryIsNotADenial(t *testing.T) {
	reg := newRegistry(t, held)
	broken := errors.New("broken")
	reg.resolve = func(string, string) error { return broken }
	p := newPolicy(t, admission.PolicyOptions{DisallowLocalPrefixes: []string{"team"}})
	v := p.Decide(t.Context(), reg, host+"/app:1")
	if v.Allowed || v.Reason != admission.Unavailable || !errors.Is(v.Err, broken) || v.Sentence != "" ||
		v.Hints != nil {
		t.Errorf("%+v", v)
	}
	// A rule that denies by name holds all the same.
	if v := p.Decide(t.Context(), reg, host+"/team/app:1"); v.Err != nil || v.Reason != admission.OnDenyList {
		t.Errorf("%+v", v)
	}
}

// onlyResolve has the one method that a decision needs.
type onlyResolve struct{ admission.Images }

func TestTagsAreOptionalForHints(t *testing.T) {
	p, reg := newPolicy(t, admission.PolicyOptions{}), newRegistry(t, held)
	with := p.Decide(t.Context(), reg, host+"/app:9")
	without := p.Decide(t.Context(), onlyResolve{reg}, host+"/app:9")
	if want := []string{"push it: docker push " + host + "/app:9"}; !slices.Equal(without.Hints, want) {
		t.Errorf("without Tags: %q", without.Hints)
	}
	if len(with.Hints) != 2 || with.Hints[1] != "tags of app here: 1, 2, stable" {
		t.Errorf("with Tags: %q", with.Hints)
	}
}

// lister is a registry with other answers of Tags.
type lister struct {
	*registry
	tags  []string
	found bool
	err   error
}

func (l lister) Tags(context.Context, string, string, int) ([]string, bool, error) {
	return l.tags, l.found, l.err
}

// TestHintsNameOnlyWhatIsHere and known for sure.
func TestHintsNameOnlyWhatIsHere(t *testing.T) {
	p, reg := newPolicy(t, admission.PolicyOptions{AllowPrefixes: []string{host}}), newRegistry(t, held)
	push := "push it: docker push " + host + "/app:9"
	for _, tt := range []struct {
		name   string
		images admission.Images
		want   []string
	}{
		{"tags", lister{reg, []string{"a"}, true, nil}, []string{push, "tags of app here: a"}},
		{"tags beside an error", lister{reg, []string{"a"}, true, errors.New("broken")}, []string{push}},
		{"tags of no repository", lister{reg, []string{"a"}, false, nil}, []string{push}},
		{"no tags", lister{reg, nil, true, nil}, []string{push}},
		{"tags that do not fit", lister{reg, []string{strings.Repeat("a", 120)}, true, nil}, []string{push}},
	} {
		if v := p.Decide(t.Context(), tt.images, host+"/app:9"); !slices.Equal(v.Hints, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, v.Hints, tt.want)
		}
	}
	const absent = "@sha256:" + hex64
	for image, want := range map[string]struct {
		asked []string
		hint  string
	}{
		"app:9":          {[]string{"9"}, push},
		"app" + absent:   {[]string{absent[1:]}, ""},
		"app:9" + absent: {[]string{absent[1:], "9"}, ""},
		"app:1" + absent: {[]string{absent[1:], "1"}, "app:1 is here as " + digestOf("app one")},
	} {
		var asked []string
		reg.resolve = func(_, ref string) error {
			asked = append(asked, ref)
			return nil
		}
		v := p.Decide(t.Context(), onlyResolve{reg}, host+"/"+image)
		if !slices.Equal(asked, want.asked) || strings.Join(v.Hints, "\n") != want.hint {
			t.Errorf("%s: asked for %q, hints %q", image, asked, v.Hints)
		}
	}
	reg.resolve = func(_, ref string) error {
		if ref == "1" {
			return errors.New("broken")
		}
		return nil
	}
	if v := p.Decide(t.Context(), onlyResolve{reg}, host+"/app:1"+absent); !v.Allowed || len(v.Hints) > 0 {
		t.Errorf("a tag that cannot be looked up: %+v", v)
	}
}

func TestADecisionCarriesTheVerdicts(t *testing.T) {
	w, seen := newWebhook(t, admission.PolicyOptions{})
	reviewPod(t, w, podOf(host+"/app:1", "nginx", "nginx"))
	vs := (*seen)[0].Verdicts
	if len(vs) != 2 || vs[0].Reason != admission.Held || vs[1].Reason != admission.NotAllowed {
		t.Errorf("%+v", vs)
	}
}

// TestAnIncompleteImageHasAHint: a local image may consist of foreign layers alone, and the verdict did not say so; of
// an image that an index names, it said that a platform was missing.
func TestAnIncompleteImageHasAHint(t *testing.T) {
	r := newRegistry(t, held)
	long := strings.Repeat("long/", 20) + "name"
	for _, repo := range []string{"app", long} {
		err := r.Update(t.Context(), repo, func(tx *storage.Tx) error {
			m := storage.Manifest{Digest: digest.FromString("image"),
				MediaType: "application/vnd.oci.image.manifest.v1+json",
				Refs:      []digest.Digest{digest.FromString("foreign")}}
			sparse := storage.Manifest{Digest: digest.FromString("index"),
				Refs:      []digest.Digest{m.Digest, digest.FromString("arm")},
				MediaType: "application/vnd.oci.image.index.v1+json"}
			index := storage.Manifest{Digest: digest.FromString("an index"), Refs: []digest.Digest{m.Digest},
				MediaType: "application/vnd.oci.image.index.v1+json"}
			return errors.Join(tx.PutManifest(m), tx.SetTag("far", m.Digest), tx.PutManifest(sparse),
				tx.SetTag("sparse", sparse.Digest), tx.PutManifest(index), tx.SetTag("index", index.Digest))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for image, want := range map[string]string{
		host + "/app:far":          "not all of it is here, nodes get the rest from elsewhere: " + host + "/app:far",
		host + "/" + long + ":far": "not all of an image is here, nodes get the rest from elsewhere",
		host + "/app:sparse": "not here for all of its platforms (missing: " + digest.FromString("arm").String()[:19] +
			"): " + host + "/app:sparse; not all of it is here, nodes get the rest from elsewhere: " + host +
			"/app:sparse",
		host + "/app:index": "not all of it is here, nodes get the rest from elsewhere: " + host + "/app:index",
		host + "/app:1":     "",
	} {
		v := newPolicy(t, admission.PolicyOptions{}).Decide(t.Context(), r, image)
		long := slices.ContainsFunc(v.Hints, func(hint string) bool { return len(hint) > 120 })
		if got := strings.Join(v.Hints, "; "); !v.Allowed || got != want || long {
			t.Errorf("%s: %v, hints %q, want %q", image, v.Allowed, got, want)
		}
	}
}
