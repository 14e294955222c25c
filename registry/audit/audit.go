// Package audit writes down who did what to the registry, and who tried: a line of JSON for each failed login, change,
// refusal and verdict.
//
// # Words
//
//   - event: what is written down.
//   - kind: what happened, and how it ended: "login failed", "push ok". Lines of a kind are bounded, but for what has
//     changed something.
//   - left out: an event that got no line.
//
// # Invariants
//
//  1. A push and a delete that were done have a line each, always.
//  2. Of every other kind there are at most 10 lines a second (and 100 at once), however many try. Another line tells
//     how many were left out.
//  3. No line has a secret: events have no room for one, and of a login that failed no name is told but that of a user
//     who exists, since people type passwords where names belong.
//  4. A line that cannot be written ends no request. It is counted, and the program's own log tells, once a minute.
//  5. The file is the owner's alone. When it is renamed or removed, as those who rotate logs do, the next line goes into
//     a new one.
//
// # What it does not do
//
// It removes no old file and limits no file's size: logrotate does. It syncs no line to the disk: a power cut may take
// the last seconds. It does not know what is allowed.
package audit

import (
	"context"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"
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

// Outcome is how it ended.
type Outcome string

// The outcomes.
const (
	OK      Outcome = "ok"
	Failed  Outcome = "failed"  // of a login, and of a verdict that could not be made
	Denied  Outcome = "denied"  // told so
	Hidden  Outcome = "hidden"  // told that it is not there
	Allowed Outcome = "allowed" // a verdict
	Warned  Outcome = "warned"  // a verdict: allowed, with warnings
	Skipped Outcome = "skipped" // a verdict: no image was judged
)

// Event is what is written down. What is empty is left out.
type Event struct {
	What    What
	Outcome Outcome
	User    string // who it was, as far as that is proved; of a failed login: whose it would have been
	Kind    string // what User is: user, robot, cluster, certificate, anonymous, unknown, socket, retention
	From    string // the address
	Action  string // what was wanted: pull, push, delete, catalog, admin, metrics, validate
	Repo    string
	Tags    []string
	Digest  string
	Reason  string
	Request string // its id, as in the access log
	Object  Object
}

// Object is what a verdict was about.
type Object struct {
	Kind, Namespace, Name, Operation string
	UID                              string // of the review
	DryRun                           bool
	Images, Denied                   []string
}

// kind is what is bounded together.
type kind struct {
	what    What
	outcome Outcome
}

const (
	// linesPerSecond and linesAtOnce bound the lines of a kind: 10 a second are 300 MB a day at most.
	linesPerSecond = 10
	linesAtOnce    = 100
	// tellEvery is how often it is told what was left out.
	tellEvery = 10 * time.Second
	// maxReason bounds a reason, maxTags what is told of a push's tags; both far beyond what is usual.
	maxReason = 300
	maxTags   = 100
)

// Log writes events. Make it with [Open]. Safe for concurrent use.
type Log struct {
	out  zerolog.Logger
	file *file // nil: the program's log
	hup  chan os.Signal

	mu    sync.Mutex // guards kinds
	kinds map[kind]*bounded

	leftOut atomic.Int64
}

// bounded is a kind that has a bound.
type bounded struct {
	lines   *rate.Limiter
	leftOut int64 // since it was last told
}

// Open opens the log: a file at this path, or, if that is empty, the program's log. Errors: a file that cannot be
// opened or is no regular one.
func Open(path string, program zerolog.Logger) (*Log, error) {
	l := &Log{out: program, kinds: map[kind]*bounded{}}
	if path == "" {
		return l, nil
	}
	var err error
	if l.file, err = openFile(path, func(err error) {
		program.Error().Err(err).Msg("the audit log cannot be written; requests go on")
	}); err != nil {
		return nil, err
	}
	l.out = zerolog.New(l.file).With().Timestamp().Logger()
	l.hup = make(chan os.Signal, 1)
	signal.Notify(l.hup, syscall.SIGHUP) // from now on it does not end the program
	return l, nil
}

// Run tells what was left out, and opens the file anew at SIGHUP, until ctx ends.
func (l *Log) Run(ctx context.Context) {
	t := time.NewTicker(tellEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.hup:
			l.file.reopen()
		case <-t.C:
			l.tell()
		}
	}
}

// Close tells what was left out, and closes the file.
func (l *Log) Close() error {
	l.tell()
	if l.file == nil {
		return nil
	}
	signal.Stop(l.hup)
	return l.file.close()
}

// LeftOut is how many events got no line; Failed how many lines could not be written.
func (l *Log) LeftOut() int64 { return l.leftOut.Load() }

// Failed is how many lines could not be written.
func (l *Log) Failed() int64 {
	if l.file == nil {
		return 0
	}
	return l.file.failed.Load()
}

// Write writes an event down, or counts it.
func (l *Log) Write(e Event) {
	done := e.Outcome == OK && (e.What == Push || e.What == Delete)
	if done || l.room(kind{e.What, e.Outcome}) {
		l.write(e)
	}
}

// room tells whether there may be one more line of this kind. It counts what there is no room for, and tells of it when
// there is room again.
func (l *Log) room(k kind) bool {
	l.mu.Lock()
	b := l.kinds[k]
	if b == nil {
		b = &bounded{lines: rate.NewLimiter(linesPerSecond, linesAtOnce)}
		l.kinds[k] = b
	}
	room, left := b.lines.Allow(), b.leftOut
	if b.leftOut = 0; !room {
		b.leftOut = left + 1
		l.leftOut.Add(1)
	}
	l.mu.Unlock()
	if room && left > 0 {
		l.count(k, left)
	}
	return room
}

// tell tells of all that was left out since.
func (l *Log) tell() {
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
		l.count(k, n)
	}
}

func (l *Log) count(k kind, n int64) {
	l.out.Log().Str("event", string(k.what)).Str("outcome", string(k.outcome)).Int64("leftOut", n).Msg("audit")
}

func (l *Log) write(e Event) {
	line := l.out.Log().Str("event", string(e.What)).Str("outcome", string(e.Outcome)) // at every level
	str := func(key, value string) {
		if value != "" {
			line.Str(key, value)
		}
	}
	strs := func(key string, values []string) {
		if len(values) > 0 {
			line.Strs(key, values[:min(len(values), maxTags)])
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
	str("reason", clip(e.Reason))
	str("req", e.Request)
	line.Msg("audit")
}

// clip bounds a reason.
func clip(s string) string {
	if len(s) <= maxReason {
		return s
	}
	return strings.ToValidUTF8(s[:maxReason], "") + "…"
}

// From is the address without the port that a request's RemoteAddr has.
func From(remoteAddr string) string {
	host, _, err := net.SplitHostPort(remoteAddr)
	if err != nil {
		return ""
	}
	return host
}
