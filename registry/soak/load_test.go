package soak

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
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

// sizes is the amount of concurrency.
type sizes struct {
	idle, slow, aborted int
	slowFor             time.Duration
}

// load must be called within a test, so that go test knows that the result depends on the variable.
var load = sync.OnceValue(func() sizes {
	if os.Getenv("SOAK_LOAD") != "" {
		return sizes{10_000, 1000, 6000, 30 * time.Second}
	}
	return sizes{1000, 150, 450, 3 * time.Second}
})

// The memory that a connection may take in the server, in bytes. Idle: two buffers of 4 KiB, a buffer of TLS for a
// record (16 KiB), keys, and a stack (8 to 16 KiB); the kernel's part does not count. With an upload under way: 256
// KiB more for copying. Twice that is generous, and a tenth of what a body in memory would take.
const (
	idleCost = 2 * 48 << 10
	busyCost = idleCost + 2*256<<10
)

// usage is what the server's process uses.
type usage struct{ resident, heap, files, goroutines int }

func (u usage) String() string {
	return fmt.Sprintf("%d MB resident, %d MB heap, %d files, %d goroutines", u.resident>>20, u.heap>>20, u.files,
		u.goroutines)
}

// usage returns what the kernel and the metrics report.
func (s *server) usage() (u usage) {
	s.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", s.process().Process.Pid)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		s.t.Fatal(err)
	}
	files, err := os.ReadDir(proc + "fd")
	if err != nil {
		s.t.Fatal(err)
	}
	kib, err := strconv.Atoi(string(regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)[1]))
	if err != nil {
		s.t.Fatal(err)
	}
	metrics := s.metrics()
	return usage{kib << 10, int(metrics["go_memstats_heap_inuse_bytes"]), len(files), int(metrics["go_goroutines"])}
}

// metrics returns the server's metrics that have no labels.
func (s *server) metrics() map[string]float64 {
	s.t.Helper()
	a, err := (&client{s.client, s.url}).do(s.t.Context(), "GET", "/metrics", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(a.body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			all[name] = v
		}
	}
	return all
}

// eventually waits until is returns true.
func eventually(t *testing.T, within time.Duration, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("not within %v: %s", within, what)
			return
		}
	}
}

// wantNoLeak waits until the server has as few files and goroutines as before.
func (s *server) wantNoLeak(before usage) {
	s.t.Helper()
	const few = 5 // for clients that keep their connection
	eventually(s.t, 20*time.Second, "as many files and goroutines as before", func() bool {
		now := s.usage()
		return now.files <= before.files+few && now.goroutines <= before.goroutines+few
	})
	s.t.Logf("afterwards: %v", s.usage())
}

// line is a connection that the test controls.
type line struct {
	net.Conn
	tcp  *net.TCPConn
	read *bufio.Reader
}

func (s *server) dial() (*line, error) {
	tcp, err := net.DialTimeout("tcp", strings.TrimPrefix(s.url, "https://"), 30*time.Second)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(tcp, &tls.Config{RootCAs: s.pool, ServerName: "127.0.0.1"})
	if err := errors.Join(conn.SetDeadline(time.Now().Add(3*time.Minute)), conn.Handshake()); err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	return &line{conn, tcp.(*net.TCPConn), bufio.NewReaderSize(conn, 1<<10)}, nil
}

// abort closes the connection like a client that dies, with or without a reset.
func (l *line) abort(reset bool) {
	if reset {
		_ = l.tcp.SetLinger(0)
	}
	_ = l.tcp.Close()
}

// begin sends the head of a request whose body has size bytes, and the given part of the body.
func (l *line) begin(method, path string, size int, body []byte) error {
	_, err := fmt.Fprintf(l,
		"%s %s HTTP/1.1\r\nHost: trow\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n%s",
		method,
		path, size, body)
	return err
}

// answer reads an answer with its body.
func (l *line) answer() (answer, error) {
	resp, err := http.ReadResponse(l.read, nil)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, b}, err
}

func (l *line) ask(want int, method, path string, body []byte) (answer, error) {
	err := l.begin(method, path, len(body), body)
	if err != nil {
		return answer{}, err
	}
	a, err := l.answer()
	if err == nil && a.status != want {
		err = fmt.Errorf("%s %s: %v", method, path, a)
	}
	return a, err
}

// parallel calls do n times, atOnce of them concurrently, and returns the errors.
func parallel(n, atOnce int, do func(i int) error) error {
	var all sync.WaitGroup
	var next atomic.Int64
	failed := make([]error, n)
	for range atOnce {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				failed[i] = do(i)
			}
		})
	}
	all.Wait()
	failed = slices.DeleteFunc(failed, func(err error) bool { return err == nil })
	if len(failed) > 3 {
		failed = append(failed[:3], fmt.Errorf("and %d more", len(failed)-3))
	}
	return errors.Join(failed...)
}

