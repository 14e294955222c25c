// Package mirror brings the content of other registries here when clients ask for it. It decides when the upstream
// of a repository below f/ is asked (package namespace has its name, package upstream asks it), and has what it answers
// stored; the registry then reads as from any repository.
//
// # Words
//
//   - held: the repository here has it.
//   - fresh: a tag that the upstream has confirmed within the time that its settings say (fresh:).
//   - stale: what is held, where the upstream could not be asked or does not have it any more.
//
// # The way of a read
//
//  1. A digest that is held is never asked about. One that is not held is fetched.
//  2. A tag that is fresh is not asked about. Otherwise the upstream is asked with a HEAD, which Docker Hub does not
//     count: if it names the same digest, nothing is written; if that manifest is held, the tag moves in one commit;
//     otherwise the manifest is fetched by that digest, and recorded together with the tag.
//  3. Who asks at the same time for the same, waits for the same answer. It is asked for by the server: a client that
//     leaves does not stop it.
//  4. Where something is held, it is answered after 2 s, as stale, whatever the upstream does; and at once where the
//     upstream has just said no. So nothing that is held is ever answered with an error of an upstream.
//  5. That the upstream does not have something, or not for us, is remembered briefly, because clients ask in bursts.
//  6. A blob that is not held is downloaded once for all who ask, and given to them while it arrives. Bytes that are
//     here because of another repository are given only after this repository's own upstream has answered for the
//     digest with the same size.
//
// # What it does not do
//
// It does not decide who may read: whoever calls Refresh has made sure. When a tag was confirmed is in memory alone, so
// that a poll that finds nothing new writes nothing; after a restart each tag is asked about once.
package mirror

import (
	"context"
	"errors"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"trow/registry/namespace"
	"trow/registry/upstream"
)

const (
	// patience is how long a client waits for the upstream where something is held. Registries answer a HEAD in a tenth
	// of that.
	patience = 2 * time.Second
	// askTime bounds what is done for one question: a HEAD, a GET and a commit.
	askTime = 2 * time.Minute
	// maxRemembered bounds how many tags and digests are remembered; one takes about 250 bytes.
	maxRemembered = 100_000
	// absentFor and closedFor are how long it is remembered that the upstream does not have something, or not for us.
	absentFor = 10 * time.Second
	closedFor = time.Minute
)

// Store is the registry that has the repositories. Its errors are passed on.
type Store interface {
	// Resolve returns what ref, a tag or a digest, names in a repository.
	Resolve(ctx context.Context, repo, ref string) (at Held, held bool, err error)
	// Record stores a manifest, unless it is nil and d is held, and makes the tag name it, unless that is empty. All of
	// that is one commit.
	Record(ctx context.Context, repo, tag string, d digest.Digest, m *upstream.Manifest) error
}

// Held is what a repository has.
type Held struct {
	Digest digest.Digest
	// Pushed: it did not come from the upstream, but was pushed or imported. The upstream is not asked about it.
	Pushed bool
}

// Options are the parts of a Mirror.
type Options struct {
	Names     *namespace.Table
	Upstreams *upstream.Upstreams
	Store     Store
	// Fetcher downloads blobs into Blobs. Optional: without it there are manifests alone.
	Fetcher *upstream.Fetcher
	Blobs   BlobStore
	// Context is that of looks into Blobs that are not for one client alone; nil: context.Background().
	Context context.Context
}

// Mirror is safe for concurrent use. Make it with [New].
type Mirror struct {
	options Options
	asking  singleflight.Group
	answers *lru.Cache[question, answer]
}

// question is what is asked about: a tag or a digest of a repository here.
type question struct{ repo, ref string }

// answer is what an upstream has said last.
type answer struct {
	at  time.Time
	err error // nil: what is held is right
}

// New returns a Mirror that knows nothing yet.
func New(o Options) *Mirror {
	if o.Context == nil {
		o.Context = context.Background()
	}
	answers, err := lru.New[question, answer](maxRemembered)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &Mirror{options: o, answers: answers}
}

// Refresh makes sure that what ref, a tag or a digest, names in a repository is here as far as its upstream has it.
// Afterwards it is read as usual: it may still not be held, if the repository has no upstream. stale is not nil if what
// is held may not be what the upstream has, and says why. Errors, for what is not held: those of package upstream;
// those of the Store; that of the context.
func (m *Mirror) Refresh(ctx context.Context, repo, ref string) (stale, err error) {
	name, ok := m.options.Names.Upstream(repo)
	if !ok {
		return nil, nil
	}
	at, held, err := m.options.Store.Resolve(ctx, repo, ref)
	if err != nil || held && (isDigest(ref) || at.Pushed) {
		return nil, err
	}
	up, there, err := m.options.Upstreams.Find(name.Host, name.Repo)
	switch {
	case err != nil && held: // no upstream any more: it stays as it is
		return nil, nil
	case err != nil:
		return nil, err
	}
	q := question{repo, ref}
	if last, ok := m.answers.Get(q); ok && last.counts(held, up.Fresh) {
		return either(held, last.err)
	}
	done := m.asking.DoChan(repo+" "+ref, func() (any, error) {
		// Not the client's context: others wait for the same, and what was fetched is of use to the next one.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
		defer cancel()
		err := m.ask(ctx, up, there, q)
		m.remember(q, err)
		return nil, err
	})
	var late <-chan time.Time // never, where nothing is held that could be answered instead
	if held {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case r := <-done:
		return either(held, r.Err)
	case <-late:
		return &upstream.Error{Kind: upstream.ErrUnavailable, Host: up.Host, Repo: there, Ref: ref,
			Reason: "it has not answered within " + patience.String()}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// either returns an error as the reason why what is held is stale, or as the error for what is not held.
func either(held bool, err error) (stale, failed error) {
	if held {
		return err, nil
	}
	return nil, err
}

// counts reports whether an answer saves the question.
func (a answer) counts(held bool, fresh time.Duration) bool {
	age := time.Since(a.at)
	switch {
	case a.err == nil:
		return held && age < fresh
	case errors.Is(a.err, upstream.ErrUnauthorized):
		return age < closedFor
	}
	return age < absentFor
}

// remember keeps what an upstream has said. What it could not say is not kept: package upstream knows when to ask
// again.
func (m *Mirror) remember(q question, err error) {
	if err == nil || errors.Is(err, upstream.ErrNotFound) || errors.Is(err, upstream.ErrUnauthorized) {
		m.answers.Add(q, answer{time.Now(), err})
	}
}

// ask asks the upstream, and records what has changed.
func (m *Mirror) ask(ctx context.Context, up *upstream.Upstream, there string, q question) error {
	store := m.options.Store
	d, tag := digest.Digest(q.ref), ""
	if !isDigest(q.ref) {
		desc, err := up.Head(ctx, there, q.ref)
		if err != nil {
			return err
		}
		d, tag = desc.Digest, q.ref
		if at, held, err := store.Resolve(ctx, q.repo, tag); err != nil || held && (at.Digest == d || at.Pushed) {
			return err
		}
	}
	if _, held, err := store.Resolve(ctx, q.repo, d.String()); err != nil || held {
		if err != nil || tag == "" { // it has come meanwhile
			return err
		}
		return store.Record(ctx, q.repo, tag, d, nil)
	}
	// By the digest, so that the tag cannot move between the two.
	found, err := up.Manifest(ctx, there, d.String())
	if err != nil {
		return err
	}
	return store.Record(ctx, q.repo, tag, d, &found)
}

// isDigest reports whether ref is a digest: no tag has a colon.
func isDigest(ref string) bool { return digest.Digest(ref).Validate() == nil }
