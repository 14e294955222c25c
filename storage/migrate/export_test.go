package migrate

import (
	"context"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// WithBudget bounds what a Run holds of what it has found.
func WithBudget(o Options, bytes int) Options {
	o.budget = bytes
	return o
}

// Pass is a pass whose steps a test makes.
type Pass struct {
	t *testing.T
	m *migration
}

// NewPass begins a pass with what the target has.
func NewPass(ctx context.Context, t *testing.T, to Side) *Pass {
	m := &migration{Options: Options{From: to, To: to, budget: defaultBudget}, lost: map[digest.Digest]string{},
		verified: map[uint64]int64{}}
	if err := m.load(ctx); err != nil {
		t.Fatal(err)
	}
	m.pass, m.staleDue = 1, true
	return &Pass{t, m}
}

// Apply is what the Watch of the source calls.
func (p *Pass) Apply(u storage.Update) {
	if err := p.m.watcher(false, make(chan struct{}, 1))(u); err != nil {
		p.t.Error(err)
	}
}

// Take takes what was found, as run does, and returns how many facts that are.
func (p *Pass) Take() (facts int) {
	w, _, _, err := p.m.next(p.t.Context())
	if err != nil {
		p.t.Error(err)
	}
	for _, all := range w.facts {
		facts += len(all)
	}
	return facts
}
