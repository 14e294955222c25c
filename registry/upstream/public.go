package upstream

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"trow/registry/auth"
	"trow/registry/namespace"
	"trow/storage"
)

// This file decides who may read the held content of an upstream without read:: everybody, if the upstream itself
// serves it without a login. If no endpoint has a login, that is true for all held content. Otherwise the upstream gets
// a request without the login for each repository, and the answer counts for a day, for the endpoints that were asked.
//
// Settings change, and what is held stays: it may have come with a login, or from a time in which read: decided. So a
// host, or a path there, that has had one of these is asked about as well, also where it has no login any more.

const (
	// knownFor is how long it is remembered whether a repository is public.
	knownFor = 24 * time.Hour
	// absentFor is how long a 404 without the login counts, for that content alone. It says little about the
	// repository: GitHub and GitLab answer 404 for private ones, and a tag may be misspelled.
	absentFor = 10 * time.Second
	// believedFor is how long an expired answer counts once more if the upstream cannot be asked.
	believedFor = time.Minute
	// maxKnown bounds the answers in memory, because clients choose the names.
	maxKnown = 100_000
	// maxPublic bounds the records of public repositories in the journal, which count after a restart.
	maxPublic = 10_000
	// learnTime bounds one question; learnPatience is how long a reader waits for it if the last answer was yes.
	learnTime     = 30 * time.Second
	learnPatience = 2 * time.Second
)

const (
	// publicRecord begins the names of the records of public repositories; the local name follows. The value is
	// Upstream.source.
	publicRecord = "upstream/public/"
	// closedRecord begins the names of the records of upstreams that have had a login or read:; the title follows. The
	// value is "1".
	closedRecord = "upstream/closed/"
	// recordTime bounds the writing of these: it is done when the server starts, and when the settings change.
	recordTime = 10 * time.Second
)

// Records are the facts of the journal that say which repositories are public. A storage.Index has these methods.
type Records interface {
	Records(prefix string) iter.Seq2[string, []byte]
	SetRecord(ctx context.Context, name string, old, value []byte) error
	// CachedContents lists what of a repository came from its upstream.
	CachedContents(repo string) []storage.CachedContent
}

// everybody and nobody are results of Readers.
var (
	everybody = func() auth.Who {
		who, err := auth.ParseWho([]string{"*"})
		if err != nil {
			panic(err)
		}
		return who
	}()
	nobody = auth.Who{}
)

// publicity is what is known about who may read the repositories of upstreams with a login.
type publicity struct {
	asking  singleflight.Group
	answers *lru.Cache[string, verdict] // by key; also by that, a space and what was not found
	// closed are the titles of upstreams that have had a login or read:, in the settings since the start or by the
	// records.
	closed atomic.Pointer[map[string]bool]

	mu      sync.Mutex // guards what follows; held while a record is written, so that map and journal agree
	records Records    // nil: nothing is kept
}

// key is that of the answers about a repository, for the endpoints that were asked.
func (u *Upstream) key(local string) string { return local + " " + u.source }

// verdict is one answer.
type verdict struct {
	public bool
	until  time.Time
}

func newPublicity() *publicity {
	answers, err := lru.New[string, verdict](maxKnown)
	if err != nil {
		panic(err) // only for a size below 1
	}
	p := &publicity{answers: answers}
	p.closed.Store(&map[string]bool{})
	return p
}

// close notes the titles of upstreams that have a login or read:, also in the records. An error there is ignored, and
// the record written with the next change, or at the next start.
func (p *publicity) close(titles map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := maps.Clone(*p.closed.Load())
	maps.Copy(all, titles)
	if p.records != nil {
		ctx, cancel := context.WithTimeout(context.Background(), recordTime)
		defer cancel()
		recorded := map[string]bool{}
		for name := range p.records.Records(closedRecord) {
			recorded[strings.TrimPrefix(name, closedRecord)] = true
		}
		for title := range all {
			if !recorded[title] {
				_ = p.records.SetRecord(ctx, closedRecord+title, nil, []byte("1"))
			}
		}
		maps.Copy(all, recorded)
	}
	p.closed.Store(&all)
}

// asks reports whether an upstream is asked who may read a repository there.
func (p *publicity) asks(u *Upstream, repo string) bool {
	if u.hasLogin() {
		return true
	}
	for title := range *p.closed.Load() {
		if host, path, _ := strings.Cut(title, "/"); host == u.Host && below(repo, path) {
			return true
		}
	}
	return false
}

// Load gives the Upstreams their records. What they say counts only while an upstream cannot be asked.
func (u *Upstreams) Load(r Records) {
	p := u.public
	p.mu.Lock()
	p.records = r
	p.mu.Unlock()
	p.close(nil)
}

// recorded returns the record of a repository, nil if there is none, and how many records there are. Other replicas
// write them as well. The caller holds mu.
func (p *publicity) recorded(local string) (value []byte, n int) {
	if p.records == nil {
		return nil, 0
	}
	for name, v := range p.records.Records(publicRecord) {
		n++
		if name == publicRecord+local {
			value = v
		}
	}
	return value, n
}

// now returns the answer for a key; ok is false if there is none, or it has expired.
func (p *publicity) now(key string) (public, ok bool) {
	k, ok := p.answers.Get(key)
	ok = ok && time.Now().Before(k.until)
	return ok && k.public, ok
}

// holds reports whether a repository has content of an upstream.
func (p *publicity) holds(local string) bool {
	p.mu.Lock()
	r := p.records
	p.mu.Unlock()
	return r != nil && namespace.Within(local) && len(r.CachedContents(local)) > 0
}

