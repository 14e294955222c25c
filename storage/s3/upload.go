package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// touchEvery is how often the record of a session says that its writer is alive, while no part becomes full.
const touchEvery = 10 * time.Minute

// writer is one writer of an upload. It implements [storage.PlacedUpload].
//
// Bytes are collected in buf until they are a part; a full part is sent while the next one is collected. What is sent
// has its number from the record, see reserve, so that no other writer uses the number.
type writer struct {
	b    *Blobs
	key  session
	free bool // no quota bounds it
	// ctx ends the waiting for memory when the request ends. life ends what is sent for the upload: that goes on when
	// the request has ended, as Close keeps what the client has sent.
	ctx, life context.Context
	end       context.CancelFunc

	mu     sync.Mutex // guards all below; held across the I/O of the writer
	ended  bool
	failed error // of a part: nothing can be appended any more
	record record
	stored []byte    // the record as it is in the Journal; nil: there is none
	saved  time.Time // when it was stored
	used   time.Time // by the last Write
	open   *storage.OpenUpload

	hash    hash.Hash // of all bytes; nil: they have to be read again
	buf     []byte    // the bytes after the last part that was sent
	size    int64
	flights []*flight // parts that are being sent, in order
	limit   int       // the first number of a part that is not reserved
	tail    tail      // the bytes before buf that are an object of their own, and not loaded
	old     []string  // objects to remove once the record does not name them
	place   string    // after Commit
}

func (b *Blobs) newWriter(ctx context.Context, key session, r record) *writer {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	return &writer{b: b, key: key, free: storage.IsUnbounded(ctx), ctx: ctx, life: life, end: end,
		record: r, saved: time.Now(), used: time.Now(), size: r.size, tail: r.tail,
		hash: hashFrom(r.alg, r.state, r.size), limit: r.next}
}

func (w *writer) closed() error { return fmt.Errorf("upload %s: %w", w.key.id, storage.ErrClosed) }

// ID implements [storage.Upload].
func (w *writer) ID() string { return w.key.id }

// Size implements [storage.Upload].
func (w *writer) Size() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.size
}

// Place implements [storage.PlacedUpload].
func (w *writer) Place() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.place
}

// Discard implements [storage.PlacedUpload].
func (w *writer) Discard(ctx context.Context) error {
	if place := w.Place(); place != "" {
		return w.b.Remove(ctx, place)
	}
	return nil
}

// Write implements [storage.Upload]. It waits while there is no memory for another part. A writer whose session another
// process has taken over may learn that only when its next part is full, or when it is closed: nothing of what it has
// written until then is kept.
func (w *writer) Write(p []byte) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.ended:
		return 0, w.closed()
	case w.failed != nil:
		return 0, w.failed
	case len(p) == 0:
		return 0, nil
	}
	w.b.countNews()
	if err := w.open.Grow(int64(len(p)), !w.free); err != nil {
		return 0, err
	}
	w.used = time.Now()
	n, err = w.write(p)
	w.open.Shrink(int64(len(p) - n))
	if err == nil && w.stored != nil && time.Since(w.saved) > touchEvery {
		var r *record
		if r, err = decodeRecord(w.stored); err == nil {
			err = w.store(w.life, *r)
		}
	}
	return n, err
}

func (w *writer) write(p []byte) (n int, err error) {
	if err := w.load(); err != nil {
		return 0, err
	}
	for len(p) > 0 {
		// A tail may be longer than a part if another process has other settings.
		if int64(len(w.buf)) >= w.partSize() {
			if err := w.send(w.life); err != nil {
				return n, w.fail(err)
			}
		}
		if w.record.next > maxParts {
			return n, w.fail(w.tooMany())
		}
		if err := w.room(); err != nil {
			return n, err
		}
		c := min(len(p), cap(w.buf)-len(w.buf), int(w.partSize())-len(w.buf))
		w.buf = append(w.buf, p[:c]...)
		if w.hash != nil {
			w.hash.Write(p[:c])
		}
		n, p, w.size = n+c, p[c:], w.size+int64(c)
		if int64(len(w.buf)) == w.partSize() {
			if err := w.send(w.life); err != nil {
				return n, w.fail(err)
			}
		}
	}
	return n, nil
}

// fail notes that nothing can be appended any more.
func (w *writer) fail(err error) error {
	if w.failed == nil {
		w.failed = err
	}
	return err
}

