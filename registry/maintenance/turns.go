package maintenance

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"trow/registry/admin"
	"trow/storage"
)

// If replicas share a journal, one of them at a time collects, and one scrubs. For each run, a replica becomes the
// leader of the task (it takes a turn), and gives that up after the run. In between there is no leader, so an
// administrator can ask any replica for a run, which takes the next turn. A record of the task has the time at which
// the last periodic run began, so that there is one for all replicas, and the replica that is running: if a run is cut
// short, another replica takes over as soon as it can lead.
//
// Each commit of a turn has the fence (see storage.WithFence) as a condition: a replica that was stopped in its turn
// and goes on after another one has taken over changes nothing.
//
// Each replica drops idle uploads, because each knows some that the others do not; an engine that shares uploads ends
// each by a conditional commit.

// The tasks.
const (
	taskCollect = "collect" // retention, and then the collection
	taskScrub   = "scrub"
	taskCopy    = "copy" // the facts, to where the bytes are

	TaskCache = "cache" // evict cached content; its leader stays the leader
)

// turns takes turns for one replica. nil: no other process writes to the journal, so a run needs no turn.
type turns struct {
	index *storage.Index
	leads storage.Leads
	name  string // of this replica, and of this process
	log   zerolog.Logger
}

func newTurns(j storage.Journal, index *storage.Index, log zerolog.Logger) *turns {
	leads, ok := j.(storage.Leads)
	if !ok || !j.Traits().Shared {
		return nil
	}
	return &turns{index, leads, replicaName(), log}
}

// replicaName returns the host name, which is that of the pod in a cluster, with a random suffix: a process that is
// restarted in the same pod is another replica.
func replicaName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "replica"
	}
	return strings.ToLower(host + "-" + rand.Text()[:6])
}

// Waits is the progress of a job that waits for its turn.
type Waits struct {
	For  string `json:"waitsFor"` // the replica that has the turn
	Does string `json:"does"`     // such as "collects"
}

// warning is what a loop logs that fails again and again: at once, and then, as long as the reason is the same, once a
// minute. The loop goes on every 2 seconds, for as long as someone takes to correct a password.
type warning struct {
	why string
	at  time.Time
}

// due reports whether err is to be logged.
func (w *warning) due(err error) bool {
	if why := err.Error(); why != w.why || time.Since(w.at) >= time.Minute {
		*w = warning{why, time.Now()}
		return true
	}
	return false
}

// lookAgain is the time between two checks whether a run is due or was cut short. They are cheap: the record is in
// memory.
const lookAgain = 2 * time.Second

// repeat is [repeat] for a task that one replica at a time runs.
func (t *turns) repeat(ctx context.Context, task string, interval, first time.Duration, do func(context.Context)) {
	if t == nil {
		repeat(ctx, interval, first, do)
		return
	}
	timer := time.NewTimer(min(first, interval))
	defer timer.Stop()
	var stopped warning
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := t.runDue(ctx, task, interval, do)
		if err != nil && ctx.Err() == nil && !errors.Is(err, errSeenLate) && stopped.due(err) {
			t.log.Warn().Err(err).Str("task", task).Msg("this replica has stopped a task of one replica at a time")
		}
		timer.Reset(min(lookAgain, interval))
	}
}

// lastRun is the record of a task.
type lastRun struct {
	Begun time.Time `json:"begun"`        // when the last periodic run began
	By    string    `json:"by,omitempty"` // the replica that is running, or has not finished its run; empty: none
}

func recordOf(task string) string { return "run/" + task }

// last returns the record of a task and its text, which is nil if there is none. Errors: those of the Journal.
func (t *turns) last(ctx context.Context, task string) (r lastRun, text []byte, err error) {
	if text, err = t.index.Record(ctx, recordOf(task)); err != nil || text == nil {
		return r, nil, err
	}
	if json.Unmarshal(text, &r) != nil {
		r = lastRun{} // of a later version, or damaged: then a run is due, which replaces it
	}
	return r, text, nil
}

// isDue reports whether a run is due. Begun may be in the future, by a clock that was wrong: Abs bounds how long that
// can delay the next run.
func (r lastRun) isDue(interval time.Duration) bool {
	return r.By != "" || time.Since(r.Begun).Abs() >= interval
}

