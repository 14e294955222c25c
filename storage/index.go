package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Index answers questions about what the repos hold, from memory, and is the one way to change it. Open it
// with [OpenIndex]. It is safe for concurrent use.
//
// Why one lock: it is held for map look-ups and for applying what has been committed, never across I/O, so
// a reader waits for microseconds at most.
type Index struct {
	journal Journal
	options IndexOptions
	leases  *leases
	queue   chan *change
	ctx     context.Context // ends with Close
	close   context.CancelFunc
	done    sync.WaitGroup
	stopped chan struct{} // closed when the committer has ended, and no function runs any more
	needs   int           // the committer's: how many loads there must have been before the next commit
	unsure  bool          // the committer's: what shows may not be durable, since a commit failed and none has succeeded since

	mu      sync.RWMutex // guards all below
	state   *state
	changed chan struct{}      // closed and replaced with every change of state
	loads   int                // how often a full state came in
	rewatch context.CancelFunc // ends the current Watch, so that a fresh state comes in
	broken  error              // why the last Watch ended
	quotas  *quotas
}

// IndexOptions are an Index's options; all have defaults.
type IndexOptions struct {
	// Progress is called now and then while the full state is loaded, with the facts that are in.
	Progress func(facts int)
	// Warn is told of what the Index lives through by itself, such as a commit that failed.
	Warn func(error)
}

// Stats counts what the Index knows.
type Stats struct {
	Repos, Manifests, Tags int
	Links                  int // blobs of repos: one that three repos hold counts three times
	Contents               int // digests that are named anywhere
	Quarantined            int // contents whose bytes were found damaged or missing
}

// change is a call of Update, waiting for its commit.
type change struct {
	ctx  context.Context
	repo string
	fn   func(*Tx) error
	done chan error

	err   error // what fn said when it ran last
	rests bool  // fn saw changes that are to be committed together with its own
	quiet bool  // fn changed nothing
}

// maxGroup bounds the changes in one commit, and so how long the first of them waits for the others'
// functions (microseconds each).
const maxGroup = 256

// reloadTimeout bounds how long a commit waits for a fresh state after a failed one.
const reloadTimeout = 10 * time.Second

// OpenIndex loads the journal's state and follows it until Close. Errors: what the journal says; a journal
// that contradicts itself.
func OpenIndex(ctx context.Context, j Journal, o IndexOptions) (*Index, error) {
	if o.Warn == nil {
		o.Warn = func(error) {}
	}
	x := &Index{journal: j, options: o, leases: newLeases(), queue: make(chan *change, maxGroup), state: newState(), quotas: newQuotas(nil), changed: make(chan struct{}), stopped: make(chan struct{})}
	x.ctx, x.close = context.WithCancel(context.WithoutCancel(ctx))
	x.done.Go(x.follow)
	if err := x.awaitLoad(ctx, 1); err != nil {
		x.Close()
		return nil, fmt.Errorf("load the index: %w", err)
	}
	x.done.Go(func() {
		defer close(x.stopped)
		x.committer()
	})
	return x, nil
}

// Close stops following the journal and refuses further updates. It does not close the journal.
func (x *Index) Close() {
	x.close()
	x.done.Wait()
}

