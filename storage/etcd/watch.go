package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"trow/storage"
)

const (
	// checkInterval is how often a watch is compared with the head that is known, and headInterval how often the head
	// is read for that when nothing else does: an etcd that was restored is noticed, and so is a member that is cut
	// off.
	checkInterval = time.Second
	headInterval  = 10 * time.Second

	// patience is the number of checks in a row that find a watch behind, and no further than before, until another one
	// takes its place.
	patience = 3
)

// errCompacted: commits that the watch has not delivered are no longer in etcd.
var errCompacted = errors.New("etcd has compacted the commits that come next; they are loaded again. If this happens " +
	"often, compact less often: --auto-compaction-mode=periodic --auto-compaction-retention=1h")

// Watch implements [storage.Journal]. It goes on by itself when a connection, a leader or a token is lost. It ends
// when its caller has to load anew: when etcd was restored, or has compacted what the watch has yet to deliver.
func (j *Journal) Watch(ctx context.Context, apply func(storage.Update) error) error {
	outer, begin := ctx, j.current()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(j.ctx, cancel)()
	err := j.watch(ctx, apply)
	switch {
	case outer.Err() != nil:
		return outer.Err()
	case j.ctx.Err() != nil:
		return fmt.Errorf("etcd: %w", storage.ErrClosed)
	case errors.Is(err, errMoved):
		return cmp.Or(j.movedSince(begin), err)
	}
	return err
}

func (j *Journal) watch(ctx context.Context, apply func(storage.Update) error) error {
	// What the full state shows must be what became of an earlier commit.
	unlock, err := j.lock(ctx)
	if err != nil {
		return err
	}
	err = j.settlePending(ctx)
	unlock()
	if err != nil {
		return err
	}
	begin := j.current()
	head, revision, err := j.readHead(ctx)
	if err != nil {
		return err
	}
	if err := j.load(ctx, head, revision, begin.restored, apply); err != nil {
		return err
	}
	j.setLoaded(begin.moves)
	f := &follower{j: j, begin: begin, apply: apply, next: int64(revision) + 1}
	f.delivered.Store(uint64(head))
	return f.follow(ctx)
}

// follower delivers commits.
type follower struct {
	j         *Journal
	begin     place
	apply     func(storage.Update) error
	next      int64         // the first revision that has not been looked at
	delivered atomic.Uint64 // the last head
}

// applyError is an error of apply, which ends a Watch.
type applyError struct{ error }

// follow watches again and again, each time from where the last one ended.
func (f *follower) follow(ctx context.Context) error {
	for wait := time.Duration(0); ; {
		before := f.next
		err := f.attempt(ctx)
		var applied applyError
		var compacted compactedError
		switch {
		case errors.As(err, &applied):
			return applied.error
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errMoved):
			return err
		case errors.As(err, &compacted):
			if err := f.skip(ctx, compacted.revision); err != nil {
				return err
			}
		case stays(err):
			return f.j.explain(err)
		}
		if wait = min(2*wait+50*time.Millisecond, time.Second); f.next > before {
			wait = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// compactedError: a watch cannot begin where it should, because etcd has compacted up to a revision.
type compactedError struct{ revision int64 }

func (e compactedError) Error() string { return fmt.Sprintf("compacted up to revision %d", e.revision) }

// skip goes on behind a compaction if it has taken nothing away: etcd numbers the changes of all its users, and there
// may have been none of ours.
func (f *follower) skip(ctx context.Context, compacted int64) error {
	r, err := f.j.get(ctx, f.j.keys.head(), clientv3.WithRev(compacted)) // the last one that can be read
	switch {
	case err == nil && len(r.Kvs) == 0 && f.delivered.Load() == 0,
		err == nil && len(r.Kvs) == 1 && uint64(r.Kvs[0].ModRevision) == f.delivered.Load():
		f.next = max(f.next, compacted+1)
	case err == nil:
		return fmt.Errorf("etcd: %w", errCompacted)
	}
	return nil // after an error, the next watch says again that there was a compaction
}

// attempt delivers what one watch of etcd brings, until it ends.
func (f *follower) attempt(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go f.supervise(ctx, cancel)
	// A watcher of its own: another one would share the stream that may be stuck.
	w := clientv3.NewWatcher(f.j.client)
	defer w.Close()
	from, end := f.j.keys.watched()
	// A member without a leader ends the watch, and another one may have one. Progress keeps a quiet watch ahead of
	// compactions, so that it can be continued after a lost connection.
	for r := range w.Watch(clientv3.WithRequireLeader(ctx), from, clientv3.WithRange(end), clientv3.WithRev(f.next),
		clientv3.WithProgressNotify()) {
		if r.CompactRevision != 0 {
			return compactedError{r.CompactRevision}
		}
		if err := r.Err(); err != nil {
			return err
		}
		if err := f.j.verify(ctx); err != nil { // the client may have connected anew
			return err
		}
		if err := f.deliver(r.Header.ClusterId, r.Events); err != nil {
			return err
		}
		f.next = max(f.next, r.Header.Revision+1)
	}
	return context.Cause(ctx)
}

// deliver applies the changes of one response. etcd never spreads a revision over two responses to a watch that did not
// ask for it.
func (f *follower) deliver(cluster uint64, events []*clientv3.Event) error {
	for len(events) > 0 {
		rev := events[0].Kv.ModRevision
		n := 1
		for n < len(events) && events[n].Kv.ModRevision == rev {
			n++
		}
		u := f.j.keys.update(events[:n])
		last := events[n-1]
		events = events[n:]
		if string(last.Kv.Key) == f.j.keys.head() && last.Type == clientv3.EventTypePut {
			if err := f.j.note(f.j.place0(f.begin.moves), cluster, last.Kv); err != nil {
				return err
			}
		}
		if err := f.apply(u); err != nil {
			return applyError{err}
		}
		f.next = rev + 1
		f.delivered.Store(max(f.delivered.Load(), uint64(rev)))
	}
	return nil
}

// place0 is a place of which nothing was seen.
func (j *Journal) place0(moves int) place { return place{moves: moves} }

// supervise ends an attempt when the place has moved, or when the watch brings nothing although there is something.
func (f *follower) supervise(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	var last uint64
	for n, behind := 1, 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-f.begin.moved:
			cancel(fmt.Errorf("etcd: %w", errMoved))
			return
		case <-tick.C:
		}
		if n%int(headInterval/checkInterval) == 0 {
			_, _, _ = f.j.readHead(ctx) // what it finds is in the place
		}
		delivered := f.delivered.Load()
		if behind++; uint64(f.j.current().head) <= delivered || delivered != last {
			behind = 0
		}
		if last = delivered; behind >= patience {
			cancel(errors.New("the watch does not deliver"))
			return
		}
	}
}

