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

// Where replicas share a journal, one of them at a time collects, and one scrubs: the one whose turn it is. A turn is
// one run. In between no replica leads, which costs nothing, and an administrator may ask any replica for a run: it
// takes the next turn. A record of the task says when the last periodic run began, so that there is one for all
// replicas, and who is at it: a run that was cut short is taken over by another replica as soon as the lead is free.
//
// Each commit of a turn has the fence, see storage.WithFence: a replica that was stopped in the middle of its turn, and
// goes on, changes nothing that another one has taken over.
//
// The idle uploads are dropped by each replica, as each knows some that the others do not; an engine that shares them
// ends each by a conditional commit.

// The tasks.
const (
	taskCollect = "collect" // retention, and then the collection
	taskScrub   = "scrub"
	taskCopy    = "copy" // the facts, to where the bytes are
)

// turns are the turns of one replica. nil: no other process writes to the journal, and nothing has to wait.
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

// replicaName is the name of the machine, in a cluster that of the pod, and a text that is different for each process.
func replicaName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "replica"
	}
	return strings.ToLower(host + "-" + rand.Text()[:6])
}

// Waits is the progress of a job that waits for its turn.
type Waits struct {
	For  string `json:"waitsFor"` // a replica
	Does string `json:"does"`     // such as "collects"
}

// lookAgain is the time between two looks whether a run is due, or was cut short. It looks into memory.
const lookAgain = 2 * time.Second

// repeat is [repeat] for a task of which one replica at a time does a run.
func (t *turns) repeat(ctx context.Context, task string, interval, first time.Duration, do func(context.Context)) {
	if t == nil {
		repeat(ctx, interval, first, do)
		return
	}
	timer := time.NewTimer(min(first, interval))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := t.runDue(ctx, task, interval, do)
		if err != nil && ctx.Err() == nil && !errors.Is(err, errSeenLate) {
			t.log.Warn().Err(err).Str("task", task).Msg("this replica does not go on with what one at a time does")
		}
		timer.Reset(min(lookAgain, interval))
	}
}

// lastRun is the record of a task.
type lastRun struct {
	Begun time.Time `json:"begun"`        // the last periodic run
	By    string    `json:"by,omitempty"` // the replica that is at a run, or was when it ended
}

func recordOf(task string) string { return "run/" + task }

// last returns the record of a task, and its text; nil if it does not exist.
func (t *turns) last(ctx context.Context, task string) (r lastRun, text []byte, err error) {
	if text, err = t.index.Record(ctx, recordOf(task)); err != nil || text == nil {
		return r, nil, err
	}
	if json.Unmarshal(text, &r) != nil {
		r = lastRun{} // of a later version, or damaged: a run is due, and replaces it
	}
	return r, text, nil
}

// isDue reports whether a run is to begin. A time of a clock that was wrong must not put it off for ever.
func (r lastRun) isDue(interval time.Duration) bool {
	return r.By != "" || time.Since(r.Begun).Abs() >= interval
}

// runDue does a run if one is due, or was cut short. Errors: those of the Journal; ErrNotLeader.
func (t *turns) runDue(ctx context.Context, task string, interval time.Duration, do func(context.Context)) error {
	if r, _, err := t.last(ctx, task); err != nil || !r.isDue(interval) {
		return err
	}
	return t.lead(ctx, task, func(ctx context.Context) error {
		r, text, err := t.last(ctx, task) // again: another replica has had its turn meanwhile
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

// now takes a turn for a job, whatever is due. report gets a [Waits] if another replica is at it. Errors: do's; those
// of the Journal, ErrUnavailable at once; ErrNotLeader.
func (t *turns) now(ctx context.Context, task string, report func(any), do func(context.Context) error) error {
	if t == nil {
		return do(ctx)
	}
	name, err := t.leads.Leader(ctx, task)
	if errors.Is(err, storage.ErrUnavailable) { // the lead would be waited for as long as that lasts, without a word
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

// errSeenLate: the record of a task is not what this replica has seen.
var errSeenLate = errors.New("another replica has just had its turn")

// run does a run, and records that. seen is the record, begun what it says from now on of the last periodic run.
// Errors: do's; those of the Journal; errSeenLate.
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
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(err, t.index.SetRecord(end, recordOf(task), during, after))
}

// errUnfinished: a run was cut short, and another replica goes on.
var errUnfinished = errors.New("unfinished")

func (r lastRun) text() []byte {
	text, _ := json.Marshal(r) // never fails
	return text
}

// lead calls do once it is the turn of this replica. do's context has the fence, and ends when ctx does, or when it may
// be the turn of another one. Errors: do's; ctx's; those of the Journal.
func (t *turns) lead(ctx context.Context, task string, do func(context.Context) error) error {
	// The lead ends after do, not with ctx: what do still has to put in order when ctx ends has the fence.
	term, resign := context.WithCancel(context.WithoutCancel(ctx))
	defer resign()
	stop := context.AfterFunc(ctx, resign)
	fence, lost, err := t.leads.Lead(term, task, t.name)
	if !stop() {
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

// turn is a job that waits for the turn of this replica, unless it is to report alone: asked of any replica, it runs
// there, because that one has the client, and no other one need be found.
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

// finishNow deletes at the start what an earlier collection has condemned. Of several replicas, another one may be
// collecting: then finish does it.
func (t *turns) finishNow(ctx context.Context, c *storage.Collector) error {
	if t != nil {
		return nil
	}
	return c.Finish(ctx)
}

// finish looks each minute whether a collection that failed has left something condemned: pushes of it wait.
func (t *turns) finish(ctx context.Context, c *storage.Collector) {
	if t == nil {
		return
	}
	repeat(ctx, time.Minute, 0, func(ctx context.Context) {
		if !t.index.Condemned() {
			return
		}
		err := t.lead(ctx, taskCollect, c.Finish)
		if err != nil && ctx.Err() == nil {
			t.log.Error().Err(err).Msg("finishing a collection")
		}
	})
}

// join records that this replica is there, before it changes anything, so that others write nothing that it does not
// know. Errors: those of the Journal; ErrFormat if they do already.
func (t *turns) join(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.index.Beat(ctx, t.name)
}

// beat records that this replica is there until ctx ends, and the time of its clock, which the Collector compares.
func (t *turns) beat(ctx context.Context) {
	if t == nil {
		<-ctx.Done()
		return
	}
	repeat(ctx, storage.BeatInterval, 0, func(ctx context.Context) {
		if err := t.index.Beat(ctx, t.name); err != nil && ctx.Err() == nil {
			t.log.Warn().Err(err).Msg("recording that this replica is there")
		}
	})
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := t.index.Leave(end, t.name); err != nil { // it is forgotten after a day
		t.log.Debug().Err(err).Msg("recording that this replica ends")
	}
}
