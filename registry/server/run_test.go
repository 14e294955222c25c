package server_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"trow/registry/server"
)

// options returns the settings that args set.
func options(t *testing.T, args ...string) server.Options {
	t.Helper()
	var o server.Options
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestSettings(t *testing.T) {
	for arg, want := range map[string]string{
		"--listen=:1":    "",
		"-l=127.0.0.1:1": "",
		"--max-connections=-1": "max-connections: -1 is too low; want at least 1, or 0 to derive it from the " +
			"memory limit",
		"--max-connections=0":    "",
		"--max-connections=1":    "",
		"--stall-timeout=999ms":  "stall-timeout: 999ms is too short; want at least 1s",
		"--shutdown-delay=-1s":   "shutdown-delay: -1s is not a valid delay; want 0s to 1h",
		"--shutdown-delay=2h":    "shutdown-delay: 2h0m0s is not a valid delay; want 0s to 1h",
		"--shutdown-delay=10s":   "",
		"--log-level=loud":       `log-level: "loud": want error, warn, info or debug`,
		"--log-level=":           `log-level: "": want error, warn, info or debug`,
		"--metrics-login":        "",
		"--debug-listen=nothing": "", // only the attempt to listen shows it
	} {
		o := options(t, arg)
		if got := fmt.Sprint(o.Validate()); got != want && (want != "" || got != "<nil>") {
			t.Errorf("%s: %s, want %q", arg, got, want)
		}
	}
}

func TestTheLoggerHasTheLevelOfTheSetting(t *testing.T) {
	var b strings.Builder
	o := options(t, "--log-level=warn")
	log, err := o.Logger(&b)
	if err != nil {
		t.Fatal(err)
	}
	log.Info().Msg("one")
	log.Warn().Msg("two")
	got := b.String()
	if strings.Contains(got, "one") || !strings.Contains(got, "two") || !strings.Contains(got, `"time"`) {
		t.Errorf("the log is %s", got)
	}
	o = options(t, "--log-level=loud")
	if _, err := o.Logger(&b); err == nil {
		t.Error("an invalid level is accepted")
	}
}

// TestNoLineHasASecretOfARobot, whichever part of the program writes it: people type one where a name belongs, also in
// the image of a pod, and a verdict quotes that.
func TestNoLineHasASecretOfARobot(t *testing.T) {
	var b strings.Builder
	o := options(t, "--log-level=debug")
	log, err := o.Logger(&b)
	if err != nil {
		t.Fatal(err)
	}
	secret := "trow_" + rand.Text() + rand.Text()
	log.Debug().Strs("denied", []string{"Remote image " + secret + "/app disallowed"}).
		Str("ns", strings.ToLower(secret)).Msg("admission")
	log.Error().Err(errors.New(secret)).Msg(secret)
	log.Info().Msg("my_app")
	got := b.String()
	if strings.Contains(strings.ToUpper(got), secret[5:]) || strings.Count(got, "trow_[REDACTED]") != 4 ||
		strings.Count(got, "\n") != 3 || !strings.Contains(got, `"my_app"`) {
		t.Errorf("the log is %s", got)
	}
}

func TestListenersAreOpenedOrNamedInTheError(t *testing.T) {
	l, debug, err := (&server.Options{Listen: "127.0.0.1:0"}).OpenListeners()
	if err != nil || debug != nil {
		t.Fatal(debug, err)
	}
	defer l.Close()
	taken := l.Addr().String()
	for want, o := range map[string]*server.Options{
		"listen: ":       {Listen: taken},
		"debug-listen: ": {Listen: "127.0.0.1:0", DebugListen: taken},
	} {
		if _, _, err := o.OpenListeners(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s…", err, want)
		}
	}
}

func TestLoopback(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "[::ffff:127.0.0.1]:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "localhost:1": true, "": false,
	} {
		if server.Loopback(address) != want {
			t.Errorf("%q: %v", address, !want)
		}
	}
}

func answer(status int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
}

func status(h http.Handler) int {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	return w.Code
}

func TestPendingAnswersThatItIsLoadingUntilItIsSet(t *testing.T) {
	p := server.NewPending(answer(503))
	if p.Ready() || status(p) != 503 {
		t.Errorf("before: ready %v, status %d", p.Ready(), status(p))
	}
	p.Set(answer(204))
	if !p.Ready() || status(p) != 204 {
		t.Errorf("after: ready %v, status %d", p.Ready(), status(p))
	}
}

