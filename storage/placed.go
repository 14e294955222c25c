package storage

import (
	"context"
	"iter"
	"time"

	"github.com/opencontainers/go-digest"
)

// Why some engines keep bytes under names that are not digests: where several processes write to one bucket, and a
// request to delete an object cannot be called back, a deletion by digest could delete bytes that were pushed again
// meanwhile. A name that is used once can be deleted at any time, by any process, however late: no later object has it.
// Which object has the bytes of a digest is a fact, so a commit decides about a deletion, and no upload has to be
// copied to another name.

// Placed is implemented by Blobs that keep each upload in an object with a name of its own, from [Records.NewPlace].
// Their Stat and Open look the object of a digest up in the Records, and they return ErrNotFound if there is none. An
// Upload of such an engine is a PlacedUpload. The Index and the Collector never call their Delete.
type Placed interface {
	Blobs
	// Remove deletes objects. It is no error if one does not exist. The caller has made sure that no fact names them;
	// as names are used once, the deletion may take effect at any time.
	Remove(ctx context.Context, places ...string) error
	// Objects lists the objects that are complete, also those that no fact names, in no order.
	Objects(ctx context.Context) iter.Seq2[Object, error]
}

// Identified is implemented by Blobs that a setting names, so that a mistake in it would name the bytes of another
// registry. They keep an identity beside the bytes.
type Identified interface {
	// Identity returns the identity, as it is now; empty if it does not exist.
	Identity(ctx context.Context) (string, error)
	// SetIdentity replaces it.
	SetIdentity(ctx context.Context, id string) error
}

// Redirector is implemented by Blobs of a service that clients can read from by themselves.
type Redirector interface {
	// Redirect returns a URL from which a blob can be read without credentials, for ttl at most. It is a secret: every
	// client that has it can read the blob. Redirect does not check that the service has the bytes. Errors: as Stat.
	Redirect(ctx context.Context, d digest.Digest, ttl time.Duration) (string, error)
}

// Space is how much space there is where an engine keeps its data, in bytes. Blobs that know it have a method
// Space() (Space, error).
type Space struct {
	Size, Free int64 // Free is what the process may still write
	Reserve    int64 // what is to stay free
}

// Full reports whether uploads are refused.
func (s Space) Full() bool { return s.Free < s.Reserve }

// Object is one object of a Placed engine.
type Object struct {
	Place   string
	Size    int64     // bytes
	ModTime time.Time // by the clock of the service
}

// PlacedUpload is an Upload whose Commit makes an object that no fact names yet: the Index does that, and until then
// the blob is invisible.
type PlacedUpload interface {
	Upload
	// Place is the name of the object, after a Commit without an error.
	Place() string
	// Discard removes the object, after a Commit without an error.
	Discard(ctx context.Context) error
}

// Inner is implemented by an Upload that wraps another one, so that the Index finds a PlacedUpload in it.
type Inner interface {
	Upload
	// Inner returns the upload that the last call went to.
	Inner() Upload
}

// placedUpload returns the PlacedUpload that an upload is, or wraps.
func placedUpload(u Upload) (PlacedUpload, bool) {
	for {
		if p, ok := u.(PlacedUpload); ok {
			return p, true
		}
		w, ok := u.(Inner)
		if !ok {
			return nil, false
		}
		u = w.Inner()
	}
}

// Records are what a Placed engine keeps in the Journal. *Index implements it.
type Records interface {
	// Place returns the name of the object that has the bytes of d. Error: ErrNotFound.
	Place(ctx context.Context, d digest.Digest) (string, error)
	// Places lists all digests that have an object, and its name, as far as this process knows them, in no order.
	Places() iter.Seq2[digest.Digest, string]
	// NewPlace returns a name that was never used. It consists of lower-case letters, digits, dashes and one slash.
	NewPlace() string
	// Session returns the record of an upload that continues in later requests, as it is now in the Journal: the call
	// confirms it. Errors: ErrNotFound, those of the Journal.
	Session(ctx context.Context, repo, id string) ([]byte, error)
	// SetSession replaces the record of an upload durably, and deletes it if value is nil. Errors: ErrConflict unless
	// the record is old (nil: there is none), those of the Journal; then the outcome is unknown.
	SetSession(ctx context.Context, repo, id string, old, value []byte) error
	// Sessions lists the records of all uploads, as far as this process knows them, in no order.
	Sessions() iter.Seq[SessionRecord]
}

// SessionRecord is the record of an upload.
type SessionRecord struct {
	Repo, ID string
	Value    []byte // the engine's own
}
