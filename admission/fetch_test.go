package admission_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"trow/admission"
	"trow/registry/upstream"
	"trow/storage"
)

// fetching is a registry whose fetches a test ends.
type fetching struct {
	*mirrored
	mu    sync.Mutex
	asked []string // repo and ref
	ctx   context.Context
	end   chan error
}

func (f *fetching) Fetch(ctx context.Context, repo, ref string) error {
	f.mu.Lock()
	f.asked, f.ctx = append(f.asked, repo+" "+ref), ctx
	f.mu.Unlock()
	err := <-f.end
	if err == nil && strings.HasSuffix(ref, "panic") {
		panic("a bug")
	}
	return err
}

func (f *fetching) fetched() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.Sort(f.asked)
	return f.asked
}

// ahead returns a webhook over a registry that has one image, and in which fetches wait.
func ahead(t *testing.T, callers *admission.Callers) (*admission.Webhook, *fetching, *admission.Metrics,
	*[]admission.Decision) {
	f := &fetching{mirrored: newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: upstream.MayRunFetch},
		upstream.Entry{Host: "quay.io", MayRun: upstream.MayRunHeld}), end: make(chan error)}
	var seen []admission.Decision
	m := admission.NewMetrics()
	reads := func(*http.Request) (bool, func(string) bool) { return true, nil }
	return newHook(admission.Options{Images: f, Policy: newPolicy(t, admission.PolicyOptions{}), Metrics: m,
		Hints:   admission.NewHints(admission.CallersOptions{}, callers, reads),
		Observe: func(_ context.Context, d admission.Decision) { seen = append(seen, d) }}), f, m, &seen
}

// TestWhatIsFetchedAhead: the images of a pod that is created, for the API server alone.
func TestWhatIsFetchedAhead(t *testing.T) {
	whole := digestOf("whole")
	for _, tt := range []struct {
		name    string
		callers *admission.Callers
		change  object
		pod     object
		want    []string
	}{
		{"a pod", &admission.Callers{}, nil, podOf("nginx:1", "nginx:1", host+"/f/docker.io/library/redis:2",
			"docker.io/a/b@"+aDigest), []string{"f/docker.io/a/b " + aDigest, "f/docker.io/library/nginx 1",
			"f/docker.io/library/redis 2"}},
		{"what is held", &admission.Callers{}, nil, podOf("held@"+whole, "held:1"),
			[]string{"f/docker.io/library/held 1"}}, // the tag may have moved
		{"a caller that is not known", nil, nil, podOf("nginx:1"), nil},
		{"a dry run", &admission.Callers{}, object{"dryRun": true}, podOf("nginx:1"), nil},
		{"an update", &admission.Callers{}, object{"operation": "UPDATE", "oldObject": podOf("nginx:1")},
			podOf("nginx:1", "redis"), []string{"f/docker.io/library/redis latest"}},
		{"a deletion", &admission.Callers{}, object{"operation": "DELETE", "oldObject": podOf("nginx:1")}, podOf(),
			nil},
		{"a pod that is denied for another image", &admission.Callers{}, nil, podOf("nginx:1", "ghcr.io/a"), nil},
		{"held", &admission.Callers{}, nil, podOf("quay.io/a"), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, f, _, seen := ahead(t, tt.callers)
				f.hold("f/docker.io/library/held", "1", "whole", true, true)
				r := answer(t, w, reviewOf(t, "", "Pod", tt.pod, tt.change))
				synctest.Wait() // the verdict is here, and the fetches have not ended
				if got := f.fetched(); !slices.Equal(got, tt.want) {
					t.Errorf("fetched %q, want %q", got, tt.want)
				}
				if n := len((*seen)[0].Fetching); n != len(tt.want) ||
					(r.AuditAnnotations["fetching"] != "") != (len(tt.want) > 0) {
					t.Errorf("%d images in the decision; %v", n, r.AuditAnnotations)
				}
				close(f.end)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w, f, _, _ := ahead(t, &admission.Callers{})
		answer(t, w, reviewOf(t, "apps", "Deployment", object{"spec": object{"template": podOf("nginx:1")}}, nil))
		reviewPod(t, w, podOf("nginx:1")) // trow check asks so
		synctest.Wait()
		if got := f.fetched(); len(got) > 0 {
			t.Errorf("for a template, or without a caller: %q", got)
		}
	})
}