// before reports whether a repository was public by the last answer of the same endpoints, however old.
func (p *publicity) before(u *Upstream, local string) bool {
	if k, ok := p.answers.Get(u.key(local)); ok {
		return k.public
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	source, _ := p.recorded(local)
	return string(source) == u.source
}

// believe lets the last answer, which was yes, count once more.
func (p *publicity) believe(key string) {
	p.answers.Add(key, verdict{true, time.Now().Add(believedFor)})
}

// learned remembers an answer, and records a change in the journal. An error there is ignored: without a record, an
// upstream that cannot be asked after a restart is not believed to be public.
func (p *publicity) learned(ctx context.Context, u *Upstream, local string, public bool) {
	p.answers.Add(u.key(local), verdict{public, time.Now().Add(knownFor)})
	p.mu.Lock()
	defer p.mu.Unlock()
	old, n := p.recorded(local)
	var value []byte
	if public {
		value = []byte(u.source)
	}
	if p.records == nil || bytes.Equal(old, value) || old == nil && n >= maxPublic {
		return
	}
	_ = p.records.SetRecord(ctx, publicRecord+local, old, value) // a conflict: another replica has learned it as well
}

// Readers implements auth.Readers. It returns read: of the upstream; without that, everybody if the upstream has no
// login, or Learn has found that it serves the repository without one; and otherwise nobody.
func (u *Upstreams) Readers(local string) (who auth.Who, upstream string, ok bool) {
	up, repo := u.of(local)
	switch {
	case up == nil && u.public.holds(local): // of an upstream that the settings no longer name: who may is not known
		return nobody, local, true
	case up == nil:
		return nil, "", false
	case len(up.Read) > 0:
		return up.Read, up.Title(), true
	}
	public := !u.public.asks(up, repo)
	if !public {
		public, _ = u.public.now(up.key(local))
	}
	if public {
		return everybody, up.Title(), true
	}
	return nobody, up.Title(), true
}

// Restricted reports whether Readers may decide about any repository.
func (u *Upstreams) Restricted() bool {
	return len(*u.now.Load()) > 0 || u.config.Any || len(*u.public.closed.Load()) > 0
}

// Learn makes sure that Readers knows whether everybody may read a repository, and asks the upstream if needed. kind
// and ref are what a client reads there: manifests and a tag or a digest, or blobs and a digest; for other kinds, the
// list of tags is asked for. While the upstream cannot be asked, the last answer counts if it was that everybody may.
// Errors: the upstream cannot be asked now (ErrUnavailable), or refuses; that of the context.
func (u *Upstreams) Learn(ctx context.Context, local, kind, ref string) error {
	up, repo := u.of(local)
	if up == nil || len(up.Read) > 0 || !u.public.asks(up, repo) {
		return nil
	}
	method := http.MethodHead
	if kind != "manifests" && kind != "blobs" {
		method, kind, ref = http.MethodGet, "tags", "list?n=1"
	}
	p, key := u.public, up.key(local)
	one := key + " " + kind + "/" + ref
	if _, ok := p.now(key); ok {
		return nil
	}
	if _, ok := p.now(one); ok {
		return nil
	}
	done := p.asking.DoChan(one, func() (any, error) {
		// Not cancelled with the client's context: others may wait for the same answer.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), learnTime)
		defer cancel()
		up, end, err := up.Begin()
		if err != nil {
			return nil, err
		}
		defer end()
		err = up.askAnonymously(ctx, request{method: method, repo: repo, kind: kind, ref: ref, header: accepts()})
		switch {
		case err == nil:
			p.learned(ctx, up, local, true)
		case errors.Is(err, ErrUnauthorized):
			p.learned(ctx, up, local, false)
		case errors.Is(err, ErrNotFound):
			p.answers.Add(one, verdict{false, time.Now().Add(absentFor)})
		case p.before(up, local):
			p.believe(key)
		default:
			return nil, err
		}
		return nil, nil
	})
	var late <-chan time.Time // nil, and so never ready, if there is no last answer that could count instead
	if p.before(up, local) {
		timer := time.NewTimer(learnPatience)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case r := <-done:
		return r.Err
	case <-late: // the upstream goes on being asked, and its answer counts from then on
		if _, ok := p.now(key); !ok { // it has not just come
			p.believe(key)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// of returns the upstream of a repository, and the repository's name there; nil if it has none. One that the settings
// exclude (allow:, deny:) still has its upstream: held content is read by the same rules.
func (u *Upstreams) of(local string) (*Upstream, string) {
	n, ok := u.config.Names.Upstream(local)
	if !ok || !namespace.Within(local) {
		return nil, ""
	}
	up, repo, err := u.Find(n.Host, n.Repo)
	if err != nil && up == nil {
		return nil, ""
	}
	return up, repo
}

// askAnonymously returns nil if every endpoint with a login serves something without it as well: held content may be
// from any of them. If none has a login any more, one that serves it is enough. Errors: *Error.
func (u *Upstream) askAnonymously(ctx context.Context, r request) error {
	r.anonymous = true
	if !u.hasLogin() {
		resp, err := u.ask(ctx, r)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := u.mayAsk(r); err != nil {
		return err
	}
	for _, e := range u.endpoints {
		if e.login == e.anonymous {
			continue
		}
		resp, failure := e.askWithin(ctx, answerTime, r)
		if failure != nil {
			failure.Host, failure.Repo, failure.Ref = u.Host, r.repo, r.ref
			return failure
		}
		resp.Body.Close()
	}
	return nil
}

// hasLogin reports whether an endpoint has a login.
func (u *Upstream) hasLogin() bool {
	for _, e := range u.endpoints {
		if e.login != e.anonymous {
			return true
		}
	}
	return false
}
