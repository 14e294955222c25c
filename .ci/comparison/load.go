package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// result has the fields of a result of `trow bench --json` that are used here.
type result struct {
	Connections    int      `json:"connections"`
	Operations     int64    `json:"operations"`
	Errors         int64    `json:"errors"`
	FirstError     string   `json:"first_error"`
	Seconds        float64  `json:"seconds"`
	Bytes          int64    `json:"bytes"`
	OpsPerSecond   float64  `json:"ops_per_second"`
	BytesPerSecond float64  `json:"bytes_per_second"`
	P50            float64  `json:"p50_us"`
	P99            float64  `json:"p99_us"`
	Worst          float64  `json:"worst_us"`
	ServerCPU      *float64 `json:"server_cpu_us_per_op"`
	ServerRSS      *int64   `json:"server_rss_bytes"`
	ServerPeak     *int64   `json:"server_peak_bytes"`
	GeneratorCPU   float64  `json:"generator_cpu_us_per_op"`
	GeneratorBound bool     `json:"generator_bound"`
}

// figure is one measurement of a peer in a row and round, or the reason why it failed.
type figure struct {
	Peer    string  `json:"peer"`
	Row     row     `json:"row"`
	Round   int     `json:"round"`
	Result  *result `json:"result,omitempty"`
	Failure string  `json:"failure,omitempty"`
}

type figures []figure

// line returns the figures in one line, to show progress.
func (f figures) line() string {
	var parts []string
	for _, x := range f {
		if x.Failure != "" {
			parts = append(parts, x.Failure)
		} else {
			parts = append(parts, rate(x.Row, throughput(x))+" "+unit(x.Row))
		}
	}
	return strings.Join(parts, ", ")
}

// failures returns a failed figure for each row of a task.
func failures(p *peer, t task, err error) (f figures) {
	for _, r := range t.rows() {
		f = append(f, figure{Peer: p.name, Row: r, Failure: err.Error()})
	}
	return f
}

// trowBench runs `trow bench`. Errors: the last line of its output.
func (l *laboratory) trowBench(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, l.bench, append([]string{"bench"}, args...)...)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return errors.New(lastLine(out))
	}
	return nil
}

// target returns the arguments that name the server.
func (l *laboratory) target(s *server) []string {
	args := []string{s.url, "--scale", l.scale}
	if s.ca != "" {
		args = append(args, "--cacert", s.ca)
	}
	return args
}

// populate pushes the content. Content that a peer refuses is skipped; the rows that need it fail later.
func (l *laboratory) populate(ctx context.Context, s *server) error {
	return l.trowBench(ctx, append(l.target(s), "--populate-only")...)
}

// load measures a server in the rows of a task. A failure of the server is a figure as well. Errors: those of ctx and
// of the file of results.
func (l *laboratory) load(ctx context.Context, s *server, t task, duration time.Duration) (figures, error) {
	path := filepath.Join(l.dir, "result.json")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	args := append(l.target(s), "--scenarios", t.scenario, "--connections", t.numbers(),
		"--duration", duration.String(), "--pid", s.pid(), "--json", path)
	if !t.pushes() {
		args = append(args, "--no-populate")
	}
	failure := l.trowBench(ctx, args...)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if failure == nil {
			failure = errors.New("trow bench wrote no results")
		}
		return failures(s.peer, t, failure), nil
	} else if err != nil {
		return nil, err
	}
	return readResults(b, s.peer, t)
}

// readResults reads the results of `trow bench`: a row for each number of connections.
func readResults(b []byte, p *peer, t task) (all figures, err error) {
	var report struct {
		Version int      `json:"version"`
		Results []result `json:"results"`
	}
	if err := json.Unmarshal(b, &report); err != nil || report.Version != 1 {
		return nil, fmt.Errorf("results of trow bench: format version is %d, want 1 (%v)", report.Version, err)
	}
	for _, r := range t.rows() {
		f := figure{Peer: p.name, Row: r, Failure: "trow bench has no result for it"}
		for _, x := range report.Results {
			if x.Connections == r.Connections {
				f.Result, f.Failure = &x, x.failure()
			}
		}
		all = append(all, f)
	}
	return all, nil
}

// failure returns why a result does not count, or "". If more than one operation in a hundred fails, the throughput of
// the others has no meaning.
func (x *result) failure() string {
	if x.Operations+x.Errors == 0 {
		return "no operation ended in time"
	}
	if x.Errors*100 > x.Operations {
		return fmt.Sprintf("%d of %d operations failed: %s", x.Errors, x.Errors+x.Operations, x.FirstError)
	}
	return ""
}
