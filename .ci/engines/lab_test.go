package engines

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// lab is what TestFiguresOfReplicas measures: an etcd cluster of three members that sync, an S3 server, and servers of
// the program, all on loopback and with TLS.
type lab struct {
	t       *testing.T
	etcd    *cluster
	gateway *gateway
	client  *http.Client
	rounds  int
	phase   time.Duration
	lines   []string // of the table
	values
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, rounds: 5, phase: 1500 * time.Millisecond}
	if v := os.Getenv("ENGINES_ROUNDS"); v != "" {
		l.rounds = number(t, v)
	}
	if v := os.Getenv("ENGINES_PHASE"); v != "" {
		var err error
		if l.phase, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	}
	l.etcd = startEtcd(t, 3, "--unsafe-no-fsync=false", "--quota-backend-bytes", fmt.Sprint(8<<30))
	l.gateway = startGateway(t)
	// Each server has a CA of its own; that they are verified is tested elsewhere.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 64}
	l.client = &http.Client{Transport: transport, Timeout: time.Minute}
	t.Cleanup(transport.CloseIdleConnections)
	return l
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// process is a program that runs until the test ends, or end is called.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	log bytes.Buffer // valid once the program has ended
	url string
	ca  string // file
}

func (l *lab) start(name string, args ...string) *process {
	l.t.Helper()
	p := &process{t: l.t, cmd: exec.Command(name, args...)}
	p.cmd.Stderr = &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(p.end)
	return p
}

func (p *process) end() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
	if p.t.Failed() {
		p.t.Logf("%s:\n%s", p.url, p.log.String())
	}
}

// serve starts a server on a data directory of its own, and returns when it is ready.
func (l *lab) serve(args ...string) *process {
	l.t.Helper()
	dir, address := l.t.TempDir(), freeAddr(l.t)
	config := filepath.Join(dir, "trow.yaml")
	text := "quotas: [{repositories: ['capped/**'], bytes: 100Gi}]\n" // far more than is pushed
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	p := l.start(os.Getenv("ENGINES_TROW"), append(
		[]string{"serve", "--listen", address, "--names", address, "--data-dir",
			filepath.Join(dir, "data"), "--config", config, "--log-level", "warn", "--gc-interval", "0",
			"--scrub-interval", "0"},
		args...)...)
	p.url, p.ca = "https://"+address, filepath.Join(dir, "data", "ca.crt")
	l.await("GET", p.url+"/readyz")
	return p
}

// await returns when a request is answered 200.
func (l *lab) await(method, url string) {
	l.t.Helper()
	var last string
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(2 * time.Millisecond) {
		req, err := http.NewRequestWithContext(l.t.Context(), method, url, nil)
		if err != nil {
			l.t.Fatal(err)
		}
		resp, err := l.client.Do(req)
		if last = fmt.Sprint(err); err == nil {
			resp.Body.Close()
			if last = resp.Status; resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(end) {
			l.t.Fatalf("%s: %s", url, last)
		}
	}
}

// shared returns the arguments of a server on the engines, whose requests to S3 go to an endpoint.
func (l *lab) shared(prefix, endpoint string) []string {
	var members []string
	for _, m := range l.etcd.members {
		members = append(members, m.addr) // not through the proxies
	}
	query := url.Values{"endpoint": {endpoint}, "region": {"us-east-1"}, "path-style": {"true"}}
	return []string{"--journal", "etcd://" + strings.Join(members, ",") + "/" + prefix, "--blobs",
		"s3://bucket/" + prefix + "?" + query.Encode()}
}

// robin starts a round robin in front of servers.
func (l *lab) robin(servers ...*process) *process {
	l.t.Helper()
	args := []string{filepath.Join(l.t.TempDir(), "ca.crt")}
	for _, s := range servers {
		args = append(args, s.url)
	}
	out := filepath.Join(l.t.TempDir(), "url")
	file, err := os.Create(out)
	if err != nil {
		l.t.Fatal(err)
	}
	defer file.Close()
	p := &process{t: l.t, cmd: exec.Command(os.Getenv("ENGINES_ROBIN"), args...), ca: args[0]}
	p.cmd.Stdout, p.cmd.Stderr = file, &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(p.end)
	for end := time.Now().Add(time.Minute); p.url == ""; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(out)
		if err != nil || time.Now().After(end) {
			l.t.Fatalf("the round robin does not start: %v", err)
		}
		if text := string(b); strings.HasSuffix(text, "\n") {
			p.url = strings.TrimSpace(text)
		}
	}
	return p
}

// result has the fields of `trow bench --json` that are used here.
type result struct {
	Operations   int64    `json:"operations"`
	Errors       int64    `json:"errors"`
	FirstError   string   `json:"first_error"`
	OpsPerSecond float64  `json:"ops_per_second"`
	Bandwidth    float64  `json:"bytes_per_second"`
	P50          float64  `json:"p50_us"`
	P99          float64  `json:"p99_us"`
	CPU          *float64 `json:"server_cpu_us_per_op"`
}

