package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/upstream"
)

const (
	// listPatience is how long a list of what is held waits for the upstream's: of a large repository it takes many
	// requests.
	listPatience = 10 * time.Second
	// maxLists and maxListed bound the lists of tags that are remembered, in lists and in bytes.
	maxLists  = 1000
	maxListed = 16 << 20
	// maxReferrers bounds the referrers of one manifest that are fetched.
	maxReferrers = 64
)

// tagList are the tags of a repository at its upstream.
type tagList struct {
	at   time.Time
	tags []string // sorted
	more bool     // there are others
}

// size returns about how many bytes of memory a list takes.
func (l tagList) size() (n int) {
	for _, tag := range l.tags {
		n += len(tag) + 16
	}
	return n
}

// Tags returns the tags that a repository has at its upstream, sorted, as it listed them within fresh:. more reports
// that there are others. held says that the repository is not empty here: then Tags does not wait long. ok is false if
// the repository has no upstream. Errors: those of package upstream; that of the context.
func (m *Mirror) Tags(ctx context.Context, repo string, held bool) (tags []string, more, ok bool, err error) {
	name, ok := m.options.Names.Upstream(repo)
	if !ok {
		return nil, false, false, nil
	}
	up, there, err := m.options.Upstreams.Find(name.Host, name.Repo)
	if err != nil {
		return nil, false, !held, err
	}
	if held {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, listPatience, &upstream.Error{Kind: upstream.ErrUnavailable,
			Host: up.Host, Repo: there, Ref: "tags/list",
			Reason: "it has not answered within " + listPatience.String()})
		defer cancel()
	}
	list, err := m.listed(ctx, up, there, up.Fresh)
	return list.tags, list.more, true, err
}

// listed returns the tags of a repository of an upstream. A list counts that is not older than age. Callers at the same
// time share one.
func (m *Mirror) listed(ctx context.Context, up *upstream.Upstream, there string, age time.Duration) (tagList, error) {
	q := question{up.Local(there), "tags/list"}
	if last, ok := m.answers.Get(q); ok && last.err != nil && last.counts(false, 0) {
		return tagList{}, last.err
	}
	if list, ok := m.lists.Get(q.repo); ok && time.Since(list.at) < age {
		return list, nil
	}
	done := m.asking.DoChan(q.repo+" "+q.ref, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
		defer cancel()
		up, end, err := up.Begin()
		if err != nil {
			return tagList{}, err
		}
		defer end()
		tags, more, err := up.Tags(ctx, there)
		m.remember(q, err)
		list := tagList{time.Now(), tags, more}
		if err == nil {
			m.rememberList(q.repo, list)
		}
		return list, err
	})
	select {
	case r := <-done:
		return r.Val.(tagList), r.Err
	case <-ctx.Done():
		return tagList{}, context.Cause(ctx)
	}
}

// rememberList keeps a list, and drops those that were used the longest ago, so that all take maxListed bytes at most.
func (m *Mirror) rememberList(repo string, list tagList) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.lists.Peek(repo); ok {
		m.listBytes -= old.size()
		m.lists.Remove(repo)
	}
	for m.lists.Len() > 0 && (m.listBytes+list.size() > maxListed || m.lists.Len() == maxLists) {
		_, old, _ := m.lists.RemoveOldest()
		m.listBytes -= old.size()
	}
	if list.size() <= maxListed {
		m.lists.Add(repo, list)
		m.listBytes += list.size()
	}
}

// Referrers makes sure that the manifests whose subject is d, such as signatures, are in a repository, as far as its
// upstream lists them: with its API or, without one, under the tag that replaces it. An answer, also that there are no
// referrers, counts for as long as one for a tag. Their blobs are fetched when a client asks for them. It does nothing
// for a repository without an upstream, or for a subject that was pushed. stale is not nil if some may be missing, and
// says why; see Refresh.
func (m *Mirror) Referrers(ctx context.Context, repo string, d digest.Digest) (stale error) {
	name, ok := m.options.Names.Upstream(repo)
	if !ok {
		return nil
	}
	at, held, err := m.options.Store.Resolve(ctx, repo, d.String())
	if err != nil || held && at.Pushed {
		return err
	}
	up, there, err := m.options.Upstreams.Find(name.Host, name.Repo)
	if err != nil { // there is no upstream, or no longer
		return nil
	}
	q := question{repo, "referrers " + d.String()}
	if last, ok := m.answers.Get(q); ok && last.counts(true, up.Fresh) {
		return last.err
	}
	done := m.asking.DoChan(q.repo+" "+q.ref, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
		defer cancel()
		err := m.referrers(ctx, up, there, repo, d)
		m.remember(q, err)
		return nil, err
	})
	timer := time.NewTimer(listPatience)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.Err
	case <-timer.C:
		return &upstream.Error{Kind: upstream.ErrUnavailable, Host: up.Host, Repo: there, Ref: d.String(),
			Reason: "it has not listed the referrers within " + listPatience.String()}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// referrers is Referrers without what is remembered.
func (m *Mirror) referrers(ctx context.Context, up *upstream.Upstream, there, repo string, d digest.Digest) error {
	up, end, err := up.Begin()
	if err != nil {
		return err
	}
	defer end()
	all, tag, err := up.Referrers(ctx, there, d)
	if err != nil {
		return err
	}
	if tag != "" { // they need not name their subject, so the index under the tag is needed to list them
		stale, err := m.refresh(ctx, repo, tag, patient{})
		if _, moves := errors.AsType[*moved](stale); moves {
			stale, err = nil, m.Fetch(ctx, repo, tag, nil, nil)
		}
		if err = errors.Join(err, stale); err != nil {
			return err
		}
	}
	var parts []Part
	for _, r := range all[:min(len(all), maxReferrers)] {
		parts = append(parts, Part{Digest: r.Digest, Size: r.Size, Manifest: true})
	}
	err = each(ctx, parts, func(ctx context.Context, i int) error {
		_, err := m.refresh(ctx, repo, parts[i].Digest.String(), patient{})
		if errors.Is(err, upstream.ErrNotFound) { // listed, but deleted at the upstream
			return nil
		}
		return err
	})
	if err == nil && len(all) > maxReferrers {
		return &upstream.Error{Kind: upstream.ErrTooLarge, Host: up.Host, Repo: there, Ref: d.String(),
			Reason: fmt.Sprintf("it has %d referrers; %d of them are fetched", len(all), maxReferrers)}
	}
	return err
}
