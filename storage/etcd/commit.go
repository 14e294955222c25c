package etcd

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"trow/storage"
)

// writer is the key by which a commit is made once at most, see the package comment. Its value is a number, which
// grows, and the time in Unix seconds, by which an abandoned one is known.
type writer struct {
	id      string // "": there is none; made with the first commit
	value   string // what the last commit that was settled has put
	number  uint64
	pending string // what a commit without a known outcome puts; "": there is none
}

// next returns the value that the next commit puts.
func (w *writer) next() string {
	w.number++
	return writerValue(w.number)
}

func writerValue(number uint64) string { return fmt.Sprintf("%d %d", number, time.Now().Unix()) }

const (
	// commitTimeout bounds Commit, with all attempts: a leader that is lost is replaced within two or three seconds,
	// and clients wait. attemptsTimeout is when the last attempt begins, so that there is time to settle it.
	commitTimeout   = 9 * time.Second
	attemptsTimeout = 5 * time.Second

	// writerLife is how long a writer without a commit stays. One that is open, and idle for that long, makes another.
	writerLife = 24 * time.Hour
)

// errLost: a commit got no answer, and it is settled that it was not made and never will be.
var errLost = errors.New("nothing was committed")

// errWriter: the writer does not have the value that the last commit has put. It was idle for long, or etcd has moved.
var errWriter = errors.New("the key of this writer was changed")

// Commit implements [storage.Journal]. A commit without a batch is a read: etcd delivers and returns only what is
// durable.
func (j *Journal) Commit(ctx context.Context, batches ...storage.Batch) (storage.Revision, error) {
	if len(batches) == 0 {
		return j.Head(ctx)
	}
	for _, b := range batches {
		if b.Repo == "" || strings.Contains(b.Repo, "\x00") {
			return 0, fmt.Errorf("etcd: %.80q is not a name for a repository; nothing was committed", b.Repo)
		}
	}
	unlock, err := j.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	for begin, attempt := time.Now(), 0; ; attempt++ {
		rev, err := j.commit(ctx, batches)
		again := errors.Is(err, errLost) && time.Since(begin) < attemptsTimeout ||
			errors.Is(err, errWriter) && attempt == 0
		if !again || ctx.Err() != nil {
			return rev, err
		}
	}
}

// lock waits for the turn.
func (j *Journal) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case j.turn <- struct{}{}:
		return func() { <-j.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("etcd: %w; nothing was committed", context.Cause(ctx))
	case <-j.ctx.Done():
		return nil, fmt.Errorf("etcd: %w", storage.ErrClosed)
	}
}

// commit makes one transaction of the batches. The caller has the turn.
func (j *Journal) commit(ctx context.Context, batches []storage.Batch) (storage.Revision, error) {
	if err := j.usable(); err != nil {
		return 0, err
	}
	if err := j.settlePending(ctx); err != nil {
		return 0, fmt.Errorf("%w; nothing was committed after it", err)
	}
	if err := j.makeWriter(ctx); err != nil {
		return 0, fmt.Errorf("%w; nothing was committed", err)
	}
	before, value := j.current(), j.writer.next()
	t := j.transaction(batches, before.head, value)
	r, copies, err := hedged(ctx, j, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		if err := j.verify(ctx); err != nil {
			return nil, err
		}
		return j.client.Txn(ctx).If(t.compares...).Then(t.changes...).Else(t.reads...).Commit()
	})
	switch {
	case err == nil && r.Succeeded:
		return j.committed(before, r.Header.ClusterId, r.Header.Revision, value)
	case err == nil:
		rev, err := j.refused(before, r, t, value)
		if copies == 1 || err == nil || j.writer.id == "" {
			return rev, err
		}
		// Another copy may be on its way, and its conditions may hold when it arrives. Below it is settled.
		return j.outcome(ctx, before, value, err)
	case stays(err):
		// The commit that fills etcd's quota is made, and answered with NOSPACE all the same.
		cause := fmt.Errorf("%w; nothing was committed", j.explain(err))
		if copies == 1 && !errors.Is(err, rpctypes.ErrNoSpace) {
			return 0, cause
		}
		return j.outcome(ctx, before, value, cause)
	}
	return j.outcome(ctx, before, value, fmt.Errorf("%w; %w", j.explain(err), errLost))
}

