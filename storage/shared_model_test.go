package storage_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
)

// Two processes share a journal and a service for objects. Pushers stop for days in the middle of a push, processes end
// at any moment, clocks of Watch lag, and both collect at the same time. Whatever happens, a fact never names bytes
// that are not there, what was acknowledged stays, and in the end there is exactly what facts name.

// laggard is one process's access to a shared journal: calls take their time, and commits show late.
type laggard struct {
	storage.Journal
	lag func() time.Duration
}

func (j laggard) Commit(ctx context.Context, b ...storage.Batch) (rev storage.Revision, err error) {
	time.Sleep(j.lag())
	rev, err = j.Journal.Commit(ctx, b...)
	time.Sleep(j.lag())
	return rev, err
}

func (j laggard) Head(ctx context.Context) (storage.Revision, error) {
	time.Sleep(j.lag())
	return j.Journal.Head(ctx)
}

func (j laggard) Watch(ctx context.Context, apply func(storage.Update) error) error {
	updates, done := make(chan storage.Update, 10000), make(chan error, 1)
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for {
			select {
			case u := <-updates:
				time.Sleep(j.lag())
				if err := apply(u); err != nil {
					done <- err
					cancel(err)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return j.Journal.Watch(ctx, func(u storage.Update) error {
		select {
		case updates <- u:
			return nil
		case err := <-done:
			return err
		}
	})
}

// dawdler deletes objects late.
type dawdler struct {
	storage.Placed
	lag func() time.Duration
}

func (b dawdler) Remove(ctx context.Context, places ...string) error {
	if ctx.Err() == nil {
		go func() { // the process goes on, or ends, and the request arrives all the same
			time.Sleep(10 * b.lag())
			_ = b.Placed.Remove(ctx, places...)
		}()
		time.Sleep(b.lag())
	}
	return ctx.Err()
}

const sharedGrace = 6 * time.Hour

// sharedWorld is what the processes share.
type sharedWorld struct {
	*testing.T
	journal *memory.Journal
	service *memory.Service
	rand    func(n int) int

	mu  sync.Mutex // guards all below
	err error
}

// process is one of them.
type process struct {
	*sharedWorld
	index     *storage.Index
	blobs     dawdler
	collector *storage.Collector
	runs      chan struct{} // has room for one run: time does not pass in a bubble while a goroutine waits for a mutex
	ctx       context.Context
	end       context.CancelFunc
}

func (w *sharedWorld) lag() time.Duration {
	switch w.rand(20) {
	case 0:
		return time.Duration(w.rand(3000)) * time.Millisecond
	case 1:
		return 0
	}
	return time.Duration(w.rand(40)) * time.Millisecond
}

// stop is how long a client, or the machine that runs a process, may do nothing.
func (w *sharedWorld) stop() time.Duration {
	switch w.rand(12) {
	case 0:
		return time.Duration(w.rand(80)) * time.Hour
	case 1:
		return time.Duration(w.rand(10)) * time.Hour
	case 2, 3:
		return time.Duration(w.rand(60)) * time.Minute
	}
	return time.Duration(w.rand(2000)) * time.Millisecond
}

func (w *sharedWorld) start(t *testing.T) *process {
	p := &process{sharedWorld: w, runs: make(chan struct{}, 1)}
	p.ctx, p.end = context.WithCancel(context.Background())
	x, err := storage.OpenIndex(t.Context(), laggard{w.journal, w.lag},
		storage.IndexOptions{Placed: true, Grace: sharedGrace})
	if err != nil {
		t.Fatal(err)
	}
	p.index = x
	p.blobs = dawdler{&memory.Objects{Service: w.service, Records: x}, w.lag}
	p.collector = &storage.Collector{Blobs: p.blobs, Index: x, Grace: sharedGrace}
	return p
}

func (p *process) stopped() {
	p.end()
	p.index.Close()
}

func (p *process) finish() error {
	p.runs <- struct{}{}
	defer func() { <-p.runs }()
	return p.leading(p.collector.Finish)
}

// leading calls work, sometimes as the one that leads, which may be deposed at any moment without noticing it.
func (p *process) leading(work func(context.Context) error) error {
	if p.rand(3) == 0 {
		return work(p.ctx)
	}
	ctx, resign := context.WithCancel(p.ctx)
	defer resign()
	fence, _, err := p.journal.Lead(ctx, "gc", "name")
	if err != nil {
		return err
	}
	if p.rand(3) == 0 {
		time.AfterFunc(time.Duration(p.rand(200))*time.Millisecond, func() { p.journal.Depose("gc") })
	}
	return work(storage.WithFence(ctx, fence))
}

func (w *sharedWorld) content(n int) []byte { return fmt.Appendf(nil, "content %d", n) }

func (w *sharedWorld) blob(n int) digest.Digest { return digest.FromBytes(w.content(n)) }

// manifestOf is a manifest with two layers; its own bytes are its name.
func (w *sharedWorld) manifestOf(a, b int) (storage.Manifest, []byte) {
	body := fmt.Appendf(nil, "manifest of %d and %d", a, b)
	return storage.Manifest{Digest: digest.FromBytes(body), MediaType: "application/a", Size: int64(len(body)),
		Refs: []digest.Digest{w.blob(a), w.blob(b)}}, body
}

// upload is what a push of bytes does; name puts the fact into the repo.
func (p *process) upload(repo string, body []byte, name func(tx *storage.Tx) error) error {
	u, err := p.blobs.Create(p.ctx, repo, digest.SHA256)
	if err != nil {
		return err
	}
	if _, err := u.Write(body); err != nil {
		return err
	}
	if p.rand(4) == 0 {
		time.Sleep(p.stop())
	}
	release, err := p.index.Commit(p.ctx, u, digest.FromBytes(body))
	if err != nil {
		return err
	}
	if p.rand(3) == 0 {
		time.Sleep(p.stop())
	}
	if p.rand(10) == 0 { // the process ends here
		return errors.New("gone")
	}
	defer release()
	return p.index.Update(p.ctx, repo, name)
}

func (p *process) pushBlob(repo string, n int) error {
	body := p.content(n)
	return p.upload(repo, body, func(tx *storage.Tx) error {
		tx.Link(digest.FromBytes(body), int64(len(body)))
		return nil
	})
}

// has is what HEAD does.
func (p *process) has(repo string, n int) (bool, error) {
	if _, err := p.index.CatchUp(p.ctx, time.Hour); err != nil {
		return false, err
	}
	if _, found, err := p.index.Blob(p.ctx, repo, p.blob(n)); err != nil || !found {
		return false, err
	}
	if err := p.index.Lease(p.ctx, repo, p.blob(n)); err != nil {
		return false, err
	}
	_, found, err := p.index.Blob(p.ctx, repo, p.blob(n))
	return found, err
}

// pushImage does what a client does: it asks for layers, pushes those that are not there, and then the manifest. The
// client is faster than half of the grace.
func (p *process) pushImage(repo string, a, b int, tag string) error {
	begun := time.Now()
	for _, n := range []int{a, b} {
		held, err := p.has(repo, n)
		if err != nil {
			return err
		}
		if held {
			continue
		}
		if p.rand(3) == 0 {
			if mounted, err := p.mount("other", repo, n); err != nil || mounted {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := p.pushBlob(repo, n); err != nil {
			return err
		}
	}
	for p.rand(3) == 0 && time.Since(begun) < sharedGrace/3 {
		time.Sleep(time.Duration(p.rand(30)) * time.Minute)
	}
	inTime := time.Since(begun) < sharedGrace/2-10*time.Minute
	m, body := p.manifestOf(a, b)
	err := p.upload(repo, body, func(tx *storage.Tx) error {
		for _, d := range m.Refs {
			if !tx.Whole(d) {
				return fmt.Errorf("%w: %s", errMissing, d)
			}
		}
		if err := tx.PutManifest(m); err != nil {
			return err
		}
		return tx.SetTag(tag, m.Digest)
	})
	if errors.Is(err, errMissing) && inTime && time.Since(begun) < sharedGrace/2-10*time.Minute {
		p.fail(fmt.Errorf("a push to %s after %s is refused: %v", repo, time.Since(begun), err))
	}
	return err
}

func (p *process) mount(from, repo string, n int) (bool, error) {
	release, err := p.index.Pin(p.ctx, p.blob(n))
	if err != nil {
		return false, err
	}
	defer release()
	size, found, err := p.index.Blob(p.ctx, from, p.blob(n))
	if err != nil || !found {
		return false, err
	}
	time.Sleep(p.lag())
	err = p.index.Update(p.ctx, repo, func(tx *storage.Tx) error { tx.Link(p.blob(n), size); return nil })
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (p *process) deleteSomething(repo string) error {
	tags, _, err := p.index.Tags(p.ctx, repo, "", -1)
	if err != nil || len(tags) == 0 {
		return err
	}
	m, found, err := p.index.Resolve(p.ctx, repo, tags[p.rand(len(tags))])
	if err != nil || !found {
		return err
	}
	err = p.index.Update(p.ctx, repo, func(tx *storage.Tx) error { return tx.DeleteManifest(m.Digest()) })
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	return err
}

func (w *sharedWorld) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// check compares what a new process would read with the objects. Nothing is committed meanwhile.
func (w *sharedWorld) check(t *testing.T) {
	t.Helper()
	enough := errors.New("enough")
	err := w.journal.Watch(t.Context(), func(u storage.Update) error {
		now := memory.NewJournal()
		for i := range u.Batches {
			u.Batches[i].Base = 0
		}
		if _, err := now.Commit(t.Context(), u.Batches...); err != nil {
			t.Error(err)
		}
		w.compare(t, now)
		return enough
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
}

func (w *sharedWorld) compare(t *testing.T, j storage.Journal) {
	x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{Placed: true, Grace: sharedGrace})
	if err != nil {
		t.Error(err)
		return
	}
	defer x.Close()
	for d := range x.Contents() {
		place, err := x.Place(t.Context(), d)
		if err != nil || !w.service.Has(place, d) {
			t.Errorf("facts name %s, whose bytes are not there: %q, %v", d, place, err)
		}
	}
	for _, repo := range x.Names() {
		tags, _, _ := x.Tags(t.Context(), repo, "", -1)
		for _, tag := range tags {
			m, ok, err := x.Resolve(t.Context(), repo, tag)
			if !ok || err != nil || m.Damaged() != "" {
				t.Errorf("%s:%s: %v, %v", repo, tag, ok, err)
			}
		}
		for a := range sharedContents {
			for b := range sharedContents {
				m, _ := w.manifestOf(a, b)
				if _, held, _ := x.Resolve(t.Context(), repo, string(m.Digest)); !held {
					continue
				}
				for _, ref := range m.Refs {
					if _, linked, _ := x.Blob(t.Context(), repo, ref); !linked {
						t.Errorf("%s: manifest %d, %d is there without %s", repo, a, b, ref)
					}
				}
			}
		}
	}
}

const sharedContents = 4

// act does something that a client, or an operator, does.
func (p *process) act() error {
	repos := []string{"one", "two", "other"}
	repo, a, b := repos[p.rand(len(repos))], p.rand(sharedContents), p.rand(sharedContents)
	switch p.rand(8) {
	case 0:
		return p.pushBlob(repo, a)
	case 1, 2:
		return p.deleteSomething(repo)
	case 3:
		time.Sleep(p.stop())
		return nil
	case 4:
		p.runs <- struct{}{}
		defer func() { <-p.runs }()
		return p.leading(func(ctx context.Context) error {
			_, err := p.collector.Run(ctx, false, nil)
			return err
		})
	}
	return p.pushImage(repo, a, b, fmt.Sprint("tag", p.rand(4)))
}

// expected reports whether an error is one that a client can do something about.
func expected(err error) bool {
	for _, e := range []error{context.Canceled, storage.ErrClosed, storage.ErrBusy, storage.ErrExpired,
		storage.ErrUnavailable, storage.ErrNotLeader, errMissing} {
		if errors.Is(err, e) {
			return true
		}
	}
	return err == nil || err.Error() == "gone"
}

func TestSharedStorageAgreesWithTheModel(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	for round := range rounds {
		seed := uint64(time.Now().UnixNano()) + uint64(round)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { sharedRound(t, seed) })
		})
		if t.Failed() {
			break
		}
	}
}

func sharedRound(t *testing.T, seed uint64) {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 0))
	w := &sharedWorld{T: t, journal: memory.NewJournal(), service: memory.NewService(), rand: func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return r.IntN(n)
	}}
	w.journal.Is = storage.Traits{Shared: true, Compares: 24, Operations: 24, Bytes: 4000}
	for range 4 {
		processes := []*process{w.start(t), w.start(t)}
		var wg sync.WaitGroup
		var busy atomic.Int32 // pushers
		for _, p := range processes {
			for range 3 {
				busy.Add(1)
				wg.Go(func() {
					defer busy.Add(-1)
					for range 6 {
						if err := p.act(); !expected(err) {
							w.fail(err)
						}
					}
				})
			}
			wg.Go(func() { // another process takes over what one that has ended was deleting
				for busy.Load() > 0 {
					time.Sleep(time.Duration(1+w.rand(180)) * time.Minute)
					if err := p.finish(); !expected(err) {
						w.fail(err)
					}
				}
			})
			wg.Go(func() { // an end at any time
				if w.rand(2) == 0 {
					time.Sleep(w.stop() + w.stop())
					p.stopped()
				}
			})
		}
		for range 5 {
			time.Sleep(w.stop())
			w.check(t)
		}
		wg.Wait()
		for _, p := range processes {
			p.stopped()
		}
		time.Sleep(time.Minute) // the requests that are under way arrive
		w.check(t)
	}
	w.finish(t)
	if w.err != nil {
		t.Error(w.err)
	}
}

// finish collects until nothing changes. The objects are then those that facts name.
func (w *sharedWorld) finish(t *testing.T) {
	p := w.start(t)
	defer p.stopped()
	for range 5 {
		time.Sleep(25 * time.Hour)
		if _, err := p.collector.Run(t.Context(), false, nil); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		w.check(t)
	}
	named := 0
	for range p.index.Contents() {
		named++
	}
	if got := w.service.Len(); got != named {
		t.Errorf("there are %d objects, and facts name %d", got, named)
	}
}
