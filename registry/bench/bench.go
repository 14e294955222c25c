// Package bench loads an OCI registry and measures what it does under that: how many operations in a second, how long
// each takes, and, where it can look, what they cost the server. With it an administrator sizes a cluster.
//
// # Words
//
//   - scenario: one kind of operation, such as a pull of a manifest by its tag. It may take several requests.
//   - operation: what is counted and timed, from the first request's first byte to the last answer's last.
//   - connection: a worker with a connection of its own, one request at a time. So the number of connections is also
//     that of the operations under way.
//   - phase: one scenario with one number of connections: a warm-up, which is not counted, and the timed part.
//   - content: what the server must hold so that it can be read. It follows from the seed, byte for byte.
//   - target: the server that is measured.
//
// # Invariants
//
//   - Everything is in repositories named as [Options.Repository] or below it.
//   - An operation counts only if each answer has the status and the length it should have. The first of each
//     connection is compared byte for byte (by digest) with the content.
//   - What is pushed in a timed phase is new to the server each time; what is needed for that, random bytes and all
//     but the end of their digests, is made before.
//   - Memory and time are bounded: latencies go into a histogram, answers into one buffer per connection, and a
//     phase ends a minute after its time at the latest.
//   - Beside a server on the same machine the generator uses at most half of the cores: the rest is the server's.
//   - The generator measures itself, and says when it and not the server was the limit ([Result.GeneratorBound]).
//
// # What it does not do
//
// It follows no redirect: a registry that sends its clients elsewhere for blobs is measured up to there. It does not
// compare servers on different machines for you: the figures are of this network and these machines. It does not tell
// what an operation costs a server on another machine.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// ErrFailed tells that a scenario had errors alone, and that the report says which.
var ErrFailed = errors.New("a scenario has failed")

// Scale is how much there is to list.
type Scale struct {
	Tags  int // in one repository
	Repos int
}

// Scales are the known ones, by name.
var Scales = map[string]Scale{
	"small": {Tags: 100, Repos: 50},
	"full":  {Tags: 10_000, Repos: 5_000},
}

// Options say what to measure. URL must be set; see [Default] for the rest.
type Options struct {
	URL         string        // scheme and host[:port]
	Scenarios   []string      // names; empty: all that the server can do
	Connections []int         // each a phase of every scenario
	Duration    time.Duration // of the timed part of a phase; the warm-up takes a fifth of it
	Protocol    string        // http/1.1 or h2

	CA             []byte // PEM; trusted beside the system's certificates
	Insecure       bool   // any certificate is good
	User, Password string

	PID        int    // of the server, on this machine; 0: none
	Repository string // all that is made is in it and below
	Seed       uint64 // what the content follows from
	Scale      Scale

	PopulateOnly bool
	NoPopulate   bool

	Tell func(text string) // called with each step, a line of text; nil: nobody listens

	large int // size of the large blob; 0: 64 MiB
}

// Default is what is measured unless something else is asked for.
func Default() Options {
	return Options{Connections: []int{1, 8}, Duration: 3 * time.Second, Protocol: protocolHTTP1, Repository: "bench", Seed: 1,
		Scale: Scales["small"]}
}

const (
	protocolHTTP1 = "http/1.1"
	protocolHTTP2 = "h2"

	// minDuration is what the resolution of a process's CPU time (10 ms) can bear, for tests; useful are seconds.
	minDuration = time.Millisecond
	// maxConnections keeps a mistyped number from taking all of the machine's memory: each has 256 KiB.
	maxConnections = 4096
	// overtime is what an operation under way may still take when its phase's time is over.
	overtime = time.Minute
)

// repositoryName is the specification's grammar (distribution spec, "Pulling manifests"), short enough to append to.
var repositoryName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// check finds what cannot be done, and fills in what follows from the rest.
func (o *Options) check() error {
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	if o.large == 0 {
		o.large = 64 << 20
	}
	switch {
	case len(o.Connections) == 0:
		return errors.New("connections: at least one number is needed, such as 1,8")
	case slices.Min(o.Connections) < 1 || slices.Max(o.Connections) > maxConnections:
		return fmt.Errorf("connections: each is from 1 to %d", maxConnections)
	case o.Duration < minDuration:
		return fmt.Errorf("duration: %s is too short; at least %s, and for figures to rely on seconds", o.Duration, minDuration)
	case o.Protocol != protocolHTTP1 && o.Protocol != protocolHTTP2:
		return fmt.Errorf("protocol: %.20q is none of %s, %s", o.Protocol, protocolHTTP1, protocolHTTP2)
	case len(o.Repository) > 100 || !repositoryName.MatchString(o.Repository):
		return fmt.Errorf("repository: %.120q is no repository's name; write it as bench or team/bench", o.Repository)
	case o.Scale.Tags < 1 || o.Scale.Repos < 1:
		return errors.New("scale: there must be at least one tag and one repository")
	case o.Password != "" && o.User == "":
		return errors.New("password-file: a password needs a user; give --user as well")
	case o.PopulateOnly && o.NoPopulate:
		return errors.New("populate-only: that and no-populate leave nothing to do; give one of the two")
	}
	for _, name := range o.Scenarios {
		if !slices.ContainsFunc(scenarios, func(s scenario) bool { return s.name == name }) {
			return fmt.Errorf("scenarios: there is no %.40q; trow bench --list has them all", name)
		}
	}
	return nil
}

