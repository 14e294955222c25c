package bench_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"trow/registry"
	"trow/registry/auth"
	"trow/registry/auth/authtest"
	"trow/registry/bench"
	front "trow/registry/server"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// handler returns a registry in memory, with a webhook that allows everything.
func handler(t *testing.T) http.Handler {
	t.Helper()
	index := storagetest.OpenIndex(t, memory.NewJournal())
	guard := authtest.New(t, auth.Options{Loopback: true})
	mux := http.NewServeMux()
	mux.Handle("/v2/", registry.New(registry.Options{Blobs: memory.NewBlobs(), Index: index, Auth: guard,
		Bodies: front.NewBodies(1 << 30), Annotate: func(context.Context, string, string) {},
		RequestID: func(context.Context) string { return "" }}))
	mux.HandleFunc("POST /validate", func(w http.ResponseWriter, r *http.Request) {
		var review struct {
			Request struct {
				UID    string
				Object struct {
					Spec struct{ Containers []struct{ Image string } }
				}
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil ||
			len(review.Request.Object.Spec.Containers) != 3 {
			http.Error(w, "not a review", http.StatusBadRequest)
			return
		}
		for _, c := range review.Request.Object.Spec.Containers {
			if !strings.HasPrefix(c.Image, r.Host+"/bench:t0000") {
				http.Error(w, c.Image, http.StatusBadRequest)
			}
		}
		fmt.Fprintf(w, `{"response":{"uid":%q,"allowed":true}}`, review.Request.UID)
	})
	return mux
}

// options returns options for a short run with little content.
func options(url string) bench.Options {
	o := bench.Default()
	o.URL, o.Duration, o.Connections, o.Scale = url, 5*time.Millisecond, []int{1, 3}, bench.Scale{Tags: 210, Repos: 105}
	return bench.WithLarge(o, 512<<10)
}

func plain(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func secure(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func caOf(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// complete fails unless each of the scenarios was measured with each number of connections, without an error.
func complete(t *testing.T, r *bench.Report, err error, scenarios []string, connections []int) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, x := range r.Results {
		got = append(got, fmt.Sprint(x.Scenario, x.Connections))
		few := x.Operations < int64(x.Connections) && x.Scenario != "manifest-delete" || x.Operations == 0
		if few || x.Errors != 0 || x.FirstError != "" {
			t.Errorf("%s, %d: %d operations, %d errors: %s", x.Scenario, x.Connections, x.Operations, x.Errors,
				x.FirstError)
		}
		if x.P50 <= 0 || x.P99 < x.P50 || x.Worst < x.P99 || x.Seconds <= 0 || x.OpsPerSecond <= 0 {
			t.Errorf("%+v", x)
		}
	}
	for _, s := range scenarios {
		for _, n := range connections {
			want = append(want, fmt.Sprint(s, n))
		}
	}
	if !slices.Equal(got, want) || len(r.Skipped) > 0 {
		t.Errorf("%v, skipped %v", got, r.Skipped)
	}
}

func TestEveryScenarioRuns(t *testing.T) {
	h := handler(t)
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			s := secure(t, h)
			o := options(s.URL)
			o.CA, o.Protocol = caOf(s), protocol
			r, err := bench.Run(t.Context(), o)
			complete(t, r, err, bench.Names(), o.Connections)
			for _, x := range r.Results {
				if want := map[string]string{"http/1.1": "HTTP/1.1", "h2": "HTTP/2"}[protocol]; !x.TLS ||
					x.Protocol != want {
					t.Errorf("%s: TLS is %v, the protocol %s", x.Scenario, x.TLS, x.Protocol)
				}
			}
		})
	}
}

func TestPopulatingTwicePushesOnce(t *testing.T) {
	var writes atomic.Int64
	h := handler(t)
	s := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "GET" && r.Method != "HEAD" {
			writes.Add(1)
		}
		h.ServeHTTP(w, r)
	}))
	o := options(s.URL)
	o.PopulateOnly = true
	for _, first := range []bool{true, false} {
		writes.Store(0)
		if _, err := bench.Run(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if n := writes.Load(); first != (n > 0) {
			t.Errorf("%d writes; first time is %v", n, first)
		}
	}
	o.PopulateOnly, o.NoPopulate, o.Scenarios = false, true, []string{"referrers", "catalog"}
	r, err := bench.Run(t.Context(), o)
	complete(t, r, err, []string{"catalog", "referrers"}, o.Connections)
}

