// Package etcd keeps facts in etcd, version 3.5 or later, for any number of processes.
//
// # Words
//
//   - place: the keys below one prefix of one etcd cluster. README.md describes them.
//   - head: the key that every commit puts. Its mod revision is the revision of the last commit, whatever else is kept
//     in the same etcd.
//   - writer: a key of one open Journal, which each of its commits compares and puts.
//   - settle: to find out, and to decide for good, whether a commit without an answer was made.
//   - moved: what is at the place is not what was there before: etcd was restored from a backup, or is another one.
//
// # Invariants
//
//  1. A commit is one transaction. It is made once at most, however often it reaches etcd.
//  2. After Commit has returned a revision or a ConflictError, nothing of that commit is on its way any more. After an
//     error it may be; then the next Commit and the next Watch settle it before anything else.
//  3. A watcher misses no commit. Where that cannot be known, Watch ends with an error, so that its caller loads anew.
//  4. Nothing is committed, and no head is returned, that is based on a state from before the place has moved.
//
// Why a writer: a request that got no answer may still be on its way, in a network or in the queue of a slow member, so
// that a read that does not show it proves nothing. Settling deletes the writer, if it still has the number from before
// the commit. If it does, the commit can never be made; if it does not, the commit was made. One transaction decides.
//
// # What it does not do
//
// It does not interpret the values of facts. It neither compacts nor defragments etcd, which may have other users; it
// warns when it is not compacted.
package etcd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"trow/storage"
	"trow/storage/files"
)

// Options say where the facts are and how to reach them.
type Options struct {
	Endpoints []string // HOST:PORT of the members
	Prefix    string   // begins every key; a slash is added at its end; default: trow/

	TLS               bool   // with the CAs of the system, unless CAFile says otherwise
	CAFile            string // PEM
	CertFile, KeyFile string // the client certificate, PEM; read again for each connection

	User         string
	PasswordFile string // a line break at its end does not count

	DialTimeout    time.Duration // for a connection; default: 5 s
	RequestTimeout time.Duration // for an answer, after which a commit is settled; default: 3 s

	// Warn is called with what the Journal handled without the caller, and what the administrator of etcd must know.
	Warn func(error)
}

// Journal is the engine. Open it with [Open].
type Journal struct {
	options  Options
	keys     layout
	client   *clientv3.Client
	identity string
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	done     sync.WaitGroup

	turn   chan struct{} // held by the one commit in progress; guards writer
	writer writer

	dials  atomic.Int64          // connections begun
	failed atomic.Pointer[error] // why the last one was not made; nil: it was

	mu    sync.Mutex // guards place
	place place
}

const (
	defaultDialTimeout    = 5 * time.Second
	defaultRequestTimeout = 3 * time.Second

	// keepAlive is how long a connection may be silent before it is tried, and keepAliveTimeout how long that takes.
	// etcd refuses clients that ask more often than each 5 s.
	keepAlive        = 5 * time.Second
	keepAliveTimeout = 2 * time.Second
)

// Open connects to etcd, and makes the place if there is none. Errors: what etcd says, with the remedy; for data of a
// newer format, what to do.
func Open(ctx context.Context, o Options) (*Journal, error) {
	prefix, err := cleanPrefix(o.Prefix)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	if len(o.Endpoints) == 0 {
		return nil, errors.New("etcd: there is no endpoint; give HOST:PORT of each member")
	}
	if o.Warn == nil {
		o.Warn = func(error) {}
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = defaultDialTimeout
	}
	if o.RequestTimeout <= 0 {
		o.RequestTimeout = defaultRequestTimeout
	}
	j := &Journal{options: o, keys: layout{prefix}, turn: make(chan struct{}, 1), place: newPlace()}
	config, err := o.config(j.connected, grpc.WithContextDialer(j.dial))
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	if j.client, err = clientv3.New(config); err != nil {
		return nil, j.explain(err)
	}
	j.ctx, j.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := j.prepare(ctx); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	j.done.Go(j.supervise)
	return j, nil
}

// config returns the client's. connected is called with why a connection was of no use, or nil.
func (o Options) config(connected func(error), dial ...grpc.DialOption) (clientv3.Config, error) {
	scheme := "http://"
	dial = append(dial, grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: o.DialTimeout,
		// A member that was restarted is back within seconds.
		Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2,
			MaxDelay: 2 * time.Second}}))
	var creds credentials.TransportCredentials = newPlainCredentials(connected)
	if o.TLS {
		scheme = "https://"
		secure, err := newFileCredentials(o.CAFile, o.CertFile, o.KeyFile, connected)
		if err != nil {
			return clientv3.Config{}, err
		}
		creds = secure
	} else if o.CAFile+o.CertFile+o.KeyFile != "" {
		return clientv3.Config{}, errors.New("certificates are given, but the connection is without TLS; use etcds://")
	}
	dial = append(dial, grpc.WithTransportCredentials(creds))
	c := clientv3.Config{DialTimeout: o.DialTimeout, DialKeepAliveTime: keepAlive,
		DialKeepAliveTimeout: keepAliveTimeout,
		DialOptions:          dial, Username: o.User, Logger: zap.NewNop()}
	for _, e := range o.Endpoints {
		c.Endpoints = append(c.Endpoints, scheme+e)
	}
	if o.User != "" {
		password, err := files.Read(o.PasswordFile, files.MaxSize)
		if err != nil {
			return clientv3.Config{}, fmt.Errorf("the password of the user %q of etcd: %w", o.User, err)
		}
		if c.Password = strings.TrimRight(string(password), "\r\n"); c.Password == "" {
			return clientv3.Config{}, fmt.Errorf("the password of the user %q of etcd: %s is empty", o.User,
				o.PasswordFile)
		}
	}
	return c, nil
}

