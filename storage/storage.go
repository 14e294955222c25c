// Package storage keeps what the registry holds: content, and facts about it.
//
// # Words
//
//   - blob: immutable bytes, known by their digest. Layers, configs and manifests are all blobs.
//   - fact: a durable statement about a repository: a link (the repository holds a blob), a manifest (it holds a blob
//     as a manifest of this media type), a tag (a name of one of its manifests).
//   - repo: a repository's name, as in the OCI distribution spec. It exists as long as a fact names it.
//   - ref: a tag or a digest, which names a manifest within a repo.
//   - [Blobs]: the engine for bytes. [Journal]: the engine for facts, durable and ordered.
//   - [Index]: the state that the Journal's facts add up to, in memory. Facts are read only from it, and changed only
//     through [Index.Update].
//   - present: a content that a repo links as a blob or records as a manifest. Its bytes must be in Blobs.
//   - referenced: a content that a manifest of a repo refers to. It need not be present: a foreign layer, and a child
//     of a sparse index, are elsewhere.
//   - condemned: bytes that the [Collector] is about to delete. No fact can start to name them until they are deleted.
//   - quarantined: present content whose bytes were found damaged or missing. It is not served until it is pushed
//     again.
//   - pin, lease: what keeps the Collector from content that a client is about to name; see [Index.Pin], [Index.Lease].
//   - quota: how many bytes some repos may hold together; see [Tx.Excess].
//   - limit: how many repos, and tags of a repo, there may be, and how much memory the Index may take; see [Limits].
//   - history: what a tag names, and named before, with the times and the identities that set it; see [Index.History].
//   - place: the name of the object that has the bytes of a content, where an engine does not find them by digest;
//     see [Placed].
//   - record: a small value by name, such as the state of an upload that continues in later requests; see
//     [Index.Record].
//   - shared: of a journal, that several processes write to it; see [Traits].
//   - lead: to be the one process that does a task. fence: a condition of the commits of that task, which refuses them
//     once another process may lead; see [Leads].
//   - revision: the number of a commit in the Journal. batch: the changes to one repo in a commit.
//
// # Invariants
//
//  1. Bytes may outlive facts; facts that make content present never outlive its bytes, except that damage is recorded
//     as a fact of its own. The order of a write is: bytes, then facts, then the answer. Only the Collector deletes
//     bytes.
//  2. What was acknowledged is durable: fsync of the file, rename, fsync of the directory, commit of the journal.
//  3. A blob or manifest is visible in a repo only through that repo's own fact.
//  4. A tag names a manifest of the same repo; both are committed in one batch.
//  5. A client that got the answer to a write sees that write.
//  6. A miss is confirmed with the Journal before it is reported; a hit may be a moment stale (only with a Journal that
//     other processes write to).
//  7. No lock that readers take is held across I/O, so a hit never waits for an engine.
//
// # Engines
//
// Packages disk and bolt keep a data directory on one machine. Package s3 keeps bytes in an S3-compatible service, and
// package etcd keeps facts in etcd; several processes may share them. Package memory serves tests. Package storagetest
// has the suites that each engine must pass. An engine knows nothing of registries.
//
// # What it does not do
//
// It knows neither HTTP nor the OCI media types, and it does not decide who may do what.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/opencontainers/go-digest"
)

// Errors that the engines and the Index return, wrapped with the operation. Compare with [errors.Is].
var (
	// ErrNotFound: the blob, the upload or the manifest does not exist.
	ErrNotFound = errors.New("not found")
	// ErrDigest: the bytes do not have the expected digest, or the digest is malformed or of an algorithm that is not
	// supported.
	ErrDigest = errors.New("digest does not match")
	// ErrOffset: an upload does not end where the caller wants to continue.
	ErrOffset = errors.New("upload does not end at this offset")
	// ErrConflict: the repo was changed after the batch's base, a condition does not hold, or the repo has an upload of
	// this ID. Nothing was committed.
	ErrConflict = errors.New("repository was changed meanwhile")
	// ErrFull: there is no space left for the bytes.
	ErrFull = errors.New("no space left on the storage")
	// ErrReadOnly: the storage cannot be written to, or was opened only to read. Reads work.
	ErrReadOnly = errors.New("the storage is read-only")
	// ErrBusy: more is in progress than the configuration allows. Nothing was changed; a later attempt can succeed.
	ErrBusy = errors.New("too much in progress")
	// ErrLimit: the change adds a name beyond one of the Limits; a *LimitError says which. Nothing was changed.
	ErrLimit = errors.New("limit reached")
	// ErrTooLarge: the change does not fit into one commit of the Journal; see Traits. Nothing was changed.
	ErrTooLarge = errors.New("the change is too large for one commit")
	// ErrUnavailable: the service behind an engine does not answer, so that a miss is not certain. A later attempt can
	// succeed.
	ErrUnavailable = errors.New("the service does not answer")
	// ErrExpired: an upload has taken so long that its bytes may have been removed. Send them again.
	ErrExpired = errors.New("the upload took too long")
	// ErrSuspicious: work was stopped because it found more wrong than is likely without a mistake, such as a Journal
	// and Blobs that do not belong together. An administrator must look at it, and can let the work go on.
	ErrSuspicious = errors.New("stopped: this is more likely a mistake than damage")
	// ErrClosed: the engine was closed, or another writer has taken the upload over.
	ErrClosed = errors.New("closed")
	// ErrDamaged: the journal's data cannot be read as it was written. The server does not start with it; trow rebuild
	// makes a new journal.
	ErrDamaged = errors.New("the journal is damaged")
)

