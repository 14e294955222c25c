package server_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"trow/registry/server"
)

// another returns a client with its own connections.
func (r *running) another(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// wantCount waits until the metrics have these values. They change a moment after the client has its answer.
func wantCount(t *testing.T, reg *prometheus.Registry, want map[string]float64) {
	t.Helper()
	got := map[string]float64{}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range all {
			if _, ok := want[family.GetName()]; ok {
				got[family.GetName()] = family.Metric[0].GetGauge().GetValue() + family.Metric[0].GetCounter().
					GetValue()
			}
		}
		if maps.Equal(got, want) {
			return
		}
	}
	t.Errorf("the metrics are %v, want %v", got, want)
}

// gate is a handler that answers at once, except for /v2/slow, which it answers when it is opened.
type gate struct {
	arrived chan struct{}
	open    chan struct{}
}

func newGate() *gate { return &gate{arrived: make(chan struct{}, 100), open: make(chan struct{})} }

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/slow" {
		g.arrived <- struct{}{}
		<-g.open
	}
	fmt.Fprint(w, "ok")
}

func get(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Errorf("GET %s: %v", url, err)
		return &http.Response{Header: http.Header{}}, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("GET %s: %v", url, err)
	}
	return resp, string(b)
}

// TestIdleConnectionsMakeRoom: any number of clients that keep their connections are served with a few.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		reg := prometheus.NewRegistry()
		s := start(t, m, server.Options{Handler: newGate(), MaxConnections: 3, Registerer: reg})
		var clients []*http.Client
		for range 10 {
			c := s.another(t)
			clients = append(clients, c)
			if resp, text := get(t, c, s.url+"/v2/"); resp.StatusCode != 200 || text != "ok" {
				t.Errorf("%d %s", resp.StatusCode, text)
			}
		}
		wantCount(t, reg, map[string]float64{"trow_http_connections": 3, "trow_http_connections_evicted_total": 7,
			"trow_http_connections_refused_total": 0})
		for _, c := range clients { // those whose connection was closed connect again
			if resp, _ := get(t, c, s.url+"/v2/"); resp.StatusCode != 200 {
				t.Error(resp.StatusCode)
			}
		}
	})
}

// TestARequestOnAConnectionThatGaveWayHasNoEffect: an idle connection gives way while the server reads a request on it.
// The client gets no answer, so the request must not be served: the client sends it again.
func TestARequestOnAConnectionThatGaveWayHasNoEffect(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		var served atomic.Int32
		h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" {
				served.Add(1)
			}
		})
		var request chan struct{} // closed when the headers of the next request were read
		goOn := make(chan struct{})
		s := start(t, m, server.Options{Handler: h, MaxConnections: 1}, func(s *server.Server) {
			s.BeforeActive(func(net.Conn) {
				if at := request; at != nil {
					request = nil
					close(at)
					<-goOn
				}
			})
		})
		c := s.another(t)
		get(t, c, s.url+"/v2/")
		arrived, failed := make(chan struct{}), make(chan error, 1)
		request = arrived
		go func() {
			resp, err := c.Post(s.url+"/v2/", "", strings.NewReader("x"))
			if err == nil {
				resp.Body.Close()
			}
			failed <- err
		}()
		<-arrived
		get(t, s.another(t), s.url+"/v2/")
		close(goOn)
		if err := <-failed; err == nil {
			t.Error("the connection did not give way")
		}
		resp, err := c.Post(s.url+"/v2/", "", strings.NewReader("x"))
		for end := time.Now().Add(10 * time.Second); err == nil && resp.StatusCode == 503 && time.Now().Before(end); {
			resp.Body.Close() // the other connection has its answer, and is not idle yet
			resp, err = c.Post(s.url+"/v2/", "", strings.NewReader("x"))
		}
		if err != nil || resp.StatusCode != 200 || served.Load() != 1 {
			t.Errorf("the second try: %v, %v, %d served", resp, err, served.Load())
		}
	})
}

// TestBusyConnectionsStay: when all are busy, further requests get a 503 in the form of the specification, vital paths
// are answered, and the busy connections are not disturbed.
func TestBusyConnectionsStay(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		g, reg := newGate(), prometheus.NewRegistry()
		s := start(t, m, server.Options{Handler: g, MaxConnections: 3, Registerer: reg, Vital: []string{"/validate"}})
		var busy sync.WaitGroup
		for range 3 {
			c := s.another(t)
			busy.Go(func() {
				if resp, text := get(t, c, s.url+"/v2/slow"); resp.StatusCode != 200 || text != "ok" {
					t.Errorf("a busy one: %d %q", resp.StatusCode, text)
				}
			})
			<-g.arrived
		}
		late := s.another(t)
		for range 5 {
			resp, text := get(t, late, s.url+"/v2/")
			if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" ||
				!strings.Contains(text, `"code":"TOOMANYREQUESTS"`) ||
				resp.Header.Get("Content-Type") != "application/json" {
				t.Errorf("one over the limit: %d %v %s", resp.StatusCode, resp.Header, text)
			}
			if resp, text := get(t, late, s.url+"/other"); resp.StatusCode != 503 || strings.Contains(text, "{") ||
				resp.Header.Get("Retry-After") != "1" {
				t.Errorf("another path: %d %s", resp.StatusCode, text)
			}
			for _, path := range []string{"/validate", "/readyz", "/metrics"} {
				if resp, text := get(t, late, s.url+path); resp.StatusCode != 200 || text != "ok" {
					t.Errorf("%s: %d %s", path, resp.StatusCode, text)
				}
			}
		}
		wantCount(t, reg, map[string]float64{"trow_http_connections": 3, "trow_http_connections_refused_total": 25})
		close(g.open)
		busy.Wait()
		wantCount(t, reg, map[string]float64{"trow_http_connections": 3})
		if resp, text := get(t, late, s.url+"/v2/"); resp.StatusCode != 200 || text != "ok" {
			t.Errorf("when there is room again: %d %s", resp.StatusCode, text)
		}
		for _, line := range s.log.all(t) {
			if line["level"] == "error" || line["level"] == "warn" && line["message"] == "request" {
				t.Errorf("the log: %v", line)
			}
		}
	})
}

// TestAFloodOfConnections: of a thousand silent connections no more stay open than the limit; the others gave way.
func TestAFloodOfConnections(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		g, reg := newGate(), prometheus.NewRegistry()
		s := start(t, m, server.Options{Handler: g, MaxConnections: 5, Registerer: reg})
		closed := make(chan struct{}, 1000)
		for range 1000 {
			c, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				_, _ = c.Read(make([]byte, 1))
				closed <- struct{}{}
			}()
		}
		for range 1000 - 5 {
			select {
			case <-closed:
			case <-time.After(30 * time.Second):
				t.Fatal("too many stay open")
			}
		}
		wantCount(t, reg, map[string]float64{"trow_http_connections": 5,
			"trow_http_connections_evicted_total": 1000 - 5,
			"trow_http_connections_refused_total": 0})
	})
}
