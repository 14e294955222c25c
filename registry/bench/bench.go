// Package bench loads an OCI registry and measures it: operations per second, latencies, and, for a server on the same
// machine, CPU time and memory. Administrators use it to size a cluster.
//
// # Words
//
//   - scenario: one kind of operation, such as the pull of a manifest by its tag. It may take several requests.
//   - operation: what is counted and timed, from the first byte of the first request to the last byte of the last
//     answer.
//   - connection: a worker with its own connection and one request at a time. The number of connections is therefore
//     also the number of operations under way.
//   - phase: one scenario with one number of connections: a warm-up, which is not counted, and the timed part.
//   - content: what the server must hold before it can be read. It is derived from the seed, byte for byte.
//   - target: the server that is measured.
//
// # Invariants
//
//   - Everything is in repository [Options.Repository] and below it.
//   - An operation counts only if each answer has the expected status and length. The first answer of each connection
//     is compared with the content, by digest.
//   - What is pushed in a timed phase is new to the server each time. Random bytes are made before the timed part, and
//     all but the end of each content is hashed before it.
//   - Memory and time are bounded: latencies are counted in a histogram, bodies are kept only up to 16 MiB, and a phase
//     ends at most a minute after its time.
//   - If the server is on the same machine, the generator uses at most half of the cores; the rest is the server's.
//   - The generator measures itself, and reports when it was the limit instead of the server ([Result.GeneratorBound]).
//
// # The client
//
// HTTP/1.1 is spoken by fasthttp, HTTP/2 by net/http. A generator that has half of the cores must not need more CPU
// time for a request than the server: fasthttp needs 10 µs for a small pull over loopback, net/http 31 µs, and a file
// served by nginx takes about 15 µs. With net/http every figure above 30,000 requests per second on two cores would be
// the generator's; README.md has the figures. The price is a dependency, which adds about 2 MB to the program. Bodies
// of large blobs are discarded in the kernel (Linux, without TLS), which halves what they cost the generator.
//
// # What it does not do
//
// It follows no redirect: of a registry that redirects clients to other servers for blobs, only the redirect is
// measured. Figures of different machines or networks cannot be compared. It does not report CPU time and memory of a
// server on another machine.
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

// ErrFailed reports that all operations of a scenario failed. The report has the details.
var ErrFailed = errors.New("a scenario has failed")

// Scale is the number of tags and repositories.
type Scale struct {
	Tags  int // in one repository
	Repos int
}

// Scales has the scales by name.
var Scales = map[string]Scale{
	"small": {Tags: 100, Repos: 50},
	"full":  {Tags: 10_000, Repos: 5_000},
}

// Options say what to measure. URL must be set; see [Default] for the rest.
type Options struct {
	URL         string        // scheme and host[:port]
	Scenarios   []string      // names; empty means all that the server supports
	Connections []int         // each number is a phase of every scenario
	Duration    time.Duration // of the timed part of a phase; the warm-up takes a fifth of it
	Protocol    string        // http/1.1 or h2

	CA             []byte // PEM; trusted in addition to the system's certificates
	Insecure       bool   // accept any certificate
	User, Password string

	PID        int    // of the server, on this machine; 0 means not measured
	Repository string // everything that is created is in it and below it
	Seed       uint64 // the content is derived from it
	Scale      Scale

	PopulateOnly bool
	NoPopulate   bool

	// Progress, if not nil, is called with a line of text for each step.
	Progress func(text string)

	large int // size of the large blob; 0 means 64 MiB
}

// Default returns the options that apply unless others are given.
func Default() Options {
	return Options{Connections: []int{1, 8}, Duration: 3 * time.Second, Protocol: protocolHTTP1,
		Repository: "bench", Seed: 1, Scale: Scales["small"]}
}

const (
	protocolHTTP1 = "http/1.1"
	protocolHTTP2 = "h2"

	// minDuration is for tests. CPU times have a resolution of 10 ms, so useful figures need seconds.
	minDuration = time.Millisecond
	// maxConnections protects the machine's memory from a mistyped number: a connection can take 300 KiB.
	maxConnections = 4096
	// overtime is how long an operation may continue after the time of its phase.
	overtime = time.Minute
)

