package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// markdown returns the report as Markdown.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `%s, %d cores, load average %s before and %s after. Medians of %d rounds of %s; scale %s.
A cell shows the throughput and, in brackets, the server's CPU time in µs per operation. Ratios are medians of the
ratios of each round; above 1 Trow is faster. The bound is nginx where content is read, and limit where a blob is
pushed. "CPU time" is Trow's CPU time per operation divided by the bound's; it is valid on a busy machine as well. "p99"
is the latency in ms that 99 of 100 operations of Trow did not exceed, and in brackets its ratio to the bound's. With *
the load generator was the limit: the server may be faster.

`,
		r.Time.Format("2006-01-02"), r.CPUs, r.Load[0], r.Load[1], r.Rounds, r.Duration, r.Scale)
	r.writeRows(&b)
	r.writeFailures(&b)
	r.writeResources(&b)
	r.writeSyncs(&b)
	r.writePeers(&b)
	return b.String()
}

func tableRow(b *strings.Builder, cells ...string) {
	b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
}

// tableHead writes the head of a table. The first columns have words, the others numbers.
func tableHead(b *strings.Builder, words int, cells ...string) {
	tableRow(b, cells...)
	marks := slices.Repeat([]string{"---"}, words)
	tableRow(b, append(marks, slices.Repeat([]string{"---:"}, len(cells)-words)...)...)
}

func (r *report) writeRows(b *strings.Builder) {
	head := []string{"scenario", "at once", "over", "unit"}
	for _, p := range r.present() {
		head = append(head, p.Name)
	}
	tableHead(b, 4, append(head, "Trow/bound", "CPU time", "p99", "Trow/best registry")...)
	for _, x := range r.Rows {
		cells := []string{x.Scenario, strconv.Itoa(x.Connections), x.Transport, unit(x)}
		for _, p := range r.present() {
			cells = append(cells, r.cell(p.Name, x))
		}
		tableRow(b, append(cells, r.ratio(x, bound(x), throughput), r.ratio(x, bound(x), serverCPU), r.tail(x),
			r.ratioToBest(x))...)
	}
}

// bound returns the name of the bound in a row.
func bound(x row) string {
	if x.Scenario == pushLarge {
		return nameLimit
	}
	return nameNginx
}

// cell returns the figures of a peer in a row.
func (r *report) cell(peer string, x row) string {
	if r.Figures.failure(peer, x) != "" {
		return "failed"
	}
	values := r.Figures.of(peer, x, throughput)
	if len(values) == 0 {
		return "–"
	}
	text := rate(x, median(values))
	if r.Figures.limited(peer, x) {
		text += "*"
	}
	if cpu := median(r.Figures.of(peer, x, serverCPU)); !math.IsNaN(cpu) {
		text += " (" + number(cpu) + ")"
	}
	return text
}

// ratio returns the ratio of Trow's figure to that of a peer.
func (r *report) ratio(x row, peer string, pick func(figure) float64) string {
	v := pairedRatio(r.Figures.of(nameTrow, x, pick), r.Figures.of(peer, x, pick))
	if math.IsNaN(v) || r.Figures.failure(peer, x) != "" || r.Figures.failure(nameTrow, x) != "" {
		return "–"
	}
	return fmt.Sprintf("%.2f", v)
}

// tail returns the p99 of Trow in ms, and its ratio to that of the bound.
func (r *report) tail(x row) string {
	text := number(median(r.Figures.of(nameTrow, x, p99)) / 1e3)
	if v := r.ratio(x, bound(x), p99); v != "–" {
		text += " (" + v + ")"
	}
	return text
}

func (r *report) ratioToBest(x row) string {
	best := r.best(x)
	if best == "" {
		return "–"
	}
	return r.ratio(x, best, throughput) + " " + best
}

// unit returns the unit of the throughput of a row.
func unit(x row) string {
	if large(x) {
		return "MB/s"
	}
	return "1/s"
}

func rate(x row, v float64) string {
	if large(x) {
		v /= 1e6
	}
	return number(v)
}

// number formats a figure with three significant digits and with separators of thousands.
func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	text := fmt.Sprintf("%.0f", v)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// writeFailures lists the failures, once for each peer and scenario.
func (r *report) writeFailures(b *strings.Builder) {
	reported := map[string]bool{}
	for _, f := range r.Figures {
		key := f.Peer + " " + f.Row.Scenario + " " + f.Row.Transport
		if f.Failure == "" || reported[key] {
			continue
		}
		if len(reported) == 0 {
			b.WriteString("\nFailed:\n\n")
		}
		reported[key] = true
		fmt.Fprintf(b, "- %s, %s over %s: %s\n", f.Peer, f.Row.Scenario, f.Row.Transport, f.Failure)
	}
}

// writeResources writes the start times and the memory.
func (r *report) writeResources(b *strings.Builder) {
	if len(r.Starts) == 0 {
		return
	}
	b.WriteString("\nStart with all of the content (from exec to the first 200 on a HEAD of a tag, with the files in " +
		"the page cache), and resident memory:\n\n")
	tableHead(b, 1, "registry", "start, s", "idle, MB", "peak in the rows above, MB")
	for _, s := range r.Starts {
		tableRow(b, s.Peer, fmt.Sprintf("%.3f", median(s.Seconds)), number(median(s.Idle)/1e6),
			number(float64(r.Figures.peak(s.Peer))/1e6))
	}
}

func (r *report) writeSyncs(b *strings.Builder) {
	if len(r.Syncs) == 0 {
		return
	}
	b.WriteString("\nSystem calls that make data durable (" + strings.ReplaceAll(syncCalls, ",", ", ") +
		"), with one push at a time:\n\n")
	tableHead(b, 2, "scenario", "server", "calls per push", "pushes")
	for _, s := range r.Syncs {
		calls := s.Failure
		if calls == "" {
			calls = number(s.total())
		}
		tableRow(b, s.Scenario, s.Peer, calls, strconv.Itoa(s.Operations))
	}
}

// writePeers lists the peers that were measured, and those that were not, with the reason.
func (r *report) writePeers(b *strings.Builder) {
	b.WriteString("\nMeasured:\n\n")
	for _, p := range r.present() {
		fmt.Fprintf(b, "- %s\n", strings.TrimSuffix(strings.TrimSpace(p.Name+" "+p.Version)+": "+p.Note, ": "))
	}
	missing := slices.DeleteFunc(slices.Clone(r.Peers), func(p presence) bool { return p.Missing == "" })
	if len(missing) > 0 {
		b.WriteString("\nNot measured:\n\n")
	}
	for _, p := range missing {
		fmt.Fprintf(b, "- %s: %s\n", strings.TrimSpace(p.Name+" "+p.Version), p.Missing)
	}
}