// TestStaticFileServer measures the scenarios that only read, and expects the others to be skipped.
func TestStaticFileServer(t *testing.T) {
	dir := t.TempDir()
	o := options("")
	for range 2 {
		if err := bench.WriteStatic(dir, o); err != nil {
			t.Fatal(err)
		}
	}
	files := http.FileServer(http.Dir(dir))
	o.URL = plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "GET" && r.Method != "HEAD" {
			http.Error(w, "read-only", http.StatusMethodNotAllowed)
			return
		}
		files.ServeHTTP(w, r)
	})).URL
	if _, err := bench.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "--static") {
		t.Errorf("populating: %v", err)
	}
	o.NoPopulate = true
	r, err := bench.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if skipped := r.Skipped; len(skipped) != 9 {
		t.Errorf("skipped %v", skipped)
	}
	r.Skipped = nil
	complete(t, r, err, bench.Names()[:6], o.Connections)
}

func TestWrongContentIsAnError(t *testing.T) {
	dir := t.TempDir()
	o := options(plain(t, http.FileServer(http.Dir(dir))).URL)
	if err := bench.WriteStatic(dir, o); err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(dir, "v2", "bench", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o.NoPopulate, o.Connections = true, []int{1}
	for _, name := range []string{"blob-get-64MiB", "blob-get-4KiB", "manifest-get-tag", "manifest-get-digest"} {
		o.Scenarios = []string{name}
		r, err := bench.Run(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if x := r.Results[0]; x.Errors != 1 || !strings.Contains(x.FirstError, "the content does not match sha256:") {
			t.Errorf("%s: %d errors: %s", name, x.Errors, x.FirstError)
		}
	}
}

func TestOnlyErrorsIsAFailure(t *testing.T) {
	s := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			http.Error(w, `{"errors":[{"code":"UNKNOWN","message":"no luck"}]}`, http.StatusInternalServerError)
		}
	}))
	o := options(s.URL)
	o.NoPopulate, o.Scenarios, o.Connections = true, []string{"blob-get-4KiB"}, []int{1}
	r, err := bench.Run(t.Context(), o)
	if !errors.Is(err, bench.ErrFailed) {
		t.Fatal(err)
	}
	x := r.Results[0]
	if x.Operations != 0 || x.Errors == 0 ||
		!strings.HasSuffix(x.FirstError, "500 Internal Server Error: UNKNOWN no luck") {
		t.Errorf("%+v", x)
	}
	var table bytes.Buffer
	err = r.WriteTable(&table)
	if err != nil || !strings.Contains(table.String(), "failed") || !strings.Contains(table.String(), "no luck") {
		t.Errorf("%s %v", table.String(), err)
	}
}

// TestLogin has a registry that wants Basic, and one that wants a token for each repository.
func TestLogin(t *testing.T) {
	inner := handler(t)
	t.Run("Basic", func(t *testing.T) {
		s := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != "ann" || password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			inner.ServeHTTP(w, r)
		}))
		logsIn(t, s.URL)
	})
	t.Run("Bearer", func(t *testing.T) {
		var fetched atomic.Int64
		logsIn(t, plain(t, tokenServer(inner, &fetched)).URL)
		if n := fetched.Load(); n == 0 || n > 200 {
			t.Errorf("%d tokens were requested", n)
		}
	})
}

// tokenServer returns a registry that wants a token whose text has the scope of the request.
func tokenServer(inner http.Handler, fetched *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			if user, password, _ := r.BasicAuth(); user != "ann" || password != "secret" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fetched.Add(1)
			json.NewEncoder(w).Encode(map[string]string{"token": "ok " + strings.Join(r.URL.Query()["scope"], " ")})
			return
		}
		repo, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
		repo, _, _ = strings.Cut(repo, "/manifests/")
		scope := ""
		switch {
		case r.URL.Path == "/v2/":
		case r.Method == "GET" || r.Method == "HEAD":
			scope = "repository:" + repo + ":pull"
		case r.Method == "DELETE":
			scope = "repository:" + repo + ":delete"
		default:
			scope = "repository:" + repo + ":pull,push"
		}
		if !granted(r.Header.Get("Authorization"), scope) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s",scope=%q`,
				r.Host, scope))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	})
}

