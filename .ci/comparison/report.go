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

// report is the outcome of the long run, as it is written for --json.
type report struct {
	Version  int           `json:"version"`
	Time     time.Time     `json:"time"`
	CPUs     int           `json:"cpus"`
	Load     [2]string     `json:"load_average"` // of a minute, before and after
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

// compare is the long run. What was measured is there even with an error, as far as it got.
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

// fill measures all that was asked for.
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

// verdict is an error if Trow has failed where it should not.
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

// throughput is a figure's main number: bytes in a second where a row is about those, operations elsewhere; NaN if
// there is no figure.
func throughput(f figure) float64 {
	switch {
	case f.Failure != "" || f.Result == nil:
		return math.NaN()
	case large(f.Row):
		return f.Result.BytesPerSecond
	}
	return f.Result.OpsPerSecond
}

// large tells whether a row moves blobs of 64 MiB.
func large(r row) bool {
	return strings.Contains(r.Scenario, "64MiB") || r.Scenario == "blob-push-chunked"
}

// p99 is the time in µs that 99 of 100 operations took at most.
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

// of are a peer's figures in a row, by round; what is not there is NaN.
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

// failure is why a peer has failed in a row; "": it has not.
func (f figures) failure(peer string, r row) string {
	for _, x := range f {
		if x.Peer == peer && x.Row == r && x.Failure != "" {
			return x.Failure
		}
	}
	return ""
}

// limited tells whether the generator was the limit in most rounds.
func (f figures) limited(peer string, r row) bool {
	n := f.of(peer, r, func(x figure) float64 {
		if x.Result != nil && x.Result.GeneratorBound {
			return 1
		}
		return 0
	})
	return median(n) > 0.5
}

// peak is the most memory that a peer had in any round.
func (f figures) peak(peer string) (most int64) {
	for _, x := range f {
		if x.Peer == peer && x.Result != nil && x.Result.ServerPeak != nil {
			most = max(most, *x.Result.ServerPeak)
		}
	}
	return most
}

// best is the registry beside Trow with the highest median in a row; "" if none has a figure.
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

// present are the peers that were measured.
func (r *report) present() (all []presence) {
	for _, p := range r.Peers {
		if p.Missing == "" {
			all = append(all, p)
		}
	}
	return all
}
