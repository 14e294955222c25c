package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Where several processes share a journal, one of them at a time removes what is not needed: it leads a task. A process
// that was suspended for a while may still believe that it leads when another one has taken over. So each commit of
// such a task has a condition, the fence, which no longer holds from then on, however late the commit arrives.

// Leads is what a [Journal] that several processes share may implement, so that one of them at a time does a task.
type Leads interface {
	// Lead waits until this process is the one that does a task, and then does it until ctx ends, when the next one
	// follows at once. name is what Leader returns. lost is closed when another process may lead. fence is for
	// WithFence: commits that have it are refused from the moment on at which another process may have taken over. It
	// is a fact of KindLead, which holds in every repo. Errors: ctx's; those of the Journal, such as ErrClosed.
	Lead(ctx context.Context, task, name string) (fence Fact, lost <-chan struct{}, err error)
	// Leader returns the name of the process that does a task, or "".
	Leader(ctx context.Context, task string) (string, error)
}

// ErrNotLeader: the change was refused by its fence, because another process may have taken the task over. Nothing was
// changed, and trying again is of no use.
var ErrNotLeader = errors.New("another replica does this now")

type fenceKey struct{}

// WithFence returns a context with which each commit that the Index makes for a call is refused with ErrNotLeader once
// the fence, which [Leads.Lead] has returned, does not hold any more.
func WithFence(ctx context.Context, fence Fact) context.Context {
	return context.WithValue(ctx, fenceKey{}, &fence)
}

func fenceOf(ctx context.Context) *Fact {
	f, _ := ctx.Value(fenceKey{}).(*Fact)
	return f
}

// leadRepo stands in for a repo's name in the condition of a fence. It is a name for each task, so that a conflict says
// which fence does not hold. No repository can have it.
func leadRepo(fence *Fact) string { return "_lead/" + fence.Name }

// guard makes the commit depend on the fence of a change. It reports false if the commit has another fence of the same
// task already, of an earlier or a later term: of the two at most one holds.
func (p *plan) guard(fence *Fact) bool {
	if fence == nil {
		return true
	}
	k := factKey{fence.Kind, fence.Name}
	r := p.repo(leadRepo(fence))
	if other, guarded := r.conditions[k]; guarded {
		return same(other, fence.Value)
	}
	r.require(k, fence.Value)
	return true
}

// costOfFence is what guard adds to a commit.
func (p *plan) costOfFence(fence *Fact) cost {
	if fence == nil || p.repos[leadRepo(fence)] != nil {
		return cost{}
	}
	return cost{1, 0, len(leadRepo(fence)) + len(fence.Name) + len(fence.Value)}
}

// deposed answers the changes whose fence does not hold, as the conflict says, and returns the others.
func deposed(group []*change, err error) []*change {
	var conflict *ConflictError
	if !errors.As(err, &conflict) {
		return group
	}
	return slices.DeleteFunc(group, func(c *change) bool {
		if c.fence == nil || !slices.Contains(conflict.Repos, leadRepo(c.fence)) {
			return false
		}
		c.done <- fmt.Errorf("index: %q: %w", c.repo, ErrNotLeader)
		return true
	})
}