// granted reports whether a token has all actions of a scope.
func granted(header, scope string) bool {
	token, ok := strings.CutPrefix(header, "Bearer ok")
	if !ok || scope == "" {
		return ok
	}
	i := strings.LastIndexByte(scope, ':')
	for _, have := range strings.Fields(token) {
		if actions, ok := strings.CutPrefix(have, scope[:i+1]); ok {
			return !slices.ContainsFunc(strings.Split(scope[i+1:], ","), func(want string) bool {
				return !slices.Contains(strings.Split(actions, ","), want)
			})
		}
	}
	return false
}

// logsIn measures with the right login, and expects a refusal with a wrong password and without a login.
func logsIn(t *testing.T, url string) {
	t.Helper()
	o := options(url)
	o.User, o.Password, o.Scale.Repos = "ann", "secret", 20
	o.Scenarios, o.Connections = []string{"manifest-get-tag", "image-push-small", "mount", "manifest-delete"}, []int{2}
	r, err := bench.Run(t.Context(), o)
	complete(t, r, err, o.Scenarios, o.Connections)
	for password, want := range map[string]string{
		"wrong": `login refused for user "ann"`,
		"":      "login required; set --user and --password-file",
	} {
		if o.Password = password; password == "" {
			o.User = ""
		}
		_, err := bench.Run(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("with password %q: %v", password, err)
		}
		o.User = "ann"
	}
}

