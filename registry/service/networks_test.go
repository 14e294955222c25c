package service

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"trow/registry/upstream"
)

// cluster answers with one network, or with an error.
type cluster struct{ fails atomic.Bool }

func (c *cluster) Secret(context.Context, string, string) ([]byte, error) { return nil, nil }

func (c *cluster) Networks(context.Context) ([]netip.Prefix, error) {
	if c.fails.Load() {
		return nil, errors.New("run: kubectl")
	}
	return []netip.Prefix{netip.MustParsePrefix("9.9.9.0/24")}, nil
}

// TestNoUpstreamLeadsToTheNetworksOfTheCluster, nor to those of the settings, also if the cluster does not answer.
func TestNoUpstreamLeadsToTheNetworksOfTheCluster(t *testing.T) {
	var log strings.Builder
	o := Options{Log: zerolog.New(&log), Upstream: upstream.Options{Any: true, Internal: []string{"8.8.4.0/24"}}}
	c := &cluster{}
	o.Cluster = c
	n := &networks{guard: upstream.NewGuard(), own: o.Upstream.Networks(), s: &Service{options: o, log: o.Log}}
	n.guard.Refuse(n.own...)
	refused := func(addr string) bool { return n.guard.Check("a.example", netip.MustParseAddr(addr)) != nil }
	if !refused("8.8.4.7") || refused("9.9.9.7") || refused("8.8.8.8") {
		t.Fatal("before the cluster has answered")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { n.follow(ctx); close(done) }()
	for end := time.Now().Add(10 * time.Second); !refused("9.9.9.7") && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	c.fails.Store(true)
	n.follow(ctx) // the context has ended: it asks once
	if !refused("8.8.4.7") || !refused("9.9.9.7") || refused("8.8.8.8") {
		t.Error("after a failure")
	}
	if log.Len() != 0 {
		t.Errorf("the end of the server is logged as a failure: %s", log.String())
	}
}
