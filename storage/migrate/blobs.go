package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// readError is an error of the source.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

// copyBlob copies the bytes of one blob. If they are damaged or missing at the source, the content is lost, and the
// migration continues without it. Errors: ctx's; those of the engines.
func (m *migration) copyBlob(ctx context.Context, d digest.Digest) error {
	const tries = 3 // a fault of the memory or of the network may pass; only what fails each time is lost
	var n int64
	var err error
	for range tries {
		n, err = m.send(ctx, d)
		var read readError
		switch {
		case err == nil:
			m.sent(d, n)
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !m.From.Index.Present(d):
			return nil // deleted meanwhile
		case !errors.Is(err, storage.ErrDigest) && !errors.As(err, &read):
			return fmt.Errorf("copy %s: %w", d, err)
		}
	}
	if reason, lost := m.damage(err); lost {
		m.lose(d, reason)
		return nil
	}
	return fmt.Errorf("copy %s: %w", d, err)
}

// damage reports whether an error of the source, or of the comparison with the digest, means that bytes are lost. Other
// errors may pass.
func (m *migration) damage(err error) (reason string, lost bool) {
	switch b, ok := m.From.Blobs.(interface{ Lost(error) bool }); {
	case errors.Is(err, storage.ErrNotFound):
		return "its bytes are missing", true
	case errors.Is(err, storage.ErrDigest):
		return "its bytes do not have this digest", true
	case ok && b.Lost(err):
		return "its bytes cannot be read: " + err.Error(), true
	}
	return "", false
}

// buffers are what blobs are copied through.
var buffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// send stores the bytes of a blob at the target, which compares them with the digest.
func (m *migration) send(ctx context.Context, d digest.Digest) (n int64, err error) {
	r, err := m.From.Blobs.Open(ctx, d)
	if err != nil {
		return 0, readError{err}
	}
	defer r.Close()
	to := m.To.Index
	_, placed := m.To.Blobs.(storage.Placed)
	if placed {
		// The place of an earlier run is of an object that is missing or not whole, see list and has. The new object
		// would not be named while that fact exists.
		if err := to.ForgetPlace(ctx, d); err != nil {
			return 0, err
		}
	}
	u, err := m.To.Blobs.Create(ctx, "migration", d.Algorithm())
	if err != nil {
		return 0, err
	}
	if n, err = copyTo(u, r); err != nil {
		return 0, errors.Join(err, u.Cancel(context.WithoutCancel(ctx)))
	}
	release, err := to.Commit(ctx, u, d)
	if err != nil {
		return 0, err
	}
	release() // no fact names it yet, and nothing collects here
	if placed {
		if _, err := to.Place(ctx, d); err != nil {
			// Only its text, so that no caller takes its ErrNotFound for one of the source.
			return 0, fmt.Errorf("record the object: %w", errors.New(err.Error()))
		}
	}
	return n, nil
}

// copyTo copies through a buffer; an error of the reader is a readError.
func copyTo(w io.Writer, r io.Reader) (n int64, err error) {
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	for {
		k, readErr := r.Read(buf[:])
		if k > 0 {
			if _, err := w.Write(buf[:k]); err != nil {
				return n, err
			}
			n += int64(k)
		}
		if errors.Is(readErr, io.EOF) {
			return n, nil
		}
		if readErr != nil {
			return n, readError{readErr}
		}
	}
}

func (m *migration) sent(d digest.Digest, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stored[m.hashOf(d)] = n
	m.verified[m.hashOf(d)] = n
	delete(m.lost, d)
	m.done.Copied++
	m.done.Sent += n
	// What is pushed meanwhile was not counted at the beginning.
	m.done.Contents = max(m.done.Contents, m.done.There+m.done.Copied)
	m.done.Bytes = max(m.done.Bytes, m.done.Sent)
}

func (m *migration) lose(d digest.Digest, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost[d] = reason
}

// trial reads at most 32 MiB of a content, and sends them to the target if there is one. The upload is cancelled, so
// nothing stays there.
func trial(ctx context.Context, from Side, to *Side, d digest.Digest) (took time.Duration, n int64, err error) {
	const most = 32 << 20
	r, err := from.Blobs.Open(ctx, d)
	if err != nil {
		return 0, 0, err
	}
	defer r.Close()
	w, begin := io.Discard, time.Now()
	if to != nil {
		u, err := to.Blobs.Create(ctx, "migration", d.Algorithm())
		if err != nil {
			return 0, 0, err
		}
		defer func() { err = errors.Join(err, u.Cancel(context.WithoutCancel(ctx))) }()
		w = u
	}
	n, err = copyTo(w, io.LimitReader(r, most))
	return time.Since(begin), n, err
}
