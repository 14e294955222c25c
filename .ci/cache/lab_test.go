package cache

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The programs, as .ci/cache/run sets them.
var (
	trowProgram         = os.Getenv("CACHE_TROW")
	distributionProgram = os.Getenv("CACHE_DISTRIBUTION")
	olaregProgram       = os.Getenv("CACHE_OLAREG")
)

// long says that the sizes are those of the promises: CACHE_LONG=1. Otherwise they are smaller, in the same ratios.
var long = os.Getenv("CACHE_LONG") != ""

// size returns the size for a long or a short run.
func size(short, full int) int {
	if long {
		return full
	}
	return short
}

// The login of origins that have one. The hash is bcrypt, of the cost 4.
const (
	originUser     = "ann"
	originPassword = "s3cret"
	originHash     = originUser + ":$2y$04$ED.4CYuzyX5ykXPWNN6pfuON9jq77.7J3SJHfFYSG64a/sSRCKbOy\n"
)

// process is a program that runs until the test ends, or it is ended.
type process struct {
	t       *testing.T
	program string
	args    []string
	cmd     *exec.Cmd
	log     string // file
	url     string
}

// run starts a program, and returns when it answers at url.
func run(t *testing.T, url, program string, args ...string) *process {
	t.Helper()
	p := &process{t: t, program: program, args: args, url: url,
		log: filepath.Join(t.TempDir(), filepath.Base(program)+".log")}
	p.start()
	t.Cleanup(func() {
		p.end(syscall.SIGTERM)
		if b, err := os.ReadFile(p.log); err == nil && t.Failed() {
			t.Logf("%s:\n%s", program, b[max(0, len(b)-4000):])
		}
	})
	return p
}

// start starts the program, for the first time or after its end.
func (p *process) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(p.program, p.args...)
	p.cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none") // Distribution sends traces by default
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	var last string
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		resp, err := http.Get(p.url + "/v2/")
		if last = fmt.Sprint(err); err == nil {
			resp.Body.Close()
			if last = resp.Status; resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized {
				return
			}
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(p.log)
			p.t.Fatalf("%s does not start: %s\n%s", p.program, last, b)
		}
	}
}

