package bench

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"
)

// warmup returns how long a phase runs before it is counted.
func (o *Options) warmup() time.Duration { return o.Duration / 5 }

// maxFailures is how many operations in a row may fail on a connection before its part of the phase ends.
const maxFailures = 100

// tally counts what one connection did.
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

// phase runs a scenario with a number of connections. A preparation that fails is a failed result. Errors: those of ctx
// and of reading the CPU times.
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
	// Garbage of the preparation must not be collected during the timed part.
	runtime.GC()
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

// firstErrors returns the errors of the warm-up without its operations: they must not be lost, as only the first
// answer of each connection is compared with the content.
func firstErrors(warm []*tally) (kept []*tally) {
	for _, t := range warm {
		if t.errors > 0 {
			kept = append(kept, &tally{errors: t.errors, firstError: t.firstError})
		}
	}
	return kept
}

// each runs a function for all operations at once, with a tally for each.
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

// run repeats an operation for a duration; the last one may take longer. If check is set, the first one is compared
// with the content.
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

// parallel runs a function on a number of connections at once. The first error cancels the others and is returned.
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
