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

	"golang.org/x/sync/singleflight"
	"k8s.io/utils/lru"
)

const (
	// askTimeout bounds one question, waiting for a turn included.
	askTimeout = 5 * time.Second
	// askAgain is how soon a server that could not be asked is asked again by those who have an old answer.
	askAgain = 5 * time.Second
	// memorySize is how many answers are kept, of each sort.
	memorySize = 4096
	// turnsAtOnce and turnsWaiting bound the questions under way, and those that wait for one of these to end.
	turnsAtOnce, turnsWaiting = 8, 256
)

// errBusy is a question that was not even asked.
var errBusy = errors.New("too many other questions are under way")

// answer is what the API server has said.
type answer[V any] struct {
	value V
	good  bool      // a bad one ends with fresh
	fresh time.Time // until then nobody asks again
	stale time.Time // until then it serves those who cannot ask
}

// memory keeps answers of the API server: it is asked once for all who want to know the same, and not again for a
// while. It is bounded. Answers are found by a MAC of what was asked, so that no token is kept.
type memory[V any] struct {
	secret           []byte
	good, bad        *lru.Cache // apart, so that whoever makes up tokens pushes out none that are good
	flight           singleflight.Group
	known, strangers turns        // apart for the same reason: questions about good answers that have grown old
	down             atomic.Int64 // until when the server is taken to be down, in Unix nanoseconds
}

func newMemory[V any]() *memory[V] {
	m := &memory[V]{secret: make([]byte, sha256.Size), good: lru.New(memorySize), bad: lru.New(memorySize),
		known: newTurns(), strangers: newTurns()}
	rand.Read(m.secret) // never fails
	return m
}

// key is where the answer to a question is kept.
func (m *memory[V]) key(parts ...string) string {
	h := hmac.New(sha256.New, m.secret)
	for _, p := range parts {
		h.Write(binary.AppendUvarint(nil, uint64(len(p))))
		h.Write([]byte(p))
	}
	return string(h.Sum(nil))
}

// get returns the answer that is kept at key, or asks. Errors: those of ask; that ctx has ended.
func (m *memory[V]) get(ctx context.Context, key string, ask func(context.Context) (answer[V], error)) (V, error) {
	old, now := m.look(key), time.Now()
	if now.Before(old.fresh) || now.Before(old.stale) && now.UnixNano() < m.down.Load() {
		return old.value, nil
	}
	known := now.Before(old.stale)
	done := m.flight.DoChan(key, func() (any, error) { return m.ask(context.WithoutCancel(ctx), known, key, ask) })
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

// look returns what is kept, or nothing.
func (m *memory[V]) look(key string) answer[V] {
	for _, c := range []*lru.Cache{m.good, m.bad} {
		if a, ok := c.Get(key); ok {
			return a.(answer[V])
		}
	}
	return answer[V]{}
}

// ask asks when it is its turn, and keeps the answer. Whether the server is down is not for strangers to bring about: it
// makes old answers last longer.
func (m *memory[V]) ask(ctx context.Context, known bool, key string, ask func(context.Context) (answer[V], error)) (answer[V], error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	turns := m.strangers
	if known {
		turns = m.known
	}
	if err := turns.take(ctx); err != nil {
		return answer[V]{}, err
	}
	defer turns.give()
	a, err := ask(ctx)
	switch {
	case err == nil:
		m.down.Store(0)
	case known:
		m.down.Store(time.Now().Add(askAgain).UnixNano())
		return a, err
	default:
		return a, err
	}
	if a.good {
		m.bad.Remove(key)
		m.good.Add(key, a)
	} else {
		m.good.Remove(key)
		m.bad.Add(key, a)
	}
	return a, nil
}

// turns bound how many do something at once, and how many wait for that.
type turns struct{ running, here chan struct{} }

func newTurns() turns {
	return turns{make(chan struct{}, turnsAtOnce), make(chan struct{}, turnsAtOnce+turnsWaiting)}
}

// take waits for a turn. Error: there is none before ctx ends, or too many wait.
func (t turns) take(ctx context.Context) error {
	select {
	case t.here <- struct{}{}:
	default:
		return errBusy
	}
	select {
	case t.running <- struct{}{}:
		return nil
	case <-ctx.Done():
		<-t.here
		return fmt.Errorf("%w, for %s", errBusy, askTimeout)
	}
}

// give ends a turn.
func (t turns) give() { <-t.running; <-t.here }
