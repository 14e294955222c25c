package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func cpu(v float64) *float64 { return &v }

// aReport returns a report with a row of pulls, a row of blobs and a row that fails.
func aReport() *report {
	pull, blob, refer := row{"manifest-get-tag", 8, plain}, row{pushLarge, 4, overTLS}, row{"referrers", 8, plain}
	ops := func(peer string, round int, v, us float64) figure {
		return figure{Peer: peer, Row: pull, Round: round,
			Result: &result{OpsPerSecond: v, P99: 100 * us, ServerCPU: cpu(us), ServerPeak: new(int64(v * 1e3))}}
	}
	bytes := func(peer string, v float64) figure {
		return figure{Peer: peer, Row: blob,
			Result: &result{BytesPerSecond: v, OpsPerSecond: 1, ServerCPU: cpu(1e5), GeneratorBound: peer == nameLimit}}
	}
	return &report{Version: 1, CPUs: 2, Load: [2]string{"0.10", "2.00"}, Rounds: 3, Duration: "2s", Scale: "full",
		Peers: []presence{{Name: nameTrow, Version: "abc"}, {Name: "zot", Missing: "not installed"},
			{Name: "distribution", Version: "3"}, {Name: nameNginx, Note: "as files"}, {Name: nameLimit}},
		Rows: []row{pull, blob, refer},
		Figures: figures{
			ops(nameTrow, 0, 20000, 30), ops("distribution", 0, 5000, 200), ops(nameNginx, 0, 40000, 20),
			ops(nameTrow, 1, 10000, 31), ops("distribution", 1, 2000, 210), ops(nameNginx, 1, 40000, 20),
			ops(nameTrow, 2, 21000, 29), ops("distribution", 2, 5250, 190), ops(nameNginx, 2, 35000, 20),
			bytes(nameTrow, 400e6), bytes("distribution", 200e6), bytes(nameLimit, 500e6),
			{Peer: nameTrow, Row: refer, Result: &result{OpsPerSecond: 7.5}},
			{Peer: "distribution", Row: refer, Failure: "404 Not Found"},
		},
		Starts: []startFigure{{nameTrow, []float64{0.3, 0.1, 0.2}, []float64{40e6, 41e6, 42e6}}},
		Syncs: []syncFigure{
			{Peer: nameTrow, Scenario: pushLarge, Operations: 10, Calls: map[string]int{"fsync": 20, "fdatasync": 20}},
			{Peer: "distribution", Scenario: pushLarge, Failure: "nothing was pushed"},
		},
	}
}

func TestTheTable(t *testing.T) {
	lines := strings.Split(aReport().markdown(), "\n")
	for _, want := range []string{
		"| scenario | at once | over | unit | Trow | distribution | nginx | limit " +
			"| Trow/bound | CPU time | p99 | Trow/best registry |",
		"| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
		// 0.50 is the ratio to nginx in the first round, which is the median.
		"| manifest-get-tag | 8 | plain | 1/s | 20,000 (30.0) | 5,000 (200) | 40,000 (20.0) | – " +
			"| 0.50 | 1.50 | 3.00 (1.50) | 4.00 distribution |",
		"| blob-push-64MiB | 4 | tls | MB/s | 400 (100,000) | 200 (100,000) | – | 500* (100,000) " +
			"| 0.80 | 1.00 | – | 2.00 distribution |",
		"| referrers | 8 | plain | 1/s | 7.50 | failed | – | – | – | – | – | – |",
		"- distribution, referrers over plain: 404 Not Found",
		"| Trow | 0.200 | 41.0 | 21.0 |",
		"| blob-push-64MiB | Trow | 4.00 | 10 |",
		"| blob-push-64MiB | distribution | nothing was pushed | 0 |",
		"- Trow abc",
		"- nginx: as files",
		"- zot: not installed",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("missing line\n%s\nin\n%s", want, strings.Join(lines, "\n"))
		}
	}
	if !strings.Contains(lines[0], "2 cores, load average 0.10 before and 2.00 after") {
		t.Errorf("the head is %q", lines[0])
	}
}

func TestAFailureOfTrowFailsTheRun(t *testing.T) {
	r := aReport()
	if err := r.verdict(); err != nil {
		t.Errorf("a peer's failure: %v", err)
	}
	r.Figures[0].Failure = "cut"
	if err := r.verdict(); err == nil || !strings.Contains(err.Error(), "manifest-get-tag c8 plain: cut") {
		t.Error(err)
	}
}

func TestPublish(t *testing.T) {
	root := t.TempDir()
	readme, raw := filepath.Join(root, filepath.FromSlash(readmeFile)), filepath.Join(root, "raw.json")
	if err := os.MkdirAll(filepath.Dir(readme), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(readme, []byte("before\n"+beginMark+"old\n"+endMark+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := publish(aReport(), options{json: raw, readme: true}, root, &out); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	want := "before\n" + beginMark + "\n" + strings.TrimSpace(out.String()) + "\n\n" + endMark + "after\n"
	if string(got) != want {
		t.Errorf("README is\n%s", got)
	}
	if b, err := os.ReadFile(raw); err != nil || !strings.Contains(string(b), `"ops_per_second": 20000`) {
		t.Errorf("%v\n%.200s", err, b)
	}
}

func TestMissingMarks(t *testing.T) {
	for _, old := range []string{"", beginMark, endMark, endMark + beginMark,
		beginMark + endMark + beginMark + endMark} {
		if got, err := between(old, "x"); err == nil {
			t.Errorf("%q became %q", old, got)
		}
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0.00", 9.876: "9.88", 98.76: "98.8", 987.6: "988", 9876: "9,876", 1234567: "1,234,567",
	} {
		if got := number(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
	if number(nan) != "–" {
		t.Error(number(nan))
	}
}
