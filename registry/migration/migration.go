// Package migration is the server's job behind trow migrate: it opens the target of a migration and moves the content
// of the server there, while the server goes on serving.
//
// # Words
//
// As in package migrate of storage. A target is the pair of engines that journal and blobs, or data-dir, name.
//
// # Invariants
//
//  1. One migration runs at a time.
//  2. The job can be requested only over the administration socket, because the request names directories and hosts
//     that the server then opens.
//  3. A dry run creates no directory. In etcd and S3 it leaves what opening an engine writes: the format and the
//     identity of the place.
//
// # What it does not do
//
// The moving is that of package migrate. It does not start servers at the target.
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

// Outcome is the outcome of the job. One of its fields is set.
type Outcome struct {
	Moved     *migrate.Progress `json:"moved,omitempty"`
	Plan      *migrate.Plan     `json:"plan,omitempty"`
	Cancelled string            `json:"cancelled,omitempty"` // the target of the migration that was given up
	None      bool              `json:"none,omitempty"`      // there was none to give up
}

// Migration is the job, an http.Handler.
type Migration struct {
	// From returns the engines of the server. It is called for each request.
	From func() migrate.Side
	// DataDir is the data directory of the server, which is refused as a target.
	DataDir string
	// Socket reports whether a request came over the administration socket.
	Socket func(*http.Request) bool
	// ReadOnly reports whether the server writes nothing. Then a migration cannot be recorded at its source.
	ReadOnly func() bool
	// Memory bounds what uploads to S3 take for their parts, in bytes; 0: the least that they need.
	Memory int64
	Log    zerolog.Logger

	running sync.Mutex // held while the job runs (invariant 1)
}

// ServeHTTP runs the job for a POST over the socket; see [admin.Job].
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
	if errors.Is(err, migrate.ErrNotEmpty) || errors.Is(err, migrate.ErrOther) { // the same again is refused again
		m.Log.Error().Err(err).Msg("migration: refused")
		return nil, err
	}
	if err != nil {
		m.Log.Error().Err(err).Str("stage", string(done.Stage)).Msg("migration: run trow migrate again to go on")
		return nil, fmt.Errorf("%w; what was copied stays there: run the same trow migrate again to go on", err)
	}
	m.Log.Warn().Str("to", to.Name).Int("contents", done.Contents).Int("lost", len(done.Lost)).
		Msg("migration: everything has moved; writes are refused here for good")
	return Outcome{Moved: &done}, nil
}

// plan returns what would be copied. If the target has no journal yet, nothing is there, and it is not opened
// (invariant 3).
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
