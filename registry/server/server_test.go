package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"trow/registry/server"
)

// lines is a log that a test reads.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// all returns the lines so far, decoded.
func (l *lines) all(t *testing.T) (out []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for d := json.NewDecoder(bytes.NewReader(l.b.Bytes())); d.More(); {
		var line map[string]any
		if err := d.Decode(&line); err != nil {
			t.Fatalf("the log: %v in %s", err, l.b.Bytes())
		}
		out = append(out, line)
	}
	return out
}

// request waits for the line of a request, which is written after the client has its answer.
func (l *lines) request(t *testing.T) map[string]any {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for _, line := range l.all(t) {
			if line["message"] == "request" {
				return line
			}
		}
	}
	t.Fatal("no line for the request")
	return nil
}

// mode is a way to reach the server.
type mode struct {
	name string
	tls  bool
}

var modes = []mode{{"plain", false}, {"TLS", true}}

// each runs a test over every mode at the same time.
func each(t *testing.T, f func(t *testing.T, m mode)) {
	t.Parallel()
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			f(t, m)
		})
	}
}

// running is a server on loopback.
type running struct {
	url    string
	addr   string
	client *http.Client
	log    *lines
	server *server.Server
}

// start starts a server. Each of before is called before it serves.
func start(t *testing.T, m mode, o server.Options, before ...func(*server.Server)) *running {
	t.Helper()
	r := &running{log: &lines{}}
	o.Log = zerolog.New(r.log)
	scheme := "http"
	if m.tls {
		scheme, o.TLSConfig = "https", server.LocalTLS()
	}
	s, l := server.NewLocal(t, o)
	for _, f := range before {
		f(s)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, DisableCompression: true,
		ExpectContinueTimeout: time.Minute,
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		s.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	r.server, r.addr, r.client = s, l.Addr().String(), &http.Client{Transport: transport}
	r.url = scheme + "://" + r.addr
	return r
}

func (r *running) do(t *testing.T, method, path string, body io.Reader) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, r.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// bigFile returns a sparse file of n bytes.
func bigFile(t *testing.T, n int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(n); err != nil {
		t.Fatal(err)
	}
	return f
}

func serveFile(f *os.File, err *error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		info, _ := f.Stat()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", fmt.Sprint(info.Size()))
		_, *err = io.CopyN(w, f, info.Size())
		if *err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// large is more bytes than the socket buffers of both sides hold.
const large = 48 << 20

func TestAStalledReaderIsCut(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		var err error
		f := bigFile(t, large)
		s := start(t, m, server.Options{StallTimeout: 200 * time.Millisecond, Handler: serveFile(f, &err)})
		resp, e := s.client.Get(s.url + "/v2/")
		if e != nil {
			t.Fatal(e)
		}
		defer resp.Body.Close()
		line := s.log.request(t) // the client reads nothing
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the handler got %v", err)
		}
		if line["level"] != "info" || line["err"] != "stalled for 200ms" {
			t.Errorf("line %v", line)
		}
		if n, e := io.Copy(io.Discard, resp.Body); e == nil || n == large {
			t.Errorf("the client got %d bytes and %v", n, e)
		}
	})
}

// TestASlowReaderIsNotCut: a step of sendfile takes longer than its deadline, and the whole answer longer than
// StallTimeout.
func TestASlowReaderIsNotCut(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		err := errors.New("not called")
		f := bigFile(t, large)
		s := start(t, m, server.Options{StallTimeout: 2 * time.Second, Handler: serveFile(f, &err)})
		resp, e := s.client.Get(s.url + "/v2/")
		if e != nil {
			t.Fatal(e)
		}
		defer resp.Body.Close()
		var n int64
		for range 45 { // a step of 4 MiB takes 1.6 s, and the deadline within it is 1 s
			time.Sleep(100 * time.Millisecond)
			m, e := io.CopyN(io.Discard, resp.Body, 256<<10)
			if n += m; e != nil {
				t.Fatalf("cut after %d bytes: %v", n, e)
			}
		}
		rest, e := io.Copy(io.Discard, resp.Body)
		if n+rest != large || e != nil {
			t.Errorf("got %d bytes, %v", n+rest, e)
		}
		line := s.log.request(t)
		if err != nil || line["bytes"] != float64(large) || line["err"] != nil {
			t.Errorf("the handler got %v, line %v", err, line)
		}
	})
}

