package main

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var (
	rowA = row{"manifest-get-tag", 8, plain}
	rowB = row{"admission", 16, overTLS}
)

// tries returns the next of ratios for each measurement, and records the tasks.
type tries struct {
	ratios []ratios
	asked  [][]task
}

func (x *tries) measure(_ context.Context, tasks []task) (ratios, error) {
	x.asked = append(x.asked, tasks)
	if len(x.asked) > len(x.ratios) {
		return nil, errors.New("too many measurements")
	}
	return x.ratios[len(x.asked)-1], nil
}

func TestCheck(t *testing.T) {
	was := committed{Version: 1, Rows: []committedRow{{rowA, 1}, {rowB, 0.5}}}
	for _, x := range []struct {
		name   string
		tries  []ratios
		fails  bool
		reruns int // rows of the second try
	}{
		{"as before", []ratios{{rowA: 1, rowB: 0.5}}, false, 0},
		{"faster", []ratios{{rowA: 3, rowB: 0.9}}, false, 0},
		{"a fall of 29 % is noise", []ratios{{rowA: 0.71, rowB: 0.355}}, false, 0},
		{"a fall of 31 % twice fails", []ratios{{rowA: 0.69, rowB: 0.5}, {rowA: 0.69}}, true, 1},
		{"a fall that recovers in the rerun passes", []ratios{{rowA: 0.2, rowB: 0.5}, {rowA: 0.98}}, false, 1},
		{"both fall, one recovers", []ratios{{rowA: 0.2, rowB: 0.1}, {rowA: 1, rowB: 0.34}}, true, 2},
		{"a missing figure is a fall", []ratios{{rowA: 1, rowB: math.NaN()}, {rowB: math.NaN()}}, true, 1},
		{"a row that was not measured is a fall", []ratios{{rowA: 1}, {}}, true, 1},
	} {
		var out strings.Builder
		m := &tries{ratios: x.tries}
		err := was.check(t.Context(), m.measure, &out)
		if (err != nil) != x.fails {
			t.Errorf("%s: %v", x.name, err)
		}
		if x.fails && !strings.Contains(out.String(), "FALLEN") {
			t.Errorf("%s: printed\n%s", x.name, &out)
		}
		reruns := 0
		if len(m.asked) > 1 {
			reruns = len(m.asked[1])
		}
		if reruns != x.reruns {
			t.Errorf("%s: %d rows measured again, want %d", x.name, reruns, x.reruns)
		}
	}
	if err := was.check(t.Context(), (&tries{}).measure, &strings.Builder{}); err == nil {
		t.Error("the error of the measurement was lost")
	}
	if err := (committed{}).check(t.Context(), (&tries{}).measure, &strings.Builder{}); err == nil {
		t.Error("a file without rows passed")
	}
}

func TestCommitAndCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "committed.json")
	all := ratios{}
	for i, x := range checked {
		all[x.rows()[0]] = 0.5 + float64(i)
	}
	measure := func(context.Context, []task) (ratios, error) { return all, nil }
	if err := commit(t.Context(), path, measure); err != nil {
		t.Fatal(err)
	}
	c, err := readCommitted(path)
	if err != nil || len(c.Rows) != len(checked) || c.ratio(checked[2].rows()[0]) != 2.5 {
		t.Fatalf("%+v: %v", c, err)
	}
	if err := c.check(t.Context(), measure, &strings.Builder{}); err != nil {
		t.Error(err)
	}
	all[checked[1].rows()[0]] = math.NaN()
	if err := commit(t.Context(), path, measure); err == nil {
		t.Error("a row without a figure was committed")
	}
	if err := os.WriteFile(path, []byte(`{"version": 2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readCommitted(path); err == nil {
		t.Error("a file of version 2 was read")
	}
}

// TestTheCommittedFigures expects the committed file to have the rows that the check measures.
func TestTheCommittedFigures(t *testing.T) {
	c, err := readCommitted("committed.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range checked {
		if r := c.ratio(x.rows()[0]); !(r > 0) {
			t.Errorf("%s: %v", x, r)
		}
	}
	if len(c.Rows) != len(checked) {
		t.Errorf("%d rows, want %d", len(c.Rows), len(checked))
	}
}

func TestRatiosOfFigures(t *testing.T) {
	x := task{rowA.Scenario, rowA.Transport, []int{8, 64}}
	f := figures{
		{Peer: nameTrow, Row: rowA, Round: 0, Result: &result{OpsPerSecond: 100}},
		{Peer: nameNginx, Row: rowA, Round: 0, Result: &result{OpsPerSecond: 50}},
		{Peer: nameTrow, Row: x.rows()[1], Round: 0, Result: &result{OpsPerSecond: 100}},
		{Peer: nameNginx, Row: x.rows()[1], Round: 0, Result: &result{OpsPerSecond: 50}},
		{Peer: nameNginx, Row: x.rows()[1], Round: 1, Failure: "cut"},
	}
	got := f.ratios([]task{x})
	if got[rowA] != 2 || !math.IsNaN(got[x.rows()[1]]) {
		t.Errorf("%v", got)
	}
}
