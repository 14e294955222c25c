package s3

import (
	"context"
	"errors"
	"fmt"
	"io"

	"trow/storage"
)

// inFlight is how many parts of one upload are sent at once, if there is memory for them: enough to fill a line while
// the service answers, and too few to keep others waiting.
const inFlight = 4

// reserved is how many numbers of parts a session's writer reserves at once. At each reservation the record is stored
// with what has been uploaded, so that a process that dies loses at most so many parts of an upload.
const reserved = 32

// flight is a part that is being sent.
type flight struct {
	part
	state []byte // of the hash after the part
	done  chan struct{}
	err   error
}

func (w *writer) tooMany() error {
	return fmt.Errorf("upload %s: %w: it has %d bytes, and %d parts are the most that S3 allows; raise part-size",
		w.key.id, storage.ErrFull, w.size, maxParts)
}

// partSize is the length of the next part.
func (w *writer) partSize() int64 { return w.b.sizes.of(max(w.record.next, 1)) }

// room makes room in buf for another byte.
func (w *writer) room() error {
	switch {
	case len(w.buf) < cap(w.buf):
		return nil
	case cap(w.buf) < smallBuffer:
		w.buf = append(make([]byte, 0, min(max(4<<10, 4*cap(w.buf)), smallBuffer)), w.buf...)
		return nil
	}
	// The memory of a whole part at once, see memory. Parts that are being sent give theirs back by themselves, so this
	// wait ends.
	big, err := w.b.memory.take(w.ctx, w.partSize())
	if err != nil {
		return fmt.Errorf("upload %s: no memory for its next part: %w", w.key.id, err)
	}
	w.buf = append(big, w.buf...)
	return nil
}

// load reads the tail into buf, so that bytes can follow it.
func (w *writer) load() error {
	if w.tail.place == "" {
		return nil
	}
	data := make([]byte, min(w.tail.size, smallBuffer))
	if w.tail.size > smallBuffer {
		big, err := w.b.memory.take(w.ctx, max(w.partSize(), w.tail.size))
		if err != nil {
			return fmt.Errorf("upload %s: no memory for its last bytes: %w", w.key.id, err)
		}
		data = big[:w.tail.size]
	}
	r := newReader(w.life, w.b.client, w.b.client.key(w.tail.place))
	r.window = w.tail.size // in one request
	defer r.Close()
	if _, err := io.ReadFull(r, data); err != nil {
		w.b.memory.give(data)
		if errors.Is(err, storage.ErrNotFound) {
			err = fmt.Errorf("its last bytes were removed, as it was idle for too long: %w", err)
		}
		return fmt.Errorf("upload %s: %w", w.key.id, err)
	}
	w.buf, w.old, w.tail = data, append(w.old, w.tail.place), tail{}
	return nil
}

// send starts to send buf as a part.
func (w *writer) send(ctx context.Context) error {
	if err := w.reserve(ctx); err != nil {
		return err
	}
	for len(w.flights) >= inFlight {
		if err := w.land(ctx); err != nil {
			return err
		}
	}
	f := &flight{part: part{number: w.record.next, size: int64(len(w.buf))}, done: make(chan struct{})}
	if w.hash != nil {
		f.state = stateOf(w.hash)
	}
	w.record.next++
	w.flights = append(w.flights, f)
	data, key, upload := w.buf, w.b.client.key(w.record.place), w.record.upload
	w.buf = nil
	go func() {
		defer close(f.done)
		defer w.b.memory.give(data)
		f.etag, f.err = w.b.client.putPart(w.life, key, upload, f.number, data)
	}()
	return nil
}

// land waits for the first part that is being sent.
func (w *writer) land(ctx context.Context) error {
	f := w.flights[0]
	select {
	case <-f.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	w.flights = w.flights[1:]
	if f.err != nil {
		return w.fail(f.err)
	}
	if w.failed == nil { // otherwise an earlier part is missing, and this one cannot follow what was kept
		w.record.parts = append(w.record.parts, f.part)
		// load has put the tail at the beginning of this part, so the record no longer needs it.
		w.record.size, w.record.state, w.record.tail = w.record.partial(), f.state, tail{}
	}
	return nil
}

// landAll waits for all parts that are being sent.
func (w *writer) landAll(ctx context.Context) (err error) {
	for len(w.flights) > 0 {
		err = errors.Join(err, w.land(ctx))
		if ctx.Err() != nil {
			return err
		}
	}
	return err
}

// reserve makes sure that there is a multipart upload, and that the next number of a part belongs to this writer.
func (w *writer) reserve(ctx context.Context) error {
	if w.record.upload != "" && w.record.next < w.limit {
		return nil
	}
	if w.record.next > maxParts {
		return w.tooMany()
	}
	began := w.record.upload == ""
	if began {
		place := w.b.options.Records.NewPlace()
		id, err := w.b.client.begin(ctx, w.b.client.key(place), w.key.id)
		if err != nil {
			return err
		}
		w.record.place, w.record.upload, w.record.next = place, id, 1
	}
	w.limit = min(w.record.next+reserved, maxParts+1)
	if w.stored == nil { // without a record, no other process can continue the upload and use these numbers
		return nil
	}
	if err := w.landAll(ctx); err != nil {
		return err
	}
	r := w.record
	r.next = w.limit
	err := w.store(ctx, r)
	if began && errors.Is(err, storage.ErrClosed) {
		// No record names it, so it would stay until it is swept.
		_ = w.b.client.abort(context.WithoutCancel(ctx), w.b.client.key(w.record.place), w.record.upload)
	}
	return err
}
