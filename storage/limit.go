package storage

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage/internal/slab"
)

// Limits bound what an Index holds; a limit of 0 bounds nothing. They are asked of new names alone: repos, tags,
// manifests and links. Whatever is stored already loads, and can be read, retagged in place and deleted, also above a
// limit, so that a limit that is lowered, or was exceeded by an earlier version, loses nothing.
type Limits struct {
	Tags  int   // of one repo
	Repos int   // all together
	Bytes int64 // of memory that the Index takes, as estimated
}

// Limit is one of the Limits.
type Limit int

// The limits.
const (
	LimitTags Limit = iota
	LimitRepos
	LimitBytes
)

// LimitError is the error of a change that adds a name beyond a limit. It wraps [ErrLimit].
type LimitError struct {
	Limit Limit
	Max   int64 // the limit
	Cache bool  // the change is about cached content, see [Tx.ForCache]
}

func (e *LimitError) Error() string {
	what := [...]string{"tags in this repository", "repositories", "bytes of memory for the index"}[e.Limit]
	return fmt.Sprintf("%v: at most %d %s", ErrLimit, e.Max, what)
}

func (e *LimitError) Unwrap() error { return ErrLimit }

// spare divides the limits of repos and bytes: cached content leaves that part of them to what is pushed. A client that
// may pull through an upstream chooses what is cached, and no bound of its bytes bounds its names.
const spare = 4

// ForCache says that the change is about cached content. Call it before anything else.
func (tx *Tx) ForCache() { tx.forCache = true }

// Load is what an Index holds of its Limits.
type Load struct {
	Limits Limits
	Repos  int
	Bytes  int64 // of memory, as estimated
	// Refused is when a change was last refused because of a limit; zero: never.
	Refused map[Limit]time.Time
}

