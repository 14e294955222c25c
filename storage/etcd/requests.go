package etcd

import (
	"context"
	"time"

	"trow/storage"
)

// pace is how long a request may take, and how long it waits for an answer before it is sent once more, to the next
// member. Each further wait is twice as long, so that a slow etcd does not get many copies.
type pace struct{ within, hedge time.Duration }

const hedge = 200 * time.Millisecond

// quick is the pace of a request with a small answer.
func (j *Journal) quick() pace { return pace{j.options.RequestTimeout, hedge} }

// slow is the pace of a request for a page of the full state. The page has many keys, and etcd also counts all keys
// that follow it, so it takes seconds if there are millions or the machine is busy. At the pace of other requests it
// would time out and be repeated without end.
var slow = pace{time.Minute, 3 * time.Second}

// hedged makes a request that may be made more than once, within the time for a request, and returns the first answer.
// A member that is cut off, or stopped, is part of the connections for seconds, and one whose leader is lost does not
// answer before its own timeout. copies is how often the request was sent.
func hedged[T any](ctx context.Context, j *Journal, do func(context.Context) (T, error)) (r T, copies int, err error) {
	return hedgedAt(ctx, j.quick(), do)
}

// hedgedAt is hedged at another pace.
func hedgedAt[T any](ctx context.Context, p pace, do func(context.Context) (T, error)) (r T, copies int, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.within)
	defer cancel()
	type answer struct {
		r   T
		err error
	}
	answers := make(chan answer)
	send := func() {
		r, err := do(ctx)
		select {
		case answers <- answer{r, err}:
		case <-ctx.Done():
		}
	}
	wait := p.hedge
	next := time.NewTimer(wait)
	defer next.Stop()
	go send()
	copies = 1
	for open := 1; ; {
		select {
		case a := <-answers:
			if open--; a.err == nil || stays(a.err) || gone(a.err) || open == 0 {
				return a.r, copies, a.err
			}
		case <-next.C:
			go send()
			open, copies, wait = open+1, copies+1, 2*wait
			next.Reset(wait)
		case <-ctx.Done():
			return r, copies, ctx.Err()
		}
	}
}

// retry makes a request, hedged, again and again until it succeeds, the error is one that stays, or ctx ends.
func retry[T any](ctx context.Context, j *Journal, do func(context.Context) (T, error)) (T, error) {
	return retryAt(ctx, j, j.quick(), do)
}

// retryAt is retry at another pace.
func retryAt[T any](ctx context.Context, j *Journal, p pace, do func(context.Context) (T, error)) (T, error) {
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		r, _, err := hedgedAt(ctx, p, do)
		if err == nil || stays(err) || gone(err) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, err
		case <-j.ctx.Done():
			return r, storage.ErrClosed
		case <-time.After(wait):
		}
	}
}
