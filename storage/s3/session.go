package s3

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/internal/local"
)

// Create implements [storage.Blobs]. Nothing of the upload is in the Journal until it is closed.
func (b *Blobs) Create(ctx context.Context, repo string, alg digest.Algorithm) (storage.Upload, error) {
	return b.create(ctx, session{repo, local.NewUploadID()}, alg)
}

func (b *Blobs) create(ctx context.Context, key session, alg digest.Algorithm) (*writer, error) {
	if !storage.Supported(alg) {
		return nil, fmt.Errorf("upload: %w: algorithm %.30q", storage.ErrDigest, alg)
	}
	if err := b.Room(ctx); err != nil {
		return nil, err
	}
	w := b.newWriter(ctx, key, record{epoch: 1, writer: newWriter(), alg: alg})
	w.open = b.options.Uploads.Begin(key.repo, 0)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.writers[key] = w
	return w, nil
}

// CreateAs implements [storage.Blobs].
func (b *Blobs) CreateAs(ctx context.Context, repo, id string, alg digest.Algorithm) (storage.Upload, error) {
	switch {
	case !local.ValidUploadID(id):
		return nil, fmt.Errorf("upload %.40q: %w", id, storage.ErrNotFound)
	case !storage.Supported(alg):
		return nil, fmt.Errorf("upload: %w: algorithm %.30q", storage.ErrDigest, alg)
	}
	if err := b.Room(ctx); err != nil {
		return nil, err
	}
	done, err := b.enter()
	if err != nil {
		return nil, err
	}
	defer done()
	// The record comes first: it decides whether there is an upload of this ID.
	key, r := session{repo, id}, record{epoch: 1, writer: newWriter(), alg: alg}
	w := b.newWriter(ctx, key, r)
	if err := w.store(ctx, r); err != nil {
		w.end()
		if errors.Is(err, storage.ErrClosed) {
			return nil, fmt.Errorf("upload: %w: there is one of this ID", storage.ErrConflict)
		}
		return nil, err
	}
	w.open = b.options.Uploads.Begin(repo, 0)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.writers[key] = w
	return w, nil
}

// enter takes a place among the uploads that CreateAs makes. The caller calls done when the record exists.
func (b *Blobs) enter() (done func(), err error) {
	limit, open := b.options.MaxUploads, 0
	if limit > 0 {
		for range b.options.Records.Sessions() {
			open++
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if limit > 0 && open+b.creating >= limit {
		return nil, fmt.Errorf("upload: %w: %d uploads are open, which is the limit", storage.ErrBusy, limit)
	}
	b.creating++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.creating--
	}, nil
}

// Resume implements [storage.Blobs]. A writer in this process is closed first, so that nothing that it has received is
// lost. Of one in another process, what the record names is kept.
func (b *Blobs) Resume(ctx context.Context, repo, id string, offset int64) (storage.Upload, error) {
	if err := b.Room(ctx); err != nil {
		return nil, err
	}
	if !local.ValidUploadID(id) {
		return nil, fmt.Errorf("upload %.40q: %w", id, storage.ErrNotFound)
	}
	key := session{repo, id}
	if err := b.closeLocal(ctx, key, offset); err != nil {
		return nil, err
	}
	for {
		value, err := b.options.Records.Session(ctx, repo, id)
		if err != nil {
			return nil, fmt.Errorf("upload %s: %w", id, err)
		}
		r, err := decodeRecord(value)
		switch {
		case err != nil:
			return nil, fmt.Errorf("upload %s: %w", id, err)
		case r.committing: // no other writer may continue it; see claim
			return nil, fmt.Errorf("upload %s: %w: it is being completed", id, storage.ErrNotFound)
		case offset >= 0 && offset != r.size:
			return nil, fmt.Errorf("upload %s: %w: it has %d bytes, not %d", id, storage.ErrOffset, r.size, offset)
		}
		r.epoch++
		r.writer = newWriter()
		w := b.newWriter(ctx, key, *r)
		w.stored = value
		if err := w.store(ctx, *r); err != nil {
			w.end()
			if errors.Is(err, storage.ErrClosed) && ctx.Err() == nil { // another one was faster, and has its turn
				continue
			}
			return nil, err
		}
		w.open = b.enterCounted(key, r.size)
		b.mu.Lock()
		b.writers[key] = w
		b.mu.Unlock()
		return w, nil
	}
}

// closeLocal closes the writer of a session in this process. Error: ErrOffset, and then it goes on.
func (b *Blobs) closeLocal(ctx context.Context, key session, offset int64) error {
	b.mu.Lock()
	w := b.writers[key]
	b.mu.Unlock()
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.ended:
		return nil
	case offset >= 0 && offset != w.size:
		return fmt.Errorf("upload %s: %w: it has %d bytes, not %d", key.id, storage.ErrOffset, w.size, offset)
	}
	if err := w.close(ctx); !errors.Is(err, storage.ErrClosed) { // another process has it, and Resume sees that
		return err
	}
	return nil
}

