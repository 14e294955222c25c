package upstream

import "github.com/prometheus/client_golang/prometheus"

// The metrics of endpoints. The label upstream is host or host/path, as in the settings. Hosts that no setting names
// are left out: clients choose them, and each would be a time series.
var (
	endpointLabels = []string{"upstream", "endpoint"}
	rateLimit      = prometheus.NewDesc("trow_upstream_ratelimit_limit",
		"How many manifests the endpoint gives within its window, as it last said.", endpointLabels, nil)
	rateRemaining = prometheus.NewDesc("trow_upstream_ratelimit_remaining",
		"How many of them are left, as it last said.", endpointLabels, nil)
	endpointUp = prometheus.NewDesc("trow_upstream_up",
		"1 unless the endpoint is left alone because it has not answered several times in a row.", endpointLabels, nil)
)

// Describe implements prometheus.Collector.
func (u *Upstreams) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{rateLimit, rateRemaining, endpointUp} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (u *Upstreams) Collect(ch chan<- prometheus.Metric) {
	for _, up := range *u.now.Load() {
		name := up.Host
		if up.Path != "" {
			name += "/" + up.Path
		}
		seen := map[string]bool{} // an endpoint of one host with two logins: the first one counts
		for _, e := range up.endpoints {
			if seen[e.host] {
				continue
			}
			seen[e.host] = true
			gauge := func(d *prometheus.Desc, v float64) {
				ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, name, e.host)
			}
			if r := e.lastRate(); !r.At.IsZero() {
				gauge(rateLimit, float64(r.Limit))
				gauge(rateRemaining, float64(r.Remaining))
			}
			if e.breaker.open() {
				gauge(endpointUp, 0)
			} else {
				gauge(endpointUp, 1)
			}
		}
	}
}