// drip is a body of n bytes that are read one by one. After them it returns the error of end.
type drip struct {
	n     int
	pause time.Duration
	end   func() error
}

func (d *drip) Read(p []byte) (int, error) {
	if d.n == 0 {
		return 0, d.end()
	}
	d.n--
	time.Sleep(d.pause)
	p[0] = 'x'
	return 1, nil
}

func TestAStalledUploadIsCut(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		var err error
		handler := func(w http.ResponseWriter, r *http.Request) {
			_, err = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusBadRequest)
		}
		s := start(t, m, server.Options{StallTimeout: 200 * time.Millisecond, Handler: http.HandlerFunc(handler)})
		done := make(chan struct{})
		body := &drip{n: 3, end: func() error { <-done; return io.ErrUnexpectedEOF }}
		go func() {
			if resp, err := s.client.Post(s.url+"/v2/", "", io.NopCloser(body)); err == nil {
				resp.Body.Close()
			}
		}()
		defer close(done)
		line := s.log.request(t)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the handler got %v", err)
		}
		if line["level"] != "info" || line["err"] != "stalled for 200ms" || line["bytes"] != 3.0 {
			t.Errorf("line %v", line)
		}
	})
}

func TestASlowUploadIsNotCut(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		handler := func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			fmt.Fprint(w, string(b), err)
		}
		s := start(t, m, server.Options{StallTimeout: 300 * time.Millisecond, Handler: http.HandlerFunc(handler)})
		body := &drip{n: 20, pause: 50 * time.Millisecond, end: func() error { return io.EOF }}
		if _, got := s.do(t, "PUT", "/v2/", io.NopCloser(body)); got != strings.Repeat("x", 20)+"<nil>" {
			t.Errorf("got %q", got)
		}
	})
}

// TestAHandlerMayTakeItsTime: between two reads, after the body, between two writes. Only the time in which the server
// waits for the client counts.
func TestAHandlerMayTakeItsTime(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		const stall = 50 * time.Millisecond
		work := func() { time.Sleep(4 * stall) }
		s := start(t, m, stalling(stall, func(w http.ResponseWriter, r *http.Request) {
			io.ReadFull(r.Body, make([]byte, 2))
			work()
			n, err := io.Copy(io.Discard, r.Body)
			work()
			fmt.Fprint(w, n, err, r.Context().Err(), strings.Repeat(".", 3<<10))
			w.(http.Flusher).Flush()
			work()
			fmt.Fprint(w, r.Context().Err())
		}))
		_, got := s.do(t, "PUT", "/v2/", strings.NewReader("four"))
		if want := "2 <nil> <nil>" + strings.Repeat(".", 3<<10) + "<nil>"; got != want {
			t.Errorf("got %q", strings.ReplaceAll(got, ".", ""))
		}
	})
}

// TestAnUnreadBodyDoesNotCutTheAnswer: net/http reads the rest of a body before the answer, and then watches the
// connection.
func TestAnUnreadBodyDoesNotCutTheAnswer(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		const stall = 50 * time.Millisecond
		s := start(t, m, stalling(stall, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/close" {
				r.Body.Close()
			}
			fmt.Fprint(w, strings.Repeat(".", 5<<10))
			time.Sleep(4 * stall)
			fmt.Fprint(w, r.Context().Err())
		}))
		for _, path := range []string{"/", "/close", "/"} {
			if _, got := s.do(t, "PUT", path, strings.NewReader("body")); got != strings.Repeat(".", 5<<10)+"<nil>" {
				t.Errorf("%s: got %q", path, strings.Trim(got, "."))
			}
		}
	})
}

