//go:build abuse

package soak

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// What TestAbuse demands while one client attacks.
const (
	// slowest is how long a verdict and a probe may take, with the TCP and TLS handshake. The API server waits 10 s for
	// a verdict; a person who starts pods notices a second.
	slowest = time.Second
	// patience is how long an honest client repeats a request that is answered 429 or 503, or breaks off. It is shorter
	// than the shortest holdTime: a server that serves no other client until the attack ends must fail.
	patience = 2 * time.Second
	// slowestImage is how long a push and a pull of a small image may take.
	slowestImage = 10 * time.Second
	// attackTime bounds an attack, holdTime how long it keeps what it has opened.
	attackTime     = 20 * time.Second
	holdTime       = 2500 * time.Millisecond
	attackTimeFull = 5 * time.Minute
	holdTimeFull   = 30 * time.Second
	// restartTime bounds the restart after an attack.
	restartTime = 10 * time.Second
)

// full must be called within a test, so that go test knows that the result depends on the variable.
func full() bool { return os.Getenv("SOAK_ABUSE") == "full" }

// report is what was measured during an attack and after it.
type report struct {
	resident, sockets, group, oom int64 // peaks in bytes; oom: kills
	after                         int64 // peak of the resident memory of the restarted server
	validate, healthz             probe
	honest                        probe
	outcome                       string
	disk                          int64 // bytes of all files afterwards
	restart                       time.Duration
	died                          bool
}

// probe is what a client beside the attack has seen.
type probe struct {
	name    string
	count   int
	slowest time.Duration
	retries int
	errs    []error // of attempts that failed for good
}

func (p *probe) add(took time.Duration, err error) {
	p.count++
	p.slowest = max(p.slowest, took)
	if err != nil && len(p.errs) < 3 {
		p.errs = append(p.errs, err)
	}
}

// complaints returns what is wrong with the answers that a client got.
func (p *probe) complaints(bound time.Duration) (all []string) {
	if len(p.errs) > 0 {
		all = append(all, fmt.Sprintf("%s: %v", p.name, errors.Join(p.errs...)))
	}
	if p.slowest >= bound {
		all = append(all, fmt.Sprintf("%s took %v, want below %v", p.name, p.slowest.Round(time.Millisecond), bound))
	}
	if p.count == 0 {
		all = append(all, p.name+": no attempt was made")
	}
	return all
}

// complaints returns what is wrong with a report.
func (r *report) complaints(c *cell) []string {
	all := slices.Concat(c.complaints(r), r.validate.complaints(slowest), r.healthz.complaints(slowest),
		r.honest.complaints(slowestImage))
	if r.died {
		all = append(all, "the server ended")
	}
	if r.after >= c.limit {
		all = append(all, fmt.Sprintf("%d MiB are resident after the restart, want below %d", r.after>>20, c.limit>>20))
	}
	if r.restart >= restartTime {
		all = append(all, fmt.Sprintf("the restart took %v, want below %v", r.restart, restartTime))
	}
	return all
}

// row returns a line of the table of figures; see tableHead.
func (r *report) row(name string) string {
	memory := fmt.Sprintf("%d+%d", r.resident>>20, r.sockets>>20)
	if r.group > 0 {
		memory = fmt.Sprintf("%d/%d", r.resident>>20, r.group>>20)
	}
	verdict := func(p probe) string {
		text := strconv.Itoa(int(p.slowest.Milliseconds()))
		if len(p.errs) > 0 {
			text += "!"
		}
		return text
	}
	return fmt.Sprintf("%-24s %9s %9s %9s %9s %4d %4d %8d %6d %6d  %s", name, memory, verdict(r.validate),
		verdict(r.healthz), verdict(r.honest), r.honest.count, r.oom, r.restart.Milliseconds(), r.after>>20, r.disk>>20,
		r.outcome)
}

// tableHead explains the columns of report.row. A mark ! says that an attempt failed.
var tableHead = fmt.Sprintf("%-24s %9s %9s %9s %9s %4s %4s %8s %6s %6s  %s", "attack", "MiB", "/validate", "/healthz",
	"push+pull", "n", "oom", "restart", "after", "disk",
	"what the attacker got (times in ms, MiB: resident+sockets, or resident/cgroup)")

// TestAbuse attacks the server in each way of the table, in a cell with the memory of its container. Meanwhile the
// webhook, the probes and an honest client must be served, and afterwards the server must start again.
func TestAbuse(t *testing.T) {
	limit := containerLimit(t)
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			r, c := a.against(t, limit)
			fmt.Println("note: " + r.row(a.name))
			for _, complaint := range r.complaints(c) {
				t.Error(complaint)
			}
		})
	}
}

