// Package mirror fetches the content of other registries when clients ask for it. It decides when to ask the upstream
// of a repository below f/ (package namespace knows its name, package upstream sends the requests), and stores what the
// upstream answers; the registry then serves it like the content of any other repository.
//
// # Words
//
//   - held: the repository here has the content.
//   - fresh: a tag that the upstream has confirmed within the time that its settings say (fresh:).
//   - stale: held content that the upstream could not confirm, or no longer has.
//
// # How a read works
//
//  1. For a held digest the upstream is never asked. A digest that is not held is fetched.
//  2. For a fresh tag the upstream is not asked. For another tag it gets a HEAD, which Docker Hub does not count: if
//     the tag names the same digest, nothing is written; if that manifest is held, the tag moves in one commit;
//     otherwise the manifest is fetched by that digest, and recorded together with the tag in one commit.
//  3. Reads of the same reference at the same time share one request to the upstream. It does not depend on the context
//     of a client: a client that disconnects does not cancel it for the others.
//  4. Held content is served as stale if the upstream has not answered after 2 s, and at once if the upstream has
//     failed or refused; for 10 s after a failure no other read waits. So an error of an upstream never replaces held
//     content.
//  5. Negative answers of an upstream are cached, not found for 10 s and unauthorized for a minute: clients ask in
//     bursts.
//  6. Where only what is held may run (may-run: held, and deny), a tag that is held goes on naming what it names until
//     the image that it names at the upstream is here as a whole. That is fetched in the background; until then the
//     answer is stale. A tag that is not held at all is recorded with its manifest: the client that pulls it fetches
//     the rest.
//  7. A blob that is not held is downloaded once for all clients that ask, and they receive it while it arrives. Two
//     upstreams that have the same blob are two downloads, of which the first that is complete serves all: one that
//     stalls, or sends wrong bytes, affects no other. Bytes that are stored, or on their way, for another repository
//     are served only after this repository's own upstream has answered for the digest with the same size.
//  8. Lists of tags and of referrers are asked for once within the time of fresh:. Referrers are fetched, so that the
//     registry lists what it holds; tags are not.
//  9. What keep: of an upstream names is polled, and fetched ahead as a whole ([Mirror.Fetch]), by one process at a
//     time.
//  10. With several replicas, each downloads a blob that none of them holds at most once, and no replica downloads a
//     blob that another one holds. One download for all replicas would need fewer bytes of the upstream, but clients of
//     the other replicas would get their first byte only after the last one was stored, because replicas share only
//     what is stored. All replicas have one bound together; see board.go.
//
// # What it does not do
//
// It does not decide who may read: the caller has authorized the client. The time at which a tag was confirmed is kept
// in memory only, so that a check that finds nothing new writes nothing; after a restart the first read of each tag
// asks the upstream.
package mirror

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"trow/registry/namespace"
	"trow/registry/upstream"
	"trow/storage"
)

const (
	// patience is how long a read of held content waits for the upstream. Registries usually answer a HEAD in a tenth
	// of that.
	patience = 2 * time.Second
	// troubledFor is how long reads of held content do not wait for an upstream that has failed, or has not answered
	// within patience: a pull has several reads, and each would wait.
	troubledFor = 10 * time.Second
	// maxTroubled bounds the upstreams that are remembered as such: with upstream-any, clients choose them.
	maxTroubled = 1000
	// askTime bounds the work for one question: a HEAD, a GET and a commit.
	askTime = 2 * time.Minute
	// maxRemembered bounds the cached answers, because clients choose the names; one takes about 250 bytes.
	maxRemembered = 100_000
	// absentFor and closedFor are how long ErrNotFound and ErrUnauthorized are cached: short, because content appears
	// and logins are corrected.
	absentFor = 10 * time.Second
	closedFor = time.Minute
)

// Store is the registry that has the repositories. Refresh and Fetch return its errors unchanged.
type Store interface {
	// Resolve returns what ref, a tag or a digest, names in a repository.
	Resolve(ctx context.Context, repo, ref string) (at Held, held bool, err error)
	// Record stores a manifest, unless it is nil and d is held, and makes the tag name it, unless that is empty. All of
	// that is one commit. Errors: storage.ErrNotFound, if it is nil and d is not held.
	Record(ctx context.Context, repo, tag string, d digest.Digest, m *upstream.Manifest) error
	// Parts returns what a manifest that a repository holds refers to, without layers that clients get from elsewhere,
	// and its size in bytes. held is false if the repository does not hold the manifest.
	Parts(ctx context.Context, repo string, d digest.Digest) (parts []Part, size int64, held bool, err error)
	// Use keeps a content from being evicted until release is called. The caller looks for it afterwards.
	Use(repo string, d digest.Digest) (release func())
	// Whole reports whether a manifest that a repository holds, and all that it consists of, is there.
	Whole(ctx context.Context, repo string, d digest.Digest) bool
	// Referrers returns the manifests of a repository whose subject is d, at most maxReferrers.
	Referrers(ctx context.Context, repo string, d digest.Digest) ([]digest.Digest, error)
}

