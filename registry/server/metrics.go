package server

import (
	"errors"
	"maps"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// other is the value of a label for everything outside of a known set.
const other = "other"

// maxRoutes bounds the number of routes, in case a handler annotates with something that clients choose. The program
// has about a dozen routes.
const maxRoutes = 64

// buckets are those of the duration in seconds: for a cached manifest, a file, a push of a manifest with its fsyncs,
// layers.
var buckets = []float64{.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5, 30, 120, 600}

type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	received prometheus.Counter
	sent     prometheus.Counter
	inFlight prometheus.Gauge

	connections      prometheus.Gauge
	refused, evicted prometheus.Counter

	// series are those in use. The map is replaced as a whole when one is added, so that it can be read without a lock.
	// A look-up in the vectors would cost three times as much.
	series atomic.Pointer[map[seriesKey]series]

	mu     sync.Mutex          // guards routes, and adding to series
	routes map[string]struct{} // those seen so far, at most maxRoutes
}

type seriesKey struct {
	method, route string
	status        int
}

type series struct {
	requests prometheus.Counter
	duration prometheus.Observer
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trow_http_requests_total", Help: "Requests answered.",
		}, []string{"method", "route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "trow_http_request_duration_seconds",
			Help:    "Time from the headers of a request to the end of its answer.",
			Buckets: buckets,
		}, []string{"method", "route"}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trow_http_request_bytes_total", Help: "Bytes of request bodies received.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trow_http_response_bytes_total", Help: "Bytes of response bodies sent.",
		}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "trow_http_requests_in_flight", Help: "Requests being answered.",
		}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "trow_http_connections", Help: "Open connections.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trow_http_connections_refused_total", Help: "Connections refused because all others were busy.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trow_http_connections_evicted_total",
			Help: "Connections without a request closed to make room for others.",
		}),
		routes: map[string]struct{}{},
	}
	m.series.Store(&map[seriesKey]series{})
	if r == nil {
		return m, nil
	}
	var err error
	for _, c := range []prometheus.Collector{m.requests, m.duration, m.received, m.sent, m.inFlight, m.connections,
		m.refused, m.evicted} {
		err = errors.Join(err, r.Register(c))
	}
	return m, err
}

// count adds one finished request.
func (m *metrics) count(method, route string, status int, in, out int64, took time.Duration) {
	s := m.of(method, route, status)
	s.requests.Inc()
	s.duration.Observe(took.Seconds())
	m.received.Add(float64(in))
	m.sent.Add(float64(out))
}

// of returns the series of a request. Its labels come from bounded sets (invariant 4).
func (m *metrics) of(method, route string, status int) series {
	key := seriesKey{knownMethod(method), route, status}
	if key.route == "" {
		key.route = other
	}
	if s, ok := (*m.series.Load())[key]; ok {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.add(key)
}

// add makes a series, or finds the one for unknown values. The caller holds mu.
func (m *metrics) add(key seriesKey) series {
	key.route = m.knownRoute(key.route)
	code := other
	if 100 <= key.status && key.status <= 599 {
		code = strconv.Itoa(key.status)
	}
	s := series{
		requests: m.requests.WithLabelValues(key.method, key.route, code),
		duration: m.duration.WithLabelValues(key.method, key.route),
	}
	if code != other { // unknown statuses must not grow the map
		all := maps.Clone(*m.series.Load())
		all[key] = s
		m.series.Store(&all)
	}
	return s
}

// knownMethod returns the method, or other if it is not a method of HTTP that clients use.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodOptions:
		return method
	}
	return other
}

// knownRoute returns the route if it is one of the first maxRoutes that are words, else other. The caller holds mu.
func (m *metrics) knownRoute(route string) string {
	if !isWord(route) {
		return other
	}
	if _, ok := m.routes[route]; !ok {
		if len(m.routes) == maxRoutes {
			return other
		}
		m.routes[route] = struct{}{}
	}
	return route
}

// isWord reports whether s is one to 32 lower-case letters, with - or _ between them.
func isWord(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || 'z' < c) && c != '-' && c != '_' {
			return false
		}
	}
	return 0 < len(s) && len(s) <= 32
}