// runDue runs the task if a run is due, or was cut short, and can be recorded. Errors: those of the Journal;
// ErrNotLeader; errSeenLate.
func (t *turns) runDue(ctx context.Context, task string, interval time.Duration, do func(context.Context)) error {
	if t.index.Sealed() != nil {
		return nil
	}
	if r, _, err := t.last(ctx, task); err != nil || !r.isDue(interval) {
		return err
	}
	return t.lead(ctx, task, func(ctx context.Context) error {
		r, text, err := t.last(ctx, task) // again: while this replica waited, another one may have had its turn
		if err != nil || !r.isDue(interval) {
			return err
		}
		if r.By != "" {
			t.log.Warn().Str("task", task).Str("replica", r.By).Msg("taking over what another replica has not finished")
		}
		return t.run(ctx, task, text, time.Now(), func(ctx context.Context) error {
			if do(ctx); ctx.Err() != nil {
				return errUnfinished
			}
			return nil
		})
	})
}

// now takes a turn for a job of an administrator, whether a run is due or not. report gets a [Waits] if another replica
// has the turn. Errors: those of do; those of the Journal, ErrUnavailable without waiting; ErrNotLeader.
func (t *turns) now(ctx context.Context, task string, report func(any), do func(context.Context) error) error {
	if t == nil {
		return do(ctx)
	}
	name, err := t.leads.Leader(ctx, task)
	if errors.Is(err, storage.ErrUnavailable) { // lead would wait until the journal answers, without a message
		return fmt.Errorf("%s: %w; run it again when the journal answers", task, err)
	}
	if err == nil && name != "" {
		report(Waits{For: name, Does: task + "s"})
	}
	for {
		err := t.lead(ctx, task, func(ctx context.Context) error {
			r, text, err := t.last(ctx, task)
			if err != nil {
				return err
			}
			return t.run(ctx, task, text, r.Begun, do)
		})
		if !errors.Is(err, errSeenLate) {
			return err
		}
	}
}

// errSeenLate: another replica has changed the record of a task since this one has read it.
var errSeenLate = errors.New("another replica has just had its turn")

// run records that this replica is running, calls do, and records that it has finished. seen is the text of the present
// record, and begun the time for the new one. If do is cut short, the first record stays, by which another replica
// takes over. Errors: those of do; those of the Journal; errSeenLate.
func (t *turns) run(ctx context.Context, task string, seen []byte, begun time.Time,
	do func(context.Context) error,
) error {
	during, after := lastRun{begun, t.name}.text(), lastRun{begun, ""}.text()
	if err := t.index.SetRecord(ctx, recordOf(task), seen, during); errors.Is(err, storage.ErrConflict) {
		return errSeenLate
	} else if err != nil {
		return err
	}
	t.log.Debug().Str("task", task).Str("replica", t.name).Msg("doing what one replica at a time does")
	err := do(ctx)
	if errors.Is(err, errUnfinished) {
		return context.Cause(ctx)
	}
	// Also if the client of a job has gone: do has finished, and no other replica must take over.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(err, t.index.SetRecord(end, recordOf(task), during, after))
}

// errUnfinished: a run was cut short, and another replica takes over.
var errUnfinished = errors.New("unfinished")

func (r lastRun) text() []byte {
	text, _ := json.Marshal(r) // never fails
	return text
}

// lead waits until this replica is the leader of the task, and calls do. The context of do has the fence, and ends with
// ctx, or when another replica may have become the leader (cause ErrNotLeader). Errors: those of do; that of ctx; those
// of the Journal.
func (t *turns) lead(ctx context.Context, task string, do func(context.Context) error) error {
	// The lead ends after do, and not with ctx: what do commits to clean up after ctx has ended needs the fence too.
	// While this replica waits for the lead, the end of ctx ends the waiting.
	term, resign := context.WithCancel(context.WithoutCancel(ctx))
	defer resign()
	stop := context.AfterFunc(ctx, resign)
	fence, lost, err := t.leads.Lead(term, task, t.name)
	if !stop() { // ctx has ended, and with it term
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("leading %s: %w", task, err)
	}
	ctx, end := context.WithCancelCause(storage.WithFence(ctx, fence))
	defer end(nil)
	go func() {
		select {
		case <-lost:
			end(storage.ErrNotLeader)
		case <-ctx.Done():
		}
	}()
	return do(ctx)
}

// Replica returns the name of this replica; "" if no other process writes to the journal. Load must have returned.
func (d *Data) Replica() string {
	if t := d.loaded.Load().turns; t != nil {
		return t.name
	}
	return ""
}

// Lead calls do while this replica is the leader of a task, again and again until ctx is done. If no other process
// writes to the journal, it always is. Load must have returned.
func (d *Data) Lead(ctx context.Context, task string, do func(context.Context)) {
	d.loaded.Load().turns.stay(ctx, task, do)
}