// endRecord deletes a record. Error: ErrConflict if it has changed.
func (b *Blobs) endRecord(ctx context.Context, key session, stored []byte) (err error) {
	for attempt := 1; attempt <= attempts; attempt++ {
		err = b.options.Records.SetSession(ctx, key.repo, key.id, stored, nil)
		if err == nil {
			return nil
		}
		// The answer to an earlier attempt may have been lost.
		_, serr := b.options.Records.Session(ctx, key.repo, key.id)
		switch {
		case errors.Is(serr, storage.ErrNotFound) && attempt > 1,
			errors.Is(serr, storage.ErrNotFound) && !isConflict(err):
			return nil
		case isConflict(err) || sleep(ctx, pause(attempt)) != nil:
			return err
		}
	}
	return err
}

func isConflict(err error) bool { return errors.Is(err, storage.ErrConflict) }

// hashOf reads an object.
func (b *Blobs) hashOf(ctx context.Context, place string, alg digest.Algorithm) (hash.Hash, error) {
	r := newReader(ctx, b.client, b.client.key(place))
	defer r.Close()
	h := alg.Hash()
	_, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, make([]byte, smallBuffer))
	return h, err
}

const (
	// orphanAge is the age from which on a multipart upload that no record names is aborted. One of a single request
	// has no record, so that request must not take longer.
	orphanAge = 24 * time.Hour
	// sweepEvery is how often multipart uploads are listed.
	sweepEvery = time.Hour
)

// Expire implements [storage.Blobs]. It also aborts multipart uploads that are older than a day and that no record
// names: their process has ended between the beginning and the record, or within a request.
func (b *Blobs) Expire(ctx context.Context, before time.Time) (freed int64, err error) {
	if err := b.Room(ctx); err != nil {
		return 0, err
	}
	freed = b.expireLocal(ctx, before)
	for s := range b.options.Records.Sessions() {
		n, serr := b.expireSession(ctx, s, before)
		if freed += n; serr != nil {
			err = serr
		}
		if ctx.Err() != nil {
			return freed, context.Cause(ctx)
		}
	}
	b.count()
	b.mu.Lock()
	due := time.Since(b.swept) > sweepEvery
	if due {
		b.swept = time.Now()
	}
	b.mu.Unlock()
	if due {
		err = errors.Join(err, b.sweepUploads(ctx))
	}
	return freed, err
}

// expireLocal drops the idle uploads of this process that have no record.
func (b *Blobs) expireLocal(ctx context.Context, before time.Time) (freed int64) {
	b.mu.Lock()
	var idle []*writer
	for _, w := range b.writers {
		idle = append(idle, w)
	}
	b.mu.Unlock()
	for _, w := range idle {
		if !w.mu.TryLock() { // it is at work
			continue
		}
		if !w.ended && w.stored == nil && w.used.Before(before) {
			freed += w.size
			_ = w.drop(ctx) // what cannot be aborted now is swept later
		}
		w.mu.Unlock()
	}
	return freed
}

