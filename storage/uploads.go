package storage

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Uploads counts the bytes of open uploads for the quotas of their repos, and refuses those that a quota has no room
// for. An engine reports each upload to it, and an Index asks it; both get the same one as an option. A nil *Uploads
// counts nothing. It is safe for concurrent use.
//
// The bytes of an upload count here until the Index shows that its repo holds them: neither too early, or others would
// take their room in between, nor for longer. Where a quota counts, a write takes its room before it is made, so that
// uploads that are written at the same time do not exceed the quota together.
type Uploads struct {
	mu        sync.Mutex // guards all below; taken after Index.mu
	index     *Index     // nil until it is opened
	repos     map[string]*openRepo
	open      []int64           // bytes, for each quota of the index
	recorded  []int64           // of these, what records of uploads have, so that all processes see them
	committed map[linkKey]int64 // bytes that are a blob now, and that the Index does not show yet

	reserving
}

// openRepo is a repo with open uploads.
type openRepo struct {
	bytes    int64
	recorded int64 // of these
	uploads  int   // that are open, or committed and not shown
	of       []int // the quotas that it counts for
}

// NewUploads makes an Uploads without uploads.
func NewUploads() *Uploads {
	return &Uploads{repos: map[string]*openRepo{}, committed: map[linkKey]int64{},
		reserving: reserving{wasted: make(chan struct{}, 1)}}
}

// QuotaError is the error of a write that a quota has no room for.
type QuotaError struct{ Excess Excess }

func (e *QuotaError) Error() string {
	return fmt.Sprintf("the quota of %s has no room for %d bytes more", e.Excess.Name, e.Excess.Added)
}

// unboundedKey is the key of the mark of Unbounded.
type unboundedKey struct{}

// Unbounded marks what no quota bounds: the uploads that an engine creates or resumes with this context count all the
// same.
func Unbounded(ctx context.Context) context.Context {
	return context.WithValue(ctx, unboundedKey{}, true)
}

// IsUnbounded reports whether Unbounded has marked a context.
func IsUnbounded(ctx context.Context) bool { return ctx.Value(unboundedKey{}) != nil }

// OpenUpload is an upload as Uploads knows it. The methods of a nil *OpenUpload do nothing. The caller makes one call
// at a time.
type OpenUpload struct {
	all      *Uploads
	repo     string
	bytes    int64
	recorded int64 // of these; see Recorded
	ended    bool
}

// Begin counts an upload of size bytes. repo is empty if it is not known: then the upload counts for all quotas.
func (u *Uploads) Begin(repo string, size int64) *OpenUpload {
	if u == nil {
		return nil
	}
	o := &OpenUpload{all: u, repo: repo}
	o.all.lock(func() {
		r := u.repos[repo]
		if r == nil {
			r = &openRepo{of: u.match(repo)}
			u.repos[repo] = r
		}
		r.uploads++
		o.add(size)
	})
	return o
}

// In returns the upload with its repo, which may not have been known.
func (o *OpenUpload) In(repo string) *OpenUpload {
	if o == nil || o.repo == repo || o.ended {
		return o
	}
	n := o.bytes
	o.End()
	return o.all.Begin(repo, n)
}

