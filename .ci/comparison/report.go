package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is the result of a full run, in the format of --json.
type report struct {
	Version  int           `json:"version"`
	Time     time.Time     `json:"time"`
	CPUs     int           `json:"cpus"`
	Load     [2]string     `json:"load_average"` // of the last minute, before and after
	Rounds   int           `json:"rounds"`
	Duration string        `json:"duration"`
	Scale    string        `json:"scale"`
	Peers    []presence    `json:"peers"`
	Rows     []row         `json:"rows"`
	Figures  figures       `json:"figures"`
	Starts   []startFigure `json:"starts,omitempty"`
	Syncs    []syncFigure  `json:"syncs,omitempty"`
}

// presence is a peer in a report.
type presence struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Note    string `json:"note,omitempty"`
	Missing string `json:"missing,omitempty"`
}

// compare does a full run. The report has what was measured until an error, if any.
func (l *laboratory) compare(ctx context.Context) (*report, error) {
	o := l.options
	r := &report{Version: 1, Time: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Rounds: o.rounds,
		Duration: o.duration.String(), Scale: o.scale}
	r.Load[0] = loadAverage()
	err := l.fill(ctx, r)
	r.Load[1] = loadAverage()
	for _, p := range l.peers {
		r.Peers = append(r.Peers, presence{p.name, p.version, p.note, p.missing})
	}
	return r, err
}

// fill measures everything that was asked for.
func (l *laboratory) fill(ctx context.Context, r *report) error {
	o := l.options
	tasks, err := choose(everything, o.only)
	if err != nil {
		return err
	}
	for _, t := range tasks {
		r.Rows = append(r.Rows, t.rows()...)
	}
	if r.Figures, err = l.measure(ctx, tasks, o.rounds, o.duration); err != nil {
		return err
	}
	if o.starts > 0 {
		if r.Starts, err = l.starts(ctx, o.starts); err != nil {
			return err
		}
	}
	if o.fsyncs {
		r.Syncs, err = l.fsyncs(ctx)
	}
	return err
}

// verdict returns an error if Trow failed in a row.
func (r *report) verdict() error {
	var failed []string
	for _, f := range r.Figures {
		if f.Peer == nameTrow && f.Failure != "" {
			failed = append(failed, fmt.Sprintf("%s: %s", f.Row, f.Failure))
		}
	}
	if len(failed) > 0 {
		return errors.New("Trow failed: " + strings.Join(failed, "; "))
	}
	return nil
}

// throughput returns the main number of a figure: bytes per second for rows of large blobs, operations per second for
// others; NaN for a failure.
func throughput(f figure) float64 {
	switch {
	case f.Failure != "" || f.Result == nil:
		return math.NaN()
	case large(f.Row):
		return f.Result.BytesPerSecond
	}
	return f.Result.OpsPerSecond
}

// large reports whether a row transfers blobs of 64 MiB.
func large(r row) bool {
	return strings.Contains(r.Scenario, "64MiB") || r.Scenario == "blob-push-chunked"
}

// p99 returns the latency in µs that 99 of 100 operations did not exceed.
func p99(f figure) float64 {
	if f.Failure != "" || f.Result == nil || f.Result.P99 == 0 {
		return math.NaN()
	}
	return f.Result.P99
}

func serverCPU(f figure) float64 {
	if f.Failure != "" || f.Result == nil || f.Result.ServerCPU == nil {
		return math.NaN()
	}
	return *f.Result.ServerCPU
}

// of returns the figures of a peer in a row, by round; NaN where there is none.
func (f figures) of(peer string, r row, pick func(figure) float64) (values []float64) {
	for _, x := range f {
		if x.Peer != peer || x.Row != r {
			continue
		}
		for len(values) <= x.Round {
			values = append(values, math.NaN())
		}
		values[x.Round] = pick(x)
	}
	return values
}

// failure returns why a peer failed in a row, or "".
func (f figures) failure(peer string, r row) string {
	for _, x := range f {
		if x.Peer == peer && x.Row == r && x.Failure != "" {
			return x.Failure
		}
	}
	return ""
}

// limited reports whether the generator was the limit in most rounds.
func (f figures) limited(peer string, r row) bool {
	n := f.of(peer, r, func(x figure) float64 {
		if x.Result != nil && x.Result.GeneratorBound {
			return 1
		}
		return 0
	})
	return median(n) > 0.5
}

// peak returns the highest memory of a peer in all rounds.
func (f figures) peak(peer string) (most int64) {
	for _, x := range f {
		if x.Peer == peer && x.Result != nil && x.Result.ServerPeak != nil {
			most = max(most, *x.Result.ServerPeak)
		}
	}
	return most
}

// best returns the fastest registry other than Trow in a row, by the median; "" if none has a figure.
func (r *report) best(x row) (name string) {
	most := 0.0
	for _, p := range r.present() {
		if slices.Contains([]string{nameTrow, nameNginx, nameLimit}, p.Name) || r.Figures.failure(p.Name, x) != "" {
			continue
		}
		if m := median(r.Figures.of(p.Name, x, throughput)); m > most {
			name, most = p.Name, m
		}
	}
	return name
}

// present returns the peers that were measured.
func (r *report) present() (all []presence) {
	for _, p := range r.Peers {
		if p.Missing == "" {
			all = append(all, p)
		}
	}
	return all
}