func TestProbes(t *testing.T) {
	p := new(server.Probes)
	ask := func(path string) (int, string) {
		w := httptest.NewRecorder()
		p.ServeReady(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	full := false
	p.Add(func() (bool, string) { return !full, fmt.Sprintf("space for uploads: %v", !full) })
	p.Add(func() (bool, string) { return true, "" })
	for _, step := range []struct {
		name   string
		do     func()
		status int
		text   string
	}{
		{"loading", func() {}, 503, "[-]index loaded\n[+]not stopping\n[+]space for uploads: true\nnot ready\n"},
		{"ready", func() {
			p.SetReady(true)
		}, 200, "[+]index loaded\n[+]not stopping\n[+]space for uploads: true\nok\n"},
		{"a check that fails does not decide", func() { full = true }, 200,
			"[+]index loaded\n[+]not stopping\n[-]space for uploads: false\nok\n"},
		{"stopping", p.Stop, 503, "[+]index loaded\n[-]not stopping\n[-]space for uploads: false\nnot ready\n"},
	} {
		step.do()
		if status, text := ask("/readyz?verbose"); status != step.status || text != step.text {
			t.Errorf("%s: %d %q, want %d %q", step.name, status, text, step.status, step.text)
		}
		last := step.text[strings.LastIndex(step.text, "]"):]
		if status, text := ask("/readyz"); status != step.status || !strings.HasSuffix(last, "\n"+text) {
			t.Errorf("%s, not verbose: %d %q", step.name, status, text)
		}
		if p.Ready() != (step.status == 200) {
			t.Errorf("%s: Ready is %v", step.name, p.Ready())
		}
	}
	w := httptest.NewRecorder()
	p.ServeHealth(w, httptest.NewRequest("GET", "/healthz", nil))
	if w.Code != 200 || w.Body.String() != "ok\n" {
		t.Errorf("healthz: %d %q", w.Code, w.Body)
	}
}

// waiting is a handler of one request: it closes entered, and answers done when leave is closed.
type waiting struct{ entered, leave chan struct{} }

func newWaiting() waiting { return waiting{make(chan struct{}), make(chan struct{})} }

func (h waiting) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	close(h.entered)
	<-h.leave
	io.WriteString(w, "done")
}

// background sends a request in plain HTTP in the background, and returns the body of the answer, or the error.
func background(l net.Listener) <-chan string {
	got := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			got <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		got <- string(b)
	}()
	return got
}

// TestRunStops: the probes report it first, what is under way ends well, and then Run returns.
func TestRunStops(t *testing.T) {
	log, probes := &lines{}, new(server.Probes)
	probes.SetReady(true)
	h := newWaiting()
	s, err := server.New(server.Options{Log: zerolog.New(log), Probes: probes, Handler: h})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx, l) }()
	got := background(l)
	<-h.entered
	cancel()
	for deadline := time.Now().Add(20 * time.Second); probes.Ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still ready")
		}
	}
	select {
	case err := <-ran:
		t.Fatalf("Run returned while a request was under way: %v", err)
	default:
	}
	close(h.leave)
	if g := <-got; g != "done" {
		t.Errorf("the request under way got %q", g)
	}
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	if all := log.all(t); len(all) == 0 || all[0]["message"] != "stopping" || all[0]["level"] != "info" {
		t.Errorf("the log is %v", all)
	}
}

// TestTheServerGoesOnForTheShutdownDelay: it is not ready at once, which those who choose among replicas see some time
// later. Until then it answers new connections and old ones, each once more.
func TestTheServerGoesOnForTheShutdownDelay(t *testing.T) {
	const delay = 2 * time.Second
	probes := new(server.Probes)
	probes.SetReady(true)
	m := http.NewServeMux()
	m.HandleFunc("/readyz", probes.ServeReady)
	m.HandleFunc("/v2/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "served") })
	s, err := server.New(server.Options{Log: zerolog.Nop(), Probes: probes, Handler: m, ShutdownDelay: delay})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx, l) }()
	old := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer old.CloseIdleConnections()
	get := func(c *http.Client, path string) *http.Response {
		t.Helper()
		resp, err := c.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp
	}
	if resp := get(old, "/v2/"); resp.StatusCode != 200 || resp.Close {
		t.Fatalf("before: %s, close %v", resp.Status, resp.Close)
	}
	asked := time.Now()
	cancel()
	for deadline := time.Now().Add(20 * time.Second); probes.Ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still ready")
		}
	}
	if status := get(http.DefaultClient, "/readyz").StatusCode; status != 503 {
		t.Errorf("/readyz answers %d", status)
	}
	for name, c := range map[string]*http.Client{"old connection": old, "new connection": http.DefaultClient} {
		if resp := get(c, "/v2/"); resp.StatusCode != 200 || !resp.Close {
			t.Errorf("%s: %s, close %v", name, resp.Status, resp.Close)
		}
	}
	if err := <-ran; err != nil || time.Since(asked) < delay {
		t.Errorf("Run: %v after %v", err, time.Since(asked))
	}
}

