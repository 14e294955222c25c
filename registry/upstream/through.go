package upstream

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// Through reads a blob of an upstream for one client, and stores nothing, because there is no room. Like a [Reader] it
// returns the last bytes of a whole blob only after the digest is verified; the digest of a part cannot be. It is not
// safe for concurrent use.
type Through struct {
	ctx     context.Context
	up      *Upstream
	repo    string
	digest  digest.Digest
	blob    *Blob
	size    int64
	at      int64     // of the next byte of Read
	sum     hash.Hash // nil: the blob is not read from its beginning
	held    []byte    // received, and not returned yet
	failed  error     // of the upstream; io.EOF once all was received and is verified
	release func()    // nil: closed
}

// Through opens a blob that is not stored. size is that of its descriptor; -1: not known. The caller closes it. Errors:
// *Error; ErrUnavailable if too many are open, see places; ErrDamaged if it has another size.
func (f *Fetcher) Through(ctx context.Context, up *Upstream, repo string, d digest.Digest, size int64) (*Through,
	error) {
	from := fromID(up.Title())
	f.mu.Lock()
	ok := f.through.take(from, 1)
	f.mu.Unlock()
	if !ok {
		return nil, up.failure(ErrUnavailable, repo, d.String(),
			"there is no room to store it, and too many clients get "+
				"what is not stored")
	}
	t := &Through{ctx: ctx, up: up, repo: repo, digest: d, size: size, release: func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.through.leave(from, 1)
	}}
	if err := t.open(0); err != nil {
		t.release()
		return nil, err
	}
	return t, nil
}

// open opens the blob at an offset.
func (t *Through) open(at int64) error {
	if t.blob != nil {
		t.blob.Body.Close()
	}
	b, err := t.up.Blob(t.ctx, t.repo, t.digest, at, "")
	if err != nil {
		t.blob = nil
		return err
	}
	if b.Size >= 0 && t.size >= 0 && b.Size != t.size {
		b.Body.Close()
		t.blob = nil
		return t.up.failure(ErrDamaged, t.repo, t.digest.String(),
			fmt.Sprintf("the upstream has %d bytes, and not %d", b.Size, t.size))
	}
	t.size = max(t.size, b.Size)
	t.blob, t.at, t.held, t.failed, t.sum = b, at, nil, nil, nil
	if at == 0 {
		t.sum = t.digest.Algorithm().Hash()
	}
	if b.From < at { // the upstream does not support ranges
		if _, err := io.CopyN(io.Discard, b.Body, at-b.From); err != nil {
			return err
		}
	}
	return nil
}

// Size returns the number of bytes; -1 if the upstream does not say.
func (t *Through) Size() (int64, error) { return t.size, nil }

// Read implements io.Reader.
func (t *Through) Read(p []byte) (int, error) {
	if t.blob == nil {
		return 0, errReaderClosed
	}
	buf := make([]byte, min(len(p)+HeldBack, copySize))
	for t.failed == nil && len(t.held) <= HeldBack {
		body := t.blob.Body
		stall := time.AfterFunc(stallTime, func() { body.Close() })
		n, err := body.Read(buf)
		if !stall.Stop() && err != nil {
			err = errStalled
		}
		t.held = append(t.held, buf[:n]...)
		if t.sum != nil {
			t.sum.Write(buf[:n])
		}
		switch end := t.at + int64(len(t.held)); {
		case t.size >= 0 && end > t.size:
			t.failed = t.up.failure(ErrDamaged, t.repo, t.digest.String(),
				fmt.Sprintf("the upstream sends more than %d bytes", t.size))
		case err != nil:
			t.failed = t.finish(err)
		}
	}
	n := len(t.held)
	if t.failed == nil {
		n -= HeldBack
	} else if t.failed != io.EOF {
		return 0, t.failed
	}
	n = copy(p, t.held[:n])
	t.held = append(t.held[:0], t.held[n:]...)
	t.at += int64(n)
	if n == 0 && t.failed != nil {
		return 0, t.failed
	}
	return n, nil
}

// finish returns the error for the end of what the upstream sends: io.EOF if that is all of the blob.
func (t *Through) finish(err error) error {
	end := t.at + int64(len(t.held))
	switch {
	case err != io.EOF:
		return &Error{Kind: ErrUnavailable, Host: t.up.Host, Repo: t.repo, Ref: t.digest.String(),
			Reason: "the connection was interrupted", Cause: err}
	case t.size >= 0 && end != t.size:
		return t.up.failure(ErrDamaged, t.repo, t.digest.String(), "the upstream does not send all of it")
	case t.sum != nil && digest.NewDigest(t.digest.Algorithm(), t.sum) != t.digest:
		return t.up.failure(ErrDamaged, t.repo, t.digest.String(), "the bytes have another digest")
	}
	t.size = end
	return io.EOF
}

// Seek implements io.Seeker. A seek to another position is a new request to the upstream.
func (t *Through) Seek(offset int64, whence int) (int64, error) {
	switch {
	case t.blob == nil:
		return 0, errReaderClosed
	case whence == io.SeekCurrent:
		offset += t.at
	case whence == io.SeekEnd && t.size < 0:
		return t.at, errors.New("the upstream does not say where the content ends")
	case whence == io.SeekEnd:
		offset += t.size
	}
	if offset < 0 {
		return t.at, errors.New("a position before the beginning")
	}
	if offset == t.at {
		return offset, nil
	}
	return offset, t.open(offset)
}

// Close ends reading.
func (t *Through) Close() error {
	if t.release == nil {
		return nil
	}
	t.release()
	t.release = nil
	if t.blob == nil {
		return nil
	}
	err := t.blob.Body.Close()
	t.blob = nil
	return err
}
