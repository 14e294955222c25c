package bench

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
)

// key identifies the results that are compared with each other.
type key struct {
	scenario    string
	connections int
}

// Compare writes a table that compares the first report with each of the others: for each scenario and number of
// connections the figure of the first report, and its ratio to the other's figure. Errors: fewer than two reports;
// those of out.
func Compare(out io.Writer, names []string, reports []*Report) error {
	if len(reports) < 2 || len(names) != len(reports) {
		return errors.New("compare: want at least two files")
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "scenario\tat once\tagainst\tops/s\tratio\tp99\tratio\tserver CPU/op\tratio\t")
	for _, a := range reports[0].Results {
		for i, other := range reports[1:] {
			if b := other.find(key{a.Scenario, a.Connections}); b != nil {
				fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", a.Scenario, a.Connections, names[i+1],
					bounded(a, count(a.OpsPerSecond)), bounded(*b, ratio(a.OpsPerSecond, b.OpsPerSecond)),
					micros(a.P99), ratio(a.P99, b.P99), optional(a.ServerCPU, micros),
					ratioOf(a.ServerCPU, b.ServerCPU))
			}
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\nRatios are those of %s to the other; more ops/s, less time and less CPU are better. "+
		"* the generator was the limit\n", names[0])
	return err
}

// find returns the result of a key, or nil if no operation succeeded.
func (r *Report) find(k key) *Result {
	for i, x := range r.Results {
		if (key{x.Scenario, x.Connections}) == k && x.Operations > 0 {
			return &r.Results[i]
		}
	}
	return nil
}

func bounded(r Result, text string) string {
	if r.GeneratorBound {
		return "*" + text
	}
	return text
}

// ratio returns a/b, or "-" if one of them is missing.
func ratio(a, b float64) string {
	if a == 0 || b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a/b)
}

func ratioOf(a, b *float64) string {
	if a == nil || b == nil {
		return "-"
	}
	return ratio(*a, *b)
}