// lock calls f with both locks held: what is used and what is open belong together.
func (u *Uploads) lock(f func()) {
	if x := u.of(); x != nil {
		x.mu.RLock()
		defer x.mu.RUnlock()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
}

// match returns the quotas that a repo counts for. The caller holds both locks.
func (u *Uploads) match(repo string) []int {
	switch {
	case u.index == nil:
		return nil
	case repo != "":
		return u.index.quotas.ofRepo(repo)
	}
	of := make([]int, len(u.open))
	for i := range of {
		of[i] = i
	}
	return of
}

// Grow counts n bytes that are about to be written. With a shared Journal, it may wait for a commit that reserves them.
// Errors: *QuotaError, if bounded and a quota has no room; those of Update. Then nothing is counted.
func (o *OpenUpload) Grow(n int64, bounded bool) (err error) {
	if o == nil {
		return nil
	}
	for {
		covered := true
		o.all.lock(func() {
			u, r := o.all, o.all.repos[o.repo]
			if len(r.of) > 0 && u.index.reserves() {
				if covered = u.covers(r, n, bounded); covered {
					u.grew = time.Now()
				}
			} else if bounded {
				err = u.fits(r, n)
			}
			if covered && err == nil {
				o.add(n)
			}
		})
		if covered || err != nil {
			return err
		}
		if err = o.reserve(n, bounded); err != nil {
			return err
		}
	}
}

// fits returns a *QuotaError if a quota of a repo has no room for n bytes. The caller holds both locks.
func (u *Uploads) fits(r *openRepo, n int64) error {
	for _, i := range r.of {
		if e, over := u.excess(i, n); over {
			return &QuotaError{e}
		}
	}
	return nil
}

// excess reports whether a quota has no room for n bytes, beside what others have reserved. The caller holds both
// locks.
func (u *Uploads) excess(i int, n int64) (Excess, bool) {
	usage := u.index.quotas.usage(i, u.open).with(u.index.reservedByOthers(i))
	return Excess{usage, n}, usage.Used > usage.Bytes-n
}

// Recorded notes that the first n bytes are in a record that all processes see. The upload has at least so many.
func (o *OpenUpload) Recorded(n int64) {
	if o == nil || o.ended {
		return
	}
	o.all.lock(func() { o.record(n) })
}

// record is Recorded with both locks held.
func (o *OpenUpload) record(n int64) {
	u, r := o.all, o.all.repos[o.repo]
	moved := min(n-o.recorded, o.bytes-o.recorded)
	o.add(max(n-o.bytes, 0))
	r.recorded += n - o.recorded
	for _, i := range r.of {
		u.recorded[i] += n - o.recorded
	}
	if o.recorded = n; moved > 0 {
		u.spend(r, moved)
	}
}

// Shrink counts bytes down that were not written.
func (o *OpenUpload) Shrink(n int64) {
	if o != nil && n > 0 {
		o.all.lock(func() {
			o.add(-n)
			o.all.spend(o.all.repos[o.repo], 0)
		})
	}
}

// add counts bytes. The caller holds both locks.
func (o *OpenUpload) add(n int64) {
	o.bytes += n
	o.all.add(o.all.repos[o.repo], n)
}

func (u *Uploads) add(r *openRepo, n int64) {
	r.bytes += n
	for _, i := range r.of {
		u.open[i] += n
	}
}

// End counts an upload down whose bytes are gone.
func (o *OpenUpload) End() {
	if o == nil || o.ended {
		return
	}
	o.ended = true
	o.all.lock(func() {
		o.record(0)
		o.add(-o.bytes)
		o.all.spend(o.all.repos[o.repo], 0)
		o.all.leave(o.repo)
	})
}

// leave removes an upload of a repo. The caller holds mu.
func (u *Uploads) leave(repo string) {
	if r := u.repos[repo]; r != nil {
		if r.uploads--; r.uploads == 0 {
			delete(u.repos, repo)
		}
	}
}

// Commit notes that the bytes are the blob d now. They count until the Index shows d in the repo, or the caller of
// Index.Commit releases it. It is called before a record of the upload ends.
func (o *OpenUpload) Commit(d digest.Digest) {
	if o == nil || o.ended {
		return
	}
	o.reserveRecorded()
	o.ended = true
	o.all.lock(func() {
		o.record(0)
		k := linkKey{o.repo, keyOf(d)}
		if _, twice := o.all.committed[k]; twice { // the same file has both
			o.add(-o.bytes)
			o.all.leave(o.repo)
			return
		}
		o.all.committed[k] = o.bytes
	})
}

// pending returns how many bytes of k count that are committed and that the Index does not show.
func (u *Uploads) pending(repo string, k key) int64 {
	if u == nil {
		return 0
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.committed[linkKey{repo, k}]
}

// shown counts down what a batch makes the Index show. The caller holds Index.mu.
func (u *Uploads) shown(b Batch) {
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range b.Facts {
		if f.Value != nil && (f.Kind == KindLink || f.Kind == KindManifest) && len(u.committed) > 0 {
			u.countDown(linkKey{b.Repo, key(f.Name)})
		}
	}
}

// countDown counts down committed bytes; ok is false if they were counted down already. The caller holds both locks.
func (u *Uploads) countDown(k linkKey) (size int64, ok bool) {
	if size, ok = u.committed[k]; ok {
		delete(u.committed, k)
		r := u.repos[k.repo]
		u.add(r, -size)
		u.spend(r, size)
		u.leave(k.repo)
	}
	return size, ok
}

// abandoned returns the repos that have committed k, and that the Index does not show with it.
func (u *Uploads) abandoned(k key) (all []linkKey) {
	if u == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for l := range u.committed {
		if l.key == k {
			all = append(all, l)
		}
	}
	return all
}

// drop is countDown without a lock held.
func (u *Uploads) drop(l linkKey) { u.lock(func() { u.countDown(l) }) }

// counted reports whether a quota counts a repo.
func (x *Index) counted(repo string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.quotas.all) > 0 && len(x.quotas.ofRepo(repo)) > 0
}

// set is called with Index.mu held when the index has other quotas.
func (u *Uploads) set(x *Index) {
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	n := len(x.quotas.all)
	u.index, u.open, u.recorded, u.spent = x, make([]int64, n), make([]int64, n), make([]int64, n)
	for repo, r := range u.repos {
		r.of = u.match(repo)
		for _, i := range r.of {
			u.open[i] += r.bytes
			u.recorded[i] += r.recorded
		}
	}
	if x.reserves() { // what is spent of the reservation is not known for these quotas: it is reserved anew
		for i := range u.spent {
			u.spent[i] = max(u.left(i), 0)
		}
	}
}

// counts returns what is open, for each quota. The caller holds Index.mu.
func (u *Uploads) counts() []int64 {
	if u == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]int64(nil), u.open...)
}

// usage returns the usage of a quota, with these open uploads. The caller holds Index.mu.
func (q *quotas) usage(i int, open []int64) Usage {
	u := Usage{Quota: q.all[i], Used: q.used[i], Waiting: q.waiting[i]}
	if i < len(open) {
		u.Open = open[i]
		u.Used += min(u.Open, math.MaxInt64-u.Used)
	}
	return u
}

// with returns the usage with n bytes more of open uploads.
func (u Usage) with(n int64) Usage {
	u.Open += n
	u.Used += min(n, math.MaxInt64-u.Used)
	return u
}
