// Package audit records who changed the registry, and who tried to: a line of JSON for each failed login, change,
// refusal and verdict.
//
// # Words
//
//   - event: something that is recorded.
//   - kind: what happened and its outcome: "login failed", "push ok". The lines of a kind are bounded, except for those
//     of changes.
//   - peer: who caused an event: the identity that was proved, otherwise the client's address.
//   - left out: not recorded, because there were too many lines of the kind, or of the peer.
//
// # Invariants
//
//  1. Each successful push and delete that changed something has a line.
//  2. Of every other kind there are at most 10 lines a second (and 100 at once) of proven identities, and as many of
//     other clients. A peer gets as many as it leaves to the others, so half of that at most, and dozens of peers that
//     write all they can keep out no other one. A further line reports how many events were left out.
//  3. No line contains a secret: events have no field for one, and a failed login names only users who exist, because
//     people type passwords where names belong, and what looks like a robot's secret is removed.
//  4. A line that cannot be written does not fail a request. It is counted, and reported in the program's log once a
//     minute.
//  5. The size of a line is bounded: strings and lists are cut, and a number says how many entries of a list are left
//     out.
//  6. Only the owner can read the file. When it was renamed or removed, as by logrotate, the next line goes into a new
//     file.
//
// # What it does not do
//
// It does not remove old files or limit their size: logrotate does. It does not sync lines to the disk: a power cut may
// lose those of the last seconds. It does not know what is allowed.
package audit

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"trow/registry/ocierror"
	"trow/registry/redact"
)

// What happened.
type What string

// The events. A Request is one that was refused, whatever it wanted.
const (
	Login   What = "login"
	Push    What = "push"   // of a manifest, and with it of its tags
	Delete  What = "delete" // of a manifest, a tag, a blob
	Request What = "request"
	Verdict What = "verdict"
)

// Outcome is how an event ended.
type Outcome string

// The outcomes.
const (
	OK      Outcome = "ok"
	Failed  Outcome = "failed"  // of a login, and of a verdict that could not be made
	Denied  Outcome = "denied"  // the answer said so
	Hidden  Outcome = "hidden"  // the answer was that it does not exist
	Allowed Outcome = "allowed" // a verdict
	Warned  Outcome = "warned"  // a verdict: allowed, with warnings
	Skipped Outcome = "skipped" // a verdict: no image was examined
)

// Event is something that is recorded. Empty fields get no key in the line.
type Event struct {
	What    What
	Outcome Outcome
	User    string // the name that was proved; of a failed login: the name of the user, if there is such a user
	Kind    string // what User is: user, robot, cluster, certificate, anonymous, unknown, socket, retention
	From    string // the client's address
	Action  string // what was requested: pull, push, delete, catalog, admin, metrics, validate
	Repo    string
	Tags    []string
	Digest  string
	Reason  string
	Request string // the request's id in the access log; Record sets it
	Object  Object

	// Authenticated reports, for a verdict, whether the caller of the webhook has proved to be the API server.
	// Otherwise User and Object are what some client sent.
	Authenticated bool
}

// Object is what a verdict was about.
type Object struct {
	Kind, Namespace, Name, Operation string
	UID                              string // of the review
	DryRun                           bool
	Images, Denied                   []string
	Fetching                         []string // images whose download has begun for it
}

const (
	// reportInterval is how often it is reported what was left out.
	reportInterval = 10 * time.Second
	// maxListed and maxListBytes bound a list of a line, far above what is usual.
	maxListed    = 20
	maxListBytes = 2048
)

// Log records events. Make it with [Open]. Safe for concurrent use. It is a prometheus.Collector.
type Log struct {
	out       zerolog.Logger
	file      *file // nil: lines go to the program's log
	hup       chan os.Signal
	requestID func(context.Context) string

	mu    sync.Mutex // guards kinds and peers
	kinds map[kind]*bounded
	peers *peers

	leftOut atomic.Int64
}

// Options are the settings, and then what the program sets.
type Options struct {
	AuditLog string // a file; empty: the program's log

	// RequestID returns the id of a request in the access log. Optional.
	RequestID func(context.Context) string
}

// AddFlags registers the setting as a flag.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.AuditLog, "audit-log", "",
		"file that records who did what; empty: lines with the message audit in the ordinary log")
}

// Validate reports an invalid setting.
func (o *Options) Validate() error {
	if o.AuditLog == "-" {
		return errors.New("audit-log: - is not a file; leave the setting empty for the ordinary log on standard error")
	}
	return nil
}

// Open opens the log: the file of the options, or the program's log. The caller closes it. Errors: the file cannot be
// opened, or is not a regular file.
func Open(o Options, program zerolog.Logger) (*Log, error) {
	l := &Log{out: program, requestID: o.RequestID, kinds: map[kind]*bounded{}, peers: newPeers()}
	if l.requestID == nil {
		l.requestID = func(context.Context) string { return "" }
	}
	if o.AuditLog == "" {
		return l, nil
	}
	var err error
	if l.file, err = openFile(o.AuditLog, func(err error) {
		program.Error().Err(err).Msg("audit log cannot be written; requests go on")
	}); err != nil {
		return nil, err
	}
	l.out = zerolog.New(l.file).With().Timestamp().Logger()
	l.hup = make(chan os.Signal, 1)
	signal.Notify(l.hup, syscall.SIGHUP) // from now on it does not terminate the program
	return l, nil
}