// stay is Lead. The context of do has the fence, and ends with the lead.
func (t *turns) stay(ctx context.Context, task string, do func(context.Context)) {
	if t == nil {
		do(ctx)
		return
	}
	var cannot warning
	for ctx.Err() == nil {
		err := t.lead(ctx, task, func(ctx context.Context) error { do(ctx); return nil })
		if err == nil || ctx.Err() != nil {
			continue // another replica may have become the leader, or this one again
		}
		if cannot.due(err) {
			t.log.Warn().Err(err).Str("task", task).Msg("cannot become the leader of a task of one replica at a time")
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookAgain):
		}
	}
}

// Alone calls do as Lead does. Nothing is recorded: the task is one that another replica may begin anew at any time.
// The context of do has no fence, because the work may be shared with that for clients, which any replica does. Load
// must have returned. Errors: those of do, if no other process writes to the journal.
func (d *Data) Alone(ctx context.Context, task string, do func(context.Context) error) error {
	return d.loaded.Load().turns.alone(ctx, task, do)
}

// alone is Alone.
func (t *turns) alone(ctx context.Context, task string, do func(context.Context) error) error {
	if t == nil {
		return do(ctx)
	}
	var stopped warning
	t.stay(ctx, task, func(fenced context.Context) {
		term, end := context.WithCancel(ctx)
		defer end()
		defer context.AfterFunc(fenced, end)() // another replica may have become the leader
		err := do(term)
		if err == nil || term.Err() != nil {
			return
		}
		if stopped.due(err) {
			t.log.Warn().Err(err).Str("task", task).Msg("this replica has stopped a task of one replica at a time")
		}
		select {
		case <-term.Done():
		case <-time.After(lookAgain):
		}
	})
	return nil
}

// turn returns a job that takes a turn for another job; a dry run needs none. A job runs on the replica that is asked,
// which has the connection of the client, and is never passed on to another one.
func (d *Data) turn(task string, job admin.Job) admin.Job {
	return func(ctx context.Context, q url.Values, report func(any)) (done any, err error) {
		if q.Has("dry-run") {
			return job(ctx, q, report)
		}
		err = d.loaded.Load().turns.now(ctx, task, report, func(ctx context.Context) (err error) {
			done, err = job(ctx, q, report)
			return err
		})
		return done, err
	}
}

// finishNow deletes, at the start, what an earlier collection has condemned. With several replicas it does nothing,
// because another one may be collecting: finish does it, in a turn. Errors: those of the engines.
func (t *turns) finishNow(ctx context.Context, c *storage.Collector) error {
	if t != nil {
		return nil
	}
	return c.Finish(ctx)
}

// finish deletes what a collection that failed has left condemned, until ctx is done. It looks each minute, because
// pushes of condemned content wait for that.
func (t *turns) finish(ctx context.Context, c *storage.Collector) {
	if t == nil {
		return
	}
	repeat(ctx, time.Minute, 0, func(ctx context.Context) {
		if !t.index.Condemned() || t.index.Sealed() != nil {
			return
		}
		err := t.lead(ctx, taskCollect, c.Finish)
		if err != nil && ctx.Err() == nil {
			t.log.Error().Err(err).Msg("finishing a collection")
		}
	})
}

// join records that this replica runs, before it changes anything, so that replicas of later versions write nothing
// that it cannot read. Where everything moves elsewhere, no replica writes anything, and this one only serves. Errors:
// those of the Journal; ErrFormat if they have already.
func (t *turns) join(ctx context.Context) error {
	if t == nil {
		return nil
	}
	err := t.index.Beat(ctx, t.name)
	if errors.As(err, new(*storage.SealedError)) {
		return nil
	}
	return err
}

// beat records at intervals that this replica runs, with the time of its clock, which the Collector compares, until ctx
// is done; and then that it has ended.
func (t *turns) beat(ctx context.Context) {
	if t == nil {
		<-ctx.Done()
		return
	}
	repeat(ctx, storage.BeatInterval, 0, func(ctx context.Context) {
		if t.index.Sealed() != nil {
			return // it cannot be recorded
		}
		if err := t.index.Beat(ctx, t.name); err != nil && ctx.Err() == nil {
			t.log.Warn().Err(err).Msg("recording that this replica is there")
		}
	})
	if t.index.Sealed() != nil {
		return
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := t.index.Leave(end, t.name); err != nil { // not needed: the others forget it after a day
		t.log.Debug().Err(err).Msg("recording that this replica ends")
	}
}
