package etcd

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"trow/storage"
)

// leadTTL is how long the lease of a leader lasts without being renewed, in seconds: then another process takes over.
const leadTTL = 8

var _ storage.Leads = (*Journal)(nil)

// Lead implements [storage.Leads]. The fence takes one compare.
func (j *Journal) Lead(ctx context.Context, task, name string) (fence storage.Fact, lost <-chan struct{}, err error) {
	for {
		if err := j.awaitVacancy(ctx, task); err != nil {
			return fence, nil, err
		}
		lease, err := j.candidate(ctx)
		if err != nil {
			return fence, nil, err
		}
		// The lease makes each term's value its own, also that of one process.
		value := fmt.Sprintf("%s\x00%x", name, lease)
		key := j.keys.lead(task)
		r, err := j.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, value, clientv3.WithLease(lease))).Commit()
		if err == nil && r.Succeeded {
			ended := make(chan struct{})
			j.done.Go(func() {
				defer close(ended)
				j.hold(ctx, lease)
			})
			return storage.Fact{Kind: storage.KindLead, Name: task, Value: []byte(value)}, ended, nil
		}
		j.revoke(lease) // the put may have happened: the next attempt must not wait for itself
		if err != nil && (stays(err) || ctx.Err() != nil) {
			return fence, nil, j.explain(err)
		}
	}
}

// Leader implements [storage.Leads].
func (j *Journal) Leader(ctx context.Context, task string) (string, error) {
	r, err := j.get(ctx, j.keys.lead(task))
	if err != nil {
		return "", j.explain(err)
	}
	if len(r.Kvs) == 0 {
		return "", nil
	}
	value := string(r.Kvs[0].Value)
	return value[:max(strings.LastIndexByte(value, 0), 0)], nil
}

func (j *Journal) candidate(ctx context.Context) (clientv3.LeaseID, error) {
	r, err := retry(ctx, j, func(ctx context.Context) (*clientv3.LeaseGrantResponse, error) {
		return j.client.Grant(ctx, leadTTL)
	})
	if err != nil {
		return 0, j.explain(err)
	}
	return r.ID, nil
}

// awaitVacancy waits until no process does a task.
func (j *Journal) awaitVacancy(ctx context.Context, task string) error {
	key := j.keys.lead(task)
	for {
		r, err := retry(ctx, j, func(ctx context.Context) (*clientv3.GetResponse, error) {
			return j.client.Get(ctx, key)
		})
		if err != nil {
			return j.explain(err)
		}
		if len(r.Kvs) == 0 {
			return nil
		}
		j.awaitDeletion(ctx, key, r.Header.Revision+1)
	}
}

// awaitDeletion waits until a key may have been deleted. It is looked at again then, so it is no harm to return early.
func (j *Journal) awaitDeletion(ctx context.Context, key string, from int64) {
	ctx, cancel := context.WithTimeout(ctx, leadTTL*time.Second)
	defer cancel()
	defer context.AfterFunc(j.ctx, cancel)()
	w := clientv3.NewWatcher(j.client)
	defer w.Close()
	for r := range w.Watch(clientv3.WithRequireLeader(ctx), key, clientv3.WithRev(from), clientv3.WithFilterPut()) {
		if len(r.Events) > 0 || r.Err() != nil {
			return
		}
	}
}

// hold renews a lease until ctx ends, or until it may have ended.
func (j *Journal) hold(ctx context.Context, lease clientv3.LeaseID) {
	defer j.revoke(lease)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(j.ctx, cancel)()
	renewed, err := j.client.KeepAlive(ctx, lease)
	if err != nil {
		return
	}
	end := time.NewTimer(leadTTL * time.Second)
	defer end.Stop()
	for {
		select {
		case _, ok := <-renewed:
			if !ok {
				return
			}
			end.Reset(leadTTL * time.Second)
		case <-end.C:
			return
		}
	}
}

// revoke ends a lease, and with it the key that it keeps. If that fails, the lease ends by itself.
func (j *Journal) revoke(lease clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(j.ctx), time.Second)
	defer cancel()
	_, _ = j.client.Revoke(ctx, lease)
}
