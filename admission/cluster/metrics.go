package cluster

import "github.com/prometheus/client_golang/prometheus"

var enforcing = prometheus.NewDesc("trow_webhook_enforcing",
	"1 if no pod starts without the approval of the webhook, else 0.", nil, nil)

var nodes = prometheus.NewDesc("trow_nodes_unable",
	"Nodes whose container runtime does not find the registry by its name, as far as trow node has reported.", nil, nil)

// Describe implements prometheus.Collector.
func (c *Cluster) Describe(to chan<- *prometheus.Desc) {
	to <- enforcing
	to <- nodes
}

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
	to <- prometheus.MustNewConstMetric(nodes, prometheus.GaugeValue, float64(len(c.unable())))
}
