package cluster

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
)

const (
	// questionTimeout bounds one question, including the wait in its lane.
	questionTimeout = 5 * time.Second
	// retryAfter is how long, after a failed question, callers with an old answer get that one without asking again.
	retryAfter = 5 * time.Second
	// cacheSize bounds the answers of each kind, good and bad: some 4,000 pods that pull at the same time.
	cacheSize = 4096
	// laneWidth bounds the questions in progress in a lane; laneQueue, those that wait. Reviews take the API server
	// milliseconds; more would slow down its other clients.
	laneWidth, laneQueue = 8, 256
)

// errBusy means that a question was not sent.
var errBusy = errors.New("too many other questions are in progress")

// answer is an answer of the API server.
type answer[V any] struct {
	value V
	good  bool      // the token was accepted, or the action allowed
	fresh time.Time // until then the API server is not asked again
	stale time.Time // until then the answer is used if the API server does not reply; zero for a bad answer
}

// cache caches answers of the API server, and bounds the questions. Concurrent callers with the same question share one
// request. The keys are MACs of the questions, so that no token is kept.
//
// Good answers have a cache of their own, so that made-up tokens, which only get bad answers, do not evict them. For
// the same reason questions that renew a good answer have a lane of their own: a flood of made-up tokens does not delay
// an account that has an answer. A token seen for the first time waits in the lane of the unknown ones, and before
// that for a turn, which the caller of Review gives, because it knows where the tokens come from.
type cache[V any] struct {
	secret         []byte
	good, bad      *lru.Cache[string, answer[V]]
	flight         singleflight.Group
	renew, unknown lane
	downUntil      atomic.Int64 // until then the API server counts as down, in nanoseconds since 1970
	warnAgain      atomic.Int64 // until then no further failure is logged, likewise
}

func newCache[V any]() *cache[V] {
	c := &cache[V]{secret: make([]byte, sha256.Size), renew: newLane(), unknown: newLane()}
	rand.Read(c.secret)                               // never fails
	c.good, _ = lru.New[string, answer[V]](cacheSize) // fails only for a size that is not positive
	c.bad, _ = lru.New[string, answer[V]](cacheSize)
	return c
}

// key returns the key of a question.
func (c *cache[V]) key(parts ...string) string {
	h := hmac.New(sha256.New, c.secret)
	for _, p := range parts {
		// The length goes first, so that no two lists of parts have the same bytes.
		h.Write(binary.AppendUvarint(nil, uint64(len(p))))
		h.Write([]byte(p))
	}
	return string(h.Sum(nil))
}

// turn waits until a question may be asked that renews no good answer. The caller then calls done, with whether the
// answer is good or the error of the question.
type turn = func(context.Context) (done func(good bool, err error), err error)

// turnError is the error of a turn.
type turnError struct{ error }

// get returns the cached answer, or asks. t may be nil. Errors: those of ask; a turnError; errBusy; that of ctx.
func (c *cache[V]) get(ctx context.Context, key string, t turn, ask func(context.Context) (answer[V], error)) (
	V, error) {
	old, now := c.lookup(key), time.Now()
	if now.Before(old.fresh) || now.Before(old.stale) && now.UnixNano() < c.downUntil.Load() {
		return old.value, nil
	}
	renewal := now.Before(old.stale)
	// The question goes on when the caller that asked first gives up, because others may wait for it.
	done := c.flight.DoChan(key, func() (any, error) {
		if renewal {
			t = nil
		}
		return c.ask(context.WithoutCancel(ctx), renewal, key, t, ask)
	})
	var none V
	select {
	case <-ctx.Done():
		return none, ctx.Err()
	case r := <-done:
		switch {
		case r.Err == nil:
			return r.Val.(answer[V]).value, nil
		case time.Now().Before(old.stale):
			return old.value, nil
		}
		return none, r.Err
	}
}

// refuse caches a bad answer that needed no question, for that long. It reports whether it was not in the cache.
func (c *cache[V]) refuse(key string, value V, life time.Duration) (added bool) {
	if old := c.lookup(key); !old.good && time.Now().Before(old.fresh) {
		return false
	}
	c.store(key, answer[V]{value: value, fresh: time.Now().Add(life)})
	return true
}

// warningDue reports whether a failed question should be logged: once in five seconds, because when the API server is
// down, the questions of all clients fail.
func (c *cache[V]) warningDue() bool {
	now, until := time.Now(), c.warnAgain.Load()
	return now.UnixNano() >= until && c.warnAgain.CompareAndSwap(until, now.Add(retryAfter).UnixNano())
}

// lookup returns the cached answer, or the zero answer.
func (c *cache[V]) lookup(key string) answer[V] {
	if a, ok := c.good.Get(key); ok {
		return a
	}
	a, _ := c.bad.Get(key)
	return a
}

// store caches an answer, in exactly one of the two caches.
func (c *cache[V]) store(key string, a answer[V]) {
	to, from := c.good, c.bad
	if !a.good {
		to, from = c.bad, c.good
	}
	from.Remove(key)
	to.Add(key, a)
}

// ask sends a question when it is its turn and its lane is free, and caches the answer.
func (c *cache[V]) ask(ctx context.Context, renewal bool, key string, t turn,
	ask func(context.Context) (answer[V], error)) (a answer[V], err error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	if t != nil {
		done, terr := t(ctx)
		if terr != nil {
			return a, turnError{terr}
		}
		defer func() { done(a.good, err) }()
	}
	l := c.unknown
	if renewal {
		l = c.renew
	}
	if err := l.enter(ctx); err != nil {
		return a, err
	}
	defer l.leave()
	if a, err = ask(ctx); err != nil {
		// Only a renewal marks the API server as down. Otherwise a client with made-up tokens that time out could make
		// old answers, among them that of a deleted account, last longer.
		if renewal {
			c.downUntil.Store(time.Now().Add(retryAfter).UnixNano())
		}
		return a, err
	}
	c.downUntil.Store(0)
	c.store(key, a)
	return a, nil
}

// lane bounds how many questions are in progress, and how many wait.
type lane struct{ admitted, running *semaphore.Weighted }

func newLane() lane {
	return lane{semaphore.NewWeighted(laneWidth + laneQueue), semaphore.NewWeighted(laneWidth)}
}

// enter waits until a question may be sent; leave must be called after it. Error: errBusy, at once if too many wait, or
// when ctx is done.
func (l lane) enter(ctx context.Context) error {
	if !l.admitted.TryAcquire(1) {
		return errBusy
	}
	if err := l.running.Acquire(ctx, 1); err != nil {
		l.admitted.Release(1)
		return fmt.Errorf("%w, for %s", errBusy, questionTimeout)
	}
	return nil
}

func (l lane) leave() {
	l.running.Release(1)
	l.admitted.Release(1)
}
