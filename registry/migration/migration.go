// Package migration is the job of the server behind trow migrate: it opens the target of a migration and moves there
// what the server holds, while the server goes on serving.
//
// # Words
//
// As in package migrate of storage. A target is what the settings journal and blobs, or data-dir, name.
//
// # Invariants
//
//  1. One migration runs at a time.
//  2. The job is for the administration socket alone: it names directories and hosts that the server then opens.
//  3. A migration that only reports makes no directory. In etcd and S3 it leaves what opening an engine leaves: the
//     format and the identity of the place.
//
// # What it does not do
//
// It moves nothing itself, and it does not start servers at the target.
package migration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"github.com/rs/zerolog"

	"trow/registry/admin"
	"trow/registry/maintenance"
	"trow/storage/migrate"
)

// Outcome is the outcome of the job. One of its parts is set.
type Outcome struct {
	Moved     *migrate.Progress `json:"moved,omitempty"`
	Plan      *migrate.Plan     `json:"plan,omitempty"`
	Cancelled string            `json:"cancelled,omitempty"` // the target of the migration that was given up
	None      bool              `json:"none,omitempty"`      // there was none to give up
}

// Migration is the job. Its source is set once it is known.
type Migration struct {
	// From returns what the server works on. It is called for each request.
	From func() migrate.Side
	// DataDir is the data directory of the server, which is no target.
	DataDir string
	// Socket reports whether a request came over the administration socket.
	Socket func(*http.Request) bool
	// ReadOnly: the server writes nothing, so that a migration cannot be recorded.
	ReadOnly func() bool
	// Memory is what uploads to S3 may take for their parts, in bytes; 0: the least that they need.
	Memory int64
	Log    zerolog.Logger

	running sync.Mutex
}

// ServeHTTP runs the job for a POST over the socket.
func (m *Migration) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !m.Socket(req) {
		http.Error(w, "a migration can be asked for only by the administration socket: run trow migrate --data-dir "+
			"DIR on the machine of the server, or in its pod", http.StatusForbidden)
		return
	}
	admin.Job(m.run).ServeHTTP(w, req)
}

func (m *Migration) run(ctx context.Context, q url.Values, report func(any)) (any, error) {
	if !m.running.TryLock() {
		return nil, errors.New("a migration is running; this one was not begun")
	}
	defer m.running.Unlock()
	dry := q.Has("dry-run")
	if m.ReadOnly() && !dry {
		return nil, errors.New("the registry is read-only, and a migration is recorded at its source; " +
			"restart it where it may write there, and without the setting read-only")
	}
	from := m.From()
	if q.Has("cancel") {
		given, found, err := migrate.Cancel(ctx, from.Index)
		if err == nil && found {
			m.Log.Warn().Str("to", given.To).Msg("the migration was given up; the collector goes on")
		}
		return Outcome{Cancelled: given.To, None: !found}, err
	}
	parallel, err := strconv.Atoi(q.Get("parallel"))
	if q.Has("parallel") && (err != nil || parallel < 1 || parallel > 256) {
		return nil, fmt.Errorf("parallel: %.40q is not valid; want a number from 1 to 256", q.Get("parallel"))
	}
	t, err := targetOf(q, m.DataDir)
	if err != nil {
		return nil, err
	}
	if dry {
		return m.plan(ctx, from, t)
	}
	to, opened, err := m.open(ctx, t)
	if err != nil {
		return nil, err
	}
	defer m.close(opened)
	m.Log.Info().Str("to", to.Name).Msg("migration: copying")
	stage := migrate.Copying
	done, err := migrate.Run(ctx, migrate.Options{From: from, To: to, Parallel: parallel,
		Report: func(now migrate.Progress) {
			if now.Stage != stage {
				stage = now.Stage
				m.Log.Info().Str("to", to.Name).Str("stage", string(stage)).Msg("migration")
			}
			report(now)
		}})
	if err != nil {
		m.Log.Error().Err(err).Str("stage", string(done.Stage)).Msg("migration: run trow migrate again to go on")
		return nil, fmt.Errorf("%w; what was copied stays there: run the same trow migrate again to go on", err)
	}
	m.Log.Warn().Str("to", to.Name).Int("contents", done.Contents).Int("lost", len(done.Lost)).
		Msg("migration: everything has moved; writes are refused here for good")
	return Outcome{Moved: &done}, nil
}

// plan reports what would be copied. A directory that does not exist is not made for it.
func (m *Migration) plan(ctx context.Context, from migrate.Side, t maintenance.Engines) (any, error) {
	var side *migrate.Side
	if exists(t) {
		to, opened, err := m.open(ctx, t)
		if err != nil {
			return nil, err
		}
		defer m.close(opened)
		side = &to
	}
	p, err := migrate.PlanOf(ctx, from, side)
	return Outcome{Plan: &p}, err
}

func (m *Migration) warn(err error) { m.Log.Warn().Err(err).Msg("migration: storage of the target") }
