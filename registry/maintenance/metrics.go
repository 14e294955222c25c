package maintenance

import (
	"math"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"trow/storage"
)

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

var (
	repositories = gauge("trow_index_repositories", "Repositories that hold anything.")
	manifests    = gauge("trow_index_manifests", "Manifests, counted in each repository.")
	tags         = gauge("trow_index_tags", "Tags.")
	blobs        = gauge("trow_index_blobs", "Blobs, counted in each repository that holds them.")
	quarantined  = gauge("trow_index_quarantined",
		"Contents whose bytes were found damaged or missing, and that no client has pushed again.")
	sizeBytes    = gauge("trow_storage_size_bytes", "Size of the file system with the data.")
	freeBytes    = gauge("trow_storage_free_bytes", "Free space of the file system with the data.")
	reserveBytes = gauge("trow_storage_reserve_bytes", "Space that uploads leave free: below, they are refused.")
	readOnly     = gauge("trow_storage_read_only", "1 if the server writes nothing to the data directory, else 0.")
	uploadsOpen  = gauge("trow_uploads_open", "Uploads that are open.")
	quotaUsed    = gauge("trow_quota_used_bytes", "Bytes that the repositories of a quota hold.", "quota")
	indexBytes   = gauge("trow_index_bytes", "Memory that the index takes, as estimated; max-index limits it.")
	quotaBytes   = gauge("trow_quota_bytes", "Bytes that the repositories of a quota may hold.", "quota")
	journalAge   = gauge("trow_journal_age_seconds",
		"Time since the index was known to show all that the journal has; only for a journal that several servers "+
			"share.")
	circuitOpen = gauge("trow_blobs_circuit_open",
		"1 while requests for content fail at once because the service does not answer, else 0; only for blobs in a "+
			"service.")
	collectorRests = gauge("trow_gc_suspended",
		"1 while the collector waits for an administrator, see trow gc --all, else 0; only for blobs in a service.")
	scrubRests = gauge("trow_scrub_suspended", "1 while the scrub waits for an administrator, else 0.")
	pending    = gauge("trow_retention_pending",
		"Tags and manifests that retention has reported and will remove in its next run.")
)

// Describe implements prometheus.Collector.
func (d *Data) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{repositories, manifests, tags, blobs, quarantined,
		sizeBytes, freeBytes, reserveBytes, uploadsOpen, quotaUsed, quotaBytes, pending, indexBytes,
		readOnly, journalAge, circuitOpen, collectorRests, scrubRests} {
		to <- desc
	}
	d.collected.Describe(to)
	d.freed.Describe(to)
}

// Collect implements prometheus.Collector.
func (d *Data) Collect(to chan<- prometheus.Metric) {
	send := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	var stats storage.Stats // zero until the index is loaded
	var memory int64
	if l := d.loaded.Load(); l != nil {
		memory = l.index.Load().Bytes
		stats = l.index.Stats()
		for i, u := range l.index.Quotas() {
			number := strconv.Itoa(i + 1) // as in the setting; names would be labels without a bound
			send(quotaUsed, float64(u.Used), number)
			send(quotaBytes, float64(u.Bytes), number)
		}
	}
	send(repositories, float64(stats.Repos))
	send(manifests, float64(stats.Manifests))
	send(tags, float64(stats.Tags))
	send(blobs, float64(stats.Links))
	send(quarantined, float64(stats.Quarantined))

	d.sendEngines(send)
	send(indexBytes, float64(memory))
	send(pending, float64(d.hold.pendingNow()))
	writable, _ := d.ReadOnlyCheck()
	send(readOnly, map[bool]float64{false: 1}[writable])
	d.collected.Collect(to)
	d.freed.Collect(to)
}

// sendEngines sends what the engines have.
func (d *Data) sendEngines(send func(*prometheus.Desc, float64, ...string)) {
	one := func(yes bool) float64 { return map[bool]float64{true: 1}[yes] }
	b := d.Blobs()
	if b, ok := b.(spacious); ok {
		size, free, reserve := math.NaN(), math.NaN(), math.NaN()
		if space, err := b.Space(); err == nil {
			size, free, reserve = float64(space.Size), float64(space.Free), float64(space.Reserve)
		}
		send(sizeBytes, size)
		send(freeBytes, free)
		send(reserveBytes, reserve)
	}
	if b, ok := b.(interface{ Uploads() int }); ok {
		send(uploadsOpen, float64(b.Uploads()))
	}
	if b, ok := b.(answering); ok {
		send(circuitOpen, one(b.Answering() != nil))
	}
	if _, ok := b.(storage.Placed); ok {
		send(collectorRests, one(d.collectionRests() != ""))
	}
	if index := d.shared(); index != nil {
		send(journalAge, time.Since(index.Confirmed()).Seconds())
	}
	send(scrubRests, one(d.suspicions.scrub.Load() != nil))
}
