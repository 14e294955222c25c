package registry

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"trow/registry/limit"
	"trow/storage"
)

// upload is the upload of a session as one request holds it: that of storage, or none yet, if the session has no bytes.
// The first byte stores it.
type upload struct {
	ctx      context.Context
	blobs    storage.Blobs
	sessions *sessions
	repo     string
	client   limit.Client
	text     string // the ID as the client has sent it
	id       sessionID

	inner storage.Upload // nil: it has no bytes
	known *stored        // nil until sessions knows it
	made  bool           // this request has stored it
	brief bool           // it ends with this request, see endsHere
}

// maxBrief is how many bytes a client can be asked to send again.
const maxBrief = 1 << 20

// endsHere says that this request brings the last n bytes of the upload. If they are all of it, and few, storage keeps
// nothing that a later request could go on with: with a shared journal, that takes one commit instead of three. If the
// request breaks off, the session has no bytes still.
func (s *session) endsHere(n int64) {
	if u, ok := s.Upload.(*upload); ok {
		u.brief = u.inner == nil && 0 < n && n <= maxBrief
	}
}

// resume continues the call's upload at offset; -1 stands for where it ends. Errors: BLOB_UPLOAD_UNKNOWN;
// storage.ErrOffset.
func (r *Registry) resume(ctx context.Context, c *call, offset int64) (*session, error) {
	if c.who.Unlimited() {
		ctx = storage.Unbounded(ctx)
	}
	id, ok := r.sessions.parse(c.repo, c.ref)
	if !ok {
		return nil, uploadUnknown(c.ref)
	}
	u := &upload{ctx: ctx, blobs: r.options.Blobs, sessions: r.sessions,
		repo: c.repo, client: c.client, text: c.ref, id: id}
	if u.known, ok = r.sessions.enter(c.repo, id); !ok {
		return nil, uploadUnknown(c.ref)
	}
	var err error
	u.inner, err = r.options.Blobs.Resume(ctx, c.repo, id.name, offset)
	switch {
	case err == nil && u.known == nil:
		u.known = r.sessions.adopt(c.repo, id, c.client)
	case errors.Is(err, storage.ErrNotFound):
		r.sessions.leave(u.known, true)
		if u.known, u.inner = nil, nil; !r.sessions.open(id) {
			return nil, uploadUnknown(c.ref)
		}
		if offset > 0 {
			return nil, fmt.Errorf("upload: %w: it has no bytes, not %d", storage.ErrOffset, offset)
		}
	case err != nil:
		r.sessions.leave(u.known, false)
		return nil, uploadError(c.ref, "", err)
	}
	return &session{Upload: u, index: r.options.Index}, nil
}

// Write implements [storage.Upload]. Errors: ErrNotFound if the session has ended meanwhile, ErrBusy, TOOMANYREQUESTS.
func (u *upload) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if u.inner == nil {
		store := u.store
		if u.brief {
			store = u.begin
		}
		if err := store(); err != nil {
			return 0, err
		}
	}
	return u.inner.Write(p)
}

// begin creates an upload in storage that this request ends. Like one without a session, it needs no place.
func (u *upload) begin() error {
	inner, err := u.blobs.Create(u.ctx, u.repo, u.id.alg)
	if err == nil && !u.sessions.open(u.id) { // see store
		err = errors.Join(storage.ErrNotFound, inner.Cancel(u.ctx))
	}
	if err == nil {
		u.inner = inner
	}
	return err
}

// store stores the upload.
func (u *upload) store() error {
	known, victim, err := u.sessions.admit(u.repo, u.id, u.client)
	if err != nil {
		return err
	}
	var inner storage.Upload
	if err = u.giveWay(victim); err == nil {
		inner, err = u.create()
	}
	// Asked again: a request that cancels the session, or completes it, notes its end before it looks for the upload in
	// storage, and this one looks after it has stored it. So at least one of the two sees the other.
	if err == nil && !u.sessions.open(u.id) {
		err = errors.Join(storage.ErrNotFound, inner.Cancel(u.ctx))
	}
	if errors.Is(err, storage.ErrConflict) {
		err = fmt.Errorf("upload: %w: another request has begun it", storage.ErrClosed)
	}
	if err != nil {
		u.sessions.leave(known, true)
		return err
	}
	u.inner, u.known, u.made = inner, known, true
	return nil
}

// maxYields bounds how often a place is made for one upload: another one may take it first.
const maxYields = 16

// create creates the upload in storage. If all places there are taken, it makes one.
func (u *upload) create() (inner storage.Upload, err error) {
	for range maxYields {
		inner, err = u.blobs.CreateAs(u.ctx, u.repo, u.id.name, u.id.alg)
		if !errors.Is(err, storage.ErrBusy) {
			return inner, err
		}
		victim := u.sessions.yield(u.client)
		if victim == nil {
			return nil, err
		}
		if failed := u.giveWay(victim); failed != nil {
			return nil, failed
		}
	}
	return nil, err
}

// giveWay drops an idle upload that has to give way, if there is one.
func (u *upload) giveWay(victim *stored) error {
	if victim == nil {
		return nil
	}
	u.sessions.end(victim.session)
	old, err := u.blobs.Resume(u.ctx, victim.repo, victim.name, -1)
	if err == nil {
		err = old.Cancel(u.ctx)
	}
	if errors.Is(err, storage.ErrNotFound) { // it was idle for too long
		err = nil
	}
	u.sessions.dropped(victim, err == nil)
	return err
}

// ID implements [storage.Upload]. It is what the client knows the session by.
func (u *upload) ID() string { return u.text }

// Size implements [storage.Upload].
func (u *upload) Size() int64 {
	if u.inner == nil {
		return 0
	}
	return u.inner.Size()
}

// Commit implements [storage.Upload].
func (u *upload) Commit(ctx context.Context, d digest.Digest) (err error) {
	inner := u.inner
	if inner == nil { // the empty blob: it begins and ends here, so that it need not wait for a place
		if inner, err = u.blobs.Create(ctx, u.repo, d.Algorithm()); err != nil {
			return err
		}
		u.inner = inner
	}
	u.sessions.end(u.id)
	err = inner.Commit(ctx, d)
	u.sessions.leave(u.known, !errors.Is(err, storage.ErrClosed)) // then another request has taken it over
	return err
}

// Inner implements [storage.Inner].
func (u *upload) Inner() storage.Upload { return u.inner }

// Cancel implements [storage.Upload].
func (u *upload) Cancel(ctx context.Context) (err error) {
	u.sessions.end(u.id)
	if u.inner != nil {
		err = u.inner.Cancel(ctx)
	}
	u.sessions.leave(u.known, err == nil)
	return err
}

// Close implements [storage.Upload]. An upload that this request has stored, and to which it could not write, is not
// kept: the session has no bytes still.
func (u *upload) Close(ctx context.Context) (err error) {
	switch {
	case u.inner == nil:
	case u.brief:
		err = u.inner.Cancel(ctx)
	case u.made && u.inner.Size() == 0:
		if err = u.inner.Cancel(ctx); errors.Is(err, storage.ErrClosed) { // another request has taken it over
			err = nil
		}
		u.sessions.leave(u.known, err == nil)
		return err
	default:
		err = u.inner.Close(ctx)
	}
	u.sessions.leave(u.known, false)
	return err
}
