// Package storage keeps what the registry holds: content, and facts about it.
//
// # Words
//
//   - blob: immutable bytes, known by their digest. Layers, configs and manifests are blobs alike.
//   - fact: a durable statement about a repository: a link (the repository holds a blob), a manifest
//     (it holds a blob as a manifest, of this media type), a tag (a name for one of its manifests).
//   - repo: a repository's name, as in the OCI distribution spec. It exists as long as a fact names it.
//   - ref: a tag or a digest, whatever names a manifest within a repo.
//   - [Blobs]: the engine for bytes. [Journal]: the engine for facts, durable and ordered.
//   - [Index]: the state that the Journal's facts add up to, in memory. The only thing anybody reads
//     facts from, and the only way to change them ([Index.Update]).
//   - present: a content that a repo has a link to, or records as a manifest. Its bytes must be there.
//   - referenced: a content that a manifest of a repo refers to. It may be elsewhere, such as a foreign layer.
//   - condemned: bytes that the [Collector] is about to delete. Nothing can begin to name them until it has.
//   - quarantined: content whose bytes were found damaged or missing. It is not told to be there, until pushed again.
//   - pin, lease: what keeps the Collector off content that somebody is about to name; see [Index.Pin], [Index.Lease].
//   - quota: how many bytes some repos may hold together; whoever changes them asks, see [Tx.Excess].
//   - revision: the number of a commit in the Journal. A batch: the changes to one repo in a commit.
//
// # Invariants
//
//  1. Bytes may outlive facts; facts never outlive bytes (that they were found damaged is a fact of its own). Write
//     bytes, then facts, then answer. Only the Collector deletes bytes.
//  2. What was answered with success is durable: file fsync, rename, directory fsync, journal commit.
//  3. A blob or manifest is visible in a repo only through that repo's own fact.
//  4. A tag names a manifest of the same repo; both go in one batch.
//  5. Whoever got an answer to a write sees that write.
//  6. A miss is confirmed with the Journal before it is told; a hit may be a moment stale
//     (only with a Journal that other processes write to).
//  7. No reader waits for an engine: no lock that readers take is held across I/O.
//
// # Engines
//
// [Disk] and [Bolt] keep a data directory on one machine, [Memory] and [MemoryJournal] serve tests. Package
// storagetest has the suite each engine must pass. An engine knows nothing of registries.
//
// # What it does not do
//
// It knows neither HTTP nor the OCI media types, and it decides nothing about who may do what.
package storage

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"github.com/opencontainers/go-digest"
)

// Errors that the engines and the Index return, wrapped with the operation. Compare with [errors.Is].
var (
	// ErrNotFound: the blob, the upload or the manifest is not there.
	ErrNotFound = errors.New("not found")
	// ErrDigest: the bytes do not have the digest that was promised, or the digest is malformed or of an
	// algorithm that is not supported.
	ErrDigest = errors.New("digest does not match")
	// ErrOffset: an upload does not end where the caller means to go on.
	ErrOffset = errors.New("upload does not end at this offset")
	// ErrConflict: somebody else changed the repo since the batch's base. Nothing was committed.
	ErrConflict = errors.New("repository changed meanwhile")
	// ErrFull: there is no space left for the bytes.
	ErrFull = errors.New("no space left on the storage")
	// ErrBusy: more is under way than the configuration allows. Nothing was changed; later it will work.
	ErrBusy = errors.New("too much is under way")
	// ErrClosed: the engine was closed, or another writer has taken the upload over.
	ErrClosed = errors.New("closed")
)

// BlobInfo says what is known of a blob without reading it.
type BlobInfo struct {
	Digest  digest.Digest
	Size    int64     // bytes
	ModTime time.Time // when the bytes were committed last
}

