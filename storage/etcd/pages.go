package etcd

import (
	"cmp"
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// firstPage is the number of keys of the first page, and pageBytes what the next ones aim at. etcd counts all keys
	// that follow for each page, so small pages take it long; large ones hold memory here and there.
	firstPage = 1000
	pageBytes = 16 << 20
	maxPage   = 200_000
)

// page is one answer, or the error instead.
type page struct {
	kvs  []*mvccpb.KeyValue
	last bool
	err  error
}

// pages calls each with the keys of a range, in order, as they are at one revision; 0 stands for the newest one. The
// next page is on its way while each has the one before. last is true for the last page, which may be empty.
func (j *Journal) pages(ctx context.Context, p pace, from, end string, revision int64,
	each func(kvs []*mvccpb.KeyValue, last bool) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read := make(chan page, 1)
	go func() {
		defer close(read)
		limit := int64(firstPage)
		for more := true; more; {
			r, err := retryAt(ctx, j, p, func(ctx context.Context) (*clientv3.GetResponse, error) {
				return j.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision),
					clientv3.WithLimit(limit))
			})
			next := page{err: err}
			if more = err == nil && r.More; err == nil {
				next.kvs, next.last, revision = r.Kvs, !more, cmp.Or(revision, r.Header.Revision)
			}
			if more {
				from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
				limit = nextLimit(r.Kvs)
			}
			select {
			case read <- next:
			case <-ctx.Done():
				return
			}
		}
	}()
	for p := range read {
		if p.err != nil {
			return p.err
		}
		if err := each(p.kvs, p.last); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// nextLimit returns how many keys a page may have, by the size of those of the last one.
func nextLimit(last []*mvccpb.KeyValue) int64 {
	size := 1
	for _, kv := range last {
		size += len(kv.Key) + len(kv.Value)
	}
	return min(max(int64(len(last))*pageBytes/int64(size), 100), maxPage)
}