// Held is what a repository has.
type Held struct {
	Digest digest.Digest
	// Pushed reports that the content was pushed or imported, and not fetched. The upstream is not asked about it.
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
	// Platforms are those for which an image must be here before a tag moves to it, see Upstream.MayRun, and for which
	// Run fetches. nil: all that the image has.
	Platforms []Platform
	// Report is called with each error of Run, and the upstream's name in the settings. Optional.
	Report func(upstream string, err error)
	// Context is used for what serves several clients; nil: context.Background().
	Context context.Context
}

// Mirror is safe for concurrent use. Make it with [New].
type Mirror struct {
	options Options
	asking  singleflight.Group           // by repository and reference
	answers *lru.Cache[question, answer] // bounded by maxRemembered
	context context.Context              // of what runs in the background; Close ends it
	close   context.CancelFunc
	ahead   chan struct{} // a place for each download of Fetch

	background sync.WaitGroup // images that are fetched so that tags can move; added to with mu held

	mu     sync.Mutex        // guards all below
	moving map[question]bool // the tags whose new image is being fetched, so that they can move; at most maxMoves
	// lists are the tags of repositories at their upstreams, which take listBytes.
	lists     *lru.Cache[string, tagList]
	listBytes int

	troubled *lru.Cache[string, trouble] // by host: when an upstream last failed or did not answer in time
}

// trouble is when an upstream has failed or not answered in time.
type trouble struct {
	at  time.Time
	err error // nil if it has not answered in time
}

// question is what an upstream is asked about: a tag, a digest or "blob " and a digest, of a repository here.
type question struct{ repo, ref string }

// answer is the last definite answer of an upstream.
type answer struct {
	at   time.Time
	err  error // nil: the upstream has it; a tag names what is held
	size int64 // of a blob that the upstream has; -1: it does not say
}

// New returns a Mirror that knows nothing yet.
func New(o Options) *Mirror {
	if o.Context == nil {
		o.Context = context.Background()
	}
	if o.Report == nil {
		o.Report = func(string, error) {}
	}
	answers, err := lru.New[question, answer](maxRemembered)
	lists, listsErr := lru.New[string, tagList](maxLists)
	troubled, troubledErr := lru.New[string, trouble](maxTroubled)
	if err != nil || listsErr != nil || troubledErr != nil {
		panic(err) // only for a size below 1
	}
	m := &Mirror{options: o, answers: answers, ahead: make(chan struct{}, maxAhead),
		moving: map[question]bool{}, lists: lists, troubled: troubled}
	m.context, m.close = context.WithCancel(o.Context)
	return m
}

// Close ends what runs in the background, and returns when it has ended. Reads go on; tags no longer move to images
// that have to be fetched.
func (m *Mirror) Close() {
	m.mu.Lock() // move looks at the context under this lock, so nothing begins after Wait
	m.close()
	m.mu.Unlock()
	m.background.Wait()
}

// Refresh makes sure that what ref, a tag or a digest, names in a repository is here as far as its upstream has it.
// Afterwards it is read as usual: it may still not be held, if the repository has no upstream. stale is not nil if what
// is held may not be what the upstream has, and says why. Errors, for what is not held: those of package upstream;
// those of the Store; that of the context.
func (m *Mirror) Refresh(ctx context.Context, repo, ref string) (stale, err error) {
	stale, err = m.refresh(ctx, repo, ref, patient{wait: patience})
	if to, ok := errors.AsType[*moved](stale); ok && !to.failed {
		m.move(question{repo, ref}, to)
	}
	return stale, err
}

// patient says how a refresh waits and what it takes for fresh.
type patient struct {
	// wait is how long to wait for the upstream if the content is held; 0: until the context is done, and the upstream
	// is asked again if the tag is known to have moved.
	wait time.Duration
	// age is how old an answer may be; 0: as fresh: says.
	age time.Duration
}