// expireSession drops a session if it is idle.
func (b *Blobs) expireSession(ctx context.Context, s storage.SessionRecord, before time.Time) (int64, error) {
	r, err := decodeRecord(s.Value)
	if err != nil || !r.used.Before(before) {
		return 0, nil // of another version, or in use
	}
	key := session{s.Repo, s.ID}
	if err := b.endRecord(ctx, key, s.Value); err != nil {
		if isConflict(err) { // in use again
			err = nil
		}
		return 0, err
	}
	b.mu.Lock()
	w := b.writers[key]
	b.mu.Unlock()
	freed := r.size
	if w != nil && w.mu.TryLock() {
		if !w.ended {
			freed = w.size
			w.stored, w.record.tail, w.tail = nil, tail{}, tail{} // the record is gone, and its tail is removed here
			_ = w.drop(ctx)
		}
		w.mu.Unlock()
	}
	if r.upload != "" {
		err = b.client.abort(ctx, b.client.key(r.place), r.upload)
	}
	// The tail of one that was committing may be an object that a fact names.
	if r.tail.place != "" && !r.committing {
		err = errors.Join(err, b.Remove(ctx, r.tail.place))
	}
	return freed, err
}

// sweepUploads aborts multipart uploads without a record.
func (b *Blobs) sweepUploads(ctx context.Context) error {
	old := time.Now().Add(-orphanAge)
	copies, failed := b.client.uploads(ctx, b.copyKey(""), old) // no record names one
	for _, u := range copies {
		failed = errors.Join(failed, b.client.abort(ctx, u.key, u.id))
	}
	found, err := b.client.uploads(ctx, b.client.key(""), old)
	err = errors.Join(failed, err)
	if err != nil || len(found) == 0 {
		return err
	}
	// After the list: a record of an upload that is so old has been there all the time.
	named := map[string]bool{}
	for s := range b.options.Records.Sessions() {
		r, err := decodeRecord(s.Value)
		if err != nil { // of another version: it may name any of them
			return nil
		}
		named[r.upload] = true
	}
	for _, u := range found {
		if !named[u.id] {
			err = errors.Join(err, b.client.abort(ctx, u.key, u.id))
		}
	}
	return err
}

// counted is a session of which no writer is in this process.
type counted struct {
	open *storage.OpenUpload
	size int64
}

// enterCounted returns what counts a session that has size bytes.
func (b *Blobs) enterCounted(key session, size int64) *storage.OpenUpload {
	b.mu.Lock()
	c, ok := b.counted[key]
	delete(b.counted, key)
	b.mu.Unlock()
	if !ok {
		return b.recorded(key, size)
	}
	return c.resize(size).open
}

// resize counts a session whose record has another size now.
func (c counted) resize(size int64) counted {
	c.open.Recorded(size)
	c.open.Shrink(c.size - size)
	return counted{c.open, size}
}

// recorded counts a session whose record has size bytes.
func (b *Blobs) recorded(key session, size int64) *storage.OpenUpload {
	open := b.options.Uploads.Begin(key.repo, 0)
	open.Recorded(size)
	return open
}

// leave keeps what counts a session while it has no writer.
func (b *Blobs) leave(key session, open *storage.OpenUpload, size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counted[key] = counted{open, size}
}

// count makes the sessions that the Records have count for quotas, and those that have ended no longer: other processes
// begin and end them as well.
func (b *Blobs) count() {
	if b.options.Uploads == nil {
		return
	}
	b.counting.Lock() // from before the records are listed, so that an older list does not replace a newer one
	defer b.counting.Unlock()
	known := map[session]int64{}
	for s := range b.options.Records.Sessions() {
		if r, err := decodeRecord(s.Value); err == nil {
			known[session{s.Repo, s.ID}] = r.size
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, c := range b.counted {
		if _, ok := known[key]; !ok {
			c.open.End()
			delete(b.counted, key)
		}
	}
	for key, size := range known {
		switch c, ok := b.counted[key]; {
		case ok && c.size != size:
			b.counted[key] = c.resize(size)
		case !ok && b.writers[key] == nil:
			b.counted[key] = counted{b.recorded(key, size), size}
		}
	}
}

// recountEvery is how often sessions are counted because other processes have changed some, at most.
const recountEvery = time.Second

// countNews is count if sessions have changed, so that a quota that is full at one process is soon full at all.
func (b *Blobs) countNews() {
	if b.options.Uploads == nil || !b.news.Load() {
		return
	}
	now, last := time.Now().UnixNano(), b.recount.Load()
	if now-last < int64(recountEvery) || !b.recount.CompareAndSwap(last, now) {
		return
	}
	b.news.Store(false)
	b.count()
}
