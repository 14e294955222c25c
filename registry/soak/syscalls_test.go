//go:build faults

package soak

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	"github.com/opencontainers/go-digest"
)

// step is one request of a client, on content that is its alone.
type step struct {
	name  string
	ready func(f *faulty)         // pushes what the request needs
	do    func(f *faulty) outcome // the request, perhaps with earlier ones
	want  int                     // the status of success
	holds func(f *faulty) bool    // reports whether the registry shows what a success promises
}

// outcome is what the client got.
type outcome struct {
	answer
	err error
}

// faulty is one attempt of a step.
type faulty struct {
	*client
	t       *testing.T
	n       int
	repo    string
	content []byte // of a layer
	body    []byte // of a manifest of it
}

func (f *faulty) layer() digest.Digest    { return digest.FromBytes(f.content) }
func (f *faulty) manifest() digest.Digest { return digest.FromBytes(f.body) }

func (f *faulty) send(method, path string, body []byte, headers ...string) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	a, err := f.do(ctx, method, path, body, headers...)
	return outcome{a, err}
}

// must sends a request that must succeed.
func (f *faulty) must(method, path string, body []byte, headers ...string) answer {
	f.t.Helper()
	o := f.send(method, path, body, headers...)
	if o.err != nil || o.status >= 300 {
		f.t.Fatalf("%s %s: %v %v", method, path, o.answer, o.err)
	}
	return o.answer
}

func (f *faulty) is(path string, content []byte) bool {
	o := f.send("GET", path, nil)
	return o.err == nil && o.status == 200 && bytes.Equal(o.body, content)
}

func (f *faulty) gone(path string) bool {
	o := f.send("GET", path, nil)
	return o.err == nil && o.status == 404
}

func (f *faulty) at(kind string, ref any) string {
	return fmt.Sprintf("/v2/%s/%s/%v", f.repo, kind, ref)
}

func (f *faulty) putBlob() outcome {
	return f.send("POST", f.at("blobs", "uploads/?digest="+f.layer().String()), f.content, "Content-Type",
		"application/octet-stream")
}

func (f *faulty) putManifest(ref any) outcome {
	return f.send("PUT", f.at("manifests", ref), f.body, "Content-Type", typeManifest)
}

func (f *faulty) pushed(ref any) {
	f.t.Helper()
	for _, o := range []outcome{f.putBlob(), f.putManifest(ref)} {
		if o.err != nil || o.status != 201 {
			f.t.Fatalf("%v %v", o.answer, o.err)
		}
	}
}

func (f *faulty) hasBlob() bool { return f.is(f.at("blobs", f.layer()), f.content) }
func (f *faulty) hasManifest() bool {
	return f.is(f.at("manifests", f.manifest()), f.body) && f.hasBlob()
}

// chunked pushes a blob in two chunks. It stops at the first request that fails.
func (f *faulty) chunked() outcome {
	half := len(f.content) / 2
	o := f.send("POST", f.at("blobs", "uploads/"), nil)
	if o.err != nil || o.status != 202 {
		return o
	}
	o = f.send("PATCH", o.header.Get("Location"), f.content[:half], "Content-Type", "application/octet-stream")
	if o.err != nil || o.status != 202 {
		return o
	}
	return f.send("PUT", o.header.Get("Location")+"?digest="+f.layer().String(), f.content[half:], "Content-Type",
		"application/octet-stream")
}

var steps = []step{
	{"a blob in one request", func(*faulty) {}, (*faulty).putBlob, 201, (*faulty).hasBlob},
	{"a blob in chunks", func(*faulty) {}, (*faulty).chunked, 201, (*faulty).hasBlob},
	{"a mount", func(f *faulty) { f.pushed("v") }, func(f *faulty) outcome {
		return f.send("POST", fmt.Sprintf("/v2/%s-to/blobs/uploads/?mount=%s&from=%s", f.repo, f.layer(), f.repo), nil)
	}, 201, func(f *faulty) bool { return f.is(fmt.Sprintf("/v2/%s-to/blobs/%s", f.repo, f.layer()), f.content) }},
	{"a tag", func(f *faulty) { f.must("POST", f.at("blobs", "uploads/?digest="+f.layer().String()), f.content) },
		func(f *faulty) outcome { return f.putManifest("v") }, 201,
		func(f *faulty) bool { return f.is(f.at("manifests", "v"), f.body) && f.hasManifest() }},
	{"a manifest", func(f *faulty) { f.must("POST", f.at("blobs", "uploads/?digest="+f.layer().String()), f.content) },
		func(f *faulty) outcome { return f.putManifest(f.manifest()) }, 201, (*faulty).hasManifest},
	{"deletion of a tag", func(f *faulty) { f.pushed("v") },
		func(f *faulty) outcome { return f.send("DELETE", f.at("manifests", "v"), nil) },
		202, func(f *faulty) bool { return f.gone(f.at("manifests", "v")) && f.hasManifest() }},
	{"deletion of a manifest", func(f *faulty) { f.pushed("v") },
		func(f *faulty) outcome { return f.send("DELETE", f.at("manifests", f.manifest()), nil) },
		202, func(f *faulty) bool { return f.gone(f.at("manifests", "v")) && f.gone(f.at("manifests", f.manifest())) }},
	{"deletion of a blob", func(f *faulty) {
		f.must("POST", f.at("blobs", "uploads/?digest="+f.layer().String()),
			f.content)
	},
		func(f *faulty) outcome { return f.send("DELETE", f.at("blobs", f.layer()), nil) },
		202, func(f *faulty) bool { return f.gone(f.at("blobs", f.layer())) }},
	{"a pull", func(f *faulty) { f.pushed("v") }, func(f *faulty) outcome {
		o := f.send("GET", f.at("blobs", f.layer()), nil)
		if o.err == nil && o.status == 200 && !bytes.Equal(o.body, f.content) {
			f.t.Errorf("a pull succeeded with %d wrong bytes", len(o.body))
		}
		return o
	}, 200, (*faulty).hasBlob},
}

