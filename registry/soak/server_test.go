package soak

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The settings, as in the package comment.
var settings struct {
	time   time.Duration
	kills  int
	tags   int
	rounds int // of faults
	race   bool
	seed   uint64
}

// binary is the program under test.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if err := readSettings(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		dir, err := os.MkdirTemp("", "soak")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		defer os.RemoveAll(dir)
		if err := build(filepath.Join(dir, "trow")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		return m.Run()
	}())
}

func readSettings() (err error) {
	settings.time, settings.seed = 4*time.Second, uint64(time.Now().UnixNano())
	settings.kills, settings.rounds, settings.tags = 12, 1, 1000
	if v := os.Getenv("SOAK_TIME"); v != "" {
		if settings.time, err = time.ParseDuration(v); err != nil {
			return fmt.Errorf("SOAK_TIME: %w", err)
		}
	}
	for name, n := range map[string]*int{"SOAK_KILLS": &settings.kills, "SOAK_FAULTS": &settings.rounds,
		"SOAK_TAGS": &settings.tags} {
		if v := os.Getenv(name); v != "" {
			if *n, err = strconv.Atoi(v); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if v := os.Getenv("SOAK_SEED"); v != "" {
		if settings.seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			return fmt.Errorf("SOAK_SEED: %w", err)
		}
	}
	settings.race = os.Getenv("SOAK_RACE") != ""
	return nil
}

// build builds the program under test, unless SOAK_BINARY names one.
func build(path string) error {
	if binary = os.Getenv("SOAK_BINARY"); binary != "" {
		return nil
	}
	args := []string{"build", "-o", path}
	if settings.race {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "trow")...).CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	binary = path
	return nil
}

// depend reads what a result depends on besides the test itself: the settings and the source of the program. go test
// notes what is read while tests run; otherwise it would return cached results.
var depend = sync.OnceValue(func() error {
	for _, name := range []string{"SOAK_TIME", "SOAK_KILLS", "SOAK_FAULTS", "SOAK_TAGS", "SOAK_SEED", "SOAK_RACE",
		"SOAK_BINARY"} {
		os.Getenv(name)
	}
	return filepath.WalkDir(filepath.Join("..", ".."), func(path string, d fs.DirEntry, err error) error {
		if err == nil && (strings.HasSuffix(path, ".go") || strings.HasPrefix(d.Name(), "go.")) {
			_, err = os.Stat(path)
		}
		return err
	})
})

// random returns the choices of client n of a test.
func random(n int) *rand.Rand { return rand.New(rand.NewPCG(settings.seed, uint64(n))) }

// server is trow serve on a data directory. It can be stopped, killed and restarted on the same address.
type server struct {
	t      *testing.T
	dir    string
	url    string
	args   []string
	under  []string      // the command that runs the program; empty: the program itself
	wait   time.Duration // how long a process may take to answer
	pool   *x509.CertPool
	epoch  time.Time // of the times of a history
	log    console
	client *http.Client // for the test's own requests

	mu      sync.Mutex // guards all below
	cmd     *exec.Cmd
	started int     // the number of processes so far
	deaths  []int64 // when each was known to be dead, in ns since epoch
}

// console collects the output of the processes. It keeps the reports of the race detector, and the end.
type console struct {
	mu    sync.Mutex
	tail  []byte
	races int
}

func (o *console) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.races += bytes.Count(p, []byte("WARNING: DATA RACE"))
	if o.tail = append(o.tail, p...); len(o.tail) > 64<<10 && o.races == 0 {
		o.tail = bytes.Clone(o.tail[len(o.tail)-32<<10:])
	}
	return len(p), nil
}

func (o *console) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.tail)
}

// start runs trow serve until the test ends.
func start(t *testing.T, args ...string) *server {
	t.Helper()
	return startOn(t, t.TempDir(), nil, args...)
}

// startOn is start on a data directory, with a command that runs the program, such as a tracer.
func startOn(t *testing.T, dir string, under []string, args ...string) *server {
	t.Helper()
	s := newServer(t, dir, under, args...)
	s.run()
	return s
}

// newServer is startOn without starting it.
func newServer(t *testing.T, dir string, under []string, args ...string) *server {
	t.Helper()
	if err := depend(); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir, epoch: time.Now(), under: under, wait: 30 * time.Second}
	t.Logf("SOAK_SEED=%d", settings.seed)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.url = "https://" + address
	if slices.Contains(args, "--no-tls") {
		s.url = "http://" + address
		s.pool, s.client = x509.NewCertPool(), s.newClient()
	}
	s.args = append([]string{"serve", "--listen", address, "--data-dir", s.dir, "--log-level", "warn"}, args...)
	t.Cleanup(func() {
		if s.process() != nil {
			s.stop(syscall.SIGTERM)
		}
		if s.log.races > 0 {
			t.Errorf("the race detector found %d races in the server:\n%s", s.log.races, &s.log)
		}
	})
	return s
}

// run starts a process and waits until it answers.
func (s *server) run() {
	s.t.Helper()
	line := slices.Concat(s.under, []string{binary}, s.args)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	for _, e := range os.Environ() { // without the settings of this shell
		if !strings.HasPrefix(e, "TROW_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.cmd = cmd
	s.started++
	s.mu.Unlock()
	for deadline := time.Now().Add(s.wait); !s.ready(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("the server does not answer:\n%s", &s.log)
		}
	}
}

// ready reports whether the registry answers. The first time it reads the CA.
func (s *server) ready() bool {
	if s.pool == nil {
		pem, err := os.ReadFile(filepath.Join(s.dir, "ca.crt"))
		pool := x509.NewCertPool()
		if err != nil || !pool.AppendCertsFromPEM(pem) {
			return false
		}
		s.pool = pool
		s.client = s.newClient()
	}
	resp, err := s.client.Get(s.url + "/v2/")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized // with logins
}

// newClient returns a client with its own connections. Its requests have a timeout of minutes, so that a registry
// that does not answer fails the test with a message.
func (s *server) newClient() *http.Client {
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: s.pool},
		DialContext:     (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
	}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 3 * time.Minute}
}

func (s *server) process() *exec.Cmd {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd
}

// stop sends a signal and returns when the process is dead. A server that fails on SIGTERM fails the test.
func (s *server) stop(signal syscall.Signal) {
	s.t.Helper()
	cmd := s.process()
	if err := cmd.Process.Signal(signal); err != nil {
		s.t.Fatalf("%v: %v\n%s", signal, err, &s.log)
	}
	err := cmd.Wait()
	s.mu.Lock()
	s.deaths = append(s.deaths, s.now())
	s.cmd = nil
	s.mu.Unlock()
	if signal == syscall.SIGTERM && err != nil {
		s.t.Errorf("after SIGTERM: %v\n%s", err, &s.log)
	}
}

// now returns the time in nanoseconds since epoch.
func (s *server) now() int64 { return int64(time.Since(s.epoch)) }

// death returns when the process that was alive at a time was dead. It must be dead already.
func (s *server) death(after int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, _ := slices.BinarySearch(s.deaths, after)
	return s.deaths[n]
}

// restarts restarts the server n times within a time or until ctx ends, alternating SIGKILL and SIGTERM.
func (s *server) restarts(ctx context.Context, n int, within time.Duration) {
	s.t.Helper()
	for i := range n {
		select {
		case <-ctx.Done():
			return
		case <-time.After(within / time.Duration(n+1)):
		}
		s.stop([]syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[i%2])
		s.run()
	}
}
