package etcd

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// patient is an etcd at a revision, of which those up to another one were compacted, with a database of some size.
type patient struct {
	clientv3.KV
	clientv3.Maintenance
	revision, compacted, size, quota int64
}

func (p *patient) Get(_ context.Context, key string, o ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if rev := clientv3.OpGet(key, o...).Rev(); rev != 0 && rev <= p.compacted {
		return nil, rpctypes.ErrCompacted
	}
	return &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: p.revision}}, nil
}

func (p *patient) Status(context.Context, string) (*clientv3.StatusResponse, error) {
	return &clientv3.StatusResponse{DbSize: p.size, DbSizeQuota: p.quota}, nil
}

// TestWhatWillStopCommitsIsSaidBefore: a database that is nearly full, and one that nobody compacts.
func TestWhatWillStopCommitsIsSaidBefore(t *testing.T) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := &patient{revision: 5, size: 79, quota: 100}
	client.KV, client.Maintenance = p, p
	var warned []string
	h := health{j: &Journal{client: client, ctx: t.Context(), options: Options{Endpoints: []string{"a:1"},
		RequestTimeout: time.Second, Warn: func(err error) { warned = append(warned, err.Error()) }}}}
	begin := time.Now()
	want := func(what string, after time.Duration, text string) {
		t.Helper()
		warned = nil
		h.look(begin.Add(after))
		if got := strings.Join(warned, "\n"); (got == "") != (text == "") || !strings.Contains(got, text) ||
			len(warned) > 1 {
			t.Errorf("%s: %q; want %q", what, got, text)
		}
	}
	want("at the start", 0, "")
	p.size = 80
	want("at 80 %", time.Hour, "etcdctl defrag")
	p.size, p.quota = 80, 0 // etcd before 3.6 does not say
	want("without a quota", 2*time.Hour, "")
	p.revision = 9
	want("within a day", 23*time.Hour, "")
	want("after a day", 25*time.Hour, "--auto-compaction-retention=1h")
	want("once a day", 26*time.Hour, "")
	p.compacted = 9
	want("after a compaction", 50*time.Hour, "")
}