// BlobInfo is what is known of a blob without reading it.
type BlobInfo struct {
	Digest  digest.Digest
	Size    int64     // bytes
	ModTime time.Time // when the bytes were last committed
}

// Blobs keeps immutable content by digest. Implementations are safe for concurrent use.
//
// An engine whose readers return errors of the operating system may have a method Lost(error) bool as well. It reports
// whether such an error means that the bytes cannot be read any more, so that a [Scrubber] quarantines them; other
// errors may pass.
type Blobs interface {
	// Stat looks a blob up. Errors: ErrNotFound, ErrDigest for a malformed digest.
	Stat(ctx context.Context, d digest.Digest) (BlobInfo, error)
	// Open opens a blob for reading; the caller closes it. On disk it is an *os.File, so that sendfile applies. Errors:
	// as Stat.
	Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error)
	// Room returns ErrFull or ErrReadOnly when Create and CreateAs would, so that a client hears it before it sends any
	// bytes.
	Room(ctx context.Context) error
	// Create starts an upload in a repo that the caller itself ends: its number is bounded by that of the requests. alg
	// is the algorithm that the digest will probably have; with another one, Commit has to read the bytes again.
	// Errors: ErrDigest for an unsupported algorithm, ErrFull, ErrReadOnly.
	Create(ctx context.Context, repo string, alg digest.Algorithm) (Upload, error)
	// CreateAs is Create for an upload that stays for later requests, under an ID that the caller has made: a UUID in
	// lower case. How many there are may be bounded. Errors: as Create, ErrBusy at the bound, ErrConflict if the repo
	// has an upload of this ID, ErrNotFound for an ID that is not a UUID.
	CreateAs(ctx context.Context, repo, id string, alg digest.Algorithm) (Upload, error)
	// Resume continues an upload of this repo at offset, which must be where it ended; -1 stands for wherever that is.
	// It ends an earlier writer of the same upload, whose calls then return ErrClosed. Errors: ErrNotFound (also for an
	// upload of another repo), ErrOffset (the upload is kept).
	Resume(ctx context.Context, repo, id string, offset int64) (Upload, error)
	// Expire drops the uploads that have been idle since before, and returns the bytes freed.
	Expire(ctx context.Context, before time.Time) (int64, error)
	// Delete removes a blob. The caller has made sure that no fact names it. Errors: ErrNotFound.
	Delete(ctx context.Context, d digest.Digest) error
	// All lists every blob, in no order.
	All(ctx context.Context) iter.Seq2[BlobInfo, error]
}

// Upload is one blob in the making, invisible until Commit. It has a single writer at a time and ends with exactly one
// of Commit, Cancel and Close; a Close after one of the others does nothing.
type Upload interface {
	// Write appends. Errors: ErrFull, ErrClosed.
	io.Writer
	// ID names the upload for Resume; a UUID.
	ID() string
	// Size is the number of bytes received so far.
	Size() int64
	// Commit verifies the bytes against d and makes the blob durable and visible. It replaces bytes of d that exist
	// already, so pushing again heals a damaged blob. Errors: ErrDigest (the upload is dropped), ErrFull, ErrClosed.
	Commit(ctx context.Context, d digest.Digest) error
	// Cancel drops the upload and its bytes.
	Cancel(ctx context.Context) error
	// Close keeps the upload for a later Resume.
	Close(ctx context.Context) error
}

// Revision numbers the commits of a Journal, from 1. The revision of a repo is that of the last batch for it that was
// not Detached; it is 0 if there is no such batch, or if that one had Ends set.
type Revision uint64

// Kind is the kind of a fact.
type Kind byte