// using is a registry that notes which images are about to be pulled.
type using struct {
	*mirrored
	used []string
}

func (u *using) Used(repo string, m storage.Descriptor) {
	u.used = append(u.used, repo+" "+m.Digest().String())
}

// TestAVerdictCountsAsAUse: of what may run as held, for a pod that will be created.
func TestAVerdictCountsAsAUse(t *testing.T) {
	u := &using{mirrored: newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: upstream.MayRunFetch},
		upstream.Entry{Host: "quay.io", MayRun: upstream.MayRunHeld},
		upstream.Entry{Host: "ghcr.io", MayRun: upstream.MayRunDeny})}
	held := u.hold("f/quay.io/a", "1", "a", true, true)
	u.hold("f/quay.io/part", "1", "part", true, false)
	u.hold("f/ghcr.io/a", "1", "b", true, true)
	fetched := u.hold("f/docker.io/library/nginx", "1", "nginx", true, true)
	a, nginx := "f/quay.io/a "+held.String(), "f/docker.io/library/nginx "+fetched.String()
	w := newHook(admission.Options{Images: u, Policy: newPolicy(t, admission.PolicyOptions{})})
	deployment := object{"spec": object{"template": podOf("quay.io/a:1")}}
	for _, tt := range []struct {
		name, group, kind string
		of                object
		change            object
		want              []string
	}{
		{"a pod", "", "Pod", podOf("quay.io/a:1", "nginx:1", "nginx:2", "quay.io/a@"+held.String()), nil,
			[]string{a, nginx, a}},
		{"a dry run", "", "Pod", podOf("quay.io/a:1"), object{"dryRun": true}, nil},
		{"a template", "apps", "Deployment", deployment, nil, nil},
		{"a pod that is denied", "", "Pod", podOf("quay.io/a:1", "quay.io/part:1"), nil, nil},
		{"deny", "", "Pod", podOf("ghcr.io/a:1"), nil, nil},
	} {
		u.used = nil
		if answer(t, w, reviewOf(t, tt.group, tt.kind, tt.of, tt.change)); !slices.Equal(u.used, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, u.used, tt.want)
		}
	}
}

// TestFetchesAreBounded for each namespace and in all, and ends are noted.
func TestFetchesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f, m, seen := ahead(t, &admission.Callers{})
		create := func(namespace string, images ...string) int {
			ends := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { // as a server ends requests
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				w.ServeHTTP(rw, r.WithContext(ctx))
			})
			answer(t, ends, reviewOf(t, "", "Pod", podOf(images...), object{"namespace": namespace}))
			synctest.Wait()
			return len((*seen)[len(*seen)-1].Fetching)
		}
		images := func(prefix string, n int) (all []string) {
			for i := range n {
				all = append(all, fmt.Sprintf("%s%d:panic", prefix, i))
			}
			return all
		}
		if n := create("a", images("a", 6)...); n != 4 {
			t.Errorf("%d at once for one namespace", n)
		}
		if n := create("b", images("a", 1)...); n != 1 || len(f.fetched()) != 4 {
			t.Errorf("%d, and %d fetches: what is under way is fetched once", n, len(f.fetched()))
		}
		for i := range 10 {
			create(fmt.Sprint("n", i), images(fmt.Sprintf("n%d-", i), 4)...)
		}
		if got := len(f.fetched()); got != 32 {
			t.Errorf("%d at once in all", got)
		}
		if f.ctx.Err() != nil {
			t.Error("a fetch ends with the review")
		}
		for range 31 {
			f.end <- errors.New("the upstream is down")
		}
		f.end <- nil // panics
		synctest.Wait()
		create("a", images("a", 4)...)
		if got := len(f.fetched()); got != 36 {
			t.Errorf("%d in all: places are not given back", got)
		}
		create("a", "redis")
		close(f.end)
		synctest.Wait()
		create("a", "redis")
		synctest.Wait()
		text, err := testutil.CollectAndFormat(m, expfmt.TypeTextPlain, "trow_admission_fetches_total")
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{`{outcome="done"} 1`, `{outcome="failed"} 36`, `{outcome="dropped"} 15`} {
			if !strings.Contains(string(text), "trow_admission_fetches_total"+line) {
				t.Errorf("lacks %s:\n%s", line, text)
			}
		}
	})
}
