package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Why one committer runs the functions of all updates: an update sees the changes of those before it in the same
// commit, so updates of one process never conflict, and one round of fsyncs serves all that wait (group commit).

// change is a call of Update that waits for its commit.
type change struct {
	ctx  context.Context
	repo string
	fn   func(*Tx) error
	done chan error

	err     error // what fn returned when it last ran
	depends bool  // fn saw changes that this commit has yet to make
	quiet   bool  // fn changed nothing
}

// maxGroup bounds the changes in one commit, and so how long the first of them waits for the functions of the others
// (microseconds each).
const maxGroup = 256

// Update calls fn with the repo as it is, commits the changes that fn made, and returns when the Index shows them. If
// fn returns an error, Update returns it unchanged and nothing is changed. fn must be quick and must not block: the one
// committer calls it, and commits the changes of all waiting updates at once; it may be called again. After any other
// error the outcome is unknown, and trying again is safe; except ErrBusy, which means that fn starts to name bytes that
// are being deleted: pin them first.
func (x *Index) Update(ctx context.Context, repo string, fn func(*Tx) error) error {
	for {
		err := x.update(ctx, repo, fn)
		var condemned condemnedError
		if !errors.As(err, &condemned) || !x.leases.pinned(condemned.key) {
			return err
		}
		// The mark was set at the same time as our pin. The Collector sees the pin and takes the mark away again.
		if err := x.awaitSpared(ctx, condemned.key); err != nil {
			return err
		}
	}
}

func (x *Index) update(ctx context.Context, repo string, fn func(*Tx) error) error {
	if repo == "" || strings.Contains(repo, "\x00") { // a zero byte ends the name in the data format
		return fmt.Errorf("index: %.80q is not a valid name for a repository", repo)
	}
	c := &change{ctx: ctx, repo: repo, fn: fn, done: make(chan error, 1)}
	select {
	case x.queue <- c:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-x.ctx.Done():
		return fmt.Errorf("index: %w", ErrClosed)
	}
	select {
	case err := <-c.done:
		return err
	case <-x.stopped: // not earlier: fn, which may write to the caller's variables, could still run
	}
	select {
	case err := <-c.done:
		return err
	default:
		return fmt.Errorf("index: %w", ErrClosed)
	}
}

// committer is the only caller of Journal.Commit.
func (x *Index) committer() {
	for {
		select {
		case <-x.ctx.Done():
			return
		case c := <-x.queue:
			x.commit(x.gather(c))
		}
	}
}

// gather returns first and the changes that wait already, for one commit.
func (x *Index) gather(first *change) []*change {
	group := []*change{first}
	for len(group) < maxGroup {
		select {
		case c := <-x.queue:
			group = append(group, c)
		default:
			return group
		}
	}
	return group
}

// commit answers each change of a group once it is committed, or known not to be.
func (x *Index) commit(group []*change) {
	group, err := x.try(group)
	for _, c := range group {
		if err == nil {
			c.done <- c.err
		} else {
			c.done <- err
		}
	}
}

// try runs the functions of a group and commits what they changed. It returns the changes that it has not answered yet.
// With a journal that other processes write to, it may take several rounds.
func (x *Index) try(group []*change) ([]*change, error) {
	const rounds = 16 // each round is lost to another process that writes the same repo within milliseconds
	// After a failed commit, the functions must see what became of it, and see it durable, before they decide anew.
	if err := x.awaitReload(); err != nil {
		return group, err
	}
	if err := x.confirmDurable(); err != nil {
		return group, err
	}
	for range rounds {
		if x.ctx.Err() != nil {
			return group, fmt.Errorf("index: %w", ErrClosed)
		}
		bases, batches := x.run(group)
		if slices.ContainsFunc(group, func(c *change) bool { return c.quiet }) {
			if unchanged, err := x.unchanged(bases); err != nil {
				return group, err
			} else if !unchanged {
				continue
			}
			group = answerFailed(group)
		}
		if len(batches) == 0 {
			return group, nil
		}
		rev, err := x.journal.Commit(x.ctx, batches...)
		if err == nil {
			return group, x.awaitShown(rev) // a client that got its answer sees its write
		}
		if !errors.Is(err, ErrConflict) {
			return group, x.reload(err)
		}
		// Another process was faster. Wait until the state shows what it wrote; if that fails, so does the next round.
		if head, err := x.journal.Head(x.ctx); err == nil {
			_ = x.awaitShown(head)
		}
	}
	return group, ErrConflict
}

// awaitShown waits until the state shows a revision, but not without end: with a journal that does not deliver, one
// call must not block all that come after it.
func (x *Index) awaitShown(rev Revision) error {
	ctx, cancel := context.WithTimeout(x.ctx, reloadTimeout)
	defer cancel()
	if err := x.awaitRevision(ctx, rev); err != nil {
		return fmt.Errorf("committed as revision %d, which the journal does not deliver: %w", rev, err)
	}
	return nil
}

