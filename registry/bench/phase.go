package bench

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"
)

// warmup is how long a phase runs before it is counted.
func (o *Options) warmup() time.Duration { return o.Duration / 5 }

// maxFailures is how often an operation may fail in a row on one connection before the phase is over for it.
const maxFailures = 100

// tally is what one connection has done.
type tally struct {
	histogram  histogram
	errors     int64
	firstError error
	bytes      int64
}

func (t *tally) fail(err error) {
	t.errors++
	if t.firstError == nil {
		t.firstError = err
	}
}

// phase runs a scenario with so many connections. Errors: that it cannot be prepared; ctx's.
func (r *runner) phase(ctx context.Context, s scenario, connections int) (Result, error) {
	result, warmup := r.newResult(s, connections), r.options.warmup()
	if s.prepare != nil {
		warmup = 0
		if err := s.prepare(ctx, r, connections); err != nil {
			result.failed(err)
			return result, ctx.Err()
		}
	}
	operations := make([]operation, connections)
	for i := range operations {
		w, err := r.newWorker(ctx, i+1)
		if err != nil {
			return result, err
		}
		defer w.close()
		w.conn.setDeadline(time.Now().Add(r.options.warmup() + r.options.Duration + overtime))
		if operations[i], err = s.start(r, w); err != nil {
			return result, err
		}
	}
	warm := each(operations, func(op operation, t *tally) { t.run(ctx, op, true, warmup) })
	runtime.GC() // what the preparation left is not the timed part's to clean up
	before, err := r.sampler.take()
	if err != nil {
		return result, err
	}
	tallies := each(operations, func(op operation, t *tally) { t.run(ctx, op, false, r.options.Duration) })
	after, err := r.sampler.take()
	if err != nil {
		return result, err
	}
	result.fill(append(tallies, firstErrors(warm)...), before, after)
	return result, ctx.Err()
}

// firstErrors keeps of the warm-up what must not be lost: an operation that did wrong.
func firstErrors(warm []*tally) (kept []*tally) {
	for _, t := range warm {
		if t.errors > 0 {
			kept = append(kept, &tally{errors: t.errors, firstError: t.firstError})
		}
	}
	return kept
}

// each runs something for every operation at once, with a tally of its own.
func each(operations []operation, run func(operation, *tally)) []*tally {
	tallies := make([]*tally, len(operations))
	var wg sync.WaitGroup
	for i, op := range operations {
		tallies[i] = &tally{}
		wg.Go(func() { run(op, tallies[i]) })
	}
	wg.Wait()
	return tallies
}

// run repeats an operation for a time; the last may take longer. With check the first is compared with the content.
func (t *tally) run(ctx context.Context, op operation, check bool, d time.Duration) {
	now := time.Now()
	end := now.Add(d)
	failures := 0
	for first := true; (first || now.Before(end)) && ctx.Err() == nil && failures < maxFailures; first = false {
		start := now
		n, err := op(check && first)
		now = time.Now()
		switch {
		case errors.Is(err, errExhausted):
			return
		case err != nil:
			failures++
			t.fail(err)
		default:
			failures = 0
			t.bytes += n
			t.histogram.add(now.Sub(start))
		}
	}
}

// parallel runs something on so many connections at once, and returns the first error.
func (r *runner) parallel(ctx context.Context, connections int, run func(*worker) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := range connections {
		wg.Go(func() {
			w, err := r.newWorker(ctx, i)
			if err != nil {
				cancel(err)
				return
			}
			defer w.close()
			w.conn.setDeadline(time.Time{})
			if err := run(w); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
