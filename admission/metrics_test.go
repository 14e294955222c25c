package admission_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"trow/admission"
)

func TestMetricsCountEveryOutcomeFromZero(t *testing.T) {
	m, reg := admission.NewMetrics(), prometheus.NewRegistry()
	reg.MustRegister(m)
	counts := func() string {
		families, err := reg.Gather()
		if err != nil || len(families) != 2 || families[0].GetName() != "trow_admission_fetches_total" ||
			families[1].GetName() != "trow_admission_reviews_total" {
			t.Fatal(families, err)
		}
		var b strings.Builder
		for _, series := range append(families[0].GetMetric(), families[1].GetMetric()...) {
			fmt.Fprintf(&b, "%s %v ", series.GetLabel()[0].GetValue(), series.GetCounter().GetValue())
		}
		return b.String()
	}
	const none = "done 0 dropped 0 failed 0 "
	if got := counts(); got != none+"allowed 0 denied 0 error 0 skipped 0 warned 0 " {
		t.Errorf("at first: %s", got)
	}
	for _, d := range []admission.Decision{
		{Allowed: true}, {Allowed: true, Skipped: "x"}, {Allowed: true, Denied: []string{"x"}}, {Denied: []string{"x"}},
		{Err: errors.New("x")}, {Err: errors.New("x")},
	} {
		m.Observe(d)
	}
	if got := counts(); got != none+"allowed 1 denied 1 error 2 skipped 1 warned 1 " {
		t.Errorf("then: %s", got)
	}
}

func TestLoadingIsAFailedCall(t *testing.T) {
	rec := post(admission.Loading, strings.NewReader("{}"))
	if rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") != "1" ||
		!strings.Contains(rec.Body.String(), "loading") {
		t.Errorf("status %d, %v: %s", rec.Code, rec.Header(), rec.Body)
	}
}

// TestOnlyFailedReviewsAreErrorsInTheLog: and each review is counted once.
func TestOnlyFailedReviewsAreErrorsInTheLog(t *testing.T) {
	var log bytes.Buffer
	reg := newRegistry(t, held)
	metrics := admission.NewMetrics()
	w := newHook(admission.Options{Images: reg, Policy: newPolicy(t, admission.PolicyOptions{}), Log: zerolog.New(&log),
		Metrics: metrics})
	for _, tt := range []struct{ image, level, verdict, err string }{
		{host + "/app:1", "debug", "allowed", ""}, {"nginx", "debug", "denied", ""},
		{host + "/app:1", "error", "error", "broken"},
	} {
		log.Reset()
		reg.resolve = func(string, string) error {
			if tt.err != "" {
				return errors.New(tt.err)
			}
			return nil
		}
		post(w, strings.NewReader(reviewOf(t, "", "Pod", podOf(tt.image), nil)))
		var line struct{ Level, Verdict, Error string }
		if err := json.Unmarshal(log.Bytes(), &line); err != nil || line.Level != tt.level ||
			line.Verdict != tt.verdict ||
			!strings.Contains(line.Error, tt.err) || tt.err == "" && line.Error != "" {
			t.Errorf("%s: %s (%v)", tt.image, &log, err)
		}
		if n := testutil.ToFloat64(metrics.WithLabelValues(tt.verdict)); n != 1 {
			t.Errorf("%s: counted %v times as %s", tt.image, n, tt.verdict)
		}
	}
}