// outcome settles a commit, and returns cause if it was not made.
func (j *Journal) outcome(ctx context.Context, before place, value string, cause error) (storage.Revision, error) {
	j.writer.pending = value
	rev, err := j.settle(ctx)
	switch {
	case err != nil:
		return 0, fmt.Errorf("it is not known whether a change was committed: %w", err)
	case rev == 0:
		return 0, cause
	}
	return j.committed(before, 0, int64(rev), value)
}

// committed records a commit. cluster is 0 if it is not known.
func (j *Journal) committed(before place, cluster uint64, rev int64, value string) (storage.Revision, error) {
	j.writer.value, j.writer.pending = value, ""
	head := &mvccpb.KeyValue{ModRevision: rev, Value: []byte(headValue(j.writer.id, value))}
	if err := j.note(before, cluster, head); err != nil {
		return 0, err
	}
	return storage.Revision(rev), nil
}

func headValue(id, value string) string { return id + " " + value }

// transaction is a commit as etcd understands it. If a compare fails, the reads tell which: of the writer, the head,
// and then what checks are about.
type transaction struct {
	compares []clientv3.Cmp
	changes  []clientv3.Op
	reads    []clientv3.Op
	checks   []check
}

// check is something that a batch depends on.
type check struct {
	repo  string
	holds func(*mvccpb.KeyValue) bool // nil: the key does not exist
}

func (j *Journal) transaction(batches []storage.Batch, seen storage.Revision, value string) *transaction {
	mine, head := j.keys.writer(j.writer.id), j.keys.head()
	t := &transaction{
		compares: []clientv3.Cmp{clientv3.Compare(clientv3.Value(mine), "=", j.writer.value),
			// The head never goes back, unless etcd has moved.
			clientv3.Compare(clientv3.ModRevision(head), ">", int64(seen)-1)},
		reads: []clientv3.Op{clientv3.OpGet(mine), clientv3.OpGet(head)},
	}
	for _, b := range batches {
		t.add(j.keys, b)
	}
	t.changes = append(t.changes, clientv3.OpPut(mine, value), clientv3.OpPut(head, headValue(j.writer.id, value)))
	return t
}

func (t *transaction) add(keys layout, b storage.Batch) {
	if revision := keys.repo(b.Repo); !b.Detached {
		base := int64(b.Base)
		t.require(b.Repo, revision, clientv3.Compare(clientv3.ModRevision(revision), "=", base),
			func(kv *mvccpb.KeyValue) bool { return kv.GetModRevision() == base })
		if b.Ends {
			t.changes = append(t.changes, clientv3.OpDelete(revision))
		} else {
			t.changes = append(t.changes, clientv3.OpPut(revision, ""))
		}
	}
	for _, f := range b.If {
		k := keys.fact(b.Repo, f)
		if f.Value == nil {
			t.require(b.Repo, k, clientv3.Compare(clientv3.CreateRevision(k), "=", 0),
				func(kv *mvccpb.KeyValue) bool { return kv == nil })
			continue
		}
		t.require(b.Repo, k, clientv3.Compare(clientv3.Value(k), "=", string(f.Value)),
			func(kv *mvccpb.KeyValue) bool { return kv != nil && bytes.Equal(kv.Value, f.Value) })
	}
	for _, f := range b.Facts {
		k := keys.fact(b.Repo, f)
		switch {
		case f.Value != nil:
			t.changes = append(t.changes, clientv3.OpPut(k, string(f.Value)))
		case f.Kind == storage.KindHistory && strings.HasSuffix(f.Name, "\x00"):
			t.changes = append(t.changes, clientv3.OpDelete(k, clientv3.WithRange(after(k))))
		default:
			t.changes = append(t.changes, clientv3.OpDelete(k))
		}
	}
}

func (t *transaction) require(repo, key string, compare clientv3.Cmp, holds func(*mvccpb.KeyValue) bool) {
	t.compares = append(t.compares, compare)
	t.reads = append(t.reads, clientv3.OpGet(key))
	t.checks = append(t.checks, check{repo, holds})
}

