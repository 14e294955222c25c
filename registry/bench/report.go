package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// formatVersion is that of the JSON; it changes when a field does not mean what it meant.
const formatVersion = 1

// Report is what was measured.
type Report struct {
	Version int       `json:"version"`
	URL     string    `json:"url"`
	Time    time.Time `json:"time"`
	CPUs    int       `json:"cpus"` // of the generator's machine
	Results []Result  `json:"results"`
	Skipped []Skipped `json:"skipped,omitempty"`

	cores int // that the generator may use
}

// Skipped is a scenario that the server does not do.
type Skipped struct {
	Scenario string `json:"scenario"`
	Why      string `json:"why"`
}

// Result is what a phase has measured. Latencies are those of operations that went well.
type Result struct {
	Scenario       string   `json:"scenario"`
	Connections    int      `json:"connections"`
	Protocol       string   `json:"protocol"` // HTTP/1.1 or HTTP/2
	TLS            bool     `json:"tls"`
	Operations     int64    `json:"operations"` // that went well
	Errors         int64    `json:"errors"`     // those of the warm-up too
	FirstError     string   `json:"first_error"`
	Seconds        float64  `json:"seconds"` // until the last operation's end
	Bytes          int64    `json:"bytes"`   // of content, in both directions
	OpsPerSecond   float64  `json:"ops_per_second"`
	BytesPerSecond float64  `json:"bytes_per_second"`
	P50            float64  `json:"p50_us"`
	P99            float64  `json:"p99_us"`
	Worst          float64  `json:"worst_us"`
	ServerCPU      *float64 `json:"server_cpu_us_per_op"` // null: the server was not looked at
	ServerRSS      *int64   `json:"server_rss_bytes"`     // at the end of the phase
	ServerPeak     *int64   `json:"server_peak_bytes"`    // since the server was started
	GeneratorCPU   float64  `json:"generator_cpu_us_per_op"`
	GeneratorBound bool     `json:"generator_bound"` // the generator's CPU time was the limit, or may have been

	looked bool // whether the server was looked at
	cores  int  // that the generator may use
}

func newReport(o Options, local bool) *Report {
	cores := runtime.GOMAXPROCS(0)
	if local {
		cores = max(1, cores/2)
	}
	return &Report{cores: cores, Version: formatVersion, URL: o.URL, Time: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Results: []Result{}}
}

func (r *runner) newResult(s scenario, connections int) Result {
	protocol := "HTTP/1.1"
	if r.options.Protocol == protocolHTTP2 {
		protocol = "HTTP/2"
	}
	return Result{Scenario: s.name, Connections: connections, Protocol: protocol, TLS: r.target.tls != nil, looked: r.sampler.pid != 0, cores: r.report.cores}
}

// failed makes a result of a phase that did not begin.
func (r *Result) failed(err error) {
	r.Errors++
	r.FirstError = cmp.Or(r.FirstError, err.Error())
}

// busy is the share of the CPU time that it may have, from which the generator is taken for the limit.
const busy = 0.8

// fill adds up what the connections have done between two samples.
func (r *Result) fill(tallies []*tally, before, after sample) {
	var all histogram
	for _, t := range tallies {
		all.merge(&t.histogram)
		r.Bytes += t.bytes
		r.Errors += t.errors
		if t.firstError != nil {
			r.FirstError = cmp.Or(r.FirstError, t.firstError.Error())
		}
	}
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
	r.Operations, r.Seconds = all.n, after.at.Sub(before.at).Seconds()
	r.OpsPerSecond, r.BytesPerSecond = float64(r.Operations)/r.Seconds, float64(r.Bytes)/r.Seconds
	r.P50, r.P99, r.Worst = us(all.percentile(0.5)), us(all.percentile(0.99)), us(all.worst)
	own, server := after.generator-before.generator, after.server.cpu-before.server.cpu
	n := float64(max(r.Operations, 1))
	r.GeneratorCPU = us(own) / n
	r.GeneratorBound = own.Seconds() > busy*float64(r.cores)*r.Seconds || r.looked && own > server
	if r.looked {
		cpu := us(server) / n
		r.ServerCPU, r.ServerRSS, r.ServerPeak = &cpu, &after.server.rss, &after.server.peak
	}
}

// verdict is ErrFailed if a scenario had errors alone.
func (r *Report) verdict() error {
	for _, result := range r.Results {
		if result.Operations == 0 && result.Errors > 0 {
			return ErrFailed
		}
	}
	return nil
}

// WriteJSON writes the report as indented JSON.
func (r *Report) WriteJSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// ReadReport reads a file that WriteJSON has written.
func ReadReport(path string) (*Report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: it is no report of trow bench --json: %w", path, err)
	}
	if r.Version != formatVersion {
		return nil, fmt.Errorf("%s: it is of version %d, and this trow reads version %d; measure again", path, r.Version, formatVersion)
	}
	return &r, nil
}

// line is the result in a line, for who waits.
func (r *Result) line() string {
	text := fmt.Sprintf("%s, %d at once: %s/s, p99 %s", r.Scenario, r.Connections, count(r.OpsPerSecond), micros(r.P99))
	if r.Errors > 0 {
		text += fmt.Sprintf(", %d errors, the first: %s", r.Errors, r.FirstError)
	}
	return text
}

// WriteTable writes the report for people.
func (r *Report) WriteTable(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "scenario\tat once\tops/s\tMB/s\tp50\tp99\tworst\tserver CPU/op\tserver RSS\tgenerator CPU/op\terrors\t")
	bound := false
	for _, x := range r.Results {
		mark := ""
		if x.GeneratorBound {
			mark, bound = "*", true
		}
		fmt.Fprintf(t, "%s\t%d\t%s%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", x.Scenario, x.Connections, mark, count(x.OpsPerSecond),
			count(x.BytesPerSecond/1e6), micros(x.P50), micros(x.P99), micros(x.Worst), optional(x.ServerCPU, micros),
			optional(x.ServerRSS, mebibytes), micros(x.GeneratorCPU), errorCount(x))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return r.writeNotes(out, bound)
}

func (r *Report) writeNotes(out io.Writer, bound bool) error {
	var b strings.Builder
	if bound {
		b.WriteString("\n* the generator used more CPU time than the server, or most of what it may use here: the server may do more than that\n")
	}
	for _, x := range r.Results {
		if x.Errors > 0 {
			fmt.Fprintf(&b, "\n%s, %d at once: %d errors, the first: %s\n", x.Scenario, x.Connections, x.Errors, x.FirstError)
		}
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(&b, "\nleft out: %s: %s\n", s.Scenario, s.Why)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func errorCount(r Result) string {
	if r.Operations == 0 && r.Errors > 0 {
		return "failed"
	}
	return fmt.Sprint(r.Errors)
}

// count writes a number with three digits that count.
func count(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// micros writes a time that is given in microseconds.
func micros(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2fs", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.0fms", v/1e3)
	case v >= 1e3:
		return fmt.Sprintf("%.1fms", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0fµs", v)
	}
	return fmt.Sprintf("%.1fµs", v)
}

func mebibytes(n int64) string { return fmt.Sprintf("%dMiB", n>>20) }

func optional[T any](v *T, text func(T) string) string {
	if v == nil {
		return "-"
	}
	return text(*v)
}