// bench runs one scenario of trow bench; what it reads must be there.
func (l *lab) bench(p *process, scenario string, connections int, more ...string) result {
	l.t.Helper()
	args := append([]string{"bench", p.url, "--cacert", p.ca, "--json", "-", "--scenarios", scenario, "--connections",
		strconv.Itoa(connections), "--duration", l.phase.String(), "--pid", strconv.Itoa(p.cmd.Process.Pid),
		"--no-populate"},
		more...)
	cmd := exec.CommandContext(l.t.Context(), os.Getenv("ENGINES_TROW"), args...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	err := cmd.Run()
	var report struct{ Results []result }
	if jsonErr := json.Unmarshal(out.Bytes(), &report); err != nil || jsonErr != nil || len(report.Results) != 1 {
		l.t.Fatalf("%s at %s: %v, %v\n%s%s", scenario, p.url, err, jsonErr, out.String(), log.String())
	}
	r := report.Results[0]
	if r.Errors > 0 {
		l.t.Fatalf("%s at %s: %d errors, the first: %s", scenario, p.url, r.Errors, r.FirstError)
	}
	return r
}

// populate pushes what the scenarios read.
func (l *lab) populate(p *process) {
	l.t.Helper()
	out, err := exec.CommandContext(l.t.Context(), os.Getenv("ENGINES_TROW"), "bench", p.url, "--cacert", p.ca,
		"--populate-only").CombinedOutput()
	if err != nil {
		l.t.Fatalf("%v\n%s", err, out)
	}
}

// usage is what processes have used so far.
type usage struct {
	requests, reads, commits float64 // of the servers; of etcd
	servers, etcd            time.Duration
}

func (l *lab) usage(servers ...*process) (u usage) {
	l.t.Helper()
	for _, p := range servers {
		u.requests += l.metric(p.url, `trow_http_requests_total{[^}]*}`)
		u.servers += cpuTime(l.t, p.cmd.Process.Pid)
	}
	for _, m := range l.etcd.members {
		const handled = `grpc_server_handled_total{grpc_code="OK",grpc_method="%s",grpc_service="etcdserverpb.KV",.*}`
		u.reads += l.metric("http://"+m.addr, fmt.Sprintf(handled, "Range"))
		u.commits += l.metric("http://"+m.addr, fmt.Sprintf(handled, "Txn"))
		u.etcd += cpuTime(l.t, m.cmd.Process.Pid)
	}
	return u
}

func (u usage) since(before usage) usage {
	return usage{u.requests - before.requests, u.reads - before.reads, u.commits - before.commits,
		u.servers - before.servers, u.etcd - before.etcd}
}

// metric returns the sum of the series whose names match.
func (l *lab) metric(url, name string) (sum float64) {
	l.t.Helper()
	_, body := l.ask("GET", url+"/metrics", nil)
	for _, m := range regexp.MustCompile(`(?m)^`+name+` (\S+)$`).FindAllSubmatch(body, -1) {
		v, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			l.t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// ask makes a request, and returns the status and the body of the answer.
func (l *lab) ask(method, url string, body []byte, header ...string) (int, []byte) {
	l.t.Helper()
	resp, got := request(l.t, l.client, method, url, body, header...)
	return resp.StatusCode, got
}

// request makes a request with these headers, and returns the answer and its body.
func request(t *testing.T, c *http.Client, method, url string, body []byte, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, got
}

// login is the Authorization of the administrator.
func login() string {
	var req http.Request
	req.Header = http.Header{}
	req.SetBasicAuth("admin", adminPassword)
	return req.Header.Get("Authorization")
}

// cpuTime returns the CPU time of a process, in steps of 10 ms.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// Fields 14 and 15, counted behind the name, which may have spaces (proc_pid_stat(5)).
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return time.Duration(number(t, fields[11])+number(t, fields[12])) * 10 * time.Millisecond
}

// resident returns the memory of a process in MB, now or at its peak.
func resident(t *testing.T, p *exec.Cmd, key string) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(key + `:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no %s in %s", key, b)
	}
	return float64(number(t, string(m[1]))) * 1024 / 1e6
}

// counter passes requests on to the S3 server, and counts them.
type counter struct{ reads, writes, bytes atomic.Int64 }

func (c *counter) start(l *lab) (endpoint string) {
	target, err := url.Parse(l.gateway.endpoint)
	if err != nil {
		l.t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // it is signed
		if r.In.Method == http.MethodGet || r.In.Method == http.MethodHead {
			c.reads.Add(1)
		} else {
			c.writes.Add(1)
		}
	}, ModifyResponse: func(r *http.Response) error {
		c.bytes.Add(max(r.ContentLength, 0))
		return nil
	}}
	server := &http.Server{Addr: freeAddr(l.t), Handler: proxy, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.ListenAndServe() }()
	l.t.Cleanup(func() { _ = server.Shutdown(context.Background()) })
	return "http://" + server.Addr
}

// percentile returns the value that a share of the values do not exceed.
func percentile[T float64 | time.Duration](all []T, share float64) T {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}

func median[T float64 | time.Duration](all []T) T { return percentile(all, 0.5) }

// line adds a line to the table.
func (l *lab) line(cells ...string) {
	l.lines = append(l.lines, "| "+strings.Join(cells, " | ")+" |")
	l.t.Log(l.lines[len(l.lines)-1])
}

// short formats a number with three digits.
func short(v float64) string {
	if v < 0 {
		return "-" + short(-v)
	}
	digits := 0
	for x := v; x < 100 && digits < 2; x *= 10 {
		digits++
	}
	text := strconv.FormatFloat(v, 'f', digits, 64)
	for i := len(text) - 3; i > 0 && !strings.Contains(text, "."); i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func ms(us float64) string { return short(us / 1000) }

func msOf(d time.Duration) string { return ms(float64(d.Microseconds())) }
