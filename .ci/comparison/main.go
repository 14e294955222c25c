// Command comparison measures Trow beside other registries, beside a server of static files, and beside the minimum
// that a durable push can cost. It reports all results, also those in which Trow is slower.
//
//	cd .ci/comparison
//	go run .                         # everything: half an hour; prints Markdown
//	go run . --readme --json FILE    # also writes the tables into registry/bench/README.md, and raw figures into FILE
//	go run . --check committed.json  # Trow and nginx only; compares with the ratios in committed.json
//
// It is a module of its own: it imports nothing of Trow's, and runs Trow and `trow bench` as programs.
//
// # Words
//
//   - peer: a server that is measured, Trow among them.
//   - bound: what no registry can be much better than: nginx, which serves the content as files, and limit, which
//     receives, hashes, writes and syncs a blob and does nothing else.
//   - row: a scenario of `trow bench` with a number of connections and a transport (plain, tls).
//   - round: every peer once, one after the other. A row has several rounds, so what else the machine does hits all.
//   - paired ratio: Trow's figure of a round over the peer's of the same round. The median of these is what is told.
//
// # Invariants
//
//   - One server is under load at a time; the others run and are idle.
//   - All peers have the same content, on the same disk, and write their log of requests into a file there.
//   - Peers run as they are shipped, but for the address, the directory, the certificate, and deletion being allowed.
//   - What pushes runs on a server that was started for it with an empty store, after everything written before is on
//     the disk: nobody pays for another one's cache.
//   - A peer that could not be had and a row that it could not do are told with the reason, never left out silently.
//   - Everything listens on loopback alone, and ends with the command.
//
// # What it does not do
//
// It compares on one machine, whose cores the generator of the load shares with the server. It says nothing of several
// machines, of a network, or of stores other than the local disk. It installs nothing but Go programs in its cache.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "comparison:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	rounds   int
	duration time.Duration
	scale    string
	only     string // scenarios, separated by commas; "": all
	starts   int
	fsyncs   bool
	without  reasons
	binaries pairs
	dir      string
	json     string
	readme   bool
	check    string
	commit   bool
}

// committedFile is what --commit writes and the CI checks.
const committedFile = ".ci/comparison/committed.json"

func parse(args []string, errOut io.Writer) (options, error) {
	o := options{without: reasons{}, binaries: pairs{}}
	f := flag.NewFlagSet("comparison", flag.ContinueOnError)
	f.SetOutput(errOut)
	f.IntVar(&o.rounds, "rounds", 3, "how often every peer is measured in every row")
	f.DurationVar(&o.duration, "duration", 2*time.Second, "of one measurement")
	f.StringVar(&o.scale, "scale", "full", "how much there is to list: small or full, as in trow bench")
	f.StringVar(&o.only, "only", "", "scenarios to measure, separated by commas (default all)")
	f.IntVar(&o.starts, "starts", 5, "how often each peer's start is timed; 0: not at all")
	f.BoolVar(&o.fsyncs, "fsyncs", false, "count fsync calls per push, with strace")
	f.Var(o.without, "without", "`PEER[=REASON]` to leave out; may be repeated")
	f.Var(o.binaries, "binary", "`PEER=PATH` of a program to take instead of building one; may be repeated")
	f.StringVar(&o.dir, "dir", "/var/tmp", "where the stores are made, on a disk")
	f.StringVar(&o.json, "json", "", "`FILE` for all raw figures")
	f.BoolVar(&o.readme, "readme", false, "write the tables into "+readmeFile)
	f.StringVar(&o.check, "check", "", "compare Trow with nginx, and that with the figures in `FILE`")
	f.BoolVar(&o.commit, "commit", false, "measure what --check does, and write "+committedFile)
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("there are no arguments, but %q was given; all settings are flags, see --help", f.Arg(0))
	case o.rounds < 1 || o.starts < 0:
		return o, errors.New("rounds, starts: at least one round, and no negative number of starts")
	case o.check != "" && o.commit:
		return o, errors.New("check, commit: one compares with the file that the other writes; give one of the two")
	}
	return o, nil
}

// reasons is a flag PEER[=REASON], given any number of times.
type reasons map[string]string

func (r reasons) String() string { return "" }

func (r reasons) Set(text string) error {
	name, reason, given := strings.Cut(text, "=")
	if !given {
		reason = "left out by --without"
	}
	r[name] = reason
	return nil
}

// pairs is a flag PEER=PATH, given any number of times.
type pairs map[string]string

func (p pairs) String() string { return "" }

func (p pairs) Set(text string) error {
	name, path, given := strings.Cut(text, "=")
	if !given || path == "" {
		return errors.New("write it as PEER=PATH")
	}
	p[name] = path
	return nil
}

// run is the command. Errors: what cannot be done, with the remedy; that Trow has failed in a row; that a check fails.
func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	if len(args) > 0 && args[0] == "limit" {
		return serveLimit(ctx, args[1:], errOut)
	}
	o, err := parse(args, errOut)
	if err != nil {
		return err
	}
	b, err := newLaboratory(ctx, o, errOut)
	if err != nil {
		return err
	}
	defer b.close()
	if o.check != "" || o.commit {
		return checkOrCommit(ctx, b, o, out)
	}
	r, err := b.compare(ctx)
	o.readme = o.readme && err == nil // what was cut short is told, and stays out of README
	return errors.Join(err, publish(r, o, b.root, out))
}

// publish writes the outcome wherever it was asked for.
func publish(r *report, o options, root string, out io.Writer) error {
	text := r.markdown()
	if _, err := io.WriteString(out, text); err != nil {
		return err
	}
	if o.json != "" {
		if err := writeJSON(o.json, r); err != nil {
			return err
		}
	}
	if o.readme {
		if err := rewriteReadme(filepath.Join(root, filepath.FromSlash(readmeFile)), text); err != nil {
			return err
		}
	}
	return r.verdict()
}