// The kinds of facts. The letters are part of the data format. Names of links and manifests are digests in binary form,
// names of tags are their text, and names in a history start with that of the tag and a zero byte. The kinds that are
// not exported are of facts about content itself, see storeRepo.
const (
	KindLink     Kind = 'b'
	KindManifest Kind = 'm'
	KindTag      Kind = 't'
	KindHistory  Kind = 'h' // what a tag names, or named before; see Index.History

	KindDeparted Kind = 'd' // what a deleted manifest consisted of; see departed.go

	// KindLead is the kind of conditions alone, see Leads: no batch sets such a fact, and no Watch delivers one.
	KindLead Kind = 'l'

	kindCondemned   Kind = 'c'
	kindQuarantined Kind = 'q'
	kindPlace       Kind = 'o' // which object has the bytes of a content; see placed.go
	kindRecord      Kind = 'r' // a value by name; see record.go
)

// storeRepo stands in for a repo's name in facts about content itself, whichever repos hold it. No repository can have
// this name.
const storeRepo = "_"

// Fact is one fact about a repo, or its end: a nil Value deletes it. Only the Index knows what a Value contains.
//
// The history of a tag ends as a whole: a fact of KindHistory whose name ends with a zero byte, and whose Value is nil,
// deletes all facts of KindHistory of the repo whose names start with it. No other fact of a batch is among them.
type Fact struct {
	Kind  Kind
	Name  string
	Value []byte
}

// Batch is a set of changes to one repo that is committed as a whole.
type Batch struct {
	Repo string
	Base Revision // the repo's revision that the changes are based on
	// Detached: the batch neither compares Base nor changes the repo's revision, so that it does not conflict with
	// other changes of the repo. It depends on its conditions alone.
	Detached bool
	// Ends: the batch leaves no fact of the repo, and its revision becomes 0. A Detached batch that is committed
	// meanwhile may add one; the repo then has a fact, and the revision 0.
	Ends  bool
	If    []Fact // conditions: facts of the repo that must have this Value, or not exist if it is nil
	Facts []Fact // each kind and name once; an engine keeps the order for its watchers
}

// ConflictError is an ErrConflict that says which batches were in conflict, so that only these are made anew.
type ConflictError struct {
	Repos []string // of the batches, without repetition
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%v: %.200q", ErrConflict, e.Repos)
}

func (e *ConflictError) Unwrap() error { return ErrConflict }

// Traits are what the Index has to know of a Journal.
type Traits struct {
	// Shared: other processes may write to the Journal as well. The Index then relies on conditions instead of on its
	// one committer, and confirms a miss before it reports it.
	Shared bool
	// Compares, Operations and Bytes bound one Commit; 0 means that there is no bound. Each batch that is not Detached
	// takes one compare and one operation, each condition one compare, and each fact one operation. Bytes are those of
	// repos, names and values of facts and conditions.
	Compares, Operations, Bytes int
}

// Update is what Watch delivers: a part of the full state, in which each Base is its repo's revision, or a commit.
type Update struct {
	Revision Revision // of the commit; of the full state, it is known from the last part on
	Batches  []Batch
	Synced   bool // the last part of the full state; what follows are commits
	// Restored counts, in the last part of the full state, how often the engine has noticed since it was opened that an
	// older or another journal has taken the place of this one. Whichever call has noticed it, each watcher learns of
	// it.
	Restored int
}

// Journal keeps facts, durably and in order. It has no unconditional write. Implementations are safe for concurrent
// use.
type Journal interface {
	// Traits returns what is always true of the engine.
	Traits() Traits
	// Commit makes the batches durable, all or nothing, under one new revision; at most one batch per repo. It returns
	// a *ConflictError unless each Base is its repo's revision and each condition holds. After any other error the
	// outcome is unknown: the caller loads the full state through a new Watch before the next Commit. A Commit without
	// a batch ensures that everything that a Watch has delivered is durable.
	Commit(ctx context.Context, b ...Batch) (Revision, error)
	// Watch calls apply with the full state, in parts of which the last has Synced set, and then with every commit, in
	// order and without gaps, one call at a time. It returns apply's error, or ctx's error when ctx ends. A local
	// journal calls apply before Commit returns. Of a commit, a watcher gets Repo, Detached, Ends and Facts, not Base
	// and If.
	Watch(ctx context.Context, apply func(Update) error) error
	// Head returns the revision of the last commit.
	Head(ctx context.Context) (Revision, error)
	// History returns the facts of KindHistory of a repo whose names start with prefix, by name. The full state that
	// Watch delivers leaves them out: nothing holds them in memory.
	History(ctx context.Context, repo, prefix string) ([]Fact, error)
}
