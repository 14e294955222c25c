package cluster

import "github.com/prometheus/client_golang/prometheus"

var enforcing = prometheus.NewDesc("trow_webhook_enforcing",
	"1 if no pod starts without the approval of the webhook, else 0.", nil, nil)

// Describe implements prometheus.Collector.
func (c *Cluster) Describe(to chan<- *prometheus.Desc) { to <- enforcing }

// Collect implements prometheus.Collector. Outside a cluster there is no metric.
func (c *Cluster) Collect(to chan<- prometheus.Metric) {
	if c == nil {
		return
	}
	value := 0.0
	if c.State().Mode == Enforce {
		value = 1
	}
	to <- prometheus.MustNewConstMetric(enforcing, prometheus.GaugeValue, value)
}