// follow keeps the state up to date. A Watch that ends is begun anew, with a fresh state beside the old
// one, which serves readers until the fresh one is complete.
func (x *Index) follow() {
	for x.ctx.Err() == nil {
		ctx, cancel := context.WithCancel(x.ctx)
		x.mu.Lock()
		x.rewatch = cancel
		x.mu.Unlock()
		err := x.journal.Watch(ctx, x.loader())
		asked := ctx.Err() != nil
		cancel()
		x.mu.Lock()
		x.broken = err
		x.wake()
		first := x.loads == 0
		x.mu.Unlock()
		if first || x.ctx.Err() != nil {
			return
		}
		if errors.Is(err, ErrDamaged) { // reads go on with what is in memory, and writes fail
			x.options.Warn(fmt.Errorf("following the journal: %w", err))
			return
		}
		if !asked {
			x.options.Warn(fmt.Errorf("following the journal: %w; starting again", err))
			pause(x.ctx, time.Second)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// loader returns the apply function for one Watch. Until the full state is in, nobody sees it.
func (x *Index) loader() func(Update) error {
	fresh, facts, last := newState(), 0, time.Now()
	return func(u Update) error {
		if fresh.synced {
			x.mu.Lock()
			defer x.mu.Unlock()
			defer x.wake()
			return x.quotas.apply(fresh, u)
		}
		if err := fresh.apply(u); err != nil {
			return err
		}
		for _, b := range u.Batches {
			facts += len(b.Facts)
		}
		if x.options.Progress != nil && time.Since(last) > time.Second {
			x.options.Progress(facts)
			last = time.Now()
		}
		if u.Synced {
			x.mu.Lock()
			x.state, x.broken = fresh, nil
			x.quotas.recount(fresh)
			x.loads++
			x.wake()
			x.mu.Unlock()
		}
		return nil
	}
}

// wake tells those who wait that something changed; the caller has mu.
func (x *Index) wake() {
	close(x.changed)
	x.changed = make(chan struct{})
}

// await waits until ready, which is called with mu held for reading, says so or fails.
func (x *Index) await(ctx context.Context, ready func() (bool, error)) error {
	for {
		x.mu.RLock()
		ok, err := ready()
		changed := x.changed
		x.mu.RUnlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-x.ctx.Done():
			return fmt.Errorf("index: %w", ErrClosed)
		}
	}
}

// awaitLoad waits for the n-th full state.
func (x *Index) awaitLoad(ctx context.Context, n int) error {
	return x.await(ctx, func() (bool, error) {
		if x.loads < n && x.broken != nil && (n == 1 || errors.Is(x.broken, ErrDamaged)) { // nobody tries again
			return false, x.broken
		}
		return x.loads >= n, nil
	})
}

// awaitRevision waits until the state shows a revision.
func (x *Index) awaitRevision(ctx context.Context, rev Revision) error {
	return x.await(ctx, func() (bool, error) { return x.state.revision >= rev, nil })
}

// Update calls fn with the repo as it is, commits the changes that fn made, and returns when the Index shows
// them. An error of fn's is returned as it is, and nothing is changed. fn must be quick and must not block: it
// runs in the one committer, which commits the changes of all who wait at once; it may be called again. Any
// other error than fn's means that the outcome is unknown, and that trying again is safe; but ErrBusy, if fn begins to
// name bytes that are being deleted: pin them first.
func (x *Index) Update(ctx context.Context, repo string, fn func(*Tx) error) error {
	for {
		err := x.update(ctx, repo, fn)
		var condemned condemnedError
		if !errors.As(err, &condemned) || !x.leases.pinned(condemned.key) {
			return err
		}
		// The mark was set beside our pin: the Collector sees that and takes it away again.
		if err := x.awaitSpared(ctx, condemned.key); err != nil {
			return err
		}
	}
}

func (x *Index) update(ctx context.Context, repo string, fn func(*Tx) error) error {
	if repo == "" || strings.Contains(repo, "\x00") { // a zero byte ends the name in the data format
		return fmt.Errorf("index: %.80q is no name for a repository", repo)
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
	case <-x.stopped: // not sooner: fn, which may write to the caller's variables, could be running
	}
	select {
	case err := <-c.done:
		return err
	default:
		return fmt.Errorf("index: %w", ErrClosed)
	}
}

// View calls fn with the repo as it is, without waiting for changes under way. What fn changes is dropped. It
// serves to see beforehand what an Update would probably say: a miss in it is not confirmed with the Journal.
func (x *Index) View(repo string, fn func(*Tx) error) error {
	return fn(&Tx{x: x, repo: repo, growth: &growth{quotas: x.quotasNow()}})
}

// committer is the one that calls Journal.Commit.
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

// gather takes all who wait already into one commit.
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

// commit answers a group of changes when they are committed, or are known not to be.
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

// try runs a group's functions and commits what they changed. It returns those it has not answered yet. With
// a journal that others write to, it may take several rounds.
func (x *Index) try(group []*change) ([]*change, error) {
	const rounds = 16 // each needs another process that writes the same repo within milliseconds
	if err := x.fresh(); err != nil {
		return group, err
	}
	if err := x.ascertain(); err != nil {
		return group, err
	}
	for range rounds {
		if x.ctx.Err() != nil {
			return group, fmt.Errorf("index: %w", ErrClosed)
		}
		bases, batches := x.run(group)
		if slices.ContainsFunc(group, func(c *change) bool { return c.quiet }) {
			if settled, err := x.settled(bases); err != nil {
				return group, err
			} else if !settled {
				continue
			}
			group = answerFailed(group)
		}
		if len(batches) == 0 {
			return group, nil
		}
		rev, err := x.journal.Commit(x.ctx, batches...)
		if err == nil {
			return group, x.show(rev)
		}
		if !errors.Is(err, ErrConflict) {
			return group, x.reload(err)
		}
		if head, err := x.journal.Head(x.ctx); err == nil {
			_ = x.show(head) // a failure shows in the next round
		}
	}
	return group, ErrConflict
}

// show waits until the state shows a revision, but not for ever: with a journal that tells nothing, one call
// must not hold up all that come after it.
func (x *Index) show(rev Revision) error {
	ctx, cancel := context.WithTimeout(x.ctx, reloadTimeout)
	defer cancel()
	if err := x.awaitRevision(ctx, rev); err != nil {
		return fmt.Errorf("committed as revision %d, which the journal does not tell of: %w", rev, err)
	}
	return nil
}

// settled tells whether the repos are still what the functions saw. Whoever fails or changes nothing has no
// commit that would tell, and his answer is a claim about the repo all the same.
func (x *Index) settled(bases map[string]Revision) (bool, error) {
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

// answerFailed answers those whose functions failed by what is committed, and returns the others. Who failed by
// what an earlier member changed has to wait until that is committed.
func answerFailed(group []*change) []*change {
	return slices.DeleteFunc(group, func(c *change) bool {
		if c.err == nil || c.rests {
			return false
		}
		c.done <- c.err
		return true
	})
}

// run calls the functions of a group and returns the repos' revisions and what is to be changed, one batch for
// each repo.
func (x *Index) run(group []*change) (bases map[string]Revision, batches []Batch) {
	var order []string
	pending := map[string]overlay{}
	bases = map[string]Revision{}
	grown := &growth{quotas: x.quotasNow()}
	for _, c := range group {
		if _, ok := bases[c.repo]; !ok {
			bases[c.repo] = x.revisionOf(c.repo)
			order = append(order, c.repo)
			pending[c.repo] = overlay{}
		}
		tx := &Tx{x: x, repo: c.repo, pending: pending[c.repo], store: pending[Store], growth: grown, now: time.Now().Unix()}
		c.rests = len(tx.pending) > 0
		if c.err = c.call(tx); c.err == nil {
			c.err = tx.refused
		}
		c.quiet = c.err != nil || len(tx.own) == 0
		if c.err == nil {
			maps.Copy(pending[c.repo], tx.own)
			grown.add(c.repo, tx.added)
		}
	}
	for _, repo := range order {
		if o := pending[repo]; len(o) > 0 {
			batches = append(batches, Batch{Repo: repo, Base: bases[repo], Facts: o.facts()})
		}
	}
	return bases, batches
}

// call runs the function, unless nobody waits for it any more. Its panic is its caller's alone.
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

// reload asks for a fresh state after a commit that failed with cause: it may have happened all the same.
func (x *Index) reload(cause error) error {
	x.options.Warn(fmt.Errorf("commit: %w; loading the state anew", cause))
	x.unsure = x.unsure || !errors.Is(cause, ErrFull) // nothing of that one shows
	x.mu.RLock()
	x.needs = x.loads + 1
	x.rewatch()
	x.mu.RUnlock()
	return errors.Join(fmt.Errorf("commit: %w", cause), x.fresh())
}

// ascertain makes durable what shows. Whoever tries again after a failed commit may find that there is nothing left to
// change, and would be told so without a commit of his own.
func (x *Index) ascertain() error {
	if !x.unsure {
		return nil
	}
	if _, err := x.journal.Commit(x.ctx); err != nil {
		return fmt.Errorf("commit again what a failed commit has left: %w", err)
	}
	x.unsure = false
	return nil
}

// fresh waits for the state that the last failed commit asked for; usually there was none.
func (x *Index) fresh() error {
	ctx, cancel := context.WithTimeout(x.ctx, reloadTimeout)
	defer cancel()
	if err := x.awaitLoad(ctx, x.needs); err != nil {
		return fmt.Errorf("no fresh state after a failed commit: %w", err)
	}
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

// linked, manifest, tagsOf and refersTo are Tx's look at what is committed.

func (x *Index) linked(repo, d string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.blobOf(repo, d) != 0
}

func (x *Index) manifest(repo, ref string) (Descriptor, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if h := x.state.manifestOf(repo, ref); h != 0 {
		return x.state.descriptor(h), true
	}
	return Descriptor{}, false
}

func (x *Index) tagsOf(repo string, k key) (names []string) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	if r := s.repos[repo]; r != nil {
		if h := s.manifest(r, []byte(k)); h != 0 {
			s.tagsOf(s.manifests.at(s.holds.at(h).manifest), func(t *tag) { names = append(names, t.name) })
		}
	}
	return names
}

func (x *Index) refersTo(repo string, k key, skip func(key) bool) (key, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if r := x.state.repos[repo]; r != nil {
		return x.state.refersTo(r, k, skip)
	}
	return "", false
}

// confirm makes sure that a miss is one: it returns true if the Journal had news, and look again is due.
func (x *Index) confirm(ctx context.Context) (news bool, err error) {
	head, err := x.journal.Head(ctx)
	if err != nil {
		return false, fmt.Errorf("index: confirm a miss: %w", err)
	}
	x.mu.RLock()
	behind := x.state.revision < head
	x.mu.RUnlock()
	if !behind {
		return false, nil
	}
	return true, x.awaitRevision(ctx, head)
}

// Resolve finds the manifest that ref, a tag or a digest, names in repo. It allocates nothing. Errors: only
// if a miss could not be confirmed with the Journal.
func (x *Index) Resolve(ctx context.Context, repo, ref string) (Descriptor, bool, error) {
	d, ok := x.manifest(repo, ref)
	if ok {
		return d, true, nil
	}
	if news, err := x.confirm(ctx); err != nil || !news {
		return Descriptor{}, false, err
	}
	d, ok = x.manifest(repo, ref)
	return d, ok, nil
}

// Blob finds a blob that the repo holds, and its size in bytes; one that is quarantined is not found. Errors: as
// Resolve.
func (x *Index) Blob(ctx context.Context, repo string, d digest.Digest) (size int64, found bool, err error) {
	if size, found = x.blob(repo, string(d)); found {
		return size, true, nil
	}
	if news, err := x.confirm(ctx); err != nil || !news {
		return 0, false, err
	}
	size, found = x.blob(repo, string(d))
	return size, found, nil
}

func (x *Index) blob(repo, d string) (int64, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	c := s.blobOf(repo, d)
	if c == 0 || len(s.quarantined) > 0 && s.isQuarantined(s.keyOf(c).key()) {
		return 0, false
	}
	return s.contents.at(c).size, true
}

// Tags lists a repo's tags after a given one (which need not exist), at most n, or all if n is negative, in
// ASCII order. found tells whether the repo exists. Errors: as Resolve.
func (x *Index) Tags(ctx context.Context, repo, after string, n int) (tags []string, found bool, err error) {
	if _, err := x.confirm(ctx); err != nil { // a list is a claim about what is not there, too
		return nil, false, err
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	r := x.state.repos[repo]
	if r == nil {
		return []string{}, false, nil
	}
	return r.order.after(after, n), true, nil
}

// Repos lists the repos that have a manifest, as Tags lists tags.
func (x *Index) Repos(ctx context.Context, after string, n int) ([]string, error) {
	if _, err := x.confirm(ctx); err != nil {
		return nil, err
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.catalog.after(after, n), nil
}

// Referrers lists the manifests of the repo whose subject is d, in order of their digests in binary form,
// after the given one; it need not exist.
func (x *Index) Referrers(ctx context.Context, repo string, d, after digest.Digest) ([]Descriptor, error) {
	if _, err := x.confirm(ctx); err != nil {
		return nil, err
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	r := x.state.repos[repo]
	if r == nil {
		return nil, nil
	}
	list := r.referrers[x.state.lookup([]byte(keyOf(d)))]
	out := make([]Descriptor, 0, len(list))
	last := sumOf(keyOf(after))
	for _, h := range list {
		if d := x.state.descriptor(h); bytes.Compare(d.sum[:], last[:]) > 0 {
			out = append(out, d)
		}
	}
	return out, nil
}

// Holders lists the repos that hold d as a blob, for a mount that does not say from where, in no order.
func (x *Index) Holders(d digest.Digest) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var names []string
	if x.state.lookup([]byte(keyOf(d))) == 0 {
		return nil
	}
	for name := range x.state.repos {
		if x.state.blobOf(name, string(d)) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// Stats counts.
func (x *Index) Stats() Stats {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state.stats
	s.Repos = len(x.state.repos)
	if x.state.repos[Store] != nil {
		s.Repos--
	}
	s.Contents = x.state.byDigest.len
	for k := range x.state.quarantined {
		if x.state.isQuarantined(k) {
			s.Quarantined++
		}
	}
	return s
}
