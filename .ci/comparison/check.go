package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// The size of the check. It must end within four minutes on two busy cores: six rows of five pairs of a second each,
// and one retry.
const (
	checkRounds   = 5
	checkDuration = time.Second
	checkScale    = "small"

	// mayFall is how far a ratio may fall. On a busy machine, pairs of a second vary by a tenth from run to run; a
	// third is not noise.
	mayFall = 0.30
)

// committed is what --commit writes: the ratios of Trow to nginx, and the number of cores of the machine.
type committed struct {
	Version int            `json:"version"`
	Time    time.Time      `json:"time"`
	CPUs    int            `json:"cpus"`
	Rows    []committedRow `json:"rows"`
}

// committedRow is a row with the ratio of Trow to nginx.
type committedRow struct {
	row
	Ratio float64 `json:"trow_over_nginx"`
}

// ratios has the ratios of Trow to nginx; NaN for a row without one.
type ratios map[row]float64

// measurer measures tasks, for the check.
type measurer func(ctx context.Context, tasks []task) (ratios, error)

// checkOrCommit does the short run of --check or --commit.
func checkOrCommit(ctx context.Context, l *laboratory, o options, out io.Writer) error {
	l.scale = checkScale
	measure := func(ctx context.Context, tasks []task) (ratios, error) {
		f, err := l.measure(ctx, tasks, checkRounds, checkDuration)
		return f.ratios(tasks), errors.Join(err, l.complete())
	}
	if err := l.complete(); err != nil {
		return err
	}
	if o.commit {
		return commit(ctx, filepath.Join(l.root, committedFile), measure)
	}
	c, err := readCommitted(o.check)
	if err != nil {
		return err
	}
	return c.check(ctx, measure, out)
}

// readCommitted reads a file that commit wrote.
func readCommitted(path string) (c committed, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("check: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil || c.Version != 1 {
		return c, fmt.Errorf("check: %s is not a file of --commit in version 1 (%v); write it with --commit", path, err)
	}
	return c, nil
}

// complete returns an error if a peer is missing.
func (l *laboratory) complete() error {
	for _, p := range l.peers {
		if p.missing != "" {
			return fmt.Errorf("%s: %s", p.name, p.missing)
		}
	}
	return nil
}

// ratios returns the ratios of the rows of tasks; NaN for a row in which one of the two failed.
func (f figures) ratios(tasks []task) ratios {
	all := ratios{}
	for _, t := range tasks {
		for _, r := range t.rows() {
			all[r] = pairedRatio(f.of(nameTrow, r, throughput), f.of(nameNginx, r, throughput))
			if f.failure(nameTrow, r) != "" || f.failure(nameNginx, r) != "" {
				all[r] = math.NaN()
			}
		}
	}
	return all
}

// commit measures, and writes the ratios that later checks compare with.
func commit(ctx context.Context, path string, measure measurer) error {
	all, err := measure(ctx, checked)
	if err != nil {
		return err
	}
	c := committed{Version: 1, Time: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU()}
	for _, t := range checked {
		for _, r := range t.rows() {
			if math.IsNaN(all[r]) {
				return fmt.Errorf("commit: %s has no figure; see the failures above", r)
			}
			c.Rows = append(c.Rows, committedRow{r, math.Round(all[r]*1000) / 1000})
		}
	}
	return writeJSON(path, c)
}

// check compares with the committed ratios. Rows that have fallen are measured once more. Errors: rows that have fallen
// twice.
func (c committed) check(ctx context.Context, measure measurer, out io.Writer) error {
	tasks, err := c.tasks()
	if err != nil {
		return err
	}
	if n := runtime.NumCPU(); n != c.CPUs {
		fmt.Fprintf(out, "the committed ratios were measured on %d cores; this machine has %d, so they may differ\n",
			c.CPUs, n)
	}
	var fallen []task
	for try := range 2 {
		got, err := measure(ctx, tasks)
		if err != nil {
			return err
		}
		fallen = c.compare(tasks, got, try, out)
		if tasks = fallen; len(fallen) == 0 {
			return nil
		}
	}
	var names []string
	for _, t := range fallen {
		names = append(names, t.String())
	}
	return fmt.Errorf("check: Trow has become slower relative to nginx in %s; find the change that caused it, or, "+
		"if it is intended, measure again with --commit", strings.Join(names, ", "))
}

// tasks returns the tasks of the rows. Errors: there are none.
func (c committed) tasks() (tasks []task, err error) {
	for _, r := range c.Rows {
		tasks = append(tasks, task{r.Scenario, r.Transport, []int{r.Connections}})
	}
	if len(tasks) == 0 {
		return nil, errors.New("check: the file has no rows; write it with --commit")
	}
	return tasks, nil
}

// compare prints the ratios and returns the tasks whose ratio has fallen or is missing.
func (c committed) compare(tasks []task, got ratios, try int, out io.Writer) (fallen []task) {
	for _, t := range tasks {
		r := t.rows()[0]
		was, is := c.ratio(r), got[r]
		word := "ok"
		// In this form the condition is true for NaN as well.
		if !(is >= was*(1-mayFall)) {
			word = []string{"fallen, trying again", "FALLEN"}[try]
			fallen = append(fallen, t)
		}
		fmt.Fprintf(out, "%-28s Trow/nginx %.2f, committed %.2f: %s\n", r, is, was, word)
	}
	return fallen
}

func (c committed) ratio(r row) float64 {
	for _, x := range c.Rows {
		if x.row == r {
			return x.Ratio
		}
	}
	return math.NaN()
}
