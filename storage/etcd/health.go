package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// healthInterval is how often etcd's size is looked at, and compactionAge how old a revision is that should have
	// been compacted: etcd keeps each change until then.
	healthInterval = time.Hour
	compactionAge  = 24 * time.Hour

	// fullAt is the part of the quota, in percent, from which on there is a warning. At 100, etcd refuses all commits.
	fullAt = 80
)

var errUncompacted = errors.New("it is not compacted")

// supervise warns of what will stop commits later.
func (j *Journal) supervise() {
	h := health{j: j}
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	for h.look(time.Now()); ; {
		select {
		case <-j.ctx.Done():
			return
		case now := <-tick.C:
			h.look(now)
		}
	}
}

// health is what supervise remembers.
type health struct {
	j        *Journal
	revision int64 // of etcd at a time that should be compacted later; 0: none
	at       time.Time
}

// look warns of what is wrong now. Errors are left to the requests that matter.
func (h *health) look(now time.Time) {
	ctx, cancel := context.WithTimeout(h.j.ctx, h.j.options.RequestTimeout)
	defer cancel()
	for _, e := range h.j.client.Endpoints() {
		if s, err := h.j.client.Status(ctx, e); err == nil && s.DbSizeQuota > 0 &&
			s.DbSize*100 >= s.DbSizeQuota*fullAt {
			h.j.options.Warn(fmt.Errorf("etcd at %s: its database has %d MiB of %d MiB; commits end when it is full: "+
				"run etcdctl defrag, compact automatically, or raise --quota-backend-bytes", e, s.DbSize>>20,
				s.DbSizeQuota>>20))
			break
		}
	}
	if h.revision != 0 && now.Sub(h.at) < compactionAge {
		return
	}
	if h.revision != 0 {
		// A revision that was compacted cannot be read.
		if _, err := h.j.client.Get(ctx, h.j.keys.identity(), clientv3.WithRev(h.revision)); err == nil {
			h.j.options.Warn(fmt.Errorf("%w: it still has revision %d, of %s ago; set --auto-compaction-mode=periodic "+
				"--auto-compaction-retention=1h, or it grows with every change until its quota",
				h.j.explain(errUncompacted),
				h.revision, now.Sub(h.at).Round(time.Hour)))
		}
	}
	if r, err := h.j.client.Get(ctx, h.j.keys.identity()); err == nil {
		h.revision, h.at = r.Header.Revision, now
	}
}
