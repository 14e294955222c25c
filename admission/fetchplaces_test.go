package admission_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"trow/admission"
	"trow/registry/upstream"
)

// TestAnEndGivesBackOnePlace of those that a namespace has, and not all of them.
func TestAnEndGivesBackOnePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f, _, _ := ahead(t, &admission.Callers{})
		for round := range 3 {
			var images []string
			for i := range 6 {
				images = append(images, fmt.Sprintf("a%d:%d", i, round))
			}
			answer(t, w, reviewOf(t, "", "Pod", podOf(images...), nil))
			synctest.Wait()
			if got := len(f.fetched()); got != 4+round {
				t.Fatalf("%d fetches, of which %d ended: want 4 at once", got, round)
			}
			f.end <- nil
			synctest.Wait()
		}
		close(f.end)
	})
}

// TestTheListOfWhatIsFetchedIsBounded: a pod may name one image in many ways, each of which is under way.
func TestTheListOfWhatIsFetchedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f, _, seen := ahead(t, &admission.Callers{})
		name := strings.Repeat("a", 255-len("docker.io/:@"+aDigest)-128)
		for _, n := range []int{1, 16, 17, 18, 200} {
			var images []string
			for i := range n {
				images = append(images, fmt.Sprintf("docker.io/%s:%0128d@%s", name, i, aDigest)) // and a space: 256
			}
			r := answer(t, w, reviewOf(t, "", "Pod", podOf(images...), nil))
			synctest.Wait()
			want := images
			if n > 16 {
				want = append(images[:16:16], fmt.Sprintf("and %d more", n-16))
			}
			text := strings.Join(want, " ")
			if got := (*seen)[len(*seen)-1].Fetching; !r.Allowed || !slices.Equal(got, want) ||
				r.AuditAnnotations["fetching"] != text || len(f.fetched()) != 1 {
				t.Errorf("%d images: %d in the decision, %d bytes in the annotation, want %d, %d: %v", n, len(got),
					len(r.AuditAnnotations["fetching"]), len(want), len(text), r.Result)
			}
		}
		close(f.end)
	})
}

// hanging is a registry whose upstream never answers.
type hanging struct {
	*mirrored
	begun atomic.Int32
}

func (h *hanging) Fetch(ctx context.Context, _, _ string) error {
	h.begun.Add(1)
	<-ctx.Done()
	return context.Cause(ctx)
}

// TestAFetchThatHangsGivesBackItsPlace after a quarter of an hour.
func TestAFetchThatHangsGivesBackItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hanging{mirrored: newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: upstream.MayRunFetch})}
		w := newHook(admission.Options{Images: h, Policy: newPolicy(t, admission.PolicyOptions{}),
			Hints: admission.NewHints(admission.CallersOptions{}, &admission.Callers{}, nil)})
		for _, tt := range []struct {
			wait time.Duration
			want int32
		}{{0, 4}, {15*time.Minute - 1, 4}, {1, 8}} {
			time.Sleep(tt.wait) // of the clock of synctest
			synctest.Wait()
			answer(t, w, reviewOf(t, "", "Pod", podOf("a", "b", "c", "d", "e"), nil))
			answer(t, w, reviewOf(t, "", "Pod", podOf("e", "f", "g", "h", "i"), nil))
			synctest.Wait()
			if got := h.begun.Load(); got != tt.want {
				t.Errorf("%s later: %d begun, want %d", tt.wait, got, tt.want)
			}
		}
		time.Sleep(15 * time.Minute)
	})
}

// TestTheLogSaysWhatIsFetched, and says nothing of it in other lines.
func TestTheLogSaysWhatIsFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		_, f, _, _ := ahead(t, nil)
		w := newHook(admission.Options{Images: f, Policy: newPolicy(t, admission.PolicyOptions{}),
			Log: zerolog.New(&log), Hints: admission.NewHints(admission.CallersOptions{}, &admission.Callers{}, nil),
			Observe: func(context.Context, admission.Decision) {}})
		for image, want := range map[string]any{"nginx:1": []any{"nginx:1"}, "quay.io/a:1": nil} {
			log.Reset()
			answer(t, w, reviewOf(t, "", "Pod", podOf(image), nil))
			var line map[string]any
			if err := json.Unmarshal(log.Bytes(), &line); err != nil {
				t.Fatal(err)
			}
			got, named := line["fetching"]
			if fmt.Sprint(got) != fmt.Sprint(want) || named != (want != nil) {
				t.Errorf("%s: %s", image, &log)
			}
		}
		synctest.Wait()
		close(f.end)
	})
}