// TestAbuseIsNoticed checks that TestAbuse can fail: on a server that stands still for longer than the bound, that has
// less memory than it needs, and that refuses an honest client.
func TestAbuseIsNoticed(t *testing.T) {
	const tooSmall = 16 << 20
	still := attack{name: "still", short: 1, closed: true,
		args: func(*testing.T, int) []string { return []string{"--anonymous=pull"} },
		beside: func(s *server) {
			for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT} {
				time.Sleep(slowest * 3 / 2)
				if err := s.process().Process.Signal(signal); err != nil {
					s.t.Error(err)
				}
			}
		}, run: (*attacker).nothing}
	r, _ := still.against(t, containerLimit(t))
	for _, want := range []struct {
		what string
		got  []string
	}{
		{"/validate above the bound", r.validate.complaints(slowest)},
		{"/healthz above the bound", r.healthz.complaints(slowest)},
		{"a push that is refused", r.honest.complaints(slowestImage)},
		{"memory above the limit", (&cell{limit: tooSmall}).complaints(r)},
		{"a kill by the kernel", (&cell{limit: 1 << 40, group: "x"}).complaints(&report{oom: 1})},
	} {
		if t.Logf("%s: %q", want.what, want.got); len(want.got) == 0 {
			t.Errorf("not noticed: %s", want.what)
		}
	}
}

// against runs an attack against a new server, and restarts the server.
func (a *attack) against(t *testing.T, limit int64) (*report, *cell) {
	t.Helper()
	n := a.short
	if full() {
		n = a.full
	}
	var args []string
	if a.args != nil {
		args = a.args(t, n)
	}
	c, r := newCell(t, limit), &report{}
	dir := t.TempDir()
	s := newServer(t, filepath.Join(dir, "data"), c.under(), append(args, "--gc-interval=0", "--scrub-interval=0",
		"--audit-log="+filepath.Join(dir, "audit"))...)
	s.run()
	h := &honest{server: s}
	if a.login {
		h.users = abuseUsers
	}
	if err := h.round(0, r); err != nil && !a.closed {
		t.Fatalf("before the attack: %v", err)
	}
	r.honest = probe{}
	done := make(chan struct{})
	var beside sync.WaitGroup
	r.healthz.name, r.validate.name, r.honest.name = "GET /healthz", "POST /validate", "honest push and pull"
	beside.Go(func() { h.repeat(done, 50*time.Millisecond, &r.healthz, h.healthz) })
	beside.Go(func() { h.repeat(done, 50*time.Millisecond, &r.validate, h.validate) })
	beside.Go(func() { h.repeat(done, 200*time.Millisecond, &r.honest, func(i int) error { return h.round(i+1, r) }) })
	beside.Go(func() { h.watch(done, c, r) })
	if a.beside != nil {
		beside.Go(func() { a.beside(s) })
	}
	r.outcome = s.attacked(a, n)
	close(done)
	beside.Wait()
	r.died = r.died || peakResident(s.process().Process.Pid) == 0
	s.stop(syscall.SIGKILL) // a server that was killed must start again, too
	r.disk = sizeOf(t, dir)
	a.restart(s, c, r)
	return r, c
}

// sizeOf returns how many bytes the files below a directory have.
func sizeOf(t *testing.T, dir string) (all int64) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			all += info.Size()
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	return all
}

// restart starts the server again, with what the attack has left on the disk.
func (a *attack) restart(s *server, c *cell, r *report) {
	again := newCell(s.t, c.limit)
	s.under = again.under()
	begin := time.Now()
	s.run()
	r.restart = time.Since(begin)
	var after report
	again.measure(s.process().Process.Pid, &after)
	r.after, r.oom = after.resident, r.oom+after.oom
	s.stop(syscall.SIGTERM) // before the cell ends: a control group with a process cannot be removed
}

// attacked runs the attack in a process of its own, of low priority: the attacker of a cluster has its own processors,
// and the times of the probes must not include the waiting for those of this machine.
func (s *server) attacked(a *attack, n int) string {
	within, hold := attackTime, holdTime
	if full() {
		within, hold = attackTimeFull, holdTimeFull
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), within+hold+30*time.Second)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "nice", "-n", "10", self, "-test.run=^TestAttacker$", "-test.timeout=1h")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), "SOAK_ATTACK="+a.name, "SOAK_ATTACK_URL="+s.url, "SOAK_BINARY="+binary,
		"SOAK_ATTACK_CA="+filepath.Join(s.dir, "ca.crt"), fmt.Sprint("SOAK_ATTACK_COUNT=", n),
		fmt.Sprint("SOAK_ATTACK_TIME=", within), fmt.Sprint("SOAK_ATTACK_HOLD=", hold))
	err = cmd.Run()
	for line := range strings.Lines(out.String()) {
		if outcome, ok := strings.CutPrefix(line, "outcome: "); ok && err == nil {
			return strings.TrimSpace(outcome)
		}
	}
	s.t.Errorf("the attacker failed: %v\n%s", err, &out)
	return "failed"
}

// honest is the API server, the kubelet and a client that pushes and pulls, all with few requests.
type honest struct {
	*server
	users  int          // how many users log in, one after the other; 0: without a login
	images atomic.Int64 // how many were pushed
}