func TestThePasswordIsNotSentWithoutTLS(t *testing.T) {
	s := secure(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/token"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	o := options(s.URL)
	o.User, o.Password, o.Insecure = "ann", "secret", true
	_, err := bench.Run(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "is not https; the password is not sent to it") {
		t.Error(err)
	}
}

func TestErrorsBeforeTheStartHaveARemedy(t *testing.T) {
	tls, gone := secure(t, handler(t)), httptest.NewServer(nil)
	gone.Close()
	http1 := plain(t, handler(t))
	tests := map[string]struct {
		change func(*bench.Options)
		want   string
	}{
		"no server": {func(o *bench.Options) { o.URL = gone.URL },
			gone.URL + ": connection refused; check the port, and that the server is running"},
		"an unknown CA": {func(o *bench.Options) { o.URL = tls.URL }, "give the CA with --cacert"},
		"another name": {func(o *bench.Options) {
			o.URL, o.CA = strings.Replace(tls.URL, "127.0.0.1", "localhost", 1), caOf(tls)
		}, "is not valid for this name"},
		"no TLS": {func(o *bench.Options) { o.URL = strings.Replace(http1.URL, "http", "https", 1) },
			"use http:// instead"},
		"no HTTP/2":  {func(o *bench.Options) { o.URL, o.Protocol = http1.URL, "h2" }, "HTTP/2"},
		"no address": {func(o *bench.Options) { o.URL = "localhost:5000" }, "want for example https://localhost:8443"},
		"a path":     {func(o *bench.Options) { o.URL = http1.URL + "/v2/x" }, "scheme, host and port only"},
		"no process": {func(o *bench.Options) { o.URL, o.PID = http1.URL, 1<<30 }, "no process"},
		"no scenario": {func(o *bench.Options) { o.Scenarios = []string{"x"} },
			`unknown scenario "x"; see trow bench --list`},
		"no connection": {func(o *bench.Options) { o.Connections = []int{0} }, "connections: want numbers from 1"},
		"a repository":  {func(o *bench.Options) { o.Repository = "a/../b" }, "is not a valid repository name"},
		"a line break":  {func(o *bench.Options) { o.Repository = "a\r\nX: y" }, "is not a valid repository name"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o := options(http1.URL)
			test.change(&o)
			_, err := bench.Run(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestTheServersProcessIsMeasured(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("this system has no /proc")
	}
	o := options(plain(t, handler(t)).URL)
	o.PID, o.Scenarios, o.Connections = os.Getpid(), []string{"manifest-head-tag"}, []int{2}
	o.Duration = 200 * time.Millisecond
	r, err := bench.Run(t.Context(), o)
	complete(t, r, err, o.Scenarios, o.Connections)
	x := r.Results[0]
	if x.ServerCPU == nil || *x.ServerCPU <= 0 || x.ServerRSS == nil || *x.ServerRSS < 1<<20 ||
		*x.ServerPeak < *x.ServerRSS/2 || x.GeneratorCPU <= 0 {
		t.Errorf("%+v", x)
	}
}

func TestCleanDeletesAllManifests(t *testing.T) {
	s := plain(t, handler(t))
	o := options(s.URL)
	o.Scenarios = []string{"catalog", "referrers", "image-push-small", "blob-get-4KiB"}
	r, err := bench.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	want := int64(1 + 100 + 100 + o.Scale.Repos) // and what was pushed, including the warm-up
	for _, x := range r.Results {
		if x.Scenario == "image-push-small" {
			want += x.Operations
		}
	}
	n, err := bench.Clean(t.Context(), o)
	if err != nil || int64(n) < want+4 {
		t.Errorf("deleted %d, want at least %d: %v", n, want+4, err)
	}
	if n, err = bench.Clean(t.Context(), o); err != nil || n != 0 {
		t.Errorf("deleted %d the second time: %v", n, err)
	}
}

func TestReportRoundTrip(t *testing.T) {
	o := options(plain(t, handler(t)).URL)
	o.Scenarios = []string{"blob-head-missing"}
	r, err := bench.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	path := filepath.Join(t.TempDir(), "r.json")
	if err := errors.Join(r.WriteJSON(&b), os.WriteFile(path, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	back, err := bench.ReadReport(path)
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := back.WriteJSON(&again); err != nil || again.String() != b.String() || len(back.Results) != 2 {
		t.Errorf("got\n%s\nwant\n%s", again.String(), b.String())
	}
	if !reflect.DeepEqual(keysOf(t, b.Bytes()), strings.Fields("bytes bytes_per_second connections errors first_error "+
		"generator_bound generator_cpu_us_per_op operations ops_per_second p50_us p99_us protocol scenario seconds "+
		"server_cpu_us_per_op server_peak_bytes server_rss_bytes tls worst_us")) {
		t.Errorf("the fields are %v", keysOf(t, b.Bytes()))
	}
}

// keysOf returns the names of the fields of a result.
func keysOf(t *testing.T, b []byte) (keys []string) {
	t.Helper()
	var report struct{ Results []map[string]any }
	if err := json.Unmarshal(b, &report); err != nil {
		t.Fatal(err)
	}
	for k := range report.Results[0] {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func TestReportsAreCompared(t *testing.T) {
	cpu := func(v float64) *float64 { return &v }
	a := &bench.Report{Results: []bench.Result{
		{Scenario: "catalog", Connections: 1, Operations: 9, OpsPerSecond: 3000, P99: 250, ServerCPU: cpu(40)},
		{Scenario: "catalog", Connections: 8, Operations: 9, OpsPerSecond: 9000, P99: 1250, ServerCPU: cpu(30),
			GeneratorBound: true},
		{Scenario: "mount", Connections: 1, Operations: 9, OpsPerSecond: 7},
		{Scenario: "referrers", Connections: 1, Operations: 9, OpsPerSecond: 7},
	}}
	b := &bench.Report{Results: []bench.Result{
		{Scenario: "catalog", Connections: 8, Operations: 9, OpsPerSecond: 3000, P99: 2500, ServerCPU: cpu(120)},
		{Scenario: "catalog", Connections: 1, Operations: 9, OpsPerSecond: 1000, P99: 500},
		{Scenario: "mount", Connections: 1, Errors: 3},
	}}
	var out bytes.Buffer
	if err := bench.Compare(&out, []string{"a", "b"}, []*bench.Report{a, b}); err != nil {
		t.Fatal(err)
	}
	want := `  scenario  at once  against  ops/s  ratio    p99  ratio  server CPU/op  ratio
   catalog        1        b   3000   3.00  250µs   0.50         40.0µs      -
   catalog        8        b  *9000   3.00  1.2ms   0.50         30.0µs   0.25

Ratios are those of a to the other; more ops/s, less time and less CPU are better. * the generator was the limit
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	if err := bench.Compare(&out, []string{"a"}, []*bench.Report{a}); err == nil {
		t.Error("one report was compared")
	}
}
