package storagetest

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// ErrFault is the error of a call that fails because the test wants it to.
var ErrFault = errors.New("fault requested by the test")

// Fault selects the call that fails. The zero value lets all calls pass and counts them. It is safe for concurrent use
// once a wrapper has it.
type Fault struct {
	Method string // such as "Commit"; empty: any method
	N      int    // which call of the method, from 1; 0: none
	After  bool   // whether the call takes effect before it fails
	Err    error  // the error of the call; nil: ErrFault

	mu    sync.Mutex // guards all below
	calls int
}

// Calls returns the number of calls of the method so far.
func (f *Fault) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Fired reports whether the call has failed.
func (f *Fault) Fired() bool { return f.N > 0 && f.Calls() >= f.N }

// due counts a call and reports whether it is the one that fails.
func (f *Fault) due(method string) bool {
	if f.Method != "" && f.Method != method {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	return f.calls == f.N
}

func (f *Fault) err() error {
	if f.Err != nil {
		return f.Err
	}
	return ErrFault
}

// around makes a call, or fails instead of it or after it.
func (f *Fault) around(method string, call func() error) error {
	if !f.due(method) {
		return call()
	}
	if f.After {
		if err := call(); err != nil {
			return err
		}
	}
	return f.err()
}

// FailBlobs passes calls on to Blobs, except for the one that Fault selects. Calls of an upload's Write, Commit, Cancel
// and Close count too. A Create, Resume or Open that fails after it took effect closes what it opened.
type FailBlobs struct {
	Blobs storage.Blobs
	Fault *Fault
}

// Stat implements [storage.Blobs].
func (b FailBlobs) Stat(ctx context.Context, d digest.Digest) (info storage.BlobInfo, err error) {
	err = b.Fault.around("Stat", func() (err error) { info, err = b.Blobs.Stat(ctx, d); return err })
	return info, err
}

// Open implements [storage.Blobs].
func (b FailBlobs) Open(ctx context.Context, d digest.Digest) (r io.ReadSeekCloser, err error) {
	err = b.Fault.around("Open", func() (err error) { r, err = b.Blobs.Open(ctx, d); return err })
	if err != nil && r != nil {
		_ = r.Close()
		r = nil
	}
	return r, err
}

// Create implements [storage.Blobs].
func (b FailBlobs) Create(ctx context.Context, repo string, alg digest.Algorithm) (storage.Upload, error) {
	return b.upload(ctx, "Create", func() (storage.Upload, error) { return b.Blobs.Create(ctx, repo, alg) })
}

// Room implements [storage.Blobs].
func (b FailBlobs) Room(ctx context.Context) error {
	return b.Fault.around("Room", func() error { return b.Blobs.Room(ctx) })
}

// CreateAs implements [storage.Blobs]. It counts as a Create.
func (b FailBlobs) CreateAs(ctx context.Context, repo, id string, alg digest.Algorithm) (storage.Upload, error) {
	return b.upload(ctx, "Create", func() (storage.Upload, error) { return b.Blobs.CreateAs(ctx, repo, id, alg) })
}

// Resume implements [storage.Blobs].
func (b FailBlobs) Resume(ctx context.Context, repo, id string, offset int64) (storage.Upload, error) {
	return b.upload(ctx, "Resume", func() (storage.Upload, error) { return b.Blobs.Resume(ctx, repo, id, offset) })
}

func (b FailBlobs) upload(ctx context.Context, method string,
	call func() (storage.Upload, error)) (u storage.Upload, err error) {
	err = b.Fault.around(method, func() (err error) { u, err = call(); return err })
	if err != nil {
		if u != nil {
			_ = u.Close(ctx)
		}
		return nil, err
	}
	return failUpload{u, b.Fault}, nil
}

// Expire implements [storage.Blobs].
func (b FailBlobs) Expire(ctx context.Context, before time.Time) (freed int64, err error) {
	err = b.Fault.around("Expire", func() (err error) { freed, err = b.Blobs.Expire(ctx, before); return err })
	return freed, err
}

// Delete implements [storage.Blobs].
func (b FailBlobs) Delete(ctx context.Context, d digest.Digest) error {
	return b.Fault.around("Delete", func() error { return b.Blobs.Delete(ctx, d) })
}

// All implements [storage.Blobs]. With a fault after the effect the error comes after the last blob.
func (b FailBlobs) All(ctx context.Context) iter.Seq2[storage.BlobInfo, error] {
	return func(yield func(storage.BlobInfo, error) bool) {
		due := b.Fault.due("All")
		if due && !b.Fault.After {
			yield(storage.BlobInfo{}, b.Fault.err())
			return
		}
		for info, err := range b.Blobs.All(ctx) {
			if !yield(info, err) {
				return
			}
		}
		if due {
			yield(storage.BlobInfo{}, b.Fault.err())
		}
	}
}

type failUpload struct {
	storage.Upload
	fault *Fault
}

// Inner implements [storage.Inner].
func (u failUpload) Inner() storage.Upload { return u.Upload }

func (u failUpload) Write(p []byte) (n int, err error) {
	err = u.fault.around("Write", func() (err error) { n, err = u.Upload.Write(p); return err })
	return n, err
}

func (u failUpload) Commit(ctx context.Context, d digest.Digest) error {
	return u.fault.around("Commit", func() error { return u.Upload.Commit(ctx, d) })
}

func (u failUpload) Cancel(ctx context.Context) error {
	return u.fault.around("Cancel", func() error { return u.Upload.Cancel(ctx) })
}

func (u failUpload) Close(ctx context.Context) error {
	return u.fault.around("Close", func() error { return u.Upload.Close(ctx) })
}

// FailJournal passes calls on to Journal, except for the one that Fault selects. A Watch that fails after it took
// effect ends when it has delivered the full state.
type FailJournal struct {
	Journal storage.Journal
	Fault   *Fault
}

// Traits implements [storage.Journal].
func (j FailJournal) Traits() storage.Traits { return j.Journal.Traits() }

// Commit implements [storage.Journal].
func (j FailJournal) Commit(ctx context.Context, b ...storage.Batch) (rev storage.Revision, err error) {
	err = j.Fault.around("Commit", func() (err error) { rev, err = j.Journal.Commit(ctx, b...); return err })
	if err != nil {
		rev = 0
	}
	return rev, err
}

// Watch implements [storage.Journal].
func (j FailJournal) Watch(ctx context.Context, apply func(storage.Update) error) error {
	if !j.Fault.due("Watch") {
		return j.Journal.Watch(ctx, apply)
	}
	if !j.Fault.After {
		return j.Fault.err()
	}
	return j.Journal.Watch(ctx, func(u storage.Update) error {
		if err := apply(u); err != nil || !u.Synced {
			return err
		}
		return j.Fault.err()
	})
}

// History implements [storage.Journal].
func (j FailJournal) History(ctx context.Context, repo, prefix string) (facts []storage.Fact, err error) {
	err = j.Fault.around("History", func() (err error) {
		facts, err = j.Journal.History(ctx, repo, prefix)
		return err
	})
	return facts, err
}

// Head implements [storage.Journal].
func (j FailJournal) Head(ctx context.Context) (rev storage.Revision, err error) {
	err = j.Fault.around("Head", func() (err error) { rev, err = j.Journal.Head(ctx); return err })
	return rev, err
}
