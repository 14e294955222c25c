package admission_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"trow/admission"
)

// TestWhoGetsHintsWithTags asks for images that are not held, of a repository that has tags and of one that has none.
func TestWhoGetsHintsWithTags(t *testing.T) {
	all := func(*http.Request) (bool, func(string) bool) { return false, nil }
	none := func(*http.Request) (bool, func(string) bool) { return false, func(string) bool { return false } }
	login := func(*http.Request) (bool, func(string) bool) {
		return true, func(repo string) bool { return repo == "app" }
	}
	stranger := func(*http.Request) (bool, func(string) bool) { return true, func(string) bool { return false } }
	const needLogin, off = "set validate-token-file", "setting validate-hints is off"
	certified := &admission.Callers{}
	for _, tt := range []struct {
		name    string
		mode    string
		callers *admission.Callers
		reads   func(*http.Request) (bool, func(string) bool)
		want    string // in the warnings, instead of the tags
	}{
		{"anybody may pull", "", nil, all, ""},
		{"pulling needs a login", "", nil, none, needLogin},
		{"pulling needs a login, and there is one", "", nil, login, ""},
		{"a login that may not pull this", "", nil, stranger, needLogin},
		{"the API server alone may call", "", certified, nil, ""},
		{"anybody may pull, but a login is wanted", "authenticated", nil, all, needLogin},
		{"a login is wanted, and there is one", "authenticated", nil, login, ""},
		{"everybody", "all", nil, nil, ""},
		{"nobody", "off", certified, nil, off},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hints := admission.NewHints(admission.CallersOptions{Hints: tt.mode}, tt.callers, tt.reads)
			w := newHook(admission.Options{Images: newRegistry(t, held), Hints: hints,
				Policy: newPolicy(t, admission.PolicyOptions{})})
			for _, image := range []string{"app:9", "app:1@sha256:" + hex64, "none:1"} {
				if tt.reads != nil && image == "none:1" && tt.want == "" {
					continue
				}
				r := answer(t, w, reviewOf(t, "", "Pod", podOf(host+"/"+image), nil))
				text := strings.Join(r.Warnings, "\n")
				if got := strings.Contains(text, "tags of app here") ||
					strings.Contains(text, "is here as"); r.Allowed ||
					got != (tt.want == "" && image != "none:1") || !strings.Contains(text, tt.want) ||
					tt.want != "" && len(r.Warnings) == 0 {
					t.Errorf("%s: %q", image, r.Warnings)
				}
				if strings.Contains(r.AuditAnnotations["images"], "@sha256:") != strings.HasSuffix(image, hex64) {
					t.Errorf("%s: annotation %q", image, r.AuditAnnotations["images"])
				}
				if !strings.HasSuffix(image, hex64) && !strings.Contains(text, "docker push") {
					t.Errorf("%s: a hint without tags is left out: %q", image, r.Warnings)
				}
			}
			// The digest of an image that is allowed is as good as a hint.
			var got admission.Decision
			w = newHook(admission.Options{Images: newRegistry(t, held), Hints: hints,
				Policy:  newPolicy(t, admission.PolicyOptions{}),
				Observe: func(_ context.Context, d admission.Decision) { got = d }})
			r := answer(t, w, reviewOf(t, "", "Pod", podOf(host+"/app:1"), nil))
			named := tt.want == "" || tt.callers != nil
			if text := r.AuditAnnotations["images"]; !r.Allowed || !strings.HasPrefix(text, host+"/app:1") ||
				strings.Contains(text, "@sha256:") != named {
				t.Errorf("annotation %q", text)
			}
			if len(got.Images) != 1 || !strings.Contains(got.Images[0], "@sha256:") {
				t.Errorf("the log has %q", got.Images)
			}
		})
	}
	for mode, ok := range map[string]bool{"": true, "all": true, "off": true, "authenticated": true, "none": false} {
		if err := (&admission.CallersOptions{Hints: mode}).Validate(); (err == nil) != ok ||
			err != nil && !strings.Contains(err.Error(), "validate-hints: ") {
			t.Errorf("%q: %v", mode, err)
		}
	}
}

// TestALoginIsCheckedOnlyWhereItMatters: checking a password is dear, and most answers name no tag and no digest that
// the request does not have.
func TestALoginIsCheckedOnlyWhereItMatters(t *testing.T) {
	for image, want := range map[string]int{
		"nginx": 0, "NGINX": 0, host + "/app@" + digestOf("app one"): 0, host + "/app:1": 1, host + "/app:9": 1,
	} {
		asked := 0
		hints := admission.NewHints(admission.CallersOptions{}, nil, func(*http.Request) (bool, func(string) bool) {
			asked++
			return false, func(string) bool { return false }
		})
		w := newHook(admission.Options{Images: newRegistry(t, held), Hints: hints,
			Policy: newPolicy(t, admission.PolicyOptions{})})
		answer(t, w, reviewOf(t, "", "Pod", podOf(image, image), nil))
		if asked != want {
			t.Errorf("%s: asked %d times, want %d", image, asked, want)
		}
	}
}