// pushed pushes a blob and pulls it, and returns how long that took.
func (s *server) pushed(repo string, content []byte) (digest.Digest, time.Duration) {
	s.t.Helper()
	c, d, began := &client{s.client, s.url}, digest.FromBytes(content), time.Now()
	a, err := c.do(s.t.Context(), "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), content, "Content-Type",
		"application/octet-stream")
	if err != nil || a.status != 201 {
		s.t.Fatalf("a push: %v %v", a, err)
	}
	a, err = c.do(s.t.Context(), "GET", "/v2/"+repo+"/blobs/"+d.String(), nil)
	if err != nil || a.status != 200 || !bytes.Equal(a.body, content) {
		s.t.Fatalf("a pull: %d, %d bytes, %v", a.status, len(a.body), err)
	}
	return d, time.Since(began)
}

func noise(r *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// TestIdleConnections opens as many connections as max-connections allows, and a tenth more, sends one request on each,
// and keeps them idle.
func TestIdleConnections(t *testing.T) {
	s := start(t, "--gc-interval=0", "--scrub-interval=0", fmt.Sprint("--max-connections=", load().idle))
	_, alone := s.pushed("load", noise(random(1), 1<<20))
	before, more := s.usage(), load().idle/10
	t.Logf("before: %v", before)
	lines := make([]*line, load().idle+more)
	err := parallel(len(lines), 32, func(i int) (err error) {
		if lines[i], err = s.dial(); err == nil {
			_, err = lines[i].ask(200, "GET", "/v2/", nil)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, beside := s.pushed("load", noise(random(2), 1<<20))
	during := s.usage()
	each := (during.resident - before.resident) / load().idle
	t.Logf("%d idle connections: %v; %d KiB each; a push and a pull take %v, alone %v", load().idle, during, each>>10,
		beside, alone)
	if each > idleCost {
		t.Errorf("an idle connection takes %d bytes, more than %d", each, idleCost)
	}
	if during.files > before.files+load().idle+20 {
		t.Errorf("%d files are open, but only %d connections are allowed", during.files, load().idle)
	}
	if m := s.metrics(); m["trow_http_connections_evicted_total"] < float64(more) ||
		m["trow_http_connections_refused_total"] > 0 {
		t.Errorf("%v connections were evicted, want at least %d; %v were refused, want none",
			m["trow_http_connections_evicted_total"], more, m["trow_http_connections_refused_total"])
	}
	for _, l := range lines {
		l.abort(false)
	}
	s.wantNoLeak(before)
}

// TestSlowUploads runs as many slow uploads as max-requests allows one client, which is half. Each must make progress,
// pulls must not wait for them, and one more push must be refused with Retry-After.
func TestSlowUploads(t *testing.T) {
	const spare = 10
	s := start(t, "--gc-interval=0", "--scrub-interval=0", fmt.Sprint("--max-requests=", 2*load().slow),
		fmt.Sprint("--max-connections=", 2*load().slow+spare))
	big, alone := s.pushed("load", noise(random(1), 8<<20))
	before := s.usage()
	u := &slowUploads{server: s, starting: make(chan struct{}, 16), all: make(chan struct{}), half: make(chan struct{})}
	u.started.Add(load().slow)
	ended := make(chan error, 1)
	go func() { ended <- parallel(load().slow, load().slow, u.upload) }()
	u.started.Wait()
	close(u.all)
	time.Sleep(load().slowFor / 3)
	least, most := u.progress()
	during := s.usage()
	each := (during.resident - before.resident) / load().slow
	t.Logf("%d slow uploads: %v, before %v; %d KiB each; the slowest has sent %d bytes, the fastest %d", load().slow,
		during, before, each>>10, least, most)
	if least == 0 || least < most/4 {
		t.Errorf("the slowest upload has %d bytes, the fastest %d", least, most)
	}
	if each > busyCost {
		t.Errorf("an upload takes %d bytes, more than %d", each, busyCost)
	}
	u.wantRefusals(big)
	close(u.half)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	_, afterwards := s.pushed("load", noise(random(2), 8<<20))
	t.Logf("8 MiB are pushed and pulled in %v, before in %v", afterwards, alone)
	s.wantNoLeak(before)
}

type slowUploads struct {
	*server
	started sync.WaitGroup
	// starting bounds how many start at once: on a busy machine more of them would take longer than the server waits
	// for the head of a request.
	starting chan struct{}
	all      chan struct{} // closed when all have started
	half     chan struct{} // closed when they may finish
}

// upload starts, waits for the others, sends a piece ten times a second, and the rest when it may finish.
func (u *slowUploads) upload(i int) error {
	r := random(100 + i)
	content, piece, at := noise(r, 64<<10), 512, 0
	first := sync.OnceFunc(u.started.Done)
	defer first()
	l, err := u.enter(i, len(content))
	if err != nil {
		return err
	}
	defer l.Close()
	first()
	<-u.all
	for waiting := true; waiting && err == nil && at+piece < len(content); at += piece {
		_, err = l.Write(content[at : at+piece])
		select {
		case <-time.After(100 * time.Millisecond):
		case <-u.half:
			waiting = false
		}
	}
	<-u.half
	if err == nil {
		_, err = l.Write(content[at:])
	}
	if err != nil {
		return err
	}
	a, err := l.answer()
	if err != nil || a.status != 202 {
		return fmt.Errorf("PATCH: %v %v", a, err)
	}
	d := digest.FromBytes(content).String()
	if _, err = l.ask(201, "PUT", a.header.Get("Location")+"?digest="+d, nil); err != nil {
		return err
	}
	if a, err = l.ask(200, "GET", fmt.Sprintf("/v2/slow/%d/blobs/%s", i, d), nil); err == nil &&
		!bytes.Equal(a.body, content) {
		err = errors.New("the pull returned other content")
	}
	return err
}

// enter starts an upload of size bytes.
func (u *slowUploads) enter(i, size int) (*line, error) {
	u.starting <- struct{}{}
	defer func() { <-u.starting }()
	l, err := u.dial()
	if err != nil {
		return nil, err
	}
	a, err := l.ask(202, "POST", fmt.Sprintf("/v2/slow/%d/blobs/uploads/", i), nil)
	if err == nil {
		err = l.begin("PATCH", a.header.Get("Location"), size, nil)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// progress returns how many bytes of the slowest and the fastest upload are on the disk.
func (u *slowUploads) progress() (least, most int64) {
	u.t.Helper()
	sizes := u.uploads()
	if len(sizes) != load().slow {
		u.t.Errorf("%d uploads are open, not %d", len(sizes), load().slow)
		return 0, 0
	}
	return slices.Min(sizes), slices.Max(sizes)
}

// uploads returns the sizes of the open uploads.
func (s *server) uploads() (sizes []int64) {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, "uploads"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			sizes = append(sizes, fi.Size())
		}
	}
	return sizes
}

// wantRefusals exceeds max-requests.
func (u *slowUploads) wantRefusals(big digest.Digest) {
	t := u.t
	c := &client{u.client, u.url}
	for range 20 {
		a, err := c.do(t.Context(), "POST", "/v2/load/blobs/uploads/", nil)
		if err != nil || a.status != 429 || a.header.Get("Retry-After") == "" ||
			!bytes.Contains(a.body, []byte(`"TOOMANYREQUESTS"`)) {
			t.Errorf("one push too many: %v %v %v", a, a.header, err)
		}
	}
	pull := "/v2/load/blobs/" + big.String()
	if a, err := c.do(t.Context(), "GET", pull, nil); err != nil || a.status != 200 || len(a.body) != 8<<20 {
		t.Errorf("a pull beside the uploads: %d %v", a.status, err)
	}
}

// TestSlowDownloads runs many downloads whose clients read slowly. The memory for each must be bounded, whatever the
// size of the blob, and other clients must be served meanwhile.
func TestSlowDownloads(t *testing.T) {
	s := start(t, "--gc-interval=0", "--scrub-interval=0", fmt.Sprint("--max-requests=", 3*load().slow))
	d, _ := s.pushed("load", noise(random(1), 32<<20))
	before := s.usage()
	lines := make([]*line, load().slow)
	err := parallel(len(lines), 16, func(i int) (err error) {
		if lines[i], err = s.dial(); err == nil {
			err = lines[i].begin("GET", "/v2/load/blobs/"+d.String(), 0, nil)
		}
		if err == nil {
			_, err = io.ReadFull(lines[i].read, make([]byte, 64<<10))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	most := s.usage()
	for end := time.Now().Add(load().slowFor); time.Now().Before(end); {
		if err := parallel(len(lines), 16, func(i int) error {
			_, err := io.ReadFull(lines[i].read, make([]byte, 4<<10))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if now := s.usage(); now.resident > most.resident {
			most = now
		}
	}
	_, beside := s.pushed("load", noise(random(2), 1<<20))
	each := (most.resident - before.resident) / load().slow
	t.Logf("%d slow downloads of 32 MiB: %v, before %v; %d KiB each; a concurrent push and pull take %v", load().slow,
		most, before, each>>10, beside)
	if each > busyCost {
		t.Errorf("a download takes %d bytes, more than %d", each, busyCost)
	}
	for _, l := range lines {
		l.abort(true)
	}
	s.wantNoLeak(before)
}

// TestAbortedTransfers has clients die in the middle of uploads and downloads. Only the uploads that can be continued
// must stay, and only until upload-timeout.
func TestAbortedTransfers(t *testing.T) {
	kept := load().aborted / 3
	s := start(t, "--gc-interval=0", "--scrub-interval=0", fmt.Sprint("--max-uploads=", kept+100),
		fmt.Sprint("--max-uploads-per-client=", kept+1000)) // all come from one address
	content := noise(random(1), 4<<20)
	d, _ := s.pushed("load", content)
	before := s.usage()
	if err := parallel(load().aborted, 48, func(i int) error { return s.aborted(i, content, d) }); err != nil {
		t.Fatal(err)
	}
	t.Logf("after %d aborted transfers: %v, before %v", load().aborted, s.usage(), before)
	s.wantNoLeak(before)
	if now := s.usage(); now.resident > before.resident+48*busyCost+64<<20 {
		t.Errorf("%d MB are resident, before %d", now.resident>>20, before.resident>>20)
	}
	// Those of which no byte has arrived before the client died are not stored.
	eventually(t, 20*time.Second, fmt.Sprint("at most ", kept, " uploads are left"), func() bool {
		n := len(s.uploads())
		return n > kept/4 && n <= kept
	})
	s.pushed("load", noise(random(2), 1<<20))
	s.wantExpired(len(s.uploads()), kept+100)
}

// aborted starts one of three transfers and breaks it off.
func (s *server) aborted(i int, content []byte, d digest.Digest) error {
	l, err := s.dial()
	if err != nil {
		return err
	}
	defer l.abort(i%2 == 0)
	part := content[:1+i*7919%(256<<10)]
	switch i % 3 {
	case 0: // no client can continue this one, so it must not stay
		return l.begin("POST", "/v2/load/blobs/uploads/?digest="+digest.FromString("what was never sent").String(),
			len(content), part)
	case 1:
		a, err := l.ask(202, "POST", "/v2/load/blobs/uploads/", nil)
		if err != nil {
			return err
		}
		return l.begin("PATCH", a.header.Get("Location"), len(content), part)
	}
	if err := l.begin("GET", "/v2/load/blobs/"+d.String(), 0, nil); err != nil {
		return err
	}
	_, err = io.ReadFull(l.read, make([]byte, min(len(part), 8<<10)))
	return err
}

// wantExpired opens uploads until there are as many as max-uploads allows, and one more, for which an idle one is
// dropped. Then it restarts the server with a shorter upload-timeout, and checks that all are dropped when they have
// been idle for that long.
func (s *server) wantExpired(open, most int) {
	t := s.t
	c := &client{s.client, s.url}
	begin := func() answer {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		a, err := c.do(ctx, "POST", "/v2/load/blobs/uploads/", nil)
		if err == nil && a.status == 202 { // the first byte takes the place
			a, err = c.do(ctx, "PATCH", a.header.Get("Location"), []byte("x"))
		}
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for ; open <= most; open++ {
		if a := begin(); a.status != 202 {
			t.Fatalf("upload %d: %v", open, a)
		}
	}
	eventually(t, 20*time.Second, fmt.Sprint(most, " uploads are left"), func() bool {
		return len(s.uploads()) == most
	})
	var bytes int64
	for _, size := range s.uploads() {
		bytes += size
	}
	s.stop(syscall.SIGTERM) // the uploads survive that
	s.args = append(s.args, "--upload-timeout=1m")
	within := 90 * time.Second
	if os.Getenv("SOAK_LOAD") == "" { // a minute is too long for a daily test
		within = 10 * time.Second
		s.age(2 * time.Minute)
	}
	began := time.Now()
	s.run()
	eventually(t, within, "the idle uploads are gone", func() bool { return len(s.uploads()) == 0 })
	t.Logf("%d idle uploads with %d MB were dropped after %v", most, bytes>>20, time.Since(began))
	if a := begin(); a.status != 202 {
		t.Errorf("an upload after the others were dropped: %v", a)
	}
}

// age sets back the modification times of all uploads.
func (s *server) age(by time.Duration) {
	s.t.Helper()
	names, err := filepath.Glob(filepath.Join(s.dir, "uploads", "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Chtimes(name, time.Time{}, time.Now().Add(-by)); err != nil {
			s.t.Fatal(err)
		}
	}
}