// store makes r the record of the session. Error: ErrClosed if another writer has it now, or if it has ended.
func (w *writer) store(ctx context.Context, r record) error {
	r.used = time.Now()
	value := r.encode()
	for attempt := 1; ; attempt++ {
		err := w.b.options.Records.SetSession(ctx, w.key.repo, w.key.id, w.stored, value)
		if err == nil {
			break
		}
		// Also after a conflict: that may be with our own change, whose answer was lost. The record names its writer
		// and when it was stored, so what is equal is ours.
		now, serr := w.b.options.Records.Session(ctx, w.key.repo, w.key.id)
		if serr != nil && !errors.Is(serr, storage.ErrNotFound) {
			return fmt.Errorf("upload %s: %w", w.key.id, errors.Join(err, serr))
		}
		if bytes.Equal(now, value) && serr == nil {
			break
		}
		if !bytes.Equal(now, w.stored) || errors.Is(err, storage.ErrConflict) {
			return w.fail(w.closed())
		}
		if attempt == attempts || sleep(ctx, pause(attempt)) != nil {
			return fmt.Errorf("upload %s: %w", w.key.id, err)
		}
	}
	w.stored, w.saved = value, time.Now()
	w.open.Recorded(r.size)
	w.removeOld(ctx, r.tail.place)
	return nil
}

// removeOld removes the tails that the record does not name any more. One that stays has no name, and is swept.
func (w *writer) removeOld(ctx context.Context, named string) {
	var free, kept []string
	for _, place := range w.old {
		if place == named || place == w.place {
			kept = append(kept, place)
		} else {
			free = append(free, place)
		}
	}
	w.old = kept
	_ = w.b.Remove(ctx, free...)
}

// Close implements [storage.Upload]. What was received is kept: full parts, what is long enough for one, and the rest
// as an object of its own. If a part could not be sent, what comes before it is kept. Error: ErrClosed if another
// writer has taken the session over, and what this one has received since is not kept.
func (w *writer) Close(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return nil
	}
	return w.close(ctx)
}

// close is Close with the lock held.
func (w *writer) close(ctx context.Context) error {
	defer w.release()
	err := w.keep(ctx)
	if errors.Is(err, storage.ErrClosed) { // another writer has what was kept before
		w.open.End()
		return err
	}
	r, derr := decodeRecord(w.stored)
	if derr != nil { // nothing was stored, so nothing is kept
		w.open.End()
		return errors.Join(err, w.abort(ctx))
	}
	w.open.Shrink(w.size - r.size)
	w.b.leave(w.key, w.open, r.size)
	return err
}

// keep stores a record that has all that was received.
func (w *writer) keep(ctx context.Context) error {
	if w.stored != nil && w.failed == nil && w.size == w.record.size && len(w.flights) == 0 {
		return nil // nothing was written
	}
	var failed error
	if w.failed == nil && int64(len(w.buf)) >= max(w.b.sizes.least, w.partSize()/2) {
		failed = w.send(ctx)
	}
	failed = errors.Join(failed, w.landAll(ctx))
	if w.failed != nil && errors.Is(w.failed, storage.ErrClosed) {
		return w.failed
	}
	r := w.record
	if failed == nil && w.failed == nil && len(w.buf) > 0 {
		place := w.b.options.Records.NewPlace()
		if failed = w.b.client.put(ctx, w.b.client.key(place), w.key.id, w.buf); failed == nil {
			r.tail = tail{place, int64(len(w.buf))}
			r.size = w.size
			r.state = nil
			if w.hash != nil {
				r.state = stateOf(w.hash)
			}
		}
	}
	// Numbers that were not used are free again. Those of requests without an answer were used.
	if err := w.store(ctx, r); err != nil {
		return errors.Join(failed, err)
	}
	return errors.Join(failed, w.failed)
}

// release ends the writer in this process.
func (w *writer) release() {
	w.ended = true
	w.end()
	w.b.memory.give(w.buf)
	w.buf = nil
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if w.b.writers[w.key] == w {
		delete(w.b.writers, w.key)
	}
}

// abort drops the multipart upload. The caller has ended the record, if there is one.
func (w *writer) abort(ctx context.Context) error {
	w.end() // a part that arrives after the abort would stay
	for _, f := range w.flights {
		<-f.done
	}
	w.flights = nil
	if w.record.upload == "" {
		return nil
	}
	return w.b.client.abort(ctx, w.b.client.key(w.record.place), w.record.upload)
}

// Cancel implements [storage.Upload].
func (w *writer) Cancel(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return w.closed()
	}
	return w.drop(ctx)
}

