package cluster

import "github.com/prometheus/client_golang/prometheus"

var (
	enforcing = prometheus.NewDesc("trow_webhook_enforcing",
		"1 if no pod starts without the approval of the webhook, else 0.", nil, nil)
	proven = prometheus.NewDesc("trow_webhook_proven",
		"1 if the API server has shown that it reaches the webhook, else 0; of several replicas only the leader has "+
			"it.",
		nil, nil)
	restoredTotal = prometheus.NewDesc("trow_webhook_restored_total",
		"How often changes of other clients in the webhook configuration were put back.", nil, nil)
	riskNow = prometheus.NewDesc("trow_webhook_risk",
		"1 if there is this risk, else 0: contested, deadlock, lease, namespace, provisioner, rights, unproven; "+
			"of several replicas the one that leads looks for them.",
		[]string{"risk"}, nil)
)

var nodes = prometheus.NewDesc("trow_nodes_unable",
	"Nodes whose container runtime does not find the registry by its name, as far as trow node has reported.", nil, nil)

// Describe implements prometheus.Collector.
func (c *Cluster) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{enforcing, proven, restoredTotal, riskNow, nodes} {
		to <- d
	}
}

// Collect implements prometheus.Collector. Outside a cluster there is no metric.
func (c *Cluster) Collect(to chan<- prometheus.Metric) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	gauge := func(d *prometheus.Desc, is bool, labels ...string) {
		value := 0.0
		if is {
			value = 1
		}
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	// While another client undoes what this process writes, the API server may have something else.
	gauge(enforcing, c.state.Mode == Enforce && c.risks[riskContested] == "")
	if !c.follows { // the others do not ask the API server
		gauge(proven, c.notes[noteProven] != "")
	}
	to <- prometheus.MustNewConstMetric(restoredTotal, prometheus.CounterValue, float64(c.drift.restores))
	to <- prometheus.MustNewConstMetric(nodes, prometheus.GaugeValue, float64(len(c.nodes)))
	for _, r := range risks {
		gauge(riskNow, c.risks[r] != "", r)
	}
}
