//go:build replicas

package soak

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// process is one of the programs of a set. It can be stopped, killed and restarted with the same arguments.
type process struct {
	name string
	args []string
	env  []string
	log  console
	cmd  *exec.Cmd
}

func (p *process) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = &p.log, &p.log, p.env
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// set is three processes of the program with three members of etcd and an S3 server behind them. Each request goes to
// another replica, as behind a load balancer that keeps no connection.
type set struct {
	t         *testing.T
	processes []*process // replicas first
	urls      []string   // of the replicas
	dirs      []string   // their data directories
	bucket    string     // the directory of the S3 server
	epoch     time.Time
	next      atomic.Int64
}

const (
	replicaCount = 3
	memberCount  = 3
)

var lastPort atomic.Int64

// newAddress returns an address that nothing else uses: the tests have a network of their own, and the kernel takes
// higher ports for the other ends of connections.
func newAddress() string { return fmt.Sprint("127.0.0.1:", 10_000+lastPort.Add(1)) }

func startSet(t *testing.T, args ...string) *set {
	t.Helper()
	if err := depend(); err != nil {
		t.Fatal(err)
	}
	t.Logf("SOAK_SEED=%d", settings.seed)
	s := &set{t: t, epoch: time.Now(), bucket: filepath.Join(t.TempDir(), "bucket")}
	if err := os.MkdirAll(s.bucket, 0o700); err != nil {
		t.Fatal(err)
	}
	gateway := newAddress()
	members, endpoints := newMembers(t)
	env := append(os.Environ(), "AWS_ACCESS_KEY_ID=soak", "AWS_SECRET_ACCESS_KEY=soak-secret")
	query := url.Values{"endpoint": {"http://" + gateway}, "path-style": {"true"}}
	for i := range replicaCount {
		address := newAddress()
		s.urls, s.dirs = append(s.urls, "http://"+address), append(s.dirs, filepath.Join(t.TempDir(), "data"))
		s.processes = append(s.processes, &process{name: fmt.Sprint("replica ", i), env: env, args: append([]string{
			binary, "serve", "--no-tls", "--listen", address, "--data-dir", s.dirs[i],
			"--log-level", "warn", "--journal", "etcd://" + strings.Join(endpoints, ",") + "/soak",
			"--blobs", "s3://bucket/soak?" + query.Encode()}, args...)})
	}
	s.processes = append(s.processes, members...)
	s.processes = append(s.processes, &process{name: "S3", env: env, args: []string{os.Getenv("SOAK_VERSITYGW"),
		"--access", "soak", "--secret", "soak-secret", "--port", gateway, "--quiet", "posix", filepath.Dir(s.bucket)}})
	for _, p := range s.processes {
		p.start(t)
	}
	t.Cleanup(func() {
		for _, p := range s.processes {
			p.kill()
			if t.Failed() {
				t.Logf("the end of the output of %s:\n%s", p.name, tail(p.log.String(), 3000))
			}
		}
	})
	s.awaitReady()
	return s
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func newMembers(t *testing.T) (members []*process, endpoints []string) {
	var peers, initial []string
	for i := range memberCount {
		endpoints, peers = append(endpoints, newAddress()), append(peers, "http://"+newAddress())
		initial = append(initial, fmt.Sprintf("m%d=%s", i, peers[i]))
	}
	for i := range memberCount {
		members = append(members, &process{name: fmt.Sprint("etcd ", i), args: []string{os.Getenv("SOAK_ETCD"),
			"--name", fmt.Sprint("m", i), "--data-dir", t.TempDir(), "--log-level", "error",
			"--listen-client-urls", "http://" + endpoints[i], "--advertise-client-urls", "http://" + endpoints[i],
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--initial-cluster", strings.Join(initial, ",")}})
	}
	return members, endpoints
}

// awaitReady waits until each replica can write and read.
func (s *set) awaitReady() {
	s.t.Helper()
	content := fmt.Appendf(nil, "ready %d", s.next.Add(1))
	for i, u := range s.urls {
		c := &client{&http.Client{Timeout: 10 * time.Second}, u}
		for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
			a, err := c.do(s.t.Context(), "POST", "/v2/ready/blobs/uploads/?digest="+
				string(digest.FromBytes(content)), content)
			if err == nil && a.status == http.StatusCreated {
				break
			}
			if time.Now().After(deadline) {
				s.t.Fatalf("replica %d does not answer: %v, %v", i, a, err)
			}
		}
	}
}

// newClient returns a client whose requests go to the replicas in turn. A replica that does not answer within
// two minutes has lost the request.
func (s *set) newClient() *client {
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &client{&http.Client{Transport: turns{s, transport}, Timeout: 2 * time.Minute}, "http://replicas"}
}

// turns sends each request to the next replica.
type turns struct {
	set *set
	to  http.RoundTripper
}

func (x turns) RoundTrip(req *http.Request) (*http.Response, error) {
	u, err := url.Parse(x.set.urls[int(x.set.next.Add(1))%replicaCount])
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.URL.Host, req.Host = u.Host, u.Host
	return x.to.RoundTrip(req)
}

// patient returns a client that repeats a request until the answer is certain, for a minute at most: after a
// disturbance replicas may say for a while that they are not sure. to is the replica it asks; empty: each in turn.
func (s *set) patient(to string) *client {
	c := s.newClient()
	transport := c.http.Transport
	if to != "" {
		c.url, transport = to, transport.(turns).to
	}
	c.http.Transport = repeats{transport}
	return c
}

type repeats struct{ to http.RoundTripper }

func (x repeats) RoundTrip(req *http.Request) (*http.Response, error) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		resp, err := x.to.RoundTrip(req)
		if err == nil && resp.StatusCode != http.StatusServiceUnavailable && resp.Header.Get("Trow-Stale") == "" ||
			time.Now().After(end) {
			return resp, err
		}
		if err == nil {
			resp.Body.Close()
		}
	}
}

// disturb kills a process and starts it again, or stops it for a time.
func (s *set) disturb(r *rand.Rand, p *process) {
	if r.IntN(2) == 0 {
		p.kill()
		time.Sleep(time.Duration(r.Int64N(int64(500 * time.Millisecond))))
		p.start(s.t)
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(time.Second + time.Duration(r.Int64N(int64(3*time.Second))))
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
}

// stored returns the digests of the objects. An object without a name would be a digest that no slot names.
func (s *set) stored() map[digest.Digest]bool {
	s.t.Helper()
	all := map[digest.Digest]bool{}
	root := filepath.Join(s.bucket, "soak", "objects")
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // removed just now
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(filepath.Join(root, path))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		all[digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(h.Sum(nil)))] = true
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// collectAll collects what no fact names as well, as an administrator does. An object that no fact names has to be
// older than two such runs.
func (s *set) collectAll(grace time.Duration) {
	s.t.Helper()
	for range 3 {
		time.Sleep(grace + 2*time.Second)
		cmd := exec.Command(binary, "gc", "--all", "--data-dir", s.dirs[0])
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Fatalf("trow gc --all: %v\n%s", err, out)
		}
	}
}

// String is the output of the replicas.
func (s *set) String() string {
	var b strings.Builder
	for _, p := range s.processes[:replicaCount] {
		fmt.Fprintf(&b, "%s:\n%s\n", p.name, tail(p.log.String(), 3000))
	}
	return b.String()
}

// verdicts asks for verdicts on the images of the slots until ctx is done. An image that is held may run.
func (w *stock) verdicts(ctx context.Context, c *client, r *rand.Rand) (judged int) {
	for ctx.Err() == nil {
		s := w.slots[r.IntN(len(w.slots))]
		s.mu.RLock()
		if s.doubt == nil && s.tagged {
			image := "trow.kube-public:31000/" + s.repo + ":" + s.tag
			a, err := c.do(context.WithoutCancel(ctx), "POST", "/validate", review(image), "Content-Type",
				"application/json")
			if err == nil && a.status == http.StatusOK && !strings.Contains(string(a.body), `"allowed":true`) {
				w.complain("verdict on %s: %v", image, a)
			}
			judged++
		}
		s.mu.RUnlock()
	}
	return judged
}

// TestReplicas kills or stops one process after the other, of the program, of etcd and of S3, while clients push, pull,
// delete, move tags and ask for verdicts, and the collector runs every second. What was acknowledged must be there, at
// each replica; what is held must be served and may run; and in the end exactly the objects that are named are left.
func TestReplicas(t *testing.T) {
	const grace = 20 * time.Second
	s := startSet(t, "--gc-interval=1s", "--gc-grace="+grace.String(), "--scrub-interval=0")
	w, r := newStock(random(0)), random(1)
	unsure := 0
	var judged atomic.Int64
	for n := range settings.kills {
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for i := range clients {
			all.Go(func() { w.work(ctx, s.newClient(), random(1000+n*clients+i)) })
		}
		all.Go(func() { judged.Add(int64(w.verdicts(ctx, s.newClient(), random(1_000_000+n)))) })
		time.Sleep(time.Duration(r.Int64N(int64(time.Second))))
		p := s.processes[n%len(s.processes)]
		s.disturb(r, p)
		time.Sleep(time.Duration(r.Int64N(int64(time.Second))))
		cancel()
		all.Wait()
		s.awaitReady()
		if !strings.HasPrefix(p.name, "replica") {
			time.Sleep(8 * time.Second) // etcd gives up what it had not made by then
		}
		unsure += w.resolveDoubt(t, s.patient(""))
		for _, replica := range s.urls {
			w.wantIntact(t, s.patient(replica), s)
		}
	}
	s.collectAll(grace)
	left := wantExactly(t, s.stored, w, grace)
	t.Logf("%d kills and stops, %d pushes, %d pulls, %d deletes, %d verdicts, %d operations in doubt; 0 lost; %d "+
		"objects are left", settings.kills, w.pushes.Load(), w.pulls.Load(), w.deletes.Load(), judged.Load(),
		unsure, left)
	if unsure == 0 || w.pushes.Load() == 0 || judged.Load() == 0 {
		t.Error("nothing was interrupted")
	}
}

// TestReplicasAreLinearizable: three replicas answer as one registry that carries out one operation after the other,
// but for answers that say that they may be old, and for content by its digest, which never changes: a replica may
// serve that for a moment after another one has deleted it.
func TestReplicasAreLinearizable(t *testing.T) {
	s := startSet(t, "--gc-interval=1s", "--gc-grace=1m")
	operations, lost := 0, 0
	for n := 0; n == 0 || n < int(settings.time/roundTime); n++ {
		var quiet int64
		rec := &recorder{t: t, world: newWorld(), newClient: s.newClient, replicas: true,
			now:   func() int64 { return int64(time.Since(s.epoch)) },
			death: func(int64) int64 { return quiet }}
		rec.run(n, min(roundTime, settings.time), func(ctx context.Context) {
			// Few in a round: an operation that may happen until its end makes the checker's work twice as much.
			r := random(n)
			for range 2 {
				time.Sleep(time.Duration(r.Int64N(int64(time.Second))))
				s.disturb(r, s.processes[r.IntN(len(s.processes))])
			}
		}, func() {
			for _, p := range s.processes[:replicaCount] {
				p.kill()
			}
			time.Sleep(8 * time.Second) // etcd gives up what it had not made by then
			for _, p := range s.processes[:replicaCount] {
				p.start(t)
			}
			s.awaitReady()
			quiet = rec.now()
		})
		operations += rec.judge(n)
		lost += rec.lost
	}
	t.Logf("%d operations, %d of them lost", operations, lost)
	if operations < 100 {
		t.Errorf("%d operations are too few to show anything", operations)
	}
}
