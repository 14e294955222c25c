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

// What the check measures. It must end within four minutes on two cores that others share: six rows, five pairs of a
// second each, and one more try.
const (
	checkRounds   = 5
	checkDuration = time.Second
	checkScale    = "small"

	// mayFall is how far a ratio may fall before that is told. Pairs of a second differ by a tenth from run to run on
	// a busy machine, and what makes a server a third slower is no noise.
	mayFall = 0.30
)

// committed is what --commit writes: how Trow stood to nginx, on a machine of that many cores.
type committed struct {
	Version int         `json:"version"`
	Time    time.Time   `json:"time"`
	CPUs    int         `json:"cpus"`
	Rows    []committal `json:"rows"`
}

// committal is a row with Trow's figure over nginx's.
type committal struct {
	row
	Ratio float64 `json:"trow_over_nginx"`
}

// ratios are Trow's figures over nginx's. A row without one is NaN.
type ratios map[row]float64

// measurer measures tasks, for the check.
type measurer func(ctx context.Context, tasks []task) (ratios, error)

// checkOrCommit is the short form.
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

// readCommitted reads what commit has written.
func readCommitted(path string) (c committed, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("check: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil || c.Version != 1 {
		return c, fmt.Errorf("check: %s is no file of --commit of version 1 (%v); write it with --commit", path, err)
	}
	return c, nil
}

// complete is an error if a peer is missing.
func (l *laboratory) complete() error {
	for _, p := range l.peers {
		if p.missing != "" {
			return fmt.Errorf("%s: %s", p.name, p.missing)
		}
	}
	return nil
}

// ratios of tasks' rows; a row in which one of the two has failed has none.
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

// commit measures, and writes what later checks compare with.
func commit(ctx context.Context, path string, measure measurer) error {
	all, err := measure(ctx, checked)
	if err != nil {
		return err
	}
	c := committed{Version: 1, Time: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU()}
	for _, t := range checked {
		for _, r := range t.rows() {
			if math.IsNaN(all[r]) {
				return fmt.Errorf("commit: %s has no figure; see what is told above", r)
			}
			c.Rows = append(c.Rows, committal{r, math.Round(all[r]*1000) / 1000})
		}
	}
	return writeJSON(path, c)
}

// check compares with what was committed. Rows that have fallen are measured once more. Errors: which have fallen again.
func (c committed) check(ctx context.Context, measure measurer, out io.Writer) error {
	tasks, err := c.tasks()
	if err != nil {
		return err
	}
	if n := runtime.NumCPU(); n != c.CPUs {
		fmt.Fprintf(out, "what is committed was measured on %d cores, and here are %d: the ratios may differ for that alone\n", c.CPUs, n)
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
	return fmt.Errorf("check: Trow has become slower beside nginx in %s: find the change that did it, or, if it is meant, "+
		"measure anew with --commit", strings.Join(names, ", "))
}

// tasks are those of the rows. Errors: that there is none.
func (c committed) tasks() (tasks []task, err error) {
	for _, r := range c.Rows {
		tasks = append(tasks, task{r.Scenario, r.Transport, []int{r.Connections}})
	}
	if len(tasks) == 0 {
		return nil, errors.New("check: the file has no rows; write it with --commit")
	}
	return tasks, nil
}

// compare writes how the rows stand, and returns those that have fallen or have no figure.
func (c committed) compare(tasks []task, got ratios, try int, out io.Writer) (fallen []task) {
	for _, t := range tasks {
		r := t.rows()[0]
		was, is := c.ratio(r), got[r]
		word := "ok"
		// Written so that what is no number has fallen.
		if !(is >= was*(1-mayFall)) {
			word = []string{"fallen, once more", "FALLEN"}[try]
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