func TestRunReportsTheErrorOfTheListener(t *testing.T) {
	probes := new(server.Probes)
	probes.SetReady(true)
	s, err := server.New(server.Options{Handler: http.NotFoundHandler(), Probes: probes, Log: zerolog.Nop(),
		ShutdownDelay: time.Hour}) // which it does not wait for
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.Run(t.Context(), l); err == nil || probes.Ready() {
		t.Errorf("Run: %v, ready %v", err, probes.Ready())
	}
}

type socketKey struct{}

// TestAnAuxiliaryListenerEndsWithItsContext, and so does the context of its requests.
func TestAnAuxiliaryListenerEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	entered, ended := make(chan any, 1), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- r.Context().Value(socketKey{})
		<-r.Context().Done()
		close(ended)
	})
	mark := func(ctx context.Context) context.Context { return context.WithValue(ctx, socketKey{}, true) }
	served := make(chan error, 1)
	go func() { served <- server.ServeAuxiliary(ctx, l, h, mark) }()
	go func() {
		if resp, err := http.Get("http://" + l.Addr().String()); err == nil {
			resp.Body.Close()
		}
	}()
	if got := <-entered; got != true {
		t.Errorf("the context of the connection has %v", got)
	}
	cancel()
	<-ended
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := server.ServeAuxiliary(t.Context(), nil, h, nil); err != nil {
		t.Errorf("without a listener: %v", err)
	}
	if err := server.ServeAuxiliary(t.Context(), l, h, nil); err == nil {
		t.Error("a closed listener is no error")
	}
}

// TestAServerEndsAfterItsHandlers: what they use is closed then. A handler may go on when its connection is cut off.
func TestAServerEndsAfterItsHandlers(t *testing.T) {
	for name, serve := range map[string]func(ctx context.Context, l net.Listener, h http.Handler) error{
		"auxiliary": func(ctx context.Context, l net.Listener, h http.Handler) error {
			return server.ServeAuxiliary(ctx, l, h, nil)
		},
		"server": func(ctx context.Context, l net.Listener, h http.Handler) error {
			s, err := server.New(server.Options{Handler: h, Log: zerolog.Nop()})
			if err != nil {
				return err
			}
			served := make(chan error, 1)
			go func() { served <- s.Serve(l) }()
			<-ctx.Done()
			if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("Shutdown: %v", err)
			}
			return <-served
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			entered, cut := make(chan struct{}), make(chan struct{})
			var finished atomic.Bool
			h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				close(entered)
				<-cut
				for range 1000 {
					runtime.Gosched()
				}
				finished.Store(true)
			})
			go func() {
				if resp, err := http.Get("http://" + l.Addr().String()); err == nil {
					resp.Body.Close()
				}
				close(cut)
			}()
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() { served <- serve(ctx, l, h) }()
			<-entered
			cancel()
			if err := <-served; err != nil || !finished.Load() {
				t.Errorf("%v; the handler has returned: %v", err, finished.Load())
			}
		})
	}
}

func TestProfilesDoNotShowTheCommandLine(t *testing.T) {
	for path, want := range map[string]int{"/debug/pprof/heap": 200, "/debug/pprof/": 200,
		"/debug/pprof/cmdline": 404} {
		w := httptest.NewRecorder()
		server.Profiles().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
	}
}

func TestMemoryIsTunedUntilItIsReleased(t *testing.T) {
	t.Setenv("GOGC", "100")
	t.Setenv("GOMEMLIMIT", "off") // the process of the tests stays as it is
	server.TuneMemory()()
}

// TestPlainHTTPThatIsNotRedirected gets an error in the form that its client understands.
func TestPlainHTTPThatIsNotRedirected(t *testing.T) {
	s := start(t, modes[1], server.Options{Handler: http.NotFoundHandler()})
	const text = "this port speaks TLS only: use https"
	for request, isJSON := range map[string]bool{
		"POST /v2/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n": true,
		"PUT /v2/app/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{":    true,
		"GET /v2/ HTTP/1.0\r\n\r\n":                                       true, // no Host to redirect to
		"POST /validate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n": false,
		"DELETE /v2x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n":    false,
	} {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, request)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%q: %v", request, err)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %s, %v", request, resp.Status, err)
		}
		if !isJSON {
			if string(body) != text+"\n" || resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
				t.Errorf("%q: %v %q", request, resp.Header, body)
			}
			continue
		}
		var e struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal(body, &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Code != "UNSUPPORTED" ||
			e.Errors[0].Message != text || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%q: %v %q, %v", request, resp.Header, body, err)
		}
	}
}
