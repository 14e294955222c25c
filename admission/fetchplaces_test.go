package admission_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/rs/zerolog"

	"trow/admission"
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