// drop ends the upload and removes its bytes. The record goes first: a process that finds one can go on with it.
func (w *writer) drop(ctx context.Context) error {
	defer w.release()
	w.open.End()
	if w.stored != nil {
		err := w.b.endRecord(ctx, w.key, w.stored)
		if errors.Is(err, storage.ErrConflict) {
			return w.closed()
		}
		if err != nil {
			return fmt.Errorf("upload %s: %w", w.key.id, err) // Expire finds it
		}
	}
	for _, t := range []tail{w.record.tail, w.tail} {
		if t.place != "" && !slices.Contains(w.old, t.place) {
			w.old = append(w.old, t.place)
		}
	}
	err := w.abort(ctx)
	w.removeOld(ctx, "")
	return err
}

// Commit implements [storage.Upload].
func (w *writer) Commit(ctx context.Context, d digest.Digest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return w.closed()
	}
	err := w.commit(ctx, d)
	switch {
	case errors.Is(err, storage.ErrClosed):
		w.open.End()
		w.release()
		return err
	case err != nil:
		// The first error is the one that matters. The client may have gone, and the parts cost money.
		_ = w.drop(context.WithoutCancel(ctx))
		return err
	}
	w.open.Commit(d)
	if w.stored != nil {
		// If this fails, Expire does it: Resume refuses a record that is committing.
		if err := w.b.endRecord(context.WithoutCancel(ctx), w.key, w.stored); err != nil {
			w.b.options.Warn(fmt.Errorf("upload %s: its record stays for a while: %w", w.key.id, err))
		}
	}
	w.removeOld(context.WithoutCancel(ctx), "")
	w.release()
	return nil
}

func (w *writer) commit(ctx context.Context, d digest.Digest) error {
	if _, err := storage.ParseDigest(string(d)); err != nil {
		return err
	}
	if w.failed != nil {
		return w.failed
	}
	// Another algorithm than announced: what is in memory can be hashed again, the rest has to be read.
	h := w.hash
	if w.record.alg != d.Algorithm() {
		h = nil
	}
	inMemory := w.record.upload == "" && w.tail.place == ""
	if h == nil && inMemory {
		h = d.Algorithm().Hash()
		h.Write(w.buf)
	}
	if h != nil {
		if err := verify(d, h); err != nil {
			return err
		}
	}
	place, err := w.make(ctx)
	if err != nil {
		return err
	}
	if h == nil {
		if h, err = w.b.hashOf(ctx, place, d.Algorithm()); err == nil {
			err = verify(d, h)
		}
		if err != nil {
			_ = w.b.Remove(context.WithoutCancel(ctx), place) // else it is swept: nothing names it
			return err
		}
	}
	w.place = place
	return nil
}

func verify(d digest.Digest, h hash.Hash) error {
	if got := digest.NewDigest(d.Algorithm(), h); got != d {
		return fmt.Errorf("upload: %w: content is %s, not %s", storage.ErrDigest, got, d)
	}
	return nil
}

// make makes the object of what was received, and returns its place.
func (w *writer) make(ctx context.Context) (string, error) {
	// A single part is no multipart upload: the tail that an earlier request has left, or one request with all bytes.
	if w.record.upload == "" {
		if err := w.claim(ctx); err != nil {
			return "", err
		}
		if w.tail.place != "" {
			return w.tail.place, nil
		}
		place := w.b.options.Records.NewPlace()
		return place, w.b.client.put(ctx, w.b.client.key(place), w.key.id, w.buf)
	}
	if err := w.load(); err != nil {
		return "", err
	}
	if len(w.buf) > 0 {
		if err := w.send(ctx); err != nil {
			return "", err
		}
	}
	if err := w.landAll(ctx); err != nil {
		return "", err
	}
	if err := w.claim(ctx); err != nil {
		return "", err
	}
	return w.record.place, w.b.client.complete(ctx, w.b.client.key(w.record.place), w.record.upload, w.key.id,
		w.record.parts)
}

// claim makes this writer the one that completes the session: after it, no other one can take it over. Without it, two
// of them could complete the object, one with the digest of the one and the bytes of the other.
func (w *writer) claim(ctx context.Context) error {
	if w.stored == nil {
		return nil
	}
	if w.record.upload == "" && w.record.tail.place == "" {
		// All bytes are in memory, so another process needs nothing of the record. It ends before the object exists,
		// which takes one commit instead of two; a Commit that fails ends it as well.
		err := w.b.endRecord(ctx, w.key, w.stored)
		if isConflict(err) {
			return w.fail(w.closed())
		}
		if err != nil {
			return fmt.Errorf("upload %s: %w", w.key.id, err)
		}
		w.stored = nil
		return nil
	}
	r := w.record
	r.committing = true
	return w.store(ctx, r)
}