// refresh is Refresh, without fetching more than a manifest.
func (m *Mirror) refresh(ctx context.Context, repo, ref string, p patient) (stale, err error) {
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
	last, ok := m.answers.Get(q)
	if _, moves := errors.AsType[*moved](last.err); ok && last.counts(held, cmp.Or(p.age, up.Fresh)) &&
		(p.wait > 0 || !moves) {
		return either(held, last.err)
	}
	wait := p.wait
	before, ok := m.troubled.Get(up.Host)
	if recent := ok && time.Since(before.at) < troubledFor; !recent {
		before = trouble{}
	} else {
		wait = min(wait, time.Nanosecond) // it is asked nevertheless: it may answer again
	}
	done := m.asking.DoChan(repo+" "+ref, func() (any, error) {
		// Not cancelled with the client's context: others may wait for the same answer, and the next read uses what was
		// fetched.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
		defer cancel()
		err := m.ask(ctx, up, there, q)
		m.remember(q, err)
		if errors.Is(err, upstream.ErrUnavailable) {
			m.troubled.Add(up.Host, trouble{time.Now(), err})
		} else {
			m.troubled.Remove(up.Host)
		}
		return nil, err
	})
	var late <-chan time.Time // nil, and so never ready, if nothing is held that could be served instead
	if held && p.wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case r := <-done:
		return either(held, r.Err)
	case <-late:
		if wait == p.wait {
			m.troubled.Add(up.Host, trouble{time.Now(), before.err})
		}
		return &upstream.Error{Kind: upstream.ErrUnavailable, Host: up.Host, Repo: there, Ref: ref, Cause: before.err,
			Reason: "it has not answered within " + p.wait.String() + ", or has failed just before"}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// either returns err as the reason why held content is stale, or as the error for content that is not held.
func either(held bool, err error) (stale, failed error) {
	if held {
		return err, nil
	}
	return nil, err
}

// counts reports whether an answer is recent enough that the upstream need not be asked again. A positive one counts
// only while the content is held: it may have been evicted or deleted since.
func (a answer) counts(held bool, fresh time.Duration) bool {
	age := time.Since(a.at)
	to := (*moved)(nil)
	switch {
	case a.err == nil:
		return held && age < fresh
	case errors.As(a.err, &to) && !to.failed:
		return held && age < fresh
	case to != nil:
		return held && age < closedFor
	case errors.Is(a.err, upstream.ErrUnauthorized):
		return age < closedFor
	}
	return age < absentFor
}

// remember caches a definite answer. Other errors, such as ErrUnavailable, are not cached: the breaker of package
// upstream bounds how often an endpoint that fails is asked.
func (m *Mirror) remember(q question, err error) {
	_, definite := errors.AsType[*moved](err)
	if err == nil || definite || errors.Is(err, upstream.ErrNotFound) || errors.Is(err, upstream.ErrUnauthorized) {
		m.answers.Add(q, answer{at: time.Now(), err: err})
	}
}

// ask asks the upstream, and records what has changed. Errors: those of package upstream; those of the Store; *moved.
func (m *Mirror) ask(ctx context.Context, up *upstream.Upstream, there string, q question) error {
	up, end, err := up.Begin()
	if err != nil {
		return err
	}
	defer end()
	store := m.options.Store
	d, tag := digest.Digest(q.ref), ""
	if !isDigest(q.ref) {
		desc, err := up.Head(ctx, there, q.ref)
		if err != nil {
			return err
		}
		d, tag = desc.Digest, q.ref
		at, held, err := store.Resolve(ctx, q.repo, tag)
		if err != nil || held && (at.Digest == d || at.Pushed) {
			return err
		}
		if held && up.MayRun.HoldsTags() {
			return &moved{to: d, why: &upstream.Error{Kind: errMoved, Host: up.Host, Repo: there, Ref: tag,
				Reason: "it is " + d.String() + " there"}}
		}
	}
	if _, held, err := store.Resolve(ctx, q.repo, d.String()); err != nil || held {
		if err != nil || tag == "" { // another request has fetched it in the meantime
			return err
		}
		// Evicted or deleted since Resolve, it is fetched as if it had not been held.
		if err = store.Record(ctx, q.repo, tag, d, nil); !errors.Is(err, storage.ErrNotFound) {
			return err
		}
	}
	// By the digest of the HEAD: the tag may move between the two requests.
	found, err := up.Manifest(ctx, there, d.String())
	if err != nil {
		return err
	}
	return store.Record(ctx, q.repo, tag, d, &found)
}

// isDigest reports whether ref is a digest: no tag has a colon.
func isDigest(ref string) bool { return digest.Digest(ref).Validate() == nil }