// Load returns what the Index holds of its limits.
func (x *Index) Load() Load {
	l := Load{Limits: x.options.Limits, Refused: map[Limit]time.Time{}}
	for i := range x.refused {
		if at := x.refused[i].Load(); at != 0 {
			l.Refused[Limit(i)] = time.Unix(0, at)
		}
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	l.Bytes, l.Repos = x.state.memory, x.state.repoCount()
	return l
}

// refusals are the Unix nanoseconds of the last refusal, by Limit.
type refusals [LimitBytes + 1]atomic.Int64

// What a state takes of memory for each of its parts, in bytes. They are the sizes of the records, with their slots in
// slabs, their places in tables, maps and ordered sets, and the share of these that is free on average. A test compares
// them with the heap; records of one kind may differ from it by a fifth.
const (
	memRepo         = 270 // with its places in the map and the catalog, and a table for a few entries
	memFirstTag     = 70  // in a repo: the table and the ordered set
	memTag          = 81  // without its name
	memContent      = 69  // with its place in the table
	memTail         = 56  // of a sha512
	memHalf         = 56  // of a sha512 of a manifest
	memEntry        = 33  // with its place in the table
	memManifest     = 64  //
	memRef          = 4   // of a manifest
	memFirstSubject = 280 // in a repo: the map
	memSubject      = 58  //
	memReferrer     = 5   //
	memWaiting      = 60  // a link of a waiting repo, beside its entry
	memType         = 48  // a media type that is kept once, without its text
)

// memText is what a text takes: strings are allocated in steps of 16 bytes.
func memText(n int) int64 { return int64((n + 15) &^ 15) }

func memOfRepo(name string) int64 { return memRepo + memText(len(name)) }

func memOfTag(name string) int64 { return memTag + memText(len(name)) }

// memOfManifest is about the record alone; entries and contents of what it refers to count where they are added.
func (s *state) memOfManifest(mediaType string, refs int) int64 {
	n := memManifest + int64((refs*memRef+15)&^15)
	if _, shared := s.types[mediaType]; !shared {
		n += memText(len(mediaType))
	}
	return n
}

// memOfReferrer is what a referrer of a subject adds to a repo whose map does not have it yet.
func memOfReferrer(r *repo, subject slab.ID) (n int64) {
	if len(r.referrers) == 0 {
		n += memFirstSubject
	}
	if len(r.referrers[subject]) == 0 {
		n += memSubject
	}
	return n + memReferrer
}

func memOfContent(keyLen int) int64 {
	if keyLen > shortKey {
		return memContent + memTail
	}
	return memContent
}

// repoCount returns the number of repos.
func (s *state) repoCount() int {
	n := len(s.repos) - s.waitingRepos
	if s.repos[storeRepo] != nil {
		n--
	}
	return n
}

// memOfNew returns what a name for the content k in the repo adds: an entry, and the content if no repo knows it.
func (s *state) memOfNew(r *repo, k []byte) (n int64) {
	if r == nil || s.find(r, k) == 0 {
		n += memEntry
	}
	if s.lookup(k) == 0 {
		n += memOfContent(len(k))
	}
	return n
}

// adding is what the changes of one commit add so far. Only the committer uses it.
type adding struct {
	repos int
	bytes int64
	tags  map[string]int // by repo
}

// ask refuses the change if it adds more than the limits leave: bytes, and tags new tags, of a repo that may be new as
// well. What earlier changes of the same commit add counts, so that concurrent pushes do not exceed a limit together;
// what they delete counts once it is committed.
func (tx *Tx) ask(tags int, bytes func(s *state, r *repo) int64) {
	limits := tx.x.options.Limits
	if limits == (Limits{}) {
		return
	}
	if tx.forCache {
		limits.Repos -= limits.Repos / spare
		limits.Bytes -= limits.Bytes / spare
	}
	a := tx.adding
	tx.x.mu.RLock()
	s := tx.x.state
	r := s.repos[tx.repo]
	held, repos, memory, add := 0, s.repoCount()+a.repos, s.memory+a.bytes+tx.adds.bytes, bytes(s, r)
	if r != nil {
		held = r.tags.Len()
	}
	tx.x.mu.RUnlock()
	newRepo := r == nil && len(tx.pending) == 0 && tx.adds.repos == 0
	if newRepo {
		add += memOfRepo(tx.repo)
	}
	switch {
	case newRepo && limits.Repos > 0 && repos >= limits.Repos:
		tx.exceed(LimitRepos, int64(limits.Repos))
	case tags > 0 && limits.Tags > 0 && held+a.tags[tx.repo]+tx.adds.newTags+tags > limits.Tags:
		tx.exceed(LimitTags, int64(limits.Tags))
	case limits.Bytes > 0 && memory+add > limits.Bytes:
		tx.exceed(LimitBytes, limits.Bytes)
	}
	if newRepo {
		tx.adds.repos = 1
	}
	tx.adds.newTags += tags
	tx.adds.bytes += add
}

// adds is what one change adds.
type adds struct {
	repos, newTags int
	bytes          int64
}

func (tx *Tx) exceed(l Limit, most int64) {
	if !tx.forCache || l == LimitTags { // otherwise there is room for what is pushed
		tx.x.refused[l].Store(time.Now().UnixNano())
	}
	if tx.limited == nil {
		tx.limited = &LimitError{l, most, tx.forCache}
	}
}

// take counts what a change adds that will be committed.
func (a *adding) take(repo string, c adds) {
	a.repos += c.repos
	a.bytes += c.bytes
	if c.newTags > 0 {
		if a.tags == nil {
			a.tags = map[string]int{}
		}
		a.tags[repo] += c.newTags
	}
}

func (tx *Tx) askLink(k key) {
	var buf [maxKey]byte
	tx.ask(0, func(s *state, r *repo) int64 {
		if k == "" { // it is not known yet
			return memEntry + memContent
		}
		return s.memOfNew(r, append(buf[:0], k...))
	})
}

func (tx *Tx) askManifest(m *Manifest) {
	tx.ask(0, func(s *state, r *repo) int64 {
		var buf [maxKey]byte
		n := s.memOfManifest(m.MediaType, len(m.Refs)) + s.memOfNew(r, appendKey(buf[:0], string(m.Digest)))
		if m.Digest.Algorithm() == digest.SHA512 {
			n += memHalf
		}
		for _, d := range m.Refs {
			n += s.memOfNew(r, appendKey(buf[:0], string(d)))
		}
		if m.Subject != "" {
			n += memFirstSubject + memSubject + memReferrer + memContent
		}
		return n
	})
}

func (tx *Tx) askTag(name string) {
	tx.ask(1, func(_ *state, r *repo) int64 {
		if r == nil || r.tags.Len() == 0 {
			return memFirstTag + memOfTag(name)
		}
		return memOfTag(name)
	})
}

// Room reports whether a link to d would be beyond a limit, so that no bytes are taken for nothing. d may be empty if
// it is not known yet. Errors: *LimitError.
func (tx *Tx) Room(d digest.Digest) error {
	if tx.Linked(d) {
		return nil
	}
	t := *tx // a copy: what it counts is dropped
	t.askLink(keyOf(d))
	return t.exceeded()
}

// Fits reports whether PutManifest and SetTag of these tags would be beyond a limit. Errors: *LimitError.
func (tx *Tx) Fits(m Manifest, tags ...string) error {
	t := *tx
	if _, held := tx.Manifest(m.Digest); !held {
		t.askManifest(&m)
	}
	for i, name := range tags {
		if _, ok := tx.Tag(name); !ok && !slices.Contains(tags[:i], name) {
			t.askTag(name)
		}
	}
	return t.exceeded()
}

// exceeded returns the limit that the change exceeds.
func (tx *Tx) exceeded() error {
	if tx.limited == nil {
		return nil // not a nil *LimitError, which would be an error
	}
	return tx.limited
}
