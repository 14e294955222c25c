package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMain makes the test binary play all programs that the comparison runs, servers and load generator, so that
// nothing needs to be installed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		var err error
		switch os.Args[1] {
		case "limit":
			err = run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)
		case "stub-server":
			err = stubServer(os.Args[2:])
		case "stub-broken":
			err = errors.New("no such setting")
		case "bench":
			err = stubBench(os.Args[2:])
		default:
			os.Exit(m.Run())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// stubServer runs a registry that answers everything with 200: ADDRESS [CERTIFICATE KEY].
func stubServer(args []string) error {
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	if len(args) == 3 {
		return http.ListenAndServeTLS(args[0], args[1], args[2], ok)
	}
	return http.ListenAndServe(args[0], ok)
}

// stubBench records its arguments and writes results like trow bench: 1000 operations per second and connection. It
// fails for referrers.
func stubBench(args []string) error {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	out := f.String("json", "", "")
	scenario, numbers := f.String("scenarios", "", ""), f.String("connections", "1,8", "")
	populate := f.Bool("populate-only", false, "")
	f.Bool("no-populate", false, "")
	for _, name := range []string{"scale", "cacert", "duration", "pid", "protocol"} {
		f.String(name, "", "")
	}
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	note, err := os.OpenFile(os.Getenv("COMPARISON_TEST_NOTES"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	fmt.Fprintln(note, args[0], *scenario, *numbers, *populate)
	if err := note.Close(); err != nil || *populate {
		return err
	}
	if *scenario == "referrers" {
		return errors.New("bench: 404 Not Found")
	}
	var results []result
	for text := range strings.SplitSeq(*numbers, ",") {
		n, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		results = append(results, result{Connections: n, Operations: 1000, OpsPerSecond: float64(1000 * n),
			BytesPerSecond: 2e6})
	}
	return writeJSON(*out, map[string]any{"version": 1, "results": results})
}

// stubLaboratory returns a laboratory with the given peers, which are all stubs.
func stubLaboratory(t *testing.T, peers ...*peer) (*laboratory, string) {
	t.Helper()
	notes := filepath.Join(t.TempDir(), "notes")
	t.Setenv("COMPARISON_TEST_NOTES", notes)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l := &laboratory{options: options{starts: 1}, dir: dir, bench: self,
		cert: filepath.Join(dir, "cert"), key: filepath.Join(dir, "key"),
		scale: "small", filled: map[*peer]bool{}, errOut: io.Discard, peers: peers}
	if err := writeCertificate(l.cert, l.key); err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		p.program = self
	}
	return l, notes
}

func stubPeer(name string) *peer {
	return &peer{name: name, lacks: func(s string) string {
		if s == admission && name == "B" {
			return "it cannot"
		}
		return ""
	}, launch: func(p place) (command, error) {
		args := []string{"stub-server", p.addr}
		if p.secure {
			args = append(args, p.cert, p.key)
		}
		return command{args: args}, nil
	}}
}

func TestPeersAlternateInEachRound(t *testing.T) {
	a, b := stubPeer("A"), stubPeer("B")
	l, notes := stubLaboratory(t, a, b)
	tasks := []task{
		{"manifest-get-tag", plain, []int{1, 8}}, {pushLarge, plain, []int{4}}, {admission, overTLS, []int{16}},
	}
	f, err := l.measure(t.Context(), tasks, 2, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, x := range f {
		order = append(order, fmt.Sprintf("%s c%d %s %d", x.Row.Scenario, x.Row.Connections, x.Peer, x.Round))
	}
	want := []string{
		"manifest-get-tag c1 A 0", "manifest-get-tag c8 A 0", "manifest-get-tag c1 B 0", "manifest-get-tag c8 B 0",
		"manifest-get-tag c1 A 1", "manifest-get-tag c8 A 1", "manifest-get-tag c1 B 1", "manifest-get-tag c8 B 1",
		"blob-push-64MiB c4 A 0", "blob-push-64MiB c4 B 0", "blob-push-64MiB c4 A 1", "blob-push-64MiB c4 B 1",
		"admission c16 A 0", "admission c16 A 1",
	}
	if !slices.Equal(order, want) {
		t.Errorf("measured\n%s", strings.Join(order, "\n"))
	}
	noted, err := os.ReadFile(notes)
	if err != nil {
		t.Fatal(err)
	}
	calls := strings.Split(strings.TrimSpace(string(noted)), "\n")
	if n := len(calls); n != 2+4+4+2 || !strings.HasSuffix(calls[0], "true") || !strings.HasSuffix(calls[1], "true") {
		t.Errorf("%d calls; the first two should fill the stores:\n%s", n, noted)
	}
	servers := map[string]bool{}
	for _, c := range calls[6:10] {
		address, _, _ := strings.Cut(c, " ")
		servers[address] = true
	}
	if len(servers) != 4 {
		t.Errorf("four pushes on %d servers; want one each", len(servers))
	}
	if left, _ := filepath.Glob(filepath.Join(l.dir, "push-*")); len(left) > 0 {
		t.Errorf("stores of pushes are left: %v", left)
	}
}

func TestAFailedPeerIsNotMeasuredAgain(t *testing.T) {
	broken := &peer{name: "C", launch: func(place) (command, error) {
		return command{args: []string{"stub-broken"}}, nil
	}}
	l, notes := stubLaboratory(t, stubPeer("A"), broken)
	f, err := l.measure(t.Context(), []task{{"referrers", plain, []int{1, 8}}}, 3, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if len(f) != 2 || f[0].Failure != "bench: 404 Not Found" || f[1].Row.Connections != 8 {
		t.Errorf("%+v", f)
	}
	if broken.missing != "C ended during its start: no such setting" {
		t.Errorf("the reason is %q", broken.missing)
	}
	if noted, _ := os.ReadFile(notes); strings.Count(string(noted), "referrers") != 1 {
		t.Errorf("calls:\n%s", noted)
	}
}

func TestStarts(t *testing.T) {
	p := stubPeer("A")
	l, _ := stubLaboratory(t, p)
	all, err := l.starts(t.Context(), 2)
	if err != nil || len(all) != 1 || len(all[0].Seconds) != 2 || all[0].Seconds[0] <= 0 || all[0].Idle[1] < 1e6 {
		t.Errorf("%+v: %v", all, err)
	}
}

func TestFullRun(t *testing.T) {
	l, _ := stubLaboratory(t, stubPeer("A"), stubPeer("B"))
	l.options = options{only: "manifest-get-tag", rounds: 1, duration: time.Second, starts: 1}
	r, err := l.compare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, x := range everything {
		if x.scenario == "manifest-get-tag" {
			rows += len(x.connections)
		}
	}
	if len(r.Rows) != rows || len(r.Figures) != 2*rows || len(r.Starts) != 2 || len(r.present()) != 2 {
		t.Errorf("%+v", r)
	}
	// A run that is cut short reports what it has.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, err = l.compare(ctx)
	if !errors.Is(err, context.Canceled) || len(r.present()) != 2 ||
		!strings.Contains(r.markdown(), "manifest-get-tag") {
		t.Errorf("%+v: %v", r, err)
	}
	l.options.only = "nonsense"
	if _, err := l.compare(t.Context()); err == nil {
		t.Error("an unknown scenario was measured")
	}
}

func TestTheCheckNeedsBothServers(t *testing.T) {
	l, _ := stubLaboratory(t, stubPeer("A"), &peer{name: nameNginx, missing: "not installed"})
	err := checkOrCommit(t.Context(), l, options{check: "committed.json"}, io.Discard)
	if err == nil || err.Error() != "nginx: not installed" {
		t.Error(err)
	}
}

// TestEveryScenarioOfThePlansExists asks the program itself: this module imports nothing of Trow's.
func TestEveryScenarioOfThePlansExists(t *testing.T) {
	root, err := findRoot()
	if err != nil {
		t.Fatal(err)
	}
	list := exec.CommandContext(t.Context(), "go", "run", ".", "bench", "--list")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		known[strings.Fields(line)[0]] = true
	}
	planned := map[string]bool{}
	for _, x := range append(slices.Clone(everything), checked...) {
		planned[x.scenario] = true
		if !known[x.scenario] {
			t.Errorf("scenario %s does not exist", x.scenario)
		}
	}
	if len(planned) != len(known) {
		t.Errorf("%d of %d scenarios are planned", len(planned), len(known))
	}
	if _, err := choose(everything, "mount,nonsense"); err == nil {
		t.Error("an unknown scenario was accepted")
	}
	if chosen, err := choose(everything, admission); err != nil || len(chosen) != 1 {
		t.Errorf("%v: %v", chosen, err)
	}
}

func TestInvalidFlags(t *testing.T) {
	for _, args := range [][]string{
		{"x"}, {"--rounds", "0"}, {"--starts", "-1"}, {"--check", "f", "--commit"}, {"--binary", "zot"}, {"--nonsense"},
	} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
	o, err := parse([]string{"--without", "zot=too large", "--without", "olareg", "--binary", "zot=/x"}, io.Discard)
	if err != nil || o.without["zot"] != "too large" || o.without["olareg"] != "skipped by --without" ||
		o.binaries["zot"] != "/x" {
		t.Errorf("%+v: %v", o, err)
	}
	if err := run(t.Context(), []string{"limit"}, io.Discard, io.Discard); err == nil {
		t.Error("limit without arguments was accepted")
	}
}

func TestResultsAreRead(t *testing.T) {
	p := &peer{name: "A"}
	x := task{"manifest-get-tag", plain, []int{1, 8, 64}}
	b, err := json.Marshal(map[string]any{"version": 1, "results": []result{
		{Connections: 1, Operations: 1000, Errors: 10, OpsPerSecond: 5},
		{Connections: 8, Operations: 1000, Errors: 11, FirstError: "no"}}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := readResults(b, p, x)
	if err != nil || len(f) != 3 {
		t.Fatalf("%+v: %v", f, err)
	}
	for i, want := range []string{"", "11 of 1011 operations failed: no", "trow bench has no result for it"} {
		if f[i].Failure != want {
			t.Errorf("row %d: %q, want %q", i, f[i].Failure, want)
		}
	}
	if got := (&result{}).failure(); got != "no operation ended in time" {
		t.Error(got)
	}
	if _, err := readResults([]byte(`{"version": 2}`), p, x); err == nil {
		t.Error("results of version 2 were accepted")
	}
}
