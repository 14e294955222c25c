package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"trow/storage"
)

// errMoved: what is at the place is not what was there before, see the package comment.
var errMoved = errors.New("the data is not what it was before")

// place is what was last seen of the place, by which it is noticed that it has moved. etcd numbers its revisions from
// where a backup ends, so after a restore a revision that was seen may be missing, or stand for another commit.
type place struct {
	cluster uint64           // etcd's ID; 0: not seen yet
	head    storage.Revision // the last one seen; 0: none
	mark    string           // its value, which is different for each commit

	dials    int64         // the connections that were begun when it was last verified
	moves    int           // how often it has moved
	restored int           // how often of these because of an ErrRestored
	moved    chan struct{} // closed when it moves again
	loaded   bool          // false between a move and the next full state that a Watch delivers
	cause    error         // of the last move
}

func newPlace() place { return place{moved: make(chan struct{}), loaded: true} }

// current returns what was last seen. A request is compared with what was seen before it began: answers may overtake
// each other.
func (j *Journal) current() place {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.place
}

// usable returns an error from a move until the full state has been loaded again: until then Head would confirm misses
// in the state from before the move, and a commit would be based on that state.
func (j *Journal) usable() error {
	if j.ctx.Err() != nil {
		return fmt.Errorf("etcd: %w", storage.ErrClosed)
	}
	if !j.current().loaded {
		return fmt.Errorf("etcd: %w; it is being loaded again", errMoved)
	}
	return nil
}

// note records the head that a request has read, nil if there is none, of this cluster, 0 if that is not known. before
// is what was seen before the request began. It returns an errMoved if they contradict each other.
func (j *Journal) note(before place, cluster uint64, head *mvccpb.KeyValue) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	rev, mark, p := storage.Revision(head.GetModRevision()), string(head.GetValue()), &j.place
	if p.moves != before.moves { // the answer is from before a move, or from after one that has been noticed
		return fmt.Errorf("etcd: %w", errMoved)
	}
	var err error
	switch {
	case before.cluster != 0 && cluster != 0 && cluster != before.cluster:
		err = fmt.Errorf("%w: the cluster's ID is %x and was %x", errMoved, cluster, before.cluster)
	case rev < before.head:
		err = fmt.Errorf("%w: the last commit is of revision %d, and there was one of %d", errMoved, rev, before.head)
	case rev == before.head && mark != before.mark:
		err = fmt.Errorf("%w: revision %d is another commit", errMoved, rev)
	}
	if err != nil {
		return j.move(fmt.Errorf("%w (%w)", err, storage.ErrRestored))
	}
	p.cluster = cmp.Or(cluster, p.cluster)
	if rev > p.head {
		p.head, p.mark = rev, mark
	}
	return nil
}

// setLoaded records that a Watch, which began after so many moves, has delivered the full state.
func (j *Journal) setLoaded(moves int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.place.moves == moves {
		j.place.loaded = true
	}
}

// move records that the place has moved; the caller holds mu.
func (j *Journal) move(cause error) error {
	close(j.place.moved)
	cause = fmt.Errorf("etcd: %w; was it restored from a backup?", cause)
	p := place{moves: j.place.moves + 1, restored: j.place.restored, moved: make(chan struct{}), dials: j.place.dials,
		cause: cause}
	if errors.Is(cause, storage.ErrRestored) {
		p.restored++
	}
	j.place = p
	return cause
}

// movedSince returns the cause of the last move, if there was one since begin: any request may have noticed it. Every
// Watch that was under way returns it, and later ones report it with their full state (storage.Update.Restored): there
// may be several watchers, and only one of them acts on it.
func (j *Journal) movedSince(begin place) error {
	if p := j.current(); p.moves != begin.moves {
		return p.cause
	}
	return nil
}

// dial makes a connection, and counts it.
func (j *Journal) dial(ctx context.Context, addr string) (net.Conn, error) {
	j.dials.Add(1)
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		j.connected(err)
	}
	return conn, err
}

// connected remembers why the last connection failed, nil if it did not: grpc says only that there was no answer.
func (j *Journal) connected(err error) {
	if err != nil {
		j.failed.Store(&err)
	} else {
		j.failed.Store(nil)
	}
}

// verify makes sure that the last commit that was seen is still there, if there are new connections since it last did:
// etcd cannot be restored without ending the old ones. It returns an errMoved if it is not, or if that cannot be known
// because it was compacted.
func (j *Journal) verify(ctx context.Context) error {
	dials, before := j.dials.Load(), j.current()
	if dials == before.dials {
		return nil
	}
	if before.head != 0 {
		r, err := j.get(ctx, j.keys.head(), clientv3.WithRev(int64(before.head)))
		same := err == nil && len(r.Kvs) == 1 && r.Kvs[0].ModRevision == int64(before.head) &&
			string(r.Kvs[0].Value) == before.mark
		what := fmt.Errorf("%w (%w)", errMoved, storage.ErrRestored)
		if errors.Is(err, rpctypes.ErrCompacted) { // it may still be the last one, which is always there
			r, err = j.get(ctx, j.keys.head())
			same = err == nil && len(r.Kvs) == 1 && string(r.Kvs[0].Value) == before.mark
			what = errMoved // no ErrRestored: after a long break, commits of other processes look the same
		}
		if err != nil && !gone(err) {
			return err
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.place.moves != before.moves {
			return fmt.Errorf("etcd: %w", errMoved)
		}
		if !same {
			return j.move(fmt.Errorf("%w: commit %d is not there", what, before.head))
		}
	} else {
		j.mu.Lock()
		defer j.mu.Unlock()
	}
	j.place.dials = max(j.place.dials, dials)
	return nil
}