// unchanged reports whether every repo is still at the revision that its update was based on. A function that failed or
// changed nothing has no commit that would detect a conflict, but its answer is a claim about the repo all the same.
func (x *Index) unchanged(bases map[string]Revision) (bool, error) {
	if _, err := x.confirm(x.ctx); err != nil {
		return false, err
	}
	for repo, base := range bases {
		if x.revisionOf(repo) != base {
			return false, nil
		}
	}
	return true, nil
}

// answerFailed answers the changes whose functions failed because of committed facts, and returns the others. A
// function that may have failed because of an earlier change of this commit has to wait until that one is committed.
func answerFailed(group []*change) []*change {
	return slices.DeleteFunc(group, func(c *change) bool {
		if c.err == nil || c.depends {
			return false
		}
		c.done <- c.err
		return true
	})
}

// run calls the functions of a group. It returns the repos' revisions, and one batch for each repo that changes.
func (x *Index) run(group []*change) (bases map[string]Revision, batches []Batch) {
	var order []string
	pending, newest := map[string]overlay{}, map[string]*int64{}
	bases = map[string]Revision{}
	growth, adding := &growth{quotas: x.currentQuotas()}, &adding{}
	begin := func(repo string) {
		// The base is read before the function runs. If the repo changes in between, the commit is a conflict.
		if _, ok := bases[repo]; !ok {
			bases[repo] = x.revisionOf(repo)
			order = append(order, repo)
			pending[repo], newest[repo] = overlay{}, new(x.newestOf(repo))
		}
	}
	for _, c := range group {
		begin(c.repo)
		now := time.Now()
		tx := &Tx{x: x, repo: c.repo, pending: pending[c.repo], store: pending[storeRepo], growth: growth,
			waiting: pending[waitingOf(c.repo)], now: now.Unix(), clock: now.UnixNano(), newest: newest[c.repo], adding: adding}
		c.depends = len(tx.pending) > 0
		if c.err = c.call(tx); c.err == nil {
			c.err = cmp.Or(tx.refused, tx.exceeded())
		}
		c.quiet = c.err != nil || len(tx.own) == 0
		if c.err == nil { // of a function that failed nothing is committed
			if waiting := x.letGo(tx, pending); waiting != nil {
				begin(waitingOf(c.repo))
				maps.Copy(pending[waitingOf(c.repo)], waiting)
			}
			maps.Copy(pending[c.repo], tx.own)
			growth.add(c.repo, tx.added-tx.counted)
			adding.take(c.repo, tx.adds)
		}
	}
	for _, repo := range order {
		if o := pending[repo]; len(o) > 0 {
			batches = append(batches, Batch{Repo: repo, Base: bases[repo], Ends: x.endsWith(repo, o), Facts: o.facts()})
		}
	}
	return bases, batches
}

// call runs the function, unless its caller has given up. A panic of one function must not end the committer, so it
// becomes an error of that caller alone.
func (c *change) call(tx *Tx) (err error) {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("index: update of %q panicked: %v", c.repo, p)
		}
	}()
	return c.fn(tx)
}

// reload asks for the full state after a commit that failed with cause: the commit may have happened all the same.
func (x *Index) reload(cause error) error {
	x.options.Warn(fmt.Errorf("commit: %w; loading the state again", cause))
	x.unsure = x.unsure || !errors.Is(cause, ErrFull) // a commit that failed for lack of space has left nothing
	x.mu.RLock()
	x.needLoads = x.loads + 1
	x.rewatch()
	x.mu.RUnlock()
	return errors.Join(fmt.Errorf("commit: %w", cause), x.awaitReload())
}

// awaitReload waits for the state that the last failed commit asked for; usually there was none.
func (x *Index) awaitReload() error {
	ctx, cancel := context.WithTimeout(x.ctx, reloadTimeout)
	defer cancel()
	if err := x.awaitLoad(ctx, x.needLoads); err != nil {
		return fmt.Errorf("load the state again after a failed commit: %w", err)
	}
	return nil
}

// confirmDurable makes durable what the state shows, if a failed commit has left that in doubt. Otherwise a client that
// tries again could find its change in the state, need no commit, and get a success that a power cut may undo.
func (x *Index) confirmDurable() error {
	if !x.unsure {
		return nil
	}
	if _, err := x.journal.Commit(x.ctx); err != nil {
		return fmt.Errorf("commit again what a failed commit left: %w", err)
	}
	x.unsure = false
	return nil
}

func (x *Index) revisionOf(repo string) Revision {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if r := x.state.repos[repo]; r != nil {
		return r.revision
	}
	return 0
}

// endsWith reports whether no fact of a repo is left after these changes of it.
func (x *Index) endsWith(name string, changes overlay) bool {
	for f, value := range changes {
		if value != nil && f.kind != KindHistory {
			return false
		}
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	left := x.state.facts(name)
	for f := range changes {
		if x.state.has(name, f) {
			left--
		}
	}
	return left == 0
}

// newestOf returns the greatest order of a tag of the repo.
func (x *Index) newestOf(repo string) int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if r := x.state.repos[repo]; r != nil {
		return r.newest
	}
	return 0
}
