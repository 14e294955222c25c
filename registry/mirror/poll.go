package mirror

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"trow/registry/upstream"
)

const (
	// maxPolled bounds the tags of one repository that are polled.
	maxPolled = 20_000
	// minPoll bounds how often the tags of an upstream are polled, whatever fresh: is.
	minPoll = time.Minute
	// pollLook is how often Run looks for what to poll in the settings, which may change.
	pollLook = 2 * time.Second
)

// Run polls what keep: of the upstreams names until ctx is done; see Poll. Each upstream is polled by itself, at three
// to four quarters of fresh: after the last time, so that clients find the tags fresh and need not wait for the
// upstream. It returns nil once all that runs in the background has ended.
func (m *Mirror) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	var mu sync.Mutex // guards due
	due := map[string]time.Time{}
	look := time.NewTicker(pollLook)
	defer look.Stop()
	for {
		for _, up := range m.options.Upstreams.All() {
			interval := max(up.Fresh, minPoll)
			mu.Lock()
			at, known := due[up.Title()]
			switch {
			case len(up.Kept()) == 0:
			case !known: // soon after the start, but not all replicas and upstreams at once
				due[up.Title()] = time.Now().Add(rand.N(min(interval, minPoll) / 4))
			case !time.Now().Before(at):
				due[up.Title()] = time.Now().Add(1000 * time.Hour) // not again while it runs
				running.Go(func() {
					if err := m.Poll(ctx, up); err != nil && ctx.Err() == nil {
						m.options.Report(up.Title(), err)
					}
					mu.Lock()
					defer mu.Unlock()
					due[up.Title()] = time.Now().Add(interval*3/4 + rand.N(interval/4))
				})
			}
			mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
	}
}

// Poll asks an upstream for the tags that keep: names, and fetches what is new as a whole. It fetches what a tag newly
// names and what is missing of it, for parallel tags at once. If there is nothing to fetch, it writes nothing. It stops
// where the upstream cannot be asked, where its rates leave room only for clients that wait, and where the cache is
// full. Errors: why it has stopped; otherwise how many tags failed, with the first error.
func (m *Mirror) Poll(ctx context.Context, up *upstream.Upstream) error {
	p := &polling{Mirror: m, up: up}
	for _, repo := range up.Kept() {
		if err := p.repo(ctx, repo); err != nil {
			return err
		}
	}
	if p.first != nil {
		return fmt.Errorf("%d tags could not be fetched, one of them because of: %w", p.failed, p.first)
	}
	return nil
}

// polling is one call of Poll.
type polling struct {
	*Mirror
	up *upstream.Upstream

	mu     sync.Mutex // guards all below
	failed int
	first  error
}

// stops reports whether an error ends a poll: the next tag would fail as well.
func stops(err error) bool {
	return errors.Is(err, upstream.ErrUnavailable) || errors.Is(err, upstream.ErrNoRoom) ||
		errors.Is(err, context.Canceled)
}

// note notes an error of one tag. It returns it if it ends the poll.
func (p *polling) note(err error) error {
	if err == nil || stops(err) {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed++; p.failed == 1 {
		p.first = err
	}
	return nil
}

// repo polls the tags of a repository of the upstream.
func (p *polling) repo(ctx context.Context, repo string) error {
	tags, all := p.up.KeptTags(repo)
	if !all { // there are patterns
		if err := p.mayPoll(); err != nil {
			return err
		}
		list, err := p.listed(ctx, p.up, repo, p.up.Fresh/2)
		if err != nil {
			return p.note(err)
		}
		tags = slices.DeleteFunc(slices.Clone(list.tags), func(tag string) bool { return !p.up.Keeps(repo, tag) })
	}
	if len(tags) > maxPolled {
		_ = p.note(fmt.Errorf("keep: names more than %d tags of %s/%s; the rest is not polled", maxPolled,
			p.up.Host, repo))
		tags = tags[:maxPolled]
	}
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, tag := range tags {
		if group.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := p.mayPoll(); err != nil {
				return err
			}
			return p.note(p.tag(group, p.up.Local(repo), tag))
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// mayPoll returns nil if the upstream may be asked although no client waits.
func (p *polling) mayPoll() error {
	if p.up.MayPoll() {
		return nil
	}
	return &upstream.Error{Kind: upstream.ErrUnavailable, Host: p.up.Host, Ref: "keep",
		Reason: "what is left of its rate is for clients that wait"}
}

// tag makes a repository hold what a tag names now.
func (p *polling) tag(ctx context.Context, repo, tag string) error {
	stale, err := p.refresh(ctx, repo, tag, patient{age: p.up.Fresh / 2})
	if _, moves := errors.AsType[*moved](stale); !moves {
		if err = errors.Join(err, stale); err != nil {
			return err
		}
		at, held, err := p.options.Store.Resolve(ctx, repo, tag)
		if err != nil || held && p.options.Store.Whole(ctx, repo, at.Digest) {
			return err
		}
	}
	return p.Fetch(ctx, repo, tag, p.options.Platforms, nil)
}
