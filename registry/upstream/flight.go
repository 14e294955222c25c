package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"syscall"
	"time"

	"trow/storage"
)

const (
	// copySize is the size of a download's buffer in bytes.
	copySize = 128 << 10
	// reserveStep is how many bytes are reserved at once for a content of unknown length.
	reserveStep = 16 << 20
	// keepFrom is how many bytes are worth being kept for a later download.
	keepFrom = 1 << 20
	// maxInterruptions bounds how often a download is continued. Large layers over bad connections need it.
	maxInterruptions = 20
)

// run downloads the content, and ends the flight.
func (fl *flight) run(ctx context.Context) {
	l := fl.landing(ctx)
	err := l.fetch(ctx)
	if l.resumed && errors.Is(err, ErrDamaged) && ctx.Err() == nil && fl.startOver() {
		// What was kept of an earlier attempt may be what is wrong, for example after a power cut.
		l.end(ctx, false)
		l = &landing{flight: fl}
		err = l.fetch(ctx)
	}
	if errors.Is(err, storage.ErrFull) || errors.Is(err, syscall.ENOSPC) {
		fl.fetcher.filled(max(fl.size, l.have))
		err = &Error{Kind: ErrNoRoom, Ref: fl.d.Digest.String(), Cause: err}
	}
	kept := resumable(err) || context.Cause(ctx) != nil
	i, interrupted := errors.AsType[*interruption](err)
	switch cause := context.Cause(ctx); {
	case err == nil:
	case cause != nil: // err only says that the context has ended; the cause says why
		err = &Error{Kind: ErrUnavailable, Ref: fl.d.Digest.String(), Reason: cause.Error(), Cause: err}
	case interrupted:
		err = &Error{Kind: ErrUnavailable, Ref: fl.d.Digest.String(),
			Reason: "the connection was interrupted too often",
			Cause:  i.cause}
	}
	if err == nil {
		l.upload = nil // it is committed
	}
	l.end(ctx, err != nil && kept)
	fl.end(err)
}

// landing returns the landing of a flight, with what an earlier one has left.
func (fl *flight) landing(ctx context.Context) *landing {
	l := &landing{flight: fl}
	left := fl.fetcher.take(fl.key)
	if left != nil {
		left.release() // fetch reserves them again
	}
	if fl.d.Resume != nil {
		if u, err := fl.d.Resume(ctx); err == nil { // otherwise there is nothing, or nothing that can be used now
			l.upload, l.have = u, u.Size()
		}
	} else if left != nil && left.path != "" {
		if s, size, err := openLeft(fl.fetcher, left.path); err == nil {
			l.spool, l.have = s, size
		}
	}
	l.resumed = l.have > 0
	return l
}

// startOver reports whether the download can begin anew: no reader has got anything yet.
func (fl *flight) startOver() (ok bool) {
	var source storage.Follower
	fl.update(func() {
		if ok = !fl.given; ok {
			source = fl.source
			fl.source, fl.got, fl.size, fl.answered = nil, 0, fl.d.Size, false
		}
	})
	if source != nil {
		source.Close()
	}
	return ok
}

// landing stores the bytes of a flight. Only run's goroutine uses it.
type landing struct {
	flight *flight
	upload storage.Upload
	spool  *spool // nil: the upload itself can be read
	have   int64  // bytes that are stored
	ready  bool   // the readers have the source; before that, nothing of have is visible
	// resumed: have has bytes of an earlier flight.
	resumed bool
	// stall cancels the download if no byte arrives for stallTime.
	stall *time.Timer

	reserved int64    // bytes of the cache
	releases []func() // of the reservations

	again bool // the upstream has started over
}