// repeat measures what do takes until the attack is over, and at least once.
func (h *honest) repeat(done <-chan struct{}, pause time.Duration, p *probe, do func(i int) error) {
	for i := 0; ; i++ {
		begin := time.Now()
		err := do(i)
		p.add(time.Since(begin), err)
		select {
		case <-done:
			return
		case <-time.After(pause):
		}
	}
}

// watch measures the memory until the attack is over.
func (h *honest) watch(done <-chan struct{}, c *cell, r *report) {
	pid := h.process().Process.Pid
	for over := false; !over; {
		select {
		case <-done:
			over = true
		case <-time.After(100 * time.Millisecond):
		}
		c.measure(pid, r)
	}
}

// fresh returns a client that makes a connection for each request.
func (h *honest) fresh() *http.Client {
	c := h.newClient()
	c.Transport.(*http.Transport).DisableKeepAlives = true
	c.Timeout = slowestImage
	return c
}

// healthz asks the probe of the kubelet.
func (h *honest) healthz(int) error {
	a, err := (&client{h.fresh(), h.url}).do(h.t.Context(), "GET", "/healthz", nil)
	if err == nil && a.status != 200 {
		err = fmt.Errorf("got %v, want 200", a)
	}
	return err
}

// validate asks for verdicts, as the API server does: on the image of honest that was pushed last, and on a remote one.
func (h *honest) validate(i int) error {
	image := "docker.io/library/nginx"
	if h.images.Load() > 0 && i%2 == 0 {
		image = strings.TrimPrefix(h.url, "https://") + "/honest/app:latest"
	}
	a, err := (&client{h.fresh(), h.url}).do(h.t.Context(), "POST", "/validate", review(image), "Content-Type",
		"application/json")
	if err != nil {
		return err
	}
	var answer struct{ Response struct{ Allowed bool } }
	if err := json.Unmarshal(a.body, &answer); err != nil || a.status != 200 {
		return fmt.Errorf("got %v, want a verdict", a)
	}
	if want := !strings.HasPrefix(image, "docker.io/"); answer.Response.Allowed != want {
		return fmt.Errorf("%s: got %v, want allowed %v", image, a, want)
	}
	return nil
}

// round pushes an image of its own and pulls it, over connections of its own.
func (h *honest) round(i int, r *report) error {
	hc := h.newClient()
	defer hc.CloseIdleConnections()
	hc.Timeout = slowestImage
	c := &client{hc, h.url}
	var login []string
	if h.users > 0 { // another user each time: none is verified already
		req := http.Request{Header: http.Header{}}
		req.SetBasicAuth(fmt.Sprintf("user%d", i%h.users), abusePassword)
		login = []string{"Authorization", req.Header.Get("Authorization")}
	}
	config, layer := fmt.Appendf(nil, `{"n":%d}`, i), noise(random(i), 256<<10)
	for _, blob := range [][]byte{config, layer} {
		a, err := h.patiently(c, r, 202, "POST", "/v2/honest/app/blobs/uploads/", nil, login...)
		if err != nil {
			return err
		}
		location := a.header.Get("Location") + "?digest=" + digest.FromBytes(blob).String()
		if _, err := h.patiently(c, r, 201, "PUT", location, blob,
			append(login, "Content-Type", typeLayer)...); err != nil {
			return err
		}
	}
	d := describe(typeConfig, config)
	manifest := document{MediaType: typeManifest, Config: &d, Layers: []descriptor{describe(typeLayer, layer)}}.encode()
	path := "/v2/honest/app/manifests/latest"
	_, err := h.patiently(c, r, 201, "PUT", path, manifest, append(login, "Content-Type", typeManifest)...)
	if err != nil {
		return err
	}
	h.images.Add(1)
	blob := "/v2/honest/app/blobs/" + digest.FromBytes(layer).String()
	for path, want := range map[string][]byte{path: manifest, blob: layer} {
		a, err := h.patiently(c, r, 200, "GET", path, nil, login...)
		if err != nil {
			return err
		}
		if !bytes.Equal(a.body, want) {
			return fmt.Errorf("GET %s: other content than was pushed", path)
		}
	}
	return nil
}

// patiently repeats a request as honest clients do: if the registry asks for that, and if the connection breaks.
func (h *honest) patiently(c *client, r *report, want int, method, path string, body []byte,
	headers ...string) (answer, error) {
	for begin := time.Now(); ; r.honest.retries++ {
		a, err := c.do(h.t.Context(), method, path, body, headers...)
		if err == nil && a.status == want {
			return a, nil
		}
		if err == nil {
			err = fmt.Errorf("%s %s: got %v, want %d", method, path, a, want)
			if a.status != 429 && a.status != 503 {
				return a, err
			}
		}
		if time.Since(begin) > patience {
			return a, fmt.Errorf("for %v: %w", patience, err)
		}
		time.Sleep(500 * time.Millisecond)
	}
}