// prepare reads the format and the identity, and writes both on first use.
func (j *Journal) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, j.options.DialTimeout+j.options.RequestTimeout)
	defer cancel()
	read, err := retry(ctx, j, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		r, err := j.client.Txn(ctx).Then(clientv3.OpGet(j.keys.format()), clientv3.OpGet(j.keys.identity())).Commit()
		if err != nil || kvOf(r, 1) != nil { // a full etcd refuses a transaction that could put
			return r, err
		}
		// Two that start at once get the same identity: that of the first.
		if _, err := j.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(j.keys.identity()), "=", 0)).
			Then(clientv3.OpPut(j.keys.format(), strconv.Itoa(storage.Format)),
				clientv3.OpPut(j.keys.identity(), rand.Text())).
			Commit(); err != nil {
			return nil, err
		}
		return j.client.Txn(ctx).Then(clientv3.OpGet(j.keys.format()), clientv3.OpGet(j.keys.identity())).Commit()
	})
	if err != nil {
		return j.explain(err)
	}
	format, _ := strconv.Atoi(valueOf(read, 0))
	if format < 1 || format > storage.Format {
		return fmt.Errorf("etcd: the keys below %q have format %q, and this program knows those up to %d: use the "+
			"newer program that wrote them, or another prefix", j.keys.prefix, valueOf(read, 0), storage.Format)
	}
	j.identity = valueOf(read, 1)
	j.sweep(ctx)
	return nil
}

// valueOf returns the value that the nth operation of a transaction has read.
func valueOf(r *clientv3.TxnResponse, n int) string { return string(kvOf(r, n).GetValue()) }

// kvOf returns what the nth operation of a transaction has read; nil if there is no such key.
func kvOf(r *clientv3.TxnResponse, n int) *mvccpb.KeyValue {
	if kvs := r.Responses[n].GetResponseRange().Kvs; len(kvs) > 0 {
		return kvs[0]
	}
	return nil
}

// Identity returns what distinguishes this place from any other. It is made with the first Open.
func (j *Journal) Identity() string { return j.identity }

// Traits implements [storage.Journal]. The bounds are the defaults of etcd (--max-txn-ops, --max-request-bytes) less
// what a commit adds: two compares and two operations, and the names of keys, which are sent up to three times.
func (j *Journal) Traits() storage.Traits {
	return storage.Traits{Shared: true, Compares: 126, Operations: 126, Bytes: 5 << 18}
}

// Head implements [storage.Journal]. It is a linearizable read.
func (j *Journal) Head(ctx context.Context) (storage.Revision, error) {
	if err := j.usable(); err != nil {
		return 0, err
	}
	head, _, err := j.readHead(ctx)
	return head, err
}

// readHead returns the revision of the last commit, and that of etcd.
func (j *Journal) readHead(ctx context.Context) (head, revision storage.Revision, err error) {
	before := j.current()
	r, err := j.get(ctx, j.keys.head())
	if err == nil {
		err = j.verify(ctx) // after the answer: it may have come over a new connection
	}
	if err != nil {
		return 0, 0, j.explain(err)
	}
	var kv *mvccpb.KeyValue
	if len(r.Kvs) > 0 {
		kv = r.Kvs[0]
	}
	if err := j.note(before, r.Header.ClusterId, kv); err != nil {
		return 0, 0, err
	}
	return storage.Revision(kv.GetModRevision()), storage.Revision(r.Header.Revision), nil
}

// History implements [storage.Journal].
func (j *Journal) History(ctx context.Context, repo, prefix string) (facts []storage.Fact, err error) {
	from := j.keys.fact(repo, storage.Fact{Kind: storage.KindHistory, Name: prefix})
	skip := len(from) - len(prefix)
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	err = j.pages(ctx, j.quick(), from, after(from), 0, func(kvs []*mvccpb.KeyValue, _ bool) error {
		for _, kv := range kvs {
			facts = append(facts, storage.Fact{Kind: storage.KindHistory, Name: string(kv.Key[skip:]),
				Value: valueIn(kv)})
		}
		return nil
	})
	if err != nil {
		return nil, j.explain(err)
	}
	return facts, nil
}

// valueIn returns a value that is not nil: an empty one is no end of a fact.
func valueIn(kv *mvccpb.KeyValue) []byte {
	if kv.Value == nil {
		return []byte{}
	}
	return kv.Value
}

// Close ends every Watch and the connections.
func (j *Journal) Close() error {
	j.cancel()
	j.done.Wait()
	j.turn <- struct{}{} // the last commit
	j.dropWriter()
	<-j.turn
	if err := j.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("etcd: %w", err)
	}
	return nil
}

// get is a linearizable read of one key.
func (j *Journal) get(ctx context.Context, key string, options ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	r, _, err := hedged(ctx, j, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return j.client.Get(ctx, key, options...)
	})
	return r, err
}