// end ends the upload, unless it is nil because it is committed, and gives the reservations back. With keep, what is
// stored stays for a later flight, and so does its room.
func (l *landing) end(ctx context.Context, keep bool) {
	fl := l.flight
	ctx = context.WithoutCancel(ctx)
	keep = keep && l.have >= keepFrom && (fl.d.Resume != nil || l.spool != nil)
	if l.upload != nil && keep && fl.d.Resume != nil {
		keep = l.upload.Close(ctx) == nil
	} else if l.upload != nil {
		// An error is ignored: run has the one that readers get, and an upload that stays expires.
		_ = l.upload.Cancel(ctx)
	}
	if keep {
		left := &leftover{key: fl.key, at: time.Now(), size: l.have, releases: l.releases, d: fl.d}
		if l.spool != nil {
			left.path = l.spool.Name()
		}
		fl.fetcher.keep(left)
	} else {
		for _, release := range l.releases { // after Commit has called Cache.Added: the bytes are always counted
			release()
		}
		if l.spool != nil {
			l.spool.remove()
		}
	}
	if l.spool != nil && !l.ready { // no reader has it
		l.spool.Close()
	}
}

// resumable reports whether what has arrived before an error may be continued later.
func resumable(err error) bool {
	_, interrupted := errors.AsType[*interruption](err)
	return interrupted || errors.Is(err, ErrUnavailable)
}

// fetch fetches and stores the content, and continues after interruptions. Errors: those of Download; *Error; a last
// *interruption.
func (l *landing) fetch(ctx context.Context) error {
	fl := l.flight
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.stall = time.AfterFunc(stallTime, func() { fl.cancel(errStalled) })
	defer l.stall.Stop()
	etag := ""
	for interruptions := 0; ; interruptions++ {
		from := l.have
		if !l.ready && from > 0 {
			from-- // so that there is something to ask for if all had arrived
		}
		b, err := fl.d.Open(ctx, from, etag)
		if err == nil {
			etag = b.ETag
			err = l.land(ctx, b, from)
			b.Body.Close()
		}
		if err == nil {
			break
		}
		if kept := (*interruption)(nil); !errors.As(err, &kept) && !errors.Is(err, ErrUnavailable) ||
			!l.ready || interruptions == maxInterruptions || ctx.Err() != nil {
			return err
		}
		if !wait(ctx, jittered(min(firstWait<<min(interruptions, 10), maxWait))) {
			return err
		}
	}
	// All bytes have arrived. Commit may take longer than stallTime, and with this size the flight is nearly done, so
	// abandon does not cancel it.
	l.stall.Stop()
	fl.update(func() { fl.size = fl.got })
	var err error
	if fl.d.Commit != nil {
		err = fl.d.Commit(ctx, l.upload)
	} else {
		err = l.upload.Commit(ctx, fl.d.Digest)
	}
	if errors.Is(err, storage.ErrDigest) {
		err = l.damaged("the bytes have another digest", err)
	}
	return err
}

// wait waits for d. It reports false if ctx has ended before.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// interruption is the error of an answer that ends before the content does.
type interruption struct{ cause error }

func (i *interruption) Error() string { return "interrupted: " + i.cause.Error() }
func (i *interruption) Unwrap() error { return i.cause }

func (l *landing) damaged(reason string, cause error) *Error {
	return &Error{Kind: ErrDamaged, Ref: l.flight.d.Digest.String(), Reason: reason, Cause: cause}
}

// land stores the bytes of one answer to a request for those from an offset on. Errors: *interruption, after which the
// download can continue; ErrDamaged; ErrNoRoom; those of the storage.
func (l *landing) land(ctx context.Context, b *Blob, from int64) error {
	fl := l.flight
	l.stall.Stop() // to make room may take as long as the disk and the journal do
	if err := l.prepare(ctx, b.Size); err != nil {
		return err
	}
	l.stall.Reset(stallTime)
	if b.From != from {
		// The upstream has started over: the bytes that are stored are skipped. If it sends other content than before,
		// the digest is wrong in the end. Only once, or an upstream that always does so would send the beginning many
		// times.
		if b.From != 0 || l.again {
			return l.damaged("the upstream does not continue where the download was interrupted", nil)
		}
		l.again = true
	}
	skip := l.have - b.From
	buf := make([]byte, copySize)
	for {
		n, err := b.Body.Read(buf)
		if n > 0 {
			l.stall.Stop() // the time to store the bytes is not that of the upstream
		}
		p := buf[min(int64(n), skip):n]
		skip -= int64(n - len(p))
		if len(p) > 0 {
			if storeErr := l.store(p); storeErr != nil {
				return storeErr
			}
		}
		if n > 0 {
			l.stall.Reset(stallTime)
		}
		switch {
		case err == io.EOF && skip == 0 && (fl.size < 0 || l.have == fl.size):
			return nil
		case err == io.EOF:
			return &interruption{io.ErrUnexpectedEOF}
		case err != nil:
			return &interruption{err}
		}
	}
}

