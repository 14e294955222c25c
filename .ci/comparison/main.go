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
//   - peer: a server that is measured, including Trow.
//   - bound: a server that a registry can hardly be faster than: nginx, which serves the content as files, and limit,
//     which receives, hashes, writes and syncs a blob and does nothing else.
//   - row: a scenario of `trow bench` with a number of connections and a transport (plain, tls).
//   - round: every peer once, one after the other. A row has several rounds, so other load on the machine affects all
//     peers alike.
//   - paired ratio: Trow's figure of a round divided by the peer's figure of the same round. Tables show the median of
//     all rounds.
//
// # Invariants
//
//   - One server is under load at a time; the others run and are idle.
//   - All peers have the same content on the same disk, and write their access log into a file there.
//   - Peers run with their default configuration, except for the address, the directory, the certificate, and deletion
//     being allowed.
//   - A task that pushes has a server of its own with an empty store, and starts after a sync of the disk: no peer pays
//     for the page cache of another one.
//   - A peer that is missing and a row that a peer does not support are reported with the reason.
//   - All servers listen on loopback only, and end with the command.
//
// # What it does not do
//
// It compares on one machine, where the load generator shares the cores with the server. It does not measure several
// machines, a network, or stores other than the local disk. It installs nothing except Go programs in its cache.
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

// options are the settings of the command line.
type options struct {
	rounds   int
	duration time.Duration
	scale    string
	only     string // scenarios, separated by commas; "" means all
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

// committedFile is what --commit writes and .ci/versus checks.
const committedFile = ".ci/comparison/committed.json"

func parse(args []string, errOut io.Writer) (options, error) {
	o := options{without: reasons{}, binaries: pairs{}}
	f := flag.NewFlagSet("comparison", flag.ContinueOnError)
	f.SetOutput(errOut)
	f.IntVar(&o.rounds, "rounds", 3, "number of measurements of every peer in every row")
	f.DurationVar(&o.duration, "duration", 2*time.Second, "duration of one measurement")
	f.StringVar(&o.scale, "scale", "full", "number of tags and repositories: small or full, as in trow bench")
	f.StringVar(&o.only, "only", "", "scenarios to measure, separated by commas (default all)")
	f.IntVar(&o.starts, "starts", 5, "number of timed starts of each peer; 0 means none")
	f.BoolVar(&o.fsyncs, "fsyncs", false, "count fsync calls per push, with strace")
	f.Var(o.without, "without", "`PEER[=REASON]` to skip; may be repeated")
	f.Var(o.binaries, "binary", "`PEER=PATH` of a program to use instead of building one; may be repeated")
	f.StringVar(&o.dir, "dir", "/var/tmp", "directory for the stores, on a disk")
	f.StringVar(&o.json, "json", "", "`FILE` for all raw figures")
	f.BoolVar(&o.readme, "readme", false, "write the tables into "+readmeFile)
	f.StringVar(&o.check, "check", "", "measure the ratios of Trow to nginx and compare them with those in `FILE`")
	f.BoolVar(&o.commit, "commit", false, "measure the rows of --check and write "+committedFile)
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q; all settings are flags, see --help", f.Arg(0))
	case o.rounds < 1 || o.starts < 0:
		return o, errors.New("rounds, starts: want at least one round, and no negative number of starts")
	case o.check != "" && o.commit:
		return o, errors.New("check conflicts with commit")
	}
	return o, nil
}

// reasons is the value of a flag PEER[=REASON] that may be repeated.
type reasons map[string]string

func (r reasons) String() string { return "" }

func (r reasons) Set(text string) error {
	name, reason, given := strings.Cut(text, "=")
	if !given {
		reason = "skipped by --without"
	}
	r[name] = reason
	return nil
}

// pairs is the value of a flag PEER=PATH that may be repeated.
type pairs map[string]string

func (p pairs) String() string { return "" }

func (p pairs) Set(text string) error {
	name, path, given := strings.Cut(text, "=")
	if !given || path == "" {
		return errors.New("want PEER=PATH")
	}
	p[name] = path
	return nil
}

// run is the command. Errors: an invalid flag; something needed is missing; Trow failed in a row; a check failed.
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
	o.readme = o.readme && err == nil // a run that was cut short is printed, but not written into README
	return errors.Join(err, publish(r, o, b.root, out))
}

// publish writes the report to all places that were asked for.
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
