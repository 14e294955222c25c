package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A test is a top-level test of a binary.
type test struct {
	binary, dir, name string
	time              time.Duration // of a run alone, with the code as it is
	reaches           map[int]bool  // mutants
}

// The outcome of a mutant.
type outcome int

const (
	unreached outcome = iota
	killed
	timedOut
	lived
)

func (o outcome) String() string { return [...]string{"UNREACHED", "KILLED", "TIMED_OUT", "LIVED"}[o] }

// A trial runs tests against mutants.
type trial struct {
	work    string
	workers int
	tests   []*test // the fastest first
}

// record runs each test alone, with the code as it is, to learn its time and the mutants that it reaches. Tests that
// fail alone are left out; it reports them.
func (tr *trial) record(ctx context.Context, all []*test, log io.Writer) {
	var mu sync.Mutex
	tr.parallel(len(all), func(i int) {
		t := all[i]
		file := filepath.Join(tr.work, fmt.Sprintf("record%d", i))
		begin := time.Now()
		ok, output, _ := tr.run(ctx, []*test{t}, 20*time.Minute, "MUTANT_RECORD="+file)
		t.time, t.reaches = time.Since(begin), map[int]bool{}
		data, _ := os.ReadFile(file) // there is none if the test reaches no mutant
		os.Remove(file)
		for id := range strings.FieldsSeq(string(data)) {
			n, _ := strconv.Atoi(id)
			t.reaches[n] = true
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case !ok:
			fmt.Fprintf(log, "note: %s is left out: it fails alone, without a mutant: %s\n", t.name,
				lastLines(output, 5))
		case len(t.reaches) > 0:
			tr.tests = append(tr.tests, t)
		}
	})
	slices.SortFunc(tr.tests, func(a, b *test) int { return int(a.time - b.time) })
}

// try runs the tests that reach a mutant until one fails. It returns the outcome and the name of the test that failed.
func (tr *trial) try(ctx context.Context, id int) (outcome, string) {
	result := unreached
	var batch []*test
	var sum time.Duration
	flush := func() (outcome, string) {
		if len(batch) == 0 {
			return result, ""
		}
		// The machine may be busier than it was when the times were taken.
		ok, output, late := tr.run(ctx, batch, 10*time.Second+5*sum, "MUTANT="+strconv.Itoa(id))
		names := batch
		batch, sum = nil, 0
		switch {
		case late:
			return timedOut, ""
		case !ok:
			return killed, failure(output, names)
		}
		return lived, ""
	}
	for _, t := range tr.tests {
		if !t.reaches[id] {
			continue
		}
		// A process for each test costs more than most tests, so that the quick ones share one. A batch takes about as
		// long as all batches before it.
		if len(batch) > 0 && (t.binary != batch[0].binary || sum+t.time > max(300*time.Millisecond, 2*batch[0].time)) {
			if result, name := flush(); result != lived {
				return result, name
			}
			result = lived
		}
		batch = append(batch, t)
		sum += t.time
	}
	return flush()
}

// run runs tests of one binary in a process group and a temporary directory of their own, and ends them all at the end.
func (tr *trial) run(ctx context.Context, tests []*test, limit time.Duration,
	env string) (ok bool, output string, late bool) {
	tmp, err := os.MkdirTemp(tr.work, "run")
	if err != nil {
		return false, err.Error(), false
	}
	defer os.RemoveAll(tmp)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var names []string
	for _, t := range tests {
		names = append(names, regexp.QuoteMeta(t.name))
	}
	cmd := exec.CommandContext(ctx, tests[0].binary, "-test.run=^("+strings.Join(names, "|")+")$", "-test.failfast",
		"-test.timeout=0")
	cmd.Dir = tests[0].dir
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, env)
	out := &tail{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	end := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = end
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if cmd.Process != nil {
		end() // children of a test that crashed
	}
	return err == nil, out.String(), errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// parallel calls f for all numbers below n, with tr.workers goroutines.
func (tr *trial) parallel(n int, f func(int)) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range tr.workers {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// list returns the tests, examples and fuzz targets of a binary. dir is the directory of their package.
func list(ctx context.Context, binary, dir string) ([]*test, error) {
	cmd := exec.CommandContext(ctx, binary, "-test.list=^(Test|Example|Fuzz)")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", binary, err)
	}
	var tests []*test
	for name := range strings.FieldsSeq(string(out)) {
		tests = append(tests, &test{binary: binary, dir: dir, name: name})
	}
	return tests, nil
}

var failed = regexp.MustCompile(`(?m)^--- FAIL: (\S+)`)

// failure returns the name of the test that failed, or a guess if the process ended in another way.
func failure(output string, batch []*test) string {
	if match := failed.FindStringSubmatch(output); match != nil {
		return match[1]
	}
	if len(batch) > 1 {
		return fmt.Sprintf("a crash of %s or another test", batch[0].name)
	}
	return "a crash of " + batch[0].name
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// A tail keeps the beginning and the end of what is written to it: a mutant may write for ever.
type tail struct{ head, rest bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	const limit = 1 << 20
	if t.head.Len() < limit {
		t.head.Write(p)
		return len(p), nil
	}
	if t.rest.Len() > limit {
		t.rest.Reset()
	}
	t.rest.Write(p)
	return len(p), nil
}

func (t *tail) String() string { return t.head.String() + t.rest.String() }