func TestAnIdleConnectionOutlivesTheStallTimeout(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		const stall = 50 * time.Millisecond
		s := start(t, m, stalling(stall, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/read" {
				io.Copy(io.Discard, r.Body)
			}
			w.Header().Set("Remote", r.RemoteAddr)
			w.Write(make([]byte, 100<<10))
		}))
		first, _ := s.do(t, "PUT", "/read", strings.NewReader("body"))
		for _, path := range []string{"/read", "/unread", "/read"} {
			time.Sleep(4 * stall)
			next, _ := s.do(t, "PUT", path, strings.NewReader("body"))
			if next.Header.Get("Remote") != first.Header.Get("Remote") {
				t.Errorf("%s: another connection", path)
			}
		}
	})
}

// stalling returns the options of a server with a short stall timeout.
func stalling(timeout time.Duration, h http.HandlerFunc) server.Options {
	return server.Options{StallTimeout: timeout, Handler: h}
}

func TestContinueIsSentWhenTheHandlerReads(t *testing.T) {
	s := start(t, mode{}, server.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/read" {
			io.Copy(w, r.Body)
		} else {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})})
	for path, want := range map[string]string{"/read": "HTTP/1.1 100 Continue",
		"/refuse": "HTTP/1.1 401 Unauthorized"} {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n", path)
		r := bufio.NewReader(c)
		if got, _ := r.ReadString('\n'); strings.TrimSpace(got) != want {
			t.Errorf("%s: %q", path, got)
		}
	}
}