// Blobs keeps immutable content by digest. Implementations are safe for concurrent use.
type Blobs interface {
	// Stat looks a blob up. Errors: ErrNotFound, ErrDigest for a malformed digest.
	Stat(ctx context.Context, d digest.Digest) (BlobInfo, error)
	// Open opens a blob for reading; the caller closes it. On disk it is an *os.File, so that sendfile
	// applies. Errors: as Stat.
	Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error)
	// Create starts an upload in a repo. alg is the algorithm the digest will probably have; another one at
	// Commit costs a second reading. Errors: ErrDigest for an unsupported algorithm, ErrFull, ErrBusy.
	Create(ctx context.Context, repo string, alg digest.Algorithm) (Upload, error)
	// Resume continues an upload of this repo at offset, which must be where it ended; -1 stands for
	// wherever that is. It ends an earlier writer of the same upload, whose calls then return ErrClosed.
	// Errors: ErrNotFound (also for another repo's upload), ErrOffset (the upload survives).
	Resume(ctx context.Context, repo, id string, offset int64) (Upload, error)
	// Expire drops the uploads that have been idle since before, and returns the bytes freed.
	Expire(ctx context.Context, before time.Time) (int64, error)
	// Delete removes a blob. The caller has made sure that nothing names it. Errors: ErrNotFound.
	Delete(ctx context.Context, d digest.Digest) error
	// All lists every blob, in no order.
	All(ctx context.Context) iter.Seq2[BlobInfo, error]
}

// Upload is one blob in the making, invisible until Commit. It has a single writer at a time and ends with
// exactly one of Commit, Cancel and Close; a Close after one of the others does nothing.
type Upload interface {
	// Write appends. Errors: ErrFull, ErrClosed.
	io.Writer
	// ID names the upload for Resume; a UUID.
	ID() string
	// Size is the number of bytes received so far.
	Size() int64
	// Commit verifies the bytes against d and makes the blob durable and visible. Bytes of d that are
	// there already are replaced, so that pushing again heals a damaged blob. Errors: ErrDigest (the upload
	// is gone then), ErrFull, ErrClosed.
	Commit(ctx context.Context, d digest.Digest) error
	// Cancel drops the upload and its bytes.
	Cancel() error
	// Close keeps the upload for a later Resume.
	Close() error
}

// Revision numbers the commits of a Journal, from 1. As the revision of a repo, 0 says that the Journal has
// no fact about it.
type Revision uint64

// Kind is the kind of a fact.
type Kind byte

// The kinds of facts. The letters are part of the data format. Names of links and manifests are digests in
// binary form, of tags their text.
const (
	KindLink     Kind = 'b'
	KindManifest Kind = 'm'
	KindTag      Kind = 't'

	KindCondemned   Kind = 'c' // of [Store]
	KindQuarantined Kind = 'q' // of [Store]
)

// Store stands in for a repo's name in facts about content itself, whoever holds it. No repo can be called so.
const Store = "_"

// Fact is one fact about a repo, or its end: a nil Value deletes it. Only the Index knows what is in a Value.
type Fact struct {
	Kind  Kind
	Name  string
	Value []byte
}

// Batch is a set of changes to one repo that is committed whole.
type Batch struct {
	Repo  string
	Base  Revision // the repo's revision that the changes were decided upon
	Facts []Fact   // each kind and name once; an engine keeps the order for those who watch
}

// Update is what Watch delivers: a part of the full state, in which each Base is its repo's last revision,
// or a commit.
type Update struct {
	Revision Revision // of the commit; in the full state known from the last part on
	Batches  []Batch
	Synced   bool // the last part of the full state; what follows are commits
}

// Journal keeps facts, durably and in order. It has no unconditional write. Implementations are safe for
// concurrent use.
type Journal interface {
	// Commit makes the batches durable, all or nothing, under one new revision; at most one batch per repo.
	// ErrConflict unless each Base is its repo's last revision. Any other error means that the outcome is
	// unknown: the caller takes the full state through a new Watch before the next Commit. Without a batch it makes
	// certain that all that a Watch has shown is durable.
	Commit(ctx context.Context, b ...Batch) (Revision, error)
	// Watch calls apply with the full state, in parts of which the last says Synced, and then with every
	// commit, in order and without gaps, one call at a time. It returns apply's error, or ctx's when that
	// ends. A local journal applies before Commit returns.
	Watch(ctx context.Context, apply func(Update) error) error
	// Head returns the revision of the last commit.
	Head(ctx context.Context) (Revision, error)
}
