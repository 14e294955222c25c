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

// formatVersion is the version of the JSON format. It changes when the meaning of a field changes.
const formatVersion = 1

// Report has the results of a run.
type Report struct {
	Version int       `json:"version"`
	URL     string    `json:"url"`
	Time    time.Time `json:"time"`
	CPUs    int       `json:"cpus"` // of the generator's machine
	Results []Result  `json:"results"`
	Skipped []Skipped `json:"skipped,omitempty"`

	cores int // that the generator may use
}

// Skipped is a scenario that the server does not support.
type Skipped struct {
	Scenario string `json:"scenario"`
	Why      string `json:"why"`
}

// Result has the figures of a phase. The latencies are those of successful operations.
type Result struct {
	Scenario       string   `json:"scenario"`
	Connections    int      `json:"connections"`
	Protocol       string   `json:"protocol"` // HTTP/1.1 or HTTP/2
	TLS            bool     `json:"tls"`
	Operations     int64    `json:"operations"` // successful
	Errors         int64    `json:"errors"`     // including those of the warm-up
	FirstError     string   `json:"first_error"`
	Seconds        float64  `json:"seconds"` // until the end of the last operation
	Bytes          int64    `json:"bytes"`   // of content, in both directions
	OpsPerSecond   float64  `json:"ops_per_second"`
	BytesPerSecond float64  `json:"bytes_per_second"`
	P50            float64  `json:"p50_us"`
	P99            float64  `json:"p99_us"`
	Worst          float64  `json:"worst_us"`
	ServerCPU      *float64 `json:"server_cpu_us_per_op"` // null if the server was not measured
	ServerRSS      *int64   `json:"server_rss_bytes"`     // at the end of the phase
	ServerPeak     *int64   `json:"server_peak_bytes"`    // since the start of the server
	GeneratorCPU   float64  `json:"generator_cpu_us_per_op"`
	GeneratorBound bool     `json:"generator_bound"` // the generator's CPU time was or may have been the limit

	sampled bool // whether the server was measured
	cores   int  // that the generator may use
}

func newReport(o Options, local bool) *Report {
	cores := runtime.GOMAXPROCS(0)
	if local {
		cores = max(1, cores/2) // the rest is the server's
	}
	return &Report{cores: cores, Version: formatVersion, URL: o.URL, Time: time.Now().UTC().Truncate(time.Second),
		CPUs: runtime.NumCPU(), Results: []Result{}}
}

func (r *runner) newResult(s scenario, connections int) Result {
	protocol := "HTTP/1.1"
	if r.options.Protocol == protocolHTTP2 {
		protocol = "HTTP/2"
	}
	return Result{Scenario: s.name, Connections: connections, Protocol: protocol, TLS: r.target.tls != nil,
		sampled: r.sampler.pid != 0, cores: r.report.cores}
}

// failed records that the phase could not start.
func (r *Result) failed(err error) {
	r.Errors++
	r.FirstError = cmp.Or(r.FirstError, err.Error())
}

// busy is the share of its cores above which the generator counts as the limit.
const busy = 0.8

// fill adds up the tallies of the connections. before and after are the samples at both ends of the timed part.
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
	// A generator that uses more than the server may keep it waiting even if a core is idle at times.
	r.GeneratorBound = own.Seconds() > busy*float64(r.cores)*r.Seconds || r.sampled && own > server
	if r.sampled {
		cpu := us(server) / n
		r.ServerCPU, r.ServerRSS, r.ServerPeak = &cpu, &after.server.rss, &after.server.peak
	}
}

// verdict returns ErrFailed if all operations of a phase failed.
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

// ReadReport reads a file that WriteJSON wrote. Errors: the file cannot be read; another format or version.
func ReadReport(path string) (*Report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: not a report of trow bench --json: %w", path, err)
	}
	if r.Version != formatVersion {
		return nil, fmt.Errorf("%s: format version is %d, want %d; measure again", path, r.Version, formatVersion)
	}
	return &r, nil
}

// line returns the result in one line, to show progress.
func (r *Result) line() string {
	text := fmt.Sprintf("%s, %d at once: %s/s, p99 %s", r.Scenario, r.Connections, count(r.OpsPerSecond), micros(r.P99))
	if r.Errors > 0 {
		text += fmt.Sprintf(", %d errors; the first: %s", r.Errors, r.FirstError)
	}
	return text
}

// WriteTable writes the report as a table.
func (r *Report) WriteTable(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "scenario\tat once\tops/s\tMB/s\tp50\tp99\tworst\t"+
		"server CPU/op\tserver RSS\tgenerator CPU/op\terrors\t")
	bound := false
	for _, x := range r.Results {
		mark := ""
		if x.GeneratorBound {
			mark, bound = "*", true
		}
		fmt.Fprintf(t, "%s\t%d\t%s%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n",
			x.Scenario, x.Connections, mark, count(x.OpsPerSecond),
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
		b.WriteString("\n* the generator used more CPU time than the server, or most of what it may use: " +
			"the server may be faster than this\n")
	}
	for _, x := range r.Results {
		if x.Errors > 0 {
			fmt.Fprintf(&b, "\n%s, %d at once: %d errors; the first: %s\n", x.Scenario, x.Connections, x.Errors,
				x.FirstError)
		}
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(&b, "\nskipped: %s: %s\n", s.Scenario, s.Why)
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

// count formats a number with three significant digits.
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

// micros formats a duration in microseconds.
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

// mebibytes has one unit whatever the number is, so that the rows of a table can be compared.
func mebibytes(n int64) string { return fmt.Sprintf("%dMiB", n>>20) }

func optional[T any](v *T, text func(T) string) string {
	if v == nil {
		return "-"
	}
	return text(*v)
}
