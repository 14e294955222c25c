package storage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

	fence *Fact // nil: the change has none; see WithFence

	err error // what fn returned when it last ran
	// depends: the commit has earlier changes, which fn may have seen: of the repo, of content itself, of what counts
	// for a quota or a limit.
	depends bool
	quiet   bool // fn changed nothing
	store   bool // the change depends on facts about content itself, or sets some
}

// concerns reports whether a conflict in a repo can be due to the change.
func (c *change) concerns(repo string) bool {
	return repo == c.repo || repo == waitingOf(c.repo) || repo == storeRepo && c.store
}

// maxGroup bounds the changes in one commit, and so how long the first of them waits for the functions of the others
// (microseconds each).
const maxGroup = 256

// Update calls fn with the repo as it is, commits the changes that fn made, and returns when the Index shows them. If
// fn returns an error, Update returns it unchanged and nothing is changed. fn must be quick and must not block: the one
// committer calls it, and commits the changes of all waiting updates at once; it may be called again. With these errors
// nothing was changed either: ErrBusy, if fn starts to name bytes that are being deleted (pin them first); ErrNotFound
// and ErrExpired, if there is no object for bytes that fn starts to name in a Placed engine; ErrLimit; ErrTooLarge;
// ErrNotLeader, see WithFence; *SealedError. After any other error the outcome is unknown, and trying again is safe.
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
	c := &change{ctx: ctx, repo: repo, fn: fn, done: make(chan error, 1), fence: fenceOf(ctx)}
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

// commit answers each change of a group once it is committed, or known not to be. It may take several commits.
func (x *Index) commit(group []*change) {
	const most = 16 // attempts where one process writes: a journal that still has conflicts must not stop the committer
	for tries := 0; len(group) > 0; tries++ {
		if tries >= most && !x.shared {
			answer(group, ErrConflict)
			return
		}
		if tries > 2 { // other processes write the same repo all the time: a random pause lets one of them be first
			pause(x.ctx, rand.N(time.Millisecond<<min(tries, 6)))
		}
		group = x.try(group)
	}
}

// try runs the functions of a group and commits what they changed. It returns the changes that it has not answered:
// they did not fit into the commit, or were in conflict with another process.
func (x *Index) try(group []*change) (again []*change) {
	if err := x.settle(); err != nil {
		answer(group, err)
		return nil
	}
	p := x.plan(group)
	group, again = group[:p.changes], group[p.changes:]
	if slices.ContainsFunc(group, func(c *change) bool { return c.quiet }) {
		unchanged, err := x.unchanged(p)
		if err != nil {
			answer(group, err)
			return again
		}
		if !unchanged {
			return slices.Concat(group, again)
		}
		group = answerFailed(group)
	}
	batches := p.batches()
	if len(batches) == 0 {
		answer(group, nil)
		return again
	}
	rev, err := x.journal.Commit(x.ctx, batches...)
	if !errors.Is(err, ErrConflict) { // also after any other error: the commit may have happened, or may happen yet
		x.made.spend(p.changesOf(storeRepo))
	}
	switch {
	case err == nil:
		answer(group, x.awaitShown(rev)) // invariant 5: a client that got its answer sees its write
	case errors.Is(err, ErrConflict):
		return append(x.resolve(group, err), again...)
	default:
		answer(group, x.failed(err))
	}
	return again
}

// resolve handles a conflict: another process was faster. It commits the changes that the conflict is not about, so
// that they do not wait for those that are, and returns these once the state shows what was written.
func (x *Index) resolve(group []*change, err error) (concerned []*change) {
	if group = deposed(group, err); len(group) == 0 {
		return nil
	}
	head, err2 := x.journal.Head(x.ctx)
	if err2 == nil {
		err2 = x.awaitShown(head)
	}
	if err2 != nil {
		answer(group, fmt.Errorf("commit: %w", errors.Join(err, err2)))
		return nil
	}
	var conflict *ConflictError
	if !errors.As(err, &conflict) {
		return group
	}
	var others []*change
	for _, c := range group {
		if slices.ContainsFunc(conflict.Repos, c.concerns) {
			concerned = append(concerned, c)
		} else {
			others = append(others, c)
		}
	}
	if len(concerned) == 0 { // it is about a condition of the whole commit, such as the seal
		return group
	}
	x.commit(others)
	return concerned
}

// answer answers changes: with err, or with what the function of each returned.
func answer(group []*change, err error) {
	for _, c := range group {
		if err == nil {
			c.done <- c.err
		} else {
			c.done <- err
		}
	}
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

// unchanged reports whether every repo is still as the functions saw it. A function that failed or changed nothing has
// no commit that would detect a conflict, but its answer is a claim about the repo all the same. Links count as well,
// which do not change the revision: a manifest may have been refused because one was missing.
func (x *Index) unchanged(p *plan) (bool, error) {
	if _, err := x.confirm(x.ctx); err != nil {
		return false, err
	}
	for _, r := range p.order {
		if _, seen, _ := x.revisionOf(r.name); seen != r.seen {
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

// settle makes sure, before functions run, that the state shows what became of earlier commits whose outcome was not
// known, and that this is durable.
func (x *Index) settle() error {
	if x.ctx.Err() != nil {
		return fmt.Errorf("index: %w", ErrClosed)
	}
	if err := x.awaitReload(); err != nil {
		return err
	}
	if err := x.awaitWatch(); err != nil {
		return err
	}
	return x.confirmDurable()
}

// failed handles a commit that failed with cause, and returns the error for its changes. The commit may have happened
// all the same, or may happen yet.
func (x *Index) failed(cause error) error {
	if !x.shared {
		return x.reload(cause)
	}
	// What a shared journal shows is durable, and its watch shows everything: nothing has to be loaded again. If the
	// commit arrives later, its conditions decide, as with a commit of another process.
	x.unsure = true
	return fmt.Errorf("commit: %w", cause)
}

// reload asks for the full state after a commit that failed.
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

// awaitWatch waits until a shared journal is followed again: another one may have taken its place, and in it the
// revisions that functions saw stand for something else.
func (x *Index) awaitWatch() error {
	ctx, cancel := context.WithTimeout(x.ctx, reloadTimeout)
	defer cancel()
	err := x.await(ctx, func() (bool, error) {
		if x.followed() {
			return true, nil
		}
		return false, x.damaged()
	})
	if err != nil {
		return fmt.Errorf("index: load the state again after the journal's watch has ended: %w: %w", ErrUnavailable,
			err)
	}
	return nil
}

// confirmDurable makes durable what the state shows, if a failed commit has left that in doubt. Otherwise a client that
// tries again could find its change in the state, need no commit, and get a success that a power cut may undo.
func (x *Index) confirmDurable() error {
	if !x.unsure {
		return nil
	}
	if x.shared {
		ctx, cancel := context.WithTimeout(x.ctx, reloadTimeout)
		defer cancel()
		if _, err := x.confirm(ctx); err != nil {
			return err
		}
		x.unsure = false
		return nil
	}
	if _, err := x.journal.Commit(x.ctx); err != nil {
		return fmt.Errorf("commit again what a failed commit left: %w", err)
	}
	x.unsure = false
	return nil
}

// revisionOf returns the revision of a repo that a batch compares, the one of its last change of any kind, and the
// greatest order of a tag of it.
func (x *Index) revisionOf(repo string) (base, seen Revision, newest int64) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if r := x.state.repos[repo]; r != nil {
		return r.revision, max(r.changed, x.state.loaded), r.newest
	}
	base = x.state.ended[repo]
	return base, seen, newest
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