// end ends the program with a signal, and waits for it.
func (p *process) end(s syscall.Signal) {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Signal(s)
		_ = p.cmd.Wait()
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// distribution starts Distribution on a directory. more are lines of its configuration.
func distribution(t *testing.T, dir, more string) *process {
	t.Helper()
	addr := freeAddress(t)
	config := write(t, filepath.Join(t.TempDir(), "config.yml"), fmt.Sprintf(`version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q}
  cache: {blobdescriptor: inmemory}
  delete: {enabled: true}
http: {addr: %q}
%s`, dir, addr, more))
	return run(t, "http://"+addr, distributionProgram, "serve", config)
}

// olareg starts olareg on a directory.
func olareg(t *testing.T, dir string) *process {
	t.Helper()
	addr := freeAddress(t)
	host, port, _ := strings.Cut(addr, ":")
	return run(t, "http://"+addr, olaregProgram, "serve", "--addr", host, "--port", port, "--dir", dir)
}

// server is the program that is tested, with its data.
type server struct {
	*process
	data string
}

// entry returns an entry of upstreams for a host, whose endpoint speaks plain HTTP. more are further lines of it.
func entry(host string, i *injector, more ...string) string {
	return fmt.Sprintf("  - host: %s\n    insecure: true\n    endpoints:\n      - url: http://%s\n", host, i.addr) +
		indent("    ", more)
}

// withLogin returns an entry that has the login of an origin besides; all clients of the server may read.
func withLogin(t *testing.T) func(host string, i *injector, more ...string) string {
	file := write(t, filepath.Join(t.TempDir(), "password"), originPassword)
	return func(host string, i *injector, more ...string) string {
		return entry(host, i, append([]string{"    username: " + originUser, "    password-file: " + file,
			`read: ["*"]`}, more...)...)
	}
}

// indent puts further lines of an entry below it; those of its endpoint are indented by the caller.
func indent(by string, lines []string) (text string) {
	for _, l := range lines {
		text += by + l + "\n"
	}
	return text
}

// trow starts a server with upstreams. size is cache-size.
func trow(t *testing.T, size, upstreams string, args ...string) *server {
	t.Helper()
	dir, addr := t.TempDir(), freeAddress(t)
	config := write(t, filepath.Join(dir, "trow.yaml"), "cache-size: "+size+"\nupstreams:\n"+upstreams)
	s := &server{data: filepath.Join(dir, "data")}
	s.process = run(t, "http://"+addr, trowProgram, append([]string{"serve", "--listen", addr, "--data-dir", s.data,
		"--config", config, "--no-tls", "--log-level", "warn", "--gc-interval", "0", "--scrub-interval", "0"},
		args...)...)
	return s
}

// client returns a client whose requests are for an upstream.
func (s *server) client(host string) *client {
	c := newClient(s.t, s.url)
	c.ns = host
	return c
}

// metric returns the value of a metric.
func (s *server) metric(c *client, name string) float64 {
	s.t.Helper()
	_, body := c.want(http.StatusOK, http.MethodGet, s.url+"/metrics", nil)
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(body)
	if m == nil {
		s.t.Fatalf("no metric %s", name)
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// files calls f for each file of the data directory that has content of images, complete or not.
func (s *server) files(f func(path string, d fs.FileInfo)) {
	s.t.Helper()
	err := filepath.WalkDir(s.data, func(path string, e fs.DirEntry, err error) error {
		if os.IsNotExist(err) { // deleted meanwhile
			return nil
		}
		if err != nil || e.IsDir() || strings.HasPrefix(e.Name(), "journal.") {
			return err
		}
		info, err := e.Info()
		if err == nil {
			f(path, info)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// stored returns the bytes of the content on the disk, each file once, whatever its name is at the moment.
func (s *server) stored() (sum int64) {
	seen := map[uint64]bool{}
	s.files(func(_ string, info fs.FileInfo) {
		if at := info.Sys().(*syscall.Stat_t); !seen[at.Ino] {
			seen[at.Ino] = true
			sum += info.Size()
		}
	})
	return sum
}

// digestName matches the file of a blob.
var digestName = regexp.MustCompile(`/blobs/sha256/(?:[0-9a-f]{2}/)?([0-9a-f]{64})$`)

// whole fails if the server has stored a content that its digest does not name, and returns how many it has.
func (s *server) whole() (n int) {
	s.t.Helper()
	s.files(func(path string, _ fs.FileInfo) {
		m := digestName.FindStringSubmatch(path)
		if m == nil {
			return
		}
		n++
		if b, err := os.ReadFile(path); err == nil && sha(b) != "sha256:"+m[1] {
			s.t.Errorf("%s has other bytes", path)
		}
	})
	return n
}

func median[T time.Duration | float64](all []T) T {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// rounds is how many rounds a comparison has at least, and at most.
const (
	minRounds = 9
	maxRounds = 151
	// hopeless times the limit is no disturbance any more.
	hopeless = 3
)

// compare measures a against b in turns, and fails unless b takes at most limit times the time of a: the median of the
// ratios of all rounds. As long as it does not, more rounds follow, up to maxRounds: a machine that does other things
// at the same time disturbs some of them, and a fault all.
func compare(t *testing.T, what string, limit float64, a, b func() time.Duration) {
	t.Helper()
	var x, y []time.Duration
	var ratios []float64
	for n := range maxRounds {
		var one, other time.Duration
		if n%2 == 0 { // neither is always the first one
			one, other = a(), b()
		} else {
			other, one = b(), a()
		}
		x, y, ratios = append(x, one), append(y, other), append(ratios, float64(other)/float64(one))
		if r := median(ratios); n+1 >= minRounds && (r <= limit || r > hopeless*limit) {
			break
		}
	}
	text := fmt.Sprintf("%s: %.2f times (%v, %v; %d rounds), want at most %.2f", what, median(ratios), median(x),
		median(y), len(x), limit)
	if t.Log(text); median(ratios) > limit {
		t.Error(text)
	}
}
