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
	// copySize is how much is read from an upstream at once.
	copySize = 128 << 10
	// reserveStep is how much is reserved at once for a content of unknown length.
	reserveStep = 16 << 20
	// maxInterruptions bounds how often a download is continued. Large layers on bad lines need some.
	maxInterruptions = 20
)

// run downloads the content.
func (fl *flight) run(ctx context.Context) {
	l := &landing{flight: fl}
	err := l.fetch(ctx)
	i, interrupted := errors.AsType[*interruption](err)
	switch cause := context.Cause(ctx); {
	case err == nil:
	case cause != nil: // the end of the context is how it was broken off, not why
		err = &Error{Kind: ErrUnavailable, Ref: fl.d.Digest.String(), Reason: cause.Error(), Cause: err}
	case interrupted:
		err = &Error{Kind: ErrUnavailable, Ref: fl.d.Digest.String(),
			Reason: "the connection was interrupted too often",
			Cause:  i.cause}
	}
	if l.upload != nil && err != nil {
		// The first error is the one that matters; what cannot be removed now expires.
		_ = l.upload.Cancel(context.WithoutCancel(ctx))
	}
	for _, release := range l.releases {
		release()
	}
	fl.end(err)
}

// landing is where the bytes of a flight go.
type landing struct {
	flight *flight
	upload storage.Upload
	spool  *spool // nil: the upload itself can be read
	// stall breaks the download off when no byte arrives.
	stall *time.Timer

	reserved int64    // bytes of the cache
	releases []func() // of the reservations

	again bool // the upstream has started over
}

// fetch fetches and stores the content. It continues after interruptions.
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
	// From here on nothing comes from the upstream any more, and no leaving reader ends it.
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

// wait reports whether it has waited that long.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// interruption is the end of an answer before that of the content.
type interruption struct{ cause error }

func (i *interruption) Error() string { return "interrupted: " + i.cause.Error() }
func (i *interruption) Unwrap() error { return i.cause }

func (l *landing) damaged(reason string, cause error) *Error {
	return &Error{Kind: ErrDamaged, Ref: l.flight.d.Digest.String(), Reason: reason, Cause: cause}
}

// land stores what an answer has. Errors: *interruption, after which the download can go on.
func (l *landing) land(ctx context.Context, b *Blob) error {
	fl := l.flight
	if err := l.prepare(ctx, b.Size); err != nil {
		return err
	}
	if b.From != fl.got {
		// What is there is not stored again. If this is other content than before, the digest says so.
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
			l.stall.Stop() // a slow disk is not the upstream's fault
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

// prepare takes the size from the first answer, reserves the bytes, and opens the upload. Later answers must have the
// same size.
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

// reserve makes sure that n bytes are reserved in the cache.
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

// store stores bytes, and shows them to the readers.
func (l *landing) store(p []byte) error {
	fl := l.flight
	end := fl.got + int64(len(p))
	switch {
	case fl.size >= 0 && end > fl.size:
		return l.damaged(fmt.Sprintf("the upstream sends more than %d bytes", fl.size), nil)
	case fl.size < 0 && end > l.reserved: // as they come
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
	// Only now: a reader must find what it is shown.
	fl.update(func() { fl.got = end })
	return nil
}
