package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"trow/storage"
)

const (
	// copySize is the size of a download's buffer in bytes.
	copySize = 128 << 10
	// reserveStep is how many bytes are reserved at once for a content of unknown length.
	reserveStep = 16 << 20
	// maxInterruptions bounds how often a download is continued. Large layers over bad connections need it.
	maxInterruptions = 20
)

// run downloads the content, and ends the flight.
func (fl *flight) run(ctx context.Context) {
	l := &landing{flight: fl}
	err := l.fetch(ctx)
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
	if l.upload != nil && err != nil {
		// An error is ignored: err is the one that readers get, and an upload that stays expires.
		_ = l.upload.Cancel(context.WithoutCancel(ctx))
	}
	for _, release := range l.releases { // after Commit has called Cache.Added: the bytes are counted at each moment
		release()
	}
	fl.end(err)
}

// landing stores the bytes of a flight. Only run's goroutine uses it.
type landing struct {
	flight *flight
	upload storage.Upload
	spool  *spool // nil: the upload itself can be read
	// stall cancels the download if no byte arrives for stallTime.
	stall *time.Timer

	reserved int64    // bytes of the cache
	releases []func() // of the reservations

	again bool // the upstream has started over
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
		b, err := fl.d.Open(ctx, fl.got, etag)
		if err == nil {
			etag = b.ETag
			err = l.land(ctx, b)
			b.Body.Close()
		}
		if err == nil {
			break
		}
		if kept := (*interruption)(nil); !errors.As(err, &kept) && !errors.Is(err, ErrUnavailable) ||
			fl.got == 0 && l.upload == nil || interruptions == maxInterruptions || ctx.Err() != nil {
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

// land stores the bytes of one answer. Errors: *interruption, after which the download can continue; ErrDamaged;
// ErrNoRoom; those of the storage.
func (l *landing) land(ctx context.Context, b *Blob) error {
	fl := l.flight
	l.stall.Stop() // to make room may take as long as the disk and the journal do
	if err := l.prepare(ctx, b.Size); err != nil {
		return err
	}
	l.stall.Reset(stallTime)
	if b.From != fl.got {
		// The upstream has started over: the bytes that are stored are skipped. If it sends other content than before,
		// the digest is wrong in the end. Only once, or an upstream that always does so would send the beginning many
		// times.
		if b.From != 0 || l.again {
			return l.damaged("the upstream does not continue where the download was interrupted", nil)
		}
		l.again = true
	}
	skip := fl.got - b.From
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
		case err == io.EOF && skip == 0 && (fl.size < 0 || fl.got == fl.size):
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
	if l.upload != nil {
		return nil
	}
	size = max(size, fl.size)
	if err := l.reserve(max(size, 0)); err != nil {
		return err
	}
	u, err := fl.d.Create(ctx)
	if err != nil {
		return err
	}
	l.upload = u
	var source storage.Follower
	if g, ok := u.(storage.Growing); ok {
		source, err = g.Follow()
	} else if l.spool, err = openSpool(fl.fetcher); err == nil {
		source = l.spool
		if err = l.spool.grow(max(size, 0)); err != nil {
			l.spool.Close()
		}
	}
	if err != nil {
		return err
	}
	fl.update(func() { fl.source, fl.size, fl.answered = source, size, true })
	return nil
}

// reserve makes sure that n bytes are reserved in the cache. Errors: ErrNoRoom.
func (l *landing) reserve(n int64) error {
	if n <= l.reserved {
		return nil
	}
	release, ok := l.flight.fetcher.options.Reserve(n - l.reserved)
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
	end := fl.got + int64(len(p))
	switch {
	case fl.size >= 0 && end > fl.size:
		return l.damaged(fmt.Sprintf("the upstream sends more than %d bytes", fl.size), nil)
	case fl.size < 0 && end > l.reserved: // of unknown length: in steps
		if err := l.reserve(min(l.reserved+reserveStep, math.MaxInt64)); err != nil {
			return err
		}
	}
	if _, err := l.upload.Write(p); err != nil {
		if errors.Is(err, storage.ErrFull) {
			err = &Error{Kind: ErrNoRoom, Ref: fl.d.Digest.String(), Cause: err}
		}
		return err
	}
	if l.spool != nil {
		if err := l.spool.grow(end); err != nil {
			return err
		}
		if _, err := l.spool.WriteAt(p, fl.got); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
	}
	// Last: a reader reads what is visible from the source at once.
	fl.update(func() { fl.got = end })
	return nil
}