// calls are the system calls that the server uses on its files.
var calls = []string{"openat", "write", "pwrite64", "read", "pread64", "fsync", "fdatasync", "renameat", "renameat2",
	"unlinkat", "ftruncate", "newfstatat", "fstat", "mkdirat"}

// TestSystemCalls makes each system call of each step fail, under the whole program: strace answers instead of the
// kernel. A success must be true, the process must survive, content from before must be readable, and the same step
// must succeed when it is repeated. It needs strace and permission to trace.
func TestSystemCalls(t *testing.T) {
	s := start(t, "--gc-interval=0", "--scrub-interval=0")
	j := &injector{t: t, s: s, hits: map[string]int{}}
	first := j.next()
	first.pushed("v")
	for range settings.rounds {
		for _, st := range steps {
			for _, call := range calls {
				for _, errno := range []string{"EIO", "ENOSPC"} {
					j.every(st, call, errno, first)
				}
			}
		}
	}
	pid := s.process().Process.Pid
	if pid != j.pid && j.pid != 0 {
		t.Errorf("the process died")
	}
	s.stop(syscall.SIGKILL)
	s.run()
	for n, check := range j.after {
		if !check() {
			t.Errorf("after a restart: step %d is not as its answer said", n)
		}
	}
	if !first.hasManifest() {
		t.Error("after a restart: the first image is gone")
	}
	t.Logf("%d faults: %v; %d answers of success, all true; %d of failure; %d connections broken", j.faults, j.hits,
		j.succeeded, j.failed, j.cut)
	if j.faults < 60*settings.rounds {
		t.Errorf("only %d faults were injected", j.faults)
	}
}

type injector struct {
	t      *testing.T
	s      *server
	n, pid int
	hits   map[string]int // injected faults, by call
	after  []func() bool  // what must hold after a restart

	faults, succeeded, failed, cut int
	stuck                          int // how often strace had to be killed
}

func (j *injector) next() *faulty {
	j.n++
	r := random(j.n)
	f := &faulty{client: &client{j.s.client, j.s.url}, t: j.t, n: j.n, repo: fmt.Sprintf("r%d", j.n),
		content: make([]byte, 100<<10)}
	for i := range f.content {
		f.content[i] = byte(r.Uint32())
	}
	layer := describe(typeLayer, f.content)
	f.body = document{MediaType: typeManifest, Config: &layer, Layers: []descriptor{layer}}.encode()
	return f
}

// every repeats a step until each of its calls has failed once. strace counts calls by thread, and Go chooses the
// thread, so some attempts hit a call that was hit before.
func (j *injector) every(st step, call, errno string, first *faulty) {
	hit, seen := map[int]bool{}, map[int]int{} // seen: in how many attempts the call occurred
	for try := 1; ; try++ {
		f := j.next()
		st.ready(f)
		var o outcome
		positions, n, others := j.inject(call, errno, 1+(try-1)%max(len(seen), 1), func() { o = st.do(f) })
		if others.runtime {
			j.s.stop(syscall.SIGKILL)
			j.s.run()
			continue
		}
		for p := range n {
			seen[p+1]++
		}
		for _, p := range positions {
			hit[p] = true
		}
		j.faults += len(positions)
		j.hits[call] += len(positions)
		j.judge(st, f, o, call, errno, len(positions)+others.sockets > 0)
		if len(positions) > 0 && !first.hasManifest() {
			j.t.Errorf("%s, %s %s: content from before cannot be read", st.name, call, errno)
		}
		left := 0
		for p, times := range seen {
			if !hit[p] && 2*times > try { // a rarer call belongs to a background loop
				left++
			}
		}
		if left == 0 {
			return
		}
		if try > 12+6*len(seen) {
			j.t.Errorf("%s, %s %s: %d of %d calls were never hit", st.name, call, errno, left, len(seen))
			return
		}
	}
}