// Run reports what was left out, and reopens the file at SIGHUP, until ctx is done.
func (l *Log) Run(ctx context.Context) error {
	t := time.NewTicker(reportInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.hup: // nil without a file: blocks
			l.file.reopen()
		case <-t.C:
			l.reportLeftOut()
		}
	}
}

// Close reports what was left out, and closes the file.
func (l *Log) Close() error {
	l.reportLeftOut()
	if l.file == nil {
		return nil
	}
	signal.Stop(l.hup)
	return l.file.close()
}

// LeftOut returns how many events were left out.
func (l *Log) LeftOut() int64 { return l.leftOut.Load() }

// Failed returns how many lines could not be written.
func (l *Log) Failed() int64 {
	if l.file == nil {
		return 0
	}
	return l.file.failed.Load()
}

var (
	leftOutDesc = prometheus.NewDesc("trow_audit_left_out_total",
		"Events that are not in the audit log, because there were too many of their kind.", nil, nil)
	failedDesc = prometheus.NewDesc("trow_audit_failed_total",
		"Lines of the audit log that could not be written.", nil, nil)
)

// Describe implements prometheus.Collector.
func (l *Log) Describe(to chan<- *prometheus.Desc) { to <- leftOutDesc; to <- failedDesc }

// Collect implements prometheus.Collector.
func (l *Log) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.MustNewConstMetric(leftOutDesc, prometheus.CounterValue, float64(l.LeftOut()))
	to <- prometheus.MustNewConstMetric(failedDesc, prometheus.CounterValue, float64(l.Failed()))
}

// Refuse records that a request of an unknown client was refused.
func (l *Log) Refuse(r *http.Request, action, why string) {
	l.Record(r.Context(), Event{What: Request, Outcome: Denied, Kind: "unknown", From: From(r.RemoteAddr),
		Action: action, Reason: why})
}

// Record records an event of the request of ctx, or counts it as left out.
func (l *Log) Record(ctx context.Context, e Event) {
	e.Request = l.requestID(ctx)
	done := e.Outcome == OK && (e.What == Push || e.What == Delete)
	if done || l.room(&e) {
		l.write(e)
	}
}

// reportLeftOut records, for each kind, how many events were left out since the last report.
func (l *Log) reportLeftOut() {
	left := map[kind]int64{}
	l.mu.Lock()
	for k, b := range l.kinds {
		if b.leftOut > 0 {
			left[k] = b.leftOut
			b.leftOut = 0
		}
	}
	l.mu.Unlock()
	for k, n := range left {
		l.writeLeftOut(k, n)
	}
}

func (l *Log) writeLeftOut(k kind, n int64) {
	l.out.Log().Str("event", string(k.what)).Str("outcome", string(k.outcome)).Int64("leftOut", n).Msg("audit")
}

func (l *Log) write(e Event) {
	line := l.out.Log().Str("event", string(e.What)).Str("outcome", string(e.Outcome)) // at every level
	str := func(key, value string) {
		if value != "" {
			line.Str(key, ocierror.Clip(redact.Secrets(value)))
		}
	}
	strs := func(key string, values []string) {
		if len(values) == 0 {
			return
		}
		listed := slices.Clone(clipped(values)) // others have the list as well
		for i := range listed {
			listed[i] = redact.Secrets(listed[i])
		}
		line.Strs(key, listed)
		if more := len(values) - len(listed); more > 0 {
			line.Int(key+"LeftOut", more)
		}
	}
	str("user", e.User)
	str("identity", e.Kind)
	str("from", e.From)
	str("action", e.Action)
	str("repo", e.Repo)
	strs("tags", e.Tags)
	str("digest", e.Digest)
	str("kind", e.Object.Kind)
	str("namespace", e.Object.Namespace)
	str("name", e.Object.Name)
	str("operation", e.Object.Operation)
	str("uid", e.Object.UID)
	if e.Object.DryRun {
		line.Bool("dryRun", true)
	}
	strs("images", e.Object.Images)
	strs("denied", e.Object.Denied)
	strs("fetching", e.Object.Fetching)
	str("reason", e.Reason)
	if e.What == Verdict {
		line.Bool("authenticated", e.Authenticated)
	}
	str("req", e.Request)
	line.Msg("audit")
}

// clipped returns the first of the values, each cut: those that a line has room for.
func clipped(values []string) []string {
	var listed []string
	size := 0
	for _, value := range values {
		value = ocierror.Clip(value)
		if size += len(value); len(listed) == maxListed || len(listed) > 0 && size > maxListBytes {
			break
		}
		listed = append(listed, value)
	}
	return listed
}

// From returns the address in a request's RemoteAddr, without the port, for Event.From.
func From(remoteAddr string) string {
	host, _, err := net.SplitHostPort(remoteAddr)
	if err != nil {
		return ""
	}
	return host
}