// refused returns the outcome of a transaction of which a compare failed.
func (j *Journal) refused(before place, r *clientv3.TxnResponse, t *transaction, value string) (
	storage.Revision, error,
) {
	if err := j.note(before, r.Header.ClusterId, kvOf(r, 1)); err != nil {
		return 0, err
	}
	switch mine := kvOf(r, 0); string(mine.GetValue()) {
	case j.writer.value:
	case value: // the client has sent it twice: this is the answer to the second time
		return j.committed(before, r.Header.ClusterId, mine.ModRevision, value)
	default:
		j.writer = writer{}
		return 0, fmt.Errorf("etcd: %w; nothing was committed", errWriter)
	}
	var repos []string
	for i, c := range t.checks {
		if !c.holds(kvOf(r, 2+i)) && !slices.Contains(repos, c.repo) {
			repos = append(repos, c.repo)
		}
	}
	if len(repos) == 0 {
		return 0, errors.New("etcd refused a commit, and shows no reason; nothing was committed")
	}
	return 0, fmt.Errorf("etcd: %w", &storage.ConflictError{Repos: repos})
}

// makeWriter makes the writer, with the first commit and when it was lost.
func (j *Journal) makeWriter(ctx context.Context) error {
	if j.writer.id != "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, j.options.RequestTimeout)
	defer cancel()
	w := writer{id: rand.Text()}
	w.value = w.next()
	// If the answer is lost, the key may stay until it is swept: the next attempt has another ID.
	if _, err := j.client.Put(ctx, j.keys.writer(w.id), w.value); err != nil {
		return j.explain(err)
	}
	j.writer = w
	return nil
}

// settlePending settles the commit of which an earlier call does not know the outcome. The caller has the turn.
func (j *Journal) settlePending(ctx context.Context) error {
	if j.writer.pending == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	if _, err := j.settle(ctx); err != nil {
		return fmt.Errorf("settle the commit before: %w", err)
	}
	return nil
}

// settle decides for good whether the pending commit is made, and returns its revision, or 0 if it is not. The writer
// is deleted unless the commit has put it: so a request that is still on its way fails. A deletion needs no space, and
// it is no harm if it happens twice. The caller has the turn.
func (j *Journal) settle(ctx context.Context) (storage.Revision, error) {
	mine := j.keys.writer(j.writer.id)
	r, err := retry(ctx, j, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return j.client.Txn(ctx).If(clientv3.Compare(clientv3.Value(mine), "!=", j.writer.pending)).
			Then(clientv3.OpDelete(mine)).Else(clientv3.OpGet(mine)).Commit()
	})
	if err != nil {
		return 0, j.explain(err)
	}
	var kv *mvccpb.KeyValue
	if !r.Succeeded {
		kv = kvOf(r, 0)
	}
	// deleted now, by an earlier attempt, or not there after a move
	if kv == nil || string(kv.Value) != j.writer.pending {
		j.writer = writer{}
		return 0, nil
	}
	j.writer.value, j.writer.pending = j.writer.pending, ""
	return storage.Revision(kv.ModRevision), nil
}

// dropWriter deletes the writer, unless a commit may be on its way. The caller has the turn.
func (j *Journal) dropWriter() {
	if j.writer.id == "" || j.writer.pending != "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(j.ctx), time.Second)
	defer cancel()
	_, _ = j.client.Delete(ctx, j.keys.writer(j.writer.id)) // otherwise it is swept
	j.writer = writer{}
}

// sweep deletes the writers that were abandoned. One that is open, and only idle, is not harmed: it has no commit on
// its way, and makes another.
func (j *Journal) sweep(ctx context.Context) {
	from := j.keys.writer("")
	_ = j.pages(ctx, j.quick(), from, after(from), 0, func(kvs []*mvccpb.KeyValue, _ bool) error {
		for _, kv := range kvs {
			_, at, _ := strings.Cut(string(kv.Value), " ")
			unix, _ := strconv.ParseInt(at, 10, 64)
			if key := string(kv.Key); time.Since(time.Unix(unix, 0)) > writerLife {
				_, _ = j.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)).
					Then(clientv3.OpDelete(key)).Commit()
			}
		}
		return nil
	})
}