// repositoryName is the specification's grammar (distribution spec, "Pulling manifests").
var repositoryName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// validate sets defaults and returns the first invalid option as an error.
func (o *Options) validate() error {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.large == 0 {
		o.large = 64 << 20
	}
	switch {
	case len(o.Connections) == 0:
		return errors.New("connections: no number given; want for example 1,8")
	case slices.Min(o.Connections) < 1 || slices.Max(o.Connections) > maxConnections:
		return fmt.Errorf("connections: want numbers from 1 to %d", maxConnections)
	case o.Duration < minDuration:
		return fmt.Errorf("duration: %s is too short; want at least %s, and seconds for reliable figures",
			o.Duration, minDuration)
	case o.Protocol != protocolHTTP1 && o.Protocol != protocolHTTP2:
		return fmt.Errorf("protocol: %.20q: want one of %s, %s", o.Protocol, protocolHTTP1, protocolHTTP2)
	case len(o.Repository) > 100 || !repositoryName.MatchString(o.Repository):
		// 100 leaves room for the names of the repositories below it; the whole may have 255.
		return fmt.Errorf("repository: %.120q is not a valid repository name; want for example bench or team/bench",
			o.Repository)
	case o.Scale.Tags < 1 || o.Scale.Repos < 1:
		return errors.New("scale: want at least one tag and one repository")
	case o.Password != "" && o.User == "":
		return errors.New("password-file: a password needs a user; set --user as well")
	case o.PopulateOnly && o.NoPopulate:
		return errors.New("populate-only conflicts with no-populate")
	}
	for _, name := range o.Scenarios {
		if !slices.ContainsFunc(scenarios, func(s scenario) bool { return s.name == name }) {
			return fmt.Errorf("scenarios: unknown scenario %.40q; see trow bench --list", name)
		}
	}
	return nil
}

// runner is what the phases of one run share.
type runner struct {
	options   Options
	target    *target
	content   *content
	templates templates
	sampler   sampler
	report    *Report
	skipped   map[string]string // scenarios that the server does not support, and why
	toDelete  *toDelete         // of the current phase of manifest-delete
}

// Run populates the server and measures it. The report has what was measured until an error, if any. Errors: an
// invalid option; the server cannot be reached, is not trusted, or refuses the user; the server refuses the content;
// [ErrFailed].
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
	// Populating may use all cores. While it measures, the generator leaves the rest to the server.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(r.report.cores))
	for _, s := range r.selected() {
		if err := r.scenario(ctx, s); err != nil {
			return r.report, err
		}
	}
	return r.report, r.report.verdict()
}

// newRunner connects to the server and makes the content.
func newRunner(ctx context.Context, o Options) (*runner, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	t, err := newTarget(o)
	if err != nil {
		return nil, err
	}
	r := &runner{options: o, target: t, sampler: sampler{pid: o.PID}, report: newReport(o, t.local()),
		skipped: map[string]string{}}
	// A wrong --pid is reported before anything is pushed.
	if _, err := r.sampler.server(); err != nil {
		return nil, err
	}
	if err := t.ping(ctx); err != nil {
		return nil, err
	}
	o.Progress("making the content")
	if r.content, err = newContent(o); err != nil {
		return nil, err
	}
	r.templates = newTemplates(r.content)
	return r, nil
}

// selected returns the scenarios that were asked for, in the order of all scenarios.
func (r *runner) selected() []scenario {
	if len(r.options.Scenarios) == 0 {
		return scenarios
	}
	var selected []scenario
	for _, s := range scenarios {
		if slices.Contains(r.options.Scenarios, s.name) {
			selected = append(selected, s)
		}
	}
	return selected
}

// scenario runs all phases of one scenario. If the server does not support it, it is skipped, unless it was asked for
// by name.
func (r *runner) scenario(ctx context.Context, s scenario) error {
	why, named := r.skipped[s.name], len(r.options.Scenarios) > 0
	if why == "" && !named {
		why = r.probe(ctx, s)
	}
	if why != "" && !named {
		r.options.Progress(s.name + ": skipped, not supported: " + why)
		r.report.Skipped = append(r.report.Skipped, Skipped{s.name, why})
		return ctx.Err()
	}
	for _, connections := range r.options.Connections {
		result, err := r.phase(ctx, s, connections)
		if err != nil {
			return err
		}
		r.report.Results = append(r.report.Results, result)
		r.options.Progress(result.line())
	}
	return nil
}

// probe tries one operation and returns why the server does not support the scenario, or "". Other errors do not
// matter here: they show in the phases.
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

// unsupported are the statuses by which servers answer what they do not support. 202 is one: it answers a mount with
// the start of an upload.
var unsupported = []int{202, 400, 403, 404, 405, 415, 501}

// refusalText returns the text of an error whose status is one of unsupported, and "" for any other.
func refusalText(err error) string {
	var bad *statusError
	if !errors.As(err, &bad) || !slices.Contains(unsupported, bad.status) {
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
