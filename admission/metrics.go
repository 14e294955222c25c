package admission

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// The outcomes of a review, as metrics, the log and audit annotations name them.
const (
	OutcomeAllowed = "allowed"
	OutcomeWarned  = "warned" // allowed, although an image is not
	OutcomeDenied  = "denied"
	OutcomeSkipped = "skipped" // allowed without a look at its images
	OutcomeError   = "error"   // no answer
)

// Outcome returns what became of the review, one of the constants above.
func (d *Decision) Outcome() string {
	switch {
	case d.Err != nil:
		return OutcomeError
	case !d.Allowed:
		return OutcomeDenied
	case d.Skipped != "":
		return OutcomeSkipped
	case len(d.Denied) > 0:
		return OutcomeWarned
	}
	return OutcomeAllowed
}

// log writes the line of the review.
func (d *Decision) log(log zerolog.Logger) {
	line := log.Debug()
	if d.Err != nil {
		line = log.Error().Err(d.Err)
	}
	line.Str("verdict", d.Outcome()).Str("kind", d.Kind).Str("namespace", d.Namespace).Str("name", d.Name).
		Str("operation", d.Operation).Str("user", d.User).Str("uid", d.UID).Bool("dryRun", d.DryRun).
		Strs("denied", d.Denied).Strs("images", d.Images)
	if len(d.Fetching) > 0 {
		line.Strs("fetching", d.Fetching)
	}
	line.Msg("admission")
}

// Metrics counts reviews, and the images that they have had fetched. It is a prometheus.Collector, and safe for
// concurrent use.
type Metrics struct {
	*prometheus.CounterVec
	fetches *prometheus.CounterVec
}

// NewMetrics returns metrics in which all counts are 0: a series that appears with the first denial would hide it from
// rate().
func NewMetrics() *Metrics {
	m := &Metrics{CounterVec: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "trow_admission_reviews_total",
		Help: "Admission reviews answered, by verdict: allowed, warned (allowed, although an image is not), denied, " +
			"skipped (no image was checked), error.",
	}, []string{"verdict"}), fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "trow_admission_fetches_total",
		Help: "Images of new pods fetched ahead of the pull (may-run: fetch), by outcome: done, failed, dropped (too " +
			"many under way; the pull fetches it).",
	}, []string{"outcome"})}
	for _, outcome := range []string{fetchDone, fetchFailed, fetchDropped} {
		m.fetches.WithLabelValues(outcome)
	}
	for _, outcome := range []string{OutcomeAllowed, OutcomeWarned, OutcomeDenied, OutcomeSkipped, OutcomeError} {
		m.WithLabelValues(outcome)
	}
	return m
}

// Observe counts a review.
func (m *Metrics) Observe(d Decision) { m.WithLabelValues(d.Outcome()).Inc() }

// fetched counts an image. m may be nil.
func (m *Metrics) fetched(outcome string) {
	if m != nil {
		m.fetches.WithLabelValues(outcome).Inc()
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(to chan<- *prometheus.Desc) {
	m.CounterVec.Describe(to)
	m.fetches.Describe(to)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(to chan<- prometheus.Metric) {
	m.CounterVec.Collect(to)
	m.fetches.Collect(to)
}
