package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// syncCalls are the system calls that make data durable. sync_file_range is not one of them: it only asks the kernel
// to start writing (sync_file_range(2), "Warning").
const syncCalls = "fsync,fdatasync,syncfs"

// syncFigure counts the calls of a peer during a number of pushes on one connection.
type syncFigure struct {
	Peer       string         `json:"peer"`
	Scenario   string         `json:"scenario"`
	Operations int            `json:"operations"`
	Calls      map[string]int `json:"calls"`
	Failure    string         `json:"failure,omitempty"`
}

// total returns the number of calls per operation.
func (f syncFigure) total() float64 {
	n := 0
	for _, calls := range f.Calls {
		n += calls
	}
	return float64(n) / float64(f.Operations)
}

// fsyncs counts the calls of every peer that accepts pushes. Errors: strace is missing; those of ctx.
func (l *laboratory) fsyncs(ctx context.Context) (all []syncFigure, err error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return nil, errors.New("fsyncs: strace is not installed; apt-get install strace")
	}
	for _, scenario := range []string{pushLarge, pushImage} {
		for _, p := range l.peers {
			if p.missing != "" || p.unsupported(task{scenario: scenario}) != "" {
				continue
			}
			f := syncFigure{Peer: p.name, Scenario: scenario}
			if err := l.countSyncs(ctx, strace, p, &f); err != nil {
				f.Failure = err.Error()
			}
			if ctx.Err() != nil {
				return all, ctx.Err()
			}
			l.log("%s of %s: %v in %d operations %s", syncCalls, p.name, f.Calls, f.Operations, f.Failure)
			all = append(all, f)
		}
	}
	return all, nil
}

// countSyncs runs a scenario twice. The first run creates what is created only once. The second one runs under strace
// and through a proxy that counts the pushes: strace sees those of the warm-up too, which trow bench does not count.
func (l *laboratory) countSyncs(ctx context.Context, strace string, p *peer, f *syncFigure) error {
	dir, err := os.MkdirTemp(l.dir, "syncs-")
	if err != nil {
		return err
	}
	defer syscall.Sync()
	defer os.RemoveAll(dir)
	s, err := l.start(ctx, p, dir, false)
	if err != nil {
		return err
	}
	defer s.stop()
	seen, err := newProxy(s)
	if err != nil {
		return err
	}
	defer seen.close()
	push := func(url string) error {
		return l.trowBench(ctx, url, "--scenarios", f.Scenario, "--connections", "1", "--duration", "2s")
	}
	if err := push(s.url); err != nil {
		return err
	}
	if f.Calls, err = traced(ctx, strace, s, func() error { return push(seen.url) }); err != nil {
		return err
	}
	if f.Operations = seen.pushed(f.Scenario); f.Operations == 0 {
		return errors.New("nothing was pushed")
	}
	return nil
}

// traced counts the calls of a server while run runs.
func traced(ctx context.Context, strace string, s *server, run func() error) (map[string]int, error) {
	summary := filepath.Join(filepath.Dir(s.output), "strace")
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, strace, "-f", "-c", "-e", "trace="+syncCalls, "-o", summary, "-p", s.pid())
	cmd.Stderr = &output
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	time.Sleep(attachTime)
	err := run()
	cmd.Process.Signal(os.Interrupt) // strace detaches and writes its counts
	if ended := cmd.Wait(); err == nil && ended != nil && cmd.ProcessState.ExitCode() > 0 {
		err = fmt.Errorf("strace: %w: %s", ended, lastLine(output.Bytes()))
	}
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(summary)
	return readSummary(b), err
}

// attachTime is longer than strace needs to attach to all threads of an idle server.
const attachTime = time.Second

// readSummary reads the summary of strace -c: lines with share, seconds, µs per call, calls, errors if any, and name.
func readSummary(b []byte) map[string]int {
	calls := map[string]int{}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[len(fields)-1] == "total" {
			continue
		}
		if n, err := strconv.Atoi(fields[3]); err == nil {
			calls[fields[len(fields)-1]] += n
		}
	}
	return calls
}