// update makes an Update of the changes of one revision. Their order is that of the batch.
func (l layout) update(events []*clientv3.Event) storage.Update {
	u := storage.Update{Revision: storage.Revision(events[0].Kv.ModRevision)}
	index := map[string]int{}
	for _, e := range events {
		repo, kind, name, ok := l.parse(e.Kv.Key)
		if !ok {
			continue // the head, or none of ours
		}
		i, known := index[repo]
		if !known {
			i = len(u.Batches)
			index[repo] = i
			u.Batches = append(u.Batches, storage.Batch{Repo: repo, Detached: true})
		}
		b := &u.Batches[i]
		deleted := e.Type == clientv3.EventTypeDelete
		switch {
		case kind == 0:
			b.Detached, b.Ends = false, deleted
		case deleted:
			b.Facts = append(b.Facts, storage.Fact{Kind: kind, Name: name})
		default:
			b.Facts = append(b.Facts, storage.Fact{Kind: kind, Name: name, Value: valueIn(e.Kv)})
		}
	}
	return u
}

// load delivers the full state as it was at a revision of etcd.
func (j *Journal) load(ctx context.Context, head, revision storage.Revision, restored int,
	apply func(storage.Update) error) error {
	from, end := j.keys.facts()
	var repo string // of the last fact, which may continue in the next page
	var base storage.Revision
	err := j.pages(ctx, slow, from, end, int64(revision), func(kvs []*mvccpb.KeyValue, last bool) error {
		u := storage.Update{Revision: head, Synced: last}
		if last {
			u.Restored = restored
		}
		for _, kv := range kvs {
			name, kind, fact, ok := j.keys.parse(kv.Key)
			if !ok {
				return applyError{fmt.Errorf("etcd: %w: the key %q is not one of this program; delete it with "+
					"etcdctl del, if it was put there by mistake", storage.ErrDamaged, kv.Key)}
			}
			if name != repo {
				repo, base = name, 0
			}
			if n := len(u.Batches); n == 0 || u.Batches[n-1].Repo != repo {
				u.Batches = append(u.Batches, storage.Batch{Repo: repo})
			}
			b := &u.Batches[len(u.Batches)-1]
			if kind == 0 {
				base = storage.Revision(kv.ModRevision)
			} else {
				b.Facts = append(b.Facts, storage.Fact{Kind: kind, Name: fact, Value: valueIn(kv)})
			}
			b.Base = base
		}
		if err := apply(u); err != nil {
			return applyError{err}
		}
		return nil
	})
	var applied applyError
	switch {
	case errors.As(err, &applied):
		return applied.error
	case err != nil:
		return j.explain(err)
	}
	return nil
}