// runner is what the phases of one run share.
type runner struct {
	options Options
	target  *target
	content *content
	moulds  moulds
	sampler sampler
	report  *Report
	skipped map[string]string // scenarios that the server refuses, and why
	doomed  *doomed           // what the scenario manifest-delete may delete
}

// Run populates the server and measures it. The report is there even with an error, as far as it got. Errors:
// what is wrong with the options; that the server cannot be reached, trusted, or refuses the user; that it cannot be
// populated; [ErrFailed].
func Run(ctx context.Context, o Options) (*Report, error) {
	r, err := newRunner(ctx, o)
	if err != nil {
		return nil, err
	}
	if !o.NoPopulate {
		if err := r.populate(ctx); err != nil {
			return r.report, err
		}
	}
	if o.PopulateOnly {
		return r.report, nil
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(r.report.cores))
	for _, s := range r.chosen() {
		if err := r.scenario(ctx, s); err != nil {
			return r.report, err
		}
	}
	return r.report, r.report.verdict()
}

// newRunner connects, and makes the content.
func newRunner(ctx context.Context, o Options) (*runner, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	t, err := newTarget(o)
	if err != nil {
		return nil, err
	}
	r := &runner{options: o, target: t, sampler: sampler{pid: o.PID}, report: newReport(o, t.local()), skipped: map[string]string{}}
	if _, err := r.sampler.server(); err != nil {
		return nil, err
	}
	if err := t.ping(ctx); err != nil {
		return nil, err
	}
	o.Tell("making the content")
	if r.content, err = newContent(o); err != nil {
		return nil, err
	}
	r.moulds = newMoulds(r.content)
	return r, nil
}

// chosen are the scenarios that were asked for.
func (r *runner) chosen() []scenario {
	if len(r.options.Scenarios) == 0 {
		return scenarios
	}
	var chosen []scenario
	for _, s := range scenarios {
		if slices.Contains(r.options.Scenarios, s.name) {
			chosen = append(chosen, s)
		}
	}
	return chosen
}

// scenario runs all phases of one. Unless it was asked for by name, it is left out if the server refuses it.
func (r *runner) scenario(ctx context.Context, s scenario) error {
	why, asked := r.skipped[s.name], len(r.options.Scenarios) > 0
	if why == "" && !asked {
		why = r.probe(ctx, s)
	}
	if why != "" && !asked {
		r.options.Tell(s.name + ": left out, the server cannot: " + why)
		r.report.Skipped = append(r.report.Skipped, Skipped{s.name, why})
		return ctx.Err()
	}
	for _, connections := range r.options.Connections {
		result, err := r.phase(ctx, s, connections)
		if err != nil {
			return err
		}
		r.report.Results = append(r.report.Results, result)
		r.options.Tell(result.line())
	}
	return nil
}

// probe tells why a server cannot do a scenario at all, or "".
func (r *runner) probe(ctx context.Context, s scenario) string {
	w, err := r.newWorker(ctx, 0)
	if err != nil {
		return ""
	}
	defer w.close()
	if s.prepare != nil {
		if err = s.prepare(ctx, r, probing); err != nil {
			return refusalText(err)
		}
	}
	op, err := s.start(r, w)
	if err == nil {
		_, err = op(true)
	}
	return refusalText(err)
}

// refusalText is the text of an error that says that a server does not do such a thing; "" for any other.
func refusalText(err error) string {
	var bad *statusError
	if !errors.As(err, &bad) || !slices.Contains([]int{202, 400, 403, 404, 405, 415, 501}, bad.status) {
		return ""
	}
	return err.Error()
}

// List writes the scenarios, a line each.
func List(out io.Writer) error {
	var b strings.Builder
	for _, s := range scenarios {
		fmt.Fprintf(&b, "%-20s %s\n", s.name, s.about)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