// prepare takes the size from the first answer, reserves the bytes, and creates the upload and its reader, in this
// order: nothing is stored without room. Later answers must have the same size. Errors: ErrDamaged; ErrNoRoom; those of
// the storage.
func (l *landing) prepare(ctx context.Context, size int64) error {
	fl := l.flight
	if size >= 0 && fl.size >= 0 && size != fl.size {
		return l.damaged(fmt.Sprintf("the upstream has %d bytes, and not %d", size, fl.size), nil)
	}
	if l.ready {
		return nil
	}
	size = max(size, fl.size)
	if size >= 0 && l.have > size {
		return l.damaged(fmt.Sprintf("%d bytes were kept, and the upstream has %d", l.have, size), nil)
	}
	if fl.fetcher.isFull(max(size, l.have)) {
		return &Error{Kind: ErrNoRoom, Ref: fl.d.Digest.String(), Reason: "the disk was full just before"}
	}
	if err := l.reserve(max(size, l.have)); err != nil {
		return err
	}
	if l.upload == nil {
		u, err := fl.d.Create(ctx)
		if err != nil {
			return err
		}
		l.upload = u
	}
	source, err := l.source(max(size, l.have))
	if err != nil {
		return err
	}
	l.ready = true
	fl.update(func() { fl.source, fl.size, fl.answered, fl.got = source, size, true, l.have })
	return nil
}

// source returns what the readers read from, which may become of size bytes. Of a spool that was kept, it stores the
// bytes in the upload. Errors: ErrNoRoom; those of the storage.
func (l *landing) source(size int64) (storage.Follower, error) {
	if g, ok := l.upload.(storage.Growing); ok {
		return g.Follow()
	}
	if l.spool == nil {
		s, err := openSpool(l.flight.fetcher, l.flight.key)
		if err != nil {
			return nil, err
		}
		l.spool = s
	}
	if err := l.spool.grow(size); err != nil {
		return nil, err
	}
	if _, err := io.Copy(l.upload, io.NewSectionReader(l.spool, 0, l.have)); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	return l.spool, nil
}

// reserve makes sure that n bytes are reserved in the cache. Errors: ErrNoRoom.
func (l *landing) reserve(n int64) error {
	if n <= l.reserved {
		return nil
	}
	f := l.flight.fetcher
	release, ok := f.options.Reserve(n - l.reserved)
	for !ok && f.dropOldest(false) { // what is kept for later gives way
		release, ok = f.options.Reserve(n - l.reserved)
	}
	if !ok {
		return &Error{Kind: ErrNoRoom, Ref: l.flight.d.Digest.String(),
			Reason: fmt.Sprintf("it has %d bytes or more", n)}
	}
	l.reserved = n
	l.releases = append(l.releases, release)
	return nil
}

// store stores bytes, and makes them visible to the readers. Errors: as land, without *interruption.
func (l *landing) store(p []byte) error {
	fl := l.flight
	end := l.have + int64(len(p))
	switch {
	case fl.size >= 0 && end > fl.size:
		return l.damaged(fmt.Sprintf("the upstream sends more than %d bytes", fl.size), nil)
	case fl.size < 0 && end > l.reserved: // of unknown length: in steps
		if err := l.reserve(min(l.reserved+reserveStep, math.MaxInt64)); err != nil {
			return err
		}
	}
	if _, err := l.upload.Write(p); err != nil {
		return err
	}
	if l.spool != nil {
		if err := l.spool.grow(end); err != nil {
			return err
		}
		if _, err := l.spool.WriteAt(p, l.have); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
	}
	l.have = end
	// Last: a reader reads what is visible from the source at once.
	fl.update(func() { fl.got = end })
	return nil
}