func TestPanics(t *testing.T) {
	panics := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"a"`)
		w.Header().Set("Content-Length", "100000")
		if strings.HasSuffix(r.URL.Path, "/late") {
			w.WriteHeader(http.StatusOK)
			w.Write(make([]byte, 10000))
		}
		if strings.HasSuffix(r.URL.Path, "/abort") {
			panic(http.ErrAbortHandler)
		}
		panic("boom")
	}
	for _, c := range []struct{ name, path, body, typ string }{
		{"under /v2 the answer is an OCI error", "/v2/x/blobs/",
			`^{"errors":\[{"code":"UNKNOWN","message":"internal error, request ([0-9a-z]{12})"}\]}$`,
			"application/json"},
		{"elsewhere it is plain text", "/validate",
			"^internal error, request ([0-9a-z]{12})\n$", "text/plain; charset=utf-8"},
		{"an answer that was started is cut", "/v2/late", "", ""},
		{"an intended cut is not an error", "/v2/abort", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			each(t, func(t *testing.T, m mode) {
				s := start(t, m, server.Options{Handler: http.HandlerFunc(panics)})
				resp, err := s.client.Get(s.url + c.path)
				var body []byte
				if err == nil {
					body, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				line := s.log.request(t)
				if c.name == "an intended cut is not an error" {
					if err == nil || line["level"] != "info" || line["stack"] != nil || line["status"] != 499.0 {
						t.Errorf("%v, line %v", err, line)
					}
					return
				}
				if line["level"] != "error" || line["err"] != "panic: boom" ||
					!strings.Contains(line["stack"].(string), "server_test.go") {
					t.Errorf("line %v", line)
				}
				if n := len(s.log.all(t)); n != 1 {
					t.Errorf("%d lines", n)
				}
				if c.body == "" {
					if err == nil {
						t.Error("the connection was not cut")
					}
					return
				}
				match := regexp.MustCompile(c.body).FindSubmatch(body)
				if err != nil || resp.StatusCode != 500 || match == nil || string(match[1]) != line["req"] ||
					resp.Header.Get("X-Request-Id") != line["req"] {
					t.Errorf("%v, %v %q, line %v", err, resp, body, line)
				}
				if resp.Header.Get("Content-Type") != c.typ || resp.Header.Get("ETag") != "" {
					t.Errorf("header %v", resp.Header)
				}
			})
		})
	}
}

func TestTheLine(t *testing.T) {
	long := strings.Repeat("é", 400)
	for _, c := range []struct {
		name, path string
		handler    http.HandlerFunc
		want       map[string]any // a nil value: the field must not be there
	}{
		{"has the fixed fields", "/v2/app/manifests/1?token=secret", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "hello")
		},
			map[string]any{"level": "info", "method": "GET", "path": "/v2/app/manifests/1", "status": 200.0,
				"bytes": 5.0,
				"err":   nil, "user": nil}},
		{"has what the handler adds", "/", func(w http.ResponseWriter, r *http.Request) {
			server.Annotate(r.Context(), "repo", "wrong")
			server.Annotate(r.Context(), "repo", "app")
			server.Annotate(r.Context(), "user", "")
			server.Annotate(r.Context(), "route", "manifest")
			server.Annotate(r.Context(), "err", long)
			for i := range 100 {
				server.Annotate(r.Context(), fmt.Sprint("key", i), "x")
			}
			w.WriteHeader(http.StatusNotFound)
		}, map[string]any{"level": "info", "status": 404.0, "repo": "app", "user": nil, "route": nil,
			"err": long[:512] + "…", "key99": nil}},
		{"of a failure is an error", "/v2/", func(w http.ResponseWriter, r *http.Request) {
			server.Annotate(r.Context(), "err", "disk on fire")
			w.WriteHeader(http.StatusInternalServerError)
			w.WriteHeader(http.StatusOK)
		}, map[string]any{"level": "error", "status": 500.0, "err": "disk on fire"}},
		{"of an answer that the handler aborted is a warning", "/v2/", func(w http.ResponseWriter, r *http.Request) {
			server.Annotate(r.Context(), "err", "disk on fire")
			w.Write(make([]byte, 1<<10))
			panic(http.ErrAbortHandler)
		}, map[string]any{"level": "warn", "status": 200.0, "err": "disk on fire"}},
		{"of a probe is debug", "/readyz", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) },
			map[string]any{"level": "debug", "status": 503.0}},
		{"has the status of the answer, not of what came before", "/", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusAccepted)
		}, map[string]any{"status": 202.0}},
		{"is bounded", "/" + strings.Repeat("a", 4000), func(w http.ResponseWriter, r *http.Request) {},
			map[string]any{"path": "/" + strings.Repeat("a", 511) + "…", "status": 200.0, "bytes": 0.0}},
		{"does not report a mistake of the handler as the client's", "/", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusNotModified)
			io.WriteString(w, "no body is allowed")
		}, map[string]any{"status": 304.0, "err": nil}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, mode{}, server.Options{Handler: c.handler})
			req, _ := http.NewRequest("GET", s.url+c.path, nil)
			req.Header.Set("Authorization", "Bearer secret")
			req.Header.Set("X-Request-Id", "secret")
			if resp, err := s.client.Do(req); err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			line := s.log.request(t)
			for key, want := range c.want {
				if line[key] != want {
					t.Errorf("%s is %v, want %v", key, line[key], want)
				}
			}
			if strings.Contains(s.log.b.String(), "secret") {
				t.Errorf("a secret in %s", s.log.b.String())
			}
			if dur, ok := line["dur"].(float64); !ok || dur <= 0 {
				t.Errorf("dur is %v", line["dur"])
			}
		})
	}
}

func TestAClientThatGoesAwayIsNotAnError(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		entered := make(chan struct{})
		s := start(t, m, server.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			<-r.Context().Done()
			w.WriteHeader(http.StatusInternalServerError)
		})})
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", s.url+"/v2/", nil)
		go func() {
			<-entered
			cancel()
		}()
		if _, err := s.client.Do(req); err == nil {
			t.Fatal("an answer")
		}
		if line := s.log.request(t); line["level"] != "info" || line["err"] != "context canceled" {
			t.Errorf("line %v", line)
		}
	})
}

func TestTheServerMakesTheRequestID(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		s := start(t, m, server.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
			defer cancel()
			io.WriteString(w, server.RequestID(ctx))
		})})
		seen := map[string]bool{}
		for range 3 {
			resp, id := s.do(t, "GET", "/", nil)
			if resp.Header.Get("X-Request-Id") != id || len(id) != 12 || seen[id] {
				t.Errorf("id %q, header %v", id, resp.Header)
			}
			seen[id] = true
		}
	})
	if id := server.RequestID(t.Context()); id != "" {
		t.Errorf("id %q without a request", id)
	}
	server.Annotate(t.Context(), "repo", "without a request")
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		server.Annotate(r.Context(), "route", strings.TrimPrefix(r.URL.Path, "/"))
		io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/abort":
			panic(http.ErrAbortHandler)
		case "/odd":
			w.WriteHeader(799)
		default:
			io.WriteString(w, "12345")
		}
	})
	s, err := server.New(server.Options{Registerer: reg, Handler: handler})
	if err != nil {
		t.Fatal(err)
	}
	do := func(method, path string) {
		defer func() { recover() }()
		s.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, path, strings.NewReader("123")))
	}
	for _, r := range []string{"GET /manifest", "GET /manifest", "BREW /manifest", "HEAD /manifest", "PUT /abort",
		"GET /odd", "GET /", "GET /Not-A-Word"} {
		method, path, _ := strings.Cut(r, " ")
		do(method, path)
	}
	want := `
# HELP trow_http_requests_total Requests answered.
# TYPE trow_http_requests_total counter
trow_http_requests_total{code="200",method="GET",route="manifest"} 2
trow_http_requests_total{code="200",method="GET",route="other"} 2
trow_http_requests_total{code="200",method="HEAD",route="manifest"} 1
trow_http_requests_total{code="200",method="other",route="manifest"} 1
trow_http_requests_total{code="499",method="PUT",route="abort"} 1
trow_http_requests_total{code="other",method="GET",route="odd"} 1
# HELP trow_http_request_bytes_total Bytes of request bodies received.
# TYPE trow_http_request_bytes_total counter
trow_http_request_bytes_total 24
# HELP trow_http_response_bytes_total Bytes of response bodies sent.
# TYPE trow_http_response_bytes_total counter
trow_http_response_bytes_total 25
# HELP trow_http_requests_in_flight Requests being answered.
# TYPE trow_http_requests_in_flight gauge
trow_http_requests_in_flight 0
`
	err = testutil.GatherAndCompare(reg, strings.NewReader(want), "trow_http_requests_total",
		"trow_http_request_bytes_total", "trow_http_response_bytes_total", "trow_http_requests_in_flight")
	if err != nil {
		t.Error(err)
	}
	for i := range 500 {
		do("GET", "/"+strings.Repeat(string(rune('a'+i%26)), 1+i/26))
	}
	if n, _ := testutil.GatherAndCount(reg, "trow_http_request_duration_seconds"); n > 70 {
		t.Errorf("%d series", n)
	}
	if _, err := server.New(server.Options{Registerer: reg}); err == nil {
		t.Error("metrics can be registered twice")
	}
}

// recorder is a ResponseWriter of HTTP/1.1 that records how it is written to.
type recorder struct {
	*httptest.ResponseRecorder
	from []string // the sources of ReadFrom
	err  error    // of Write and ReadFrom
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	return r.ResponseRecorder.Write(p)
}

func (r *recorder) ReadFrom(src io.Reader) (int64, error) {
	lr, _ := src.(*io.LimitedReader)
	r.from = append(r.from, fmt.Sprintf("%T of %T, %d", src, lr.R, lr.N))
	if r.err != nil {
		return 0, r.err
	}
	return io.Copy(io.Discard, src)
}

func TestSendfileIsUsedForFiles(t *testing.T) {
	const size = 9 << 20
	step := func(n int) string { return fmt.Sprintf("*io.LimitedReader of *os.File, %d", n) }
	for _, c := range []struct {
		name   string
		change func(r *http.Request, w http.ResponseWriter)
		copy   func(w io.Writer, f *os.File) (int64, error)
		want   []string
		n      int64
	}{
		{"in steps", nil, func(w io.Writer, f *os.File) (int64, error) { return io.CopyN(w, f, size-1) },
			[]string{step(4 << 20), step(4 << 20), step(1<<20 - 1)}, size - 1},
		{"to its end", nil, func(w io.Writer, f *os.File) (int64, error) { return w.(io.ReaderFrom).ReadFrom(f) },
			[]string{step(4 << 20), step(4 << 20), step(4 << 20)}, size},
		{"not for a small one", nil, func(w io.Writer, f *os.File) (int64, error) {
			return io.CopyN(w, f, 1000)
		}, nil, 1000},
		{"not over TLS", func(r *http.Request, w http.ResponseWriter) { r.TLS = &tls.ConnectionState{} },
			func(w io.Writer, f *os.File) (int64, error) { return io.CopyN(w, f, size) }, nil, size},
		{"not without a length", func(r *http.Request, w http.ResponseWriter) { w.Header().Del("Content-Length") },
			func(w io.Writer, f *os.File) (int64, error) { return io.CopyN(w, f, size) }, nil, size},
		{"not for other sources", nil, func(w io.Writer, f *os.File) (int64, error) {
			return io.CopyN(w, io.MultiReader(f), size)
		}, nil, size},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := bigFile(t, size)
			w := &recorder{ResponseRecorder: httptest.NewRecorder()}
			r := httptest.NewRequest("GET", "/", nil)
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Header().Set("Content-Type", "application/octet-stream")
			if c.change != nil {
				c.change(r, w)
			}
			log := &lines{}
			handler := func(w http.ResponseWriter, r *http.Request) {
				if n, err := c.copy(w, f); n != c.n || err != nil {
					t.Errorf("copied %d, %v", n, err)
				}
			}
			s, _ := server.New(server.Options{Log: zerolog.New(log), Handler: http.HandlerFunc(handler)})
			s.Handler().ServeHTTP(w, r)
			if fmt.Sprint(w.from) != fmt.Sprint(c.want) {
				t.Errorf("ReadFrom got\n%q, want\n%q", w.from, c.want)
			}
			if line := log.request(t); line["bytes"] != float64(c.n) {
				t.Errorf("line %v", line)
			}
			if at, _ := f.Seek(0, io.SeekCurrent); at != c.n {
				t.Errorf("the file is at offset %d", at)
			}
		})
	}
}

// slowly is a connection that sends the next number of takes until each deadline, and loses some bytes that it has
// read.
type slowly struct {
	*recorder
	takes []int64
	loses int64
}

func (s *slowly) ReadFrom(src io.Reader) (int64, error) {
	n := s.takes[0]
	s.takes = s.takes[1:]
	io.CopyN(io.Discard, src, n+s.loses)
	return n, os.ErrDeadlineExceeded
}

func TestAnInterruptedStepIsSlowAndNotStalled(t *testing.T) {
	const size = 1 << 20
	for _, c := range []struct {
		name  string
		takes []int64
		loses int64
		want  int64
		err   error
	}{
		{"any byte is progress", []int64{1000, 0, 1, 0, size, 0, 0}, 0, 1001 + size, os.ErrDeadlineExceeded},
		{"nothing twice in a row is a stall", []int64{1000, 0, 0}, 0, 1000, os.ErrDeadlineExceeded},
		{"lost bytes are never skipped", []int64{1000}, 1, 1000, os.ErrDeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := bigFile(t, 3*size)
			w := &slowly{&recorder{ResponseRecorder: httptest.NewRecorder()}, c.takes, c.loses}
			s, _ := server.New(server.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "1")
				w.Header().Set("Content-Type", "x")
				src := &io.LimitedReader{R: f, N: 2 * size}
				n, err := io.Copy(w, src)
				if n != c.want || !errors.Is(err, c.err) || src.N != 2*size-n-c.loses {
					t.Errorf("%d, %v, %d left", n, err, src.N)
				}
			})})
			s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		})
	}
}

func TestErrorsOfWritingReachTheHandler(t *testing.T) {
	gone := errors.New("connection reset")
	f := bigFile(t, 1<<20)
	for name, copy := range map[string]func(w http.ResponseWriter) (int64, error){
		"Write": func(w http.ResponseWriter) (int64, error) {
			n, err := w.Write(make([]byte, 1<<20))
			return int64(n), err
		},
		"sendfile": func(w http.ResponseWriter) (int64, error) {
			w.Header().Set("Content-Length", "1")
			w.Header().Set("Content-Type", "x")
			f.Seek(0, io.SeekStart)
			return io.CopyN(w, f, 1<<20)
		},
		"copy": func(w http.ResponseWriter) (int64, error) {
			return io.Copy(w, io.MultiReader(strings.NewReader("hello")))
		},
	} {
		log := &lines{}
		handler := func(w http.ResponseWriter, r *http.Request) {
			if n, err := copy(w); n != 0 || !errors.Is(err, gone) {
				t.Errorf("%s: %d, %v", name, n, err)
			}
		}
		s, _ := server.New(server.Options{Log: zerolog.New(log), Handler: http.HandlerFunc(handler)})
		w := &recorder{ResponseRecorder: httptest.NewRecorder(), err: gone}
		s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if line := log.request(t); line["err"] != "connection reset" || line["level"] != "info" {
			t.Errorf("%s: line %v", name, line)
		}
	}
}

func TestAnErrorOfTheSourceIsTheHandlers(t *testing.T) {
	log := &lines{}
	handler := func(w http.ResponseWriter, r *http.Request) {
		source := io.MultiReader(strings.NewReader("abc"), &drip{end: func() error { return os.ErrClosed }})
		if n, err := io.Copy(w, source); n != 3 || err != os.ErrClosed {
			t.Errorf("%d, %v", n, err)
		}
	}
	s, _ := server.New(server.Options{Log: zerolog.New(log), Handler: http.HandlerFunc(handler)})
	s.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	if line := log.request(t); line["err"] != nil {
		t.Errorf("line %v", line)
	}
}

func TestTheHeaderIsBounded(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		s := start(t, m, server.Options{Handler: http.NotFoundHandler()})
		for size, want := range map[int]int{32 << 10: 404, 128 << 10: 431} {
			req, _ := http.NewRequest("GET", s.url, nil)
			req.Header.Set("Authorization", strings.Repeat("x", size))
			resp, err := s.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%d bytes: %d", size, resp.StatusCode)
			}
		}
	})
}

func TestGarbageOnConnectionsIsLoggedAtDebug(t *testing.T) {
	s := start(t, modes[1], server.Options{Handler: http.NotFoundHandler()})
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "ssh-2.0-OpenSSH\r\n\r\n")
	io.ReadAll(c)
	got := s.log.all(t)
	if len(got) != 1 || got[0]["level"] != "debug" || got[0]["message"] != "connection" {
		t.Errorf("lines %v", got)
	}
}

// TestPlainHTTPIsRedirectedToTLS for clients that are not on this machine, here behind a proxy, and nothing is served
// in plain. A client that follows arrives at the same path.
func TestPlainHTTPIsRedirectedToTLS(t *testing.T) {
	s := start(t, modes[1], server.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil {
			t.Error("something is served in plain")
		}
		io.WriteString(w, r.URL.String())
	})})
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		req, _ := http.NewRequest(method, "http://"+s.addr+"/v2/a%2Fb/manifests/1?ns=x", nil)
		req.Header.Set("X-Forwarded-For", "10.0.0.7")
		resp, err := s.client.Transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		location, want := resp.Header.Get("Location"), s.url+"/v2/a%2Fb/manifests/1?ns=x"
		if resp.StatusCode != http.StatusTemporaryRedirect || location != want {
			t.Errorf("%s: %s, Location %q, want %q", method, resp.Status, location, want)
		}
	}
	req, _ := http.NewRequest("GET", "http://"+s.addr+"/v2/?a=b", nil)
	req.Header.Set("X-Forwarded-For", "10.0.0.7")
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || string(b) != "/v2/?a=b" {
		t.Errorf("followed: %s %q", resp.Status, b)
	}
	req, _ = http.NewRequest("POST", "http://"+s.addr+"/v2/a/blobs/uploads/", strings.NewReader("x"))
	req.Header.Set("X-Forwarded-For", "10.0.0.7")
	resp, err = s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusBadRequest ||
		!strings.Contains(string(b), "https") {
		t.Errorf("a write: %s %q", resp.Status, b)
	}
}

func TestShutdownWaitsAndThenCuts(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		entered, leave := make(chan struct{}), make(chan struct{})
		s := start(t, m, server.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			select {
			case <-leave:
				io.WriteString(w, "done")
			case <-r.Context().Done():
			}
		})})
		got := make(chan string, 1)
		go func() {
			resp, err := s.client.Get(s.url)
			if err != nil {
				got <- "cut"
				return
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			got <- string(b)
		}()
		<-entered
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		want := "cut"
		if m.tls { // over TLS the request ends in time
			want = "done"
			time.AfterFunc(10*time.Millisecond, func() { close(leave) })
			ctx = t.Context()
		}
		if err := s.server.Shutdown(ctx); (err == nil) != m.tls {
			t.Errorf("Shutdown: %v", err)
		}
		if g := <-got; g != want {
			t.Errorf("got %q, want %q", g, want)
		}
	})
}

func TestServeReportsTheListenersError(t *testing.T) {
	s, _ := server.New(server.Options{Handler: http.NotFoundHandler()})
	l, _ := net.Listen("tcp", "127.0.0.1:0")
	l.Close()
	if err := s.Serve(l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// discard is a ResponseWriter that costs nothing.
type discard struct{ header http.Header }

func (d discard) Header() http.Header                { return d.header }
func (d discard) Write(p []byte) (int, error)        { return len(p), nil }
func (d discard) WriteHeader(int)                    {}
func (d discard) SetWriteDeadline(t time.Time) error { return nil }
func (d discard) SetReadDeadline(t time.Time) error  { return nil }

// BenchmarkAccessLog measures what the access log adds to a request: record, log line, metrics.
func BenchmarkAccessLog(b *testing.B) {
	for name, annotate := range map[string]bool{"bare": false, "annotated": true} {
		b.Run(name, func(b *testing.B) {
			s, _ := server.New(server.Options{
				Log: zerolog.New(io.Discard).With().Timestamp().Logger(), Registerer: prometheus.NewRegistry(),
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if annotate {
						server.Annotate(r.Context(), "route", "manifest")
						server.Annotate(r.Context(), "repo", "library/nginx")
						server.Annotate(r.Context(), "ref", "1.27")
						server.Annotate(r.Context(), "user", "robot")
					}
				}),
			})
			r, w, h := httptest.NewRequest("GET", "/v2/library/nginx/manifests/1.27", nil),
				discard{http.Header{}}, s.Handler()
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(w, r)
			}
		})
	}
}

// BenchmarkTransfer moves 64 MiB in one direction over loopback, with the access log and without.
func BenchmarkTransfer(b *testing.B) {
	const size = 64 << 20
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "PUT" {
			io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 256<<10))
			return
		}
		io.CopyN(w, zeros{}, size)
	})
	logged, _ := server.New(server.Options{Handler: handler})
	for name, h := range map[string]http.Handler{"log": logged.Handler(), "bare": handler} {
		for _, method := range []string{"GET", "PUT"} {
			b.Run(method+"/"+name, func(b *testing.B) {
				s := httptest.NewUnstartedServer(h)
				s.StartTLS()
				defer s.Close()
				b.SetBytes(size)
				for b.Loop() {
					req, _ := http.NewRequest(method, s.URL, io.LimitReader(zeros{}, size))
					if method == "GET" {
						req.Body = nil
					}
					resp, err := s.Client().Do(req)
					if err != nil {
						b.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
