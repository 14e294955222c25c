package storage

import (
	"math"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Quota bounds how many bytes of blobs and manifests some repos hold together. Each content counts once in each repo
// that holds it, even if other repos hold it too. Content that one of them was the last to hold counts until it is
// collected.
type Quota struct {
	Name  string                 // for messages
	Match func(repo string) bool // reports whether a repo counts; it must be quick and always return the same
	Bytes int64
}

// Usage is a Quota and what its repos hold.
type Usage struct {
	Quota
	Used    int64 // bytes
	Waiting int64 // of these, what waits to be collected
	Open    int64 // of these, what open uploads have
}

// Excess is a change that would add more than a Quota leaves.
type Excess struct {
	Usage       // before the change
	Added int64 // bytes
}

// SetQuotas replaces all quotas. It counts what the repos hold once; from then on each change is counted.
func (x *Index) SetQuotas(all []Quota) {
	q := newQuotas(all)
	if len(all) > 0 {
		for _, repo := range x.allNames() { // before the lock: no reader waits for the patterns
			q.of[repo] = q.match(repo)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	q.recount(x.state)
	x.quotas = q
	x.options.Uploads.set(x)
}

// Quotas returns the quotas in their order, with what is used of them.
func (x *Index) Quotas() []Usage {
	x.mu.RLock()
	defer x.mu.RUnlock()
	all, open := make([]Usage, len(x.quotas.all)), x.options.Uploads.counts()
	for i := range all {
		all[i] = x.quotas.usage(i, open)
	}
	return all
}

// Bytes returns how many bytes of blobs and manifests a repo holds. Each content counts once.
func (x *Index) Bytes(repo string) int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.bytes(repo)
}

func (x *Index) currentQuotas() *quotas {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.quotas
}

// Excess reports whether d, of size bytes, is more than a quota leaves, together with what the change adds already; e
// is the first such quota. Content that counts already, because the repo holds it or it waits, exceeds nothing. What
// earlier changes of the same commit add counts, so that concurrent pushes do not exceed a quota together; what they
// delete counts once it is committed. d may be empty if it is not known yet.
func (tx *Tx) Excess(d digest.Digest, size int64) (e Excess, over bool) {
	g := tx.growth
	if len(g.quotas.all) == 0 || size <= 0 {
		return e, false
	}
	if _, held := tx.Manifest(d); held || tx.Linked(d) || d != "" && tx.waits(keyOf(d)) {
		return e, false
	}
	added := tx.added + min(size, math.MaxInt64-max(0, tx.added)) // without overflow: a client states the size
	tx.x.mu.RLock()
	defer tx.x.mu.RUnlock()
	of := g.quotas.ofRepo(tx.repo)
	if len(of) == 0 {
		return e, false
	}
	uploads := tx.x.options.Uploads
	open := uploads.counts()
	counted := tx.counted + uploads.pending(tx.repo, keyOf(d)) // its own uploads count already
	for _, i := range of {
		usage := g.quotas.usage(i, open)
		if len(g.grown) > 0 {
			usage.Used += g.grown[i]
		}
		if !tx.view && added > counted { // what is counted is in the reservation of this process
			usage = usage.with(tx.x.reservedByOthers(i))
		}
		if usage.Used-counted > usage.Bytes-added {
			return Excess{usage, added}, true
		}
	}
	return e, false
}

// quotas counts what is used of each quota. The Index's lock guards it.
type quotas struct {
	all     []Quota
	used    []int64          // of each
	waiting []int64          // of used, what waits
	of      map[string][]int // by repo that exists: the quotas it counts for
}

func newQuotas(all []Quota) *quotas {
	return &quotas{all: all, used: make([]int64, len(all)),
		waiting: make([]int64, len(all)), of: map[string][]int{}}
}

func (q *quotas) match(repo string) (of []int) {
	repo = strings.TrimPrefix(repo, waitingPrefix) // what waits counts for the same quotas
	for i := range q.all {
		if q.all[i].Match(repo) {
			of = append(of, i)
		}
	}
	return of
}

// ofRepo returns what match does, from memory for repos that exist.
func (q *quotas) ofRepo(repo string) []int {
	if of, ok := q.of[repo]; ok {
		return of
	}
	return q.match(repo)
}

// recount counts all of a state.
func (q *quotas) recount(s *state) {
	if len(q.all) == 0 {
		return
	}
	clear(q.used)
	clear(q.waiting)
	of := make(map[string][]int, len(s.repos))
	for repo, r := range s.repos {
		of[repo] = q.ofRepo(repo)
		for _, i := range of[repo] {
			q.add(i, repo, r.bytes)
		}
	}
	q.of = of
}

// add counts bytes of a repo for a quota.
func (q *quotas) add(i int, repo string, bytes int64) {
	if q.used[i] += bytes; strings.HasPrefix(repo, waitingPrefix) {
		q.waiting[i] += bytes
	}
}

// apply brings the state up to an update, and counts what it changes.
func (q *quotas) apply(s *state, u Update) error {
	if len(q.all) == 0 {
		return s.apply(u)
	}
	before := make(map[string]int64, len(u.Batches))
	for _, b := range u.Batches {
		before[b.Repo] = s.bytes(b.Repo)
	}
	if err := s.apply(u); err != nil {
		return err
	}
	for repo, bytes := range before {
		of := q.ofRepo(repo)
		for _, i := range of {
			q.add(i, repo, s.bytes(repo)-bytes)
		}
		if s.repos[repo] == nil {
			delete(q.of, repo)
		} else {
			q.of[repo] = of
		}
	}
	return nil
}

// growth is what the changes of one commit add to quotas. Only the committer uses it.
type growth struct {
	quotas *quotas // as they were when the commit was started
	grown  []int64 // bytes, for each quota; empty: nothing was added
}

func (g *growth) add(repo string, bytes int64) {
	if bytes == 0 || len(g.quotas.all) == 0 {
		return
	}
	if g.grown == nil {
		g.grown = make([]int64, len(g.quotas.all))
	}
	for _, i := range g.quotas.match(repo) {
		g.grown[i] += bytes
	}
}