// judge compares the answer with what the registry shows.
func (j *injector) judge(st step, f *faulty, o outcome, call, errno string, fault bool) {
	where := fmt.Sprintf("%s, %s %s: %v %v", st.name, call, errno, o.answer.status, o.err)
	holds := st.holds(f)
	switch {
	case o.err != nil:
		j.cut++
	case o.status == st.want:
		j.succeeded++
		if !holds {
			j.t.Errorf("%s, but the registry does not show it", where)
		}
		j.after = append(j.after, func() bool { return st.holds(f) })
		return
	default:
		j.failed++
		j.wantRefusal(where, o)
	}
	if !fault {
		j.t.Errorf("%s, although no call failed: %s", where, o.body)
	}
	if err := j.s.process().Process.Signal(syscall.Signal(0)); err != nil {
		j.t.Fatalf("%s: the process has died: %v\n%s", where, err, &j.s.log)
	}
	again := st.do(f)
	if again.err != nil || again.status != st.want && !(again.status == 404 && holds) || !st.holds(f) {
		j.t.Errorf("%s; repeated: %v %v", where, again.answer, again.err)
		return
	}
	j.after = append(j.after, func() bool { return st.holds(f) })
}

// wantRefusal checks that a failure has an answer that clients understand.
func (j *injector) wantRefusal(where string, o outcome) {
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(o.body, &body) != nil || len(body.Errors) == 0 || body.Errors[0].Code == "" {
		j.t.Errorf("%s: the answer is %s", where, o.body)
	}
	if slices.Contains([]int{429, 503, 507}, o.status) && o.header.Get("Retry-After") == "" {
		j.t.Errorf("%s: no Retry-After", where)
	}
	if o.status < 500 && o.status != 429 {
		j.t.Errorf("%s: the answer blames the client: %s", where, o.body)
	}
}

// elsewhere counts the faults outside of the data directory.
type elsewhere struct {
	sockets int // a client sees its connection break
	// runtime: the fault hit the eventfd with which the Go runtime wakes its poller, which ends the process; or strace
	// did not end.
	runtime bool
}

// inject runs do while strace makes one call of each thread fail. It returns which of the calls on the data directory
// failed, how many there were, and which other calls failed.
func (j *injector) inject(call, errno string, when int, do func()) (hit []int, total int, others elsewhere) {
	out := filepath.Join(j.t.TempDir(), "trace")
	pid := j.s.process().Process.Pid
	j.pid = pid
	cmd := exec.Command("strace", "-f", "-y", "-o", out, "-p", strconv.Itoa(pid), "-e", "trace="+call,
		"-e", fmt.Sprintf("inject=%s:error=%s:when=%d", call, errno, when))
	said := &console{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		j.t.Fatalf("strace: %v; install it", err)
	}
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(said.String(),
		"attached"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			j.t.Fatalf("strace does not attach: %s", said)
		}
	}
	do()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		j.t.Fatal(err)
	}
	// strace may wait for ever for a process that the fault has ended. Then its file has no end, and the attempt does
	// not count; it is repeated with a new server.
	stuck := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		j.t.Fatal(err)
	}
	if !stuck.Stop() {
		if j.stuck++; j.stuck > 3 {
			j.t.Fatalf("strace did not end %d times: %s", j.stuck, said)
		}
		return nil, 0, elsewhere{runtime: true}
	}
	return j.read(out)
}

var traced = regexp.MustCompile(`^\d+ +([a-z0-9]+)\(`)

// read finds the calls on the data directory in a trace. A call that was interrupted by one of another thread has two
// lines; the second has its result.
func (j *injector) read(file string) (hit []int, total int, others elsewhere) {
	text, err := os.ReadFile(file)
	if err != nil {
		j.t.Fatal(err)
	}
	open := map[string]int{} // by thread: the position of the call that has not returned
	for line := range strings.Lines(string(text)) {
		thread, _, _ := strings.Cut(line, " ")
		position := 0
		if traced.MatchString(line) {
			if strings.Contains(line, j.s.dir) {
				total++
				position = total
			}
			open[thread] = position
		} else if strings.Contains(line, "resumed>") {
			position = open[thread]
		}
		if !strings.Contains(line, "unfinished ...>") {
			delete(open, thread)
		}
		if !strings.Contains(line, "(INJECTED)") {
			continue
		}
		switch {
		case position > 0:
			hit = append(hit, position)
		case strings.Contains(line, "[eventfd]"):
			others.runtime = true
		default:
			others.sockets++
		}
	}
	return hit, total, others
}
