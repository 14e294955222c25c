// Command mutation tests the tests of a package: it changes the code in small ways (mutants) and checks that a test
// fails.
//
//	cd .ci/mutation
//	go run . ./registry/limit            # a package of the module in ../..; takes seconds to minutes
//	go run . -only 'gc.go' ./storage     # only the mutants whose line in the report matches
//	go run . -tests ./storage/bolt ./storage/disk    # also with the tests of another package
//
// All mutants are compiled into one test binary, where an environment variable chooses among them; a tool that compiles
// once for each mutant, as gremlins does, takes hours for a package. Each test runs once to learn which mutants it
// reaches and how long it takes. For a mutant, the tests that reach it run, the fast ones first, until one fails.
//
// The operators are those of gremlins v0.6.0, with its names: ARITHMETIC_BASE, CONDITIONALS_BOUNDARY,
// CONDITIONALS_NEGATION, INCREMENT_DECREMENT, INVERT_NEGATIVES, and, off by default there, INVERT_LOGICAL,
// INVERT_LOOPCTRL and INVERT_ASSIGNMENTS. Not tried are constant declarations, array lengths and calculations with a
// type parameter; and mutants that do not compile. The report counts them.
//
// # Judgement
//
// Of the mutants that a test reaches, -want percent must be killed: a test fails, or does not end within five times its
// time and ten seconds. Each of the others must be in the file -known with the reason why no test can, or need, tell it
// from the code; and a line there that is not a survivor is an error. An entry is two lines:
//
//	PACKAGE FILE FUNCTION OPERATOR SOURCE
//	    REASON
//
// SOURCE is what the operator changes, up to 70 characters, and " #2" if the same occurs before it in the function: an
// entry stays valid when lines move.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutation:", err)
		os.Exit(1)
	}
}

type options struct {
	module, known, skip string
	tests               string
	only                *regexp.Regexp
	want                float64
	workers             int
	verbose             bool
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	only := ""
	flags := flag.NewFlagSet("mutation", flag.ContinueOnError)
	flags.StringVar(&o.module, "module", "../..", "directory of the module under test")
	flags.StringVar(&o.known, "known", "../mutants.txt", "file of the known survivors")
	flags.StringVar(&o.tests, "tests", "", "other packages whose tests run as well, separated by commas")
	flags.StringVar(&o.skip, "skip", "^$", "regular expression of tests that do not run")
	flags.StringVar(&only, "only", "", "regular expression of the mutants to try; no judgement of the others")
	flags.Float64Var(&o.want, "want", 95, "percent of the mutants that must be killed")
	flags.IntVar(&o.workers, "workers", 2, "processes at a time")
	flags.BoolVar(&o.verbose, "v", false, "print all mutants, not only survivors")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("want one package, such as ./registry/limit; got %d", flags.NArg())
	}
	var err error
	if o.only, err = regexp.Compile(only); err != nil {
		return err
	}
	known, err := readKnown(o.known)
	if err != nil {
		return err
	}
	return o.judge(ctx, flags.Arg(0), known, out)
}

// judge runs the mutants of a package, prints the report, and returns an error if too many live or one is not known.
func (o *options) judge(ctx context.Context, pkg string, known map[string]string, out io.Writer) error {
	begin := time.Now()
	work, err := os.MkdirTemp("", "mutation.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	t, err := find(o.module, pkg)
	if err != nil {
		return err
	}
	tr, err := o.prepare(ctx, t, pkg, work, out)
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(filepath.Clean(pkg), "./")
	var chosen []*mutant
	dropped := 0
	for _, m := range t.mutants {
		if m.dropped {
			dropped++
		} else if o.only.MatchString(m.key(name)) {
			chosen = append(chosen, m)
		}
	}
	fmt.Fprintf(out, "note: %d mutants, %d tests reach some, prepared in %.0f s\n", len(chosen), len(tr.tests),
		time.Since(begin).Seconds())
	for _, t := range tr.tests {
		if t.time > 5*time.Second { // survivors take at least as long
			fmt.Fprintf(out, "note: %s takes %.0f s\n", t.name, t.time.Seconds())
		}
	}
	outcomes := make([]outcome, len(chosen))
	killers := make([]string, len(chosen))
	var mu sync.Mutex // guards out
	tr.parallel(len(chosen), func(i int) {
		if ctx.Err() == nil {
			outcomes[i], killers[i] = tr.try(ctx, chosen[i].id)
			if o.verbose || outcomes[i] == lived {
				mu.Lock()
				defer mu.Unlock()
				fmt.Fprintf(out, "%s %s (line %d) %s\n", outcomes[i], chosen[i].key(name), chosen[i].line, killers[i])
			}
		}
	})
	if err := ctx.Err(); err != nil {
		return err
	}
	count := map[outcome]int{}
	var unknown, survivors []string
	for i, m := range chosen {
		count[outcomes[i]]++
		if outcomes[i] == lived {
			survivors = append(survivors, m.key(name))
			if known[m.key(name)] == "" {
				unknown = append(unknown, m.key(name))
			}
		}
	}
	dead, reached := count[killed]+count[timedOut], len(chosen)-count[unreached]
	percent := 100 * float64(dead) / float64(max(1, reached))
	fmt.Fprintf(out, "note: %s: %d of %d killed (%d by a timeout): %.1f %%, want %.0f %%; %d lived; %d not reached; "+
		"left out: %d do not compile, %d constants; %.0f s\n", name, dead, reached, count[timedOut], percent, o.want,
		count[lived], count[unreached], dropped, t.constants, time.Since(begin).Seconds())
	return o.verdict(name, percent, unknown, stale(known, name, survivors, o.only))
}

func (o *options) verdict(name string, percent float64, unknown, stale []string) error {
	var faults []string
	if percent < o.want {
		faults = append(faults, fmt.Sprintf("%s: %.1f %% killed, want %.0f %%", name, percent, o.want))
	}
	if len(unknown) > 0 {
		faults = append(faults, "survivors without a reason in "+filepath.Base(o.known)+":\n"+
			strings.Join(unknown, "\n"))
	}
	if len(stale) > 0 {
		faults = append(faults, "not survivors any more; remove them from "+filepath.Base(o.known)+":\n"+
			strings.Join(stale, "\n"))
	}
	if len(faults) > 0 {
		return fmt.Errorf("%s", strings.Join(faults, "\n"))
	}
	return nil
}

// prepare compiles the mutants and records the tests.
func (o *options) prepare(ctx context.Context, t *target, pkg, work string, out io.Writer) (*trial, error) {
	skip, err := regexp.Compile(o.skip)
	if err != nil {
		return nil, err
	}
	packages := []string{pkg}
	if o.tests != "" {
		packages = append(packages, strings.Split(o.tests, ",")...)
	}
	binaries, err := t.compile(o.module, work, packages)
	if err != nil {
		return nil, err
	}
	var all []*test
	for i, binary := range binaries {
		dir, err := filepath.Abs(filepath.Join(o.module, packages[i]))
		if err != nil {
			return nil, err
		}
		tests, err := list(ctx, binary, dir)
		if err != nil {
			return nil, err
		}
		all = append(all, slices.DeleteFunc(tests, func(t *test) bool { return skip.MatchString(t.name) })...)
	}
	tr := &trial{work: work, workers: o.workers}
	tr.record(ctx, all, out)
	if len(tr.tests) == 0 {
		return nil, fmt.Errorf("no test of %s reaches a mutant", pkg)
	}
	return tr, ctx.Err()
}
