package upstream

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
)

// Reader reads a content while it is downloaded: a read waits for bytes that have not arrived yet. It is an
// io.ReadSeeker with a position of its own. It returns the last bytes only after the digest is verified; if that or the
// download fails, the reads fail. Its methods may be called one at a time; ReadAt and Close also concurrently with
// others.
type Reader struct {
	ctx    context.Context
	flight *flight
	at     int64
	joined bool
	closed atomic.Bool
}

// Joined reports whether the reader has joined a download that another one had started, maybe for another repository:
// then an answer of the upstream that it fails with is about that repository.
func (r *Reader) Joined() bool { return r.joined }

// errReaderClosed is the error of a read after Close.
var errReaderClosed = errors.New("the reader is closed")

// Size returns the number of bytes. It waits until the upstream has answered; -1 if the answer does not have the length
// and the content has not arrived yet. Errors: why the content could not be fetched; that of the context.
func (r *Reader) Size() (int64, error) {
	for {
		r.flight.mu.Lock()
		size, answered, done, err, changed := r.flight.size, r.flight.answered, r.flight.done, r.flight.err,
			r.flight.changed
		r.flight.mu.Unlock()
		switch {
		case done && err != nil:
			return 0, err
		case answered || done:
			return size, nil
		}
		select {
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		case <-changed:
		}
	}
}

// Wait waits until all of the content is stored, without reading it. It calls progress whenever bytes have arrived,
// with how many they are, and how many the content has; -1: not known yet. Errors: as Size.
func (r *Reader) Wait(progress func(got, size int64)) error {
	for {
		r.flight.mu.Lock()
		got, size, done, err, changed := r.flight.got, r.flight.size, r.flight.done, r.flight.err, r.flight.changed
		r.flight.mu.Unlock()
		if done && err != nil {
			return err
		}
		if progress(got, size); done {
			return nil
		}
		select {
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		case <-changed:
		}
	}
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	n, err := r.ReadAt(p, r.at)
	r.at += int64(n)
	return n, err
}

// ReadAt waits for bytes at an offset and reads them. Unlike other io.ReaderAt it may return fewer than len(p) without
// an error, but at least one. Errors: io.EOF; errReaderClosed; as Size.
func (r *Reader) ReadAt(p []byte, at int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	fl := r.flight
	for {
		if r.closed.Load() {
			return 0, errReaderClosed
		}
		fl.mu.Lock()
		visible, done, err, changed, source := fl.visible(), fl.done, fl.err, fl.changed, fl.source
		fl.given = fl.given || at < visible
		fl.mu.Unlock()
		switch {
		case done && err != nil: // also for bytes that have arrived: they may be wrong
			return 0, err
		case at < visible:
			n, err := source.ReadAt(p[:min(int64(len(p)), visible-at)], at)
			if n > 0 {
				err = nil
			}
			return n, err
		case done:
			return 0, io.EOF
		}
		select {
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		case <-changed:
		}
	}
}

// Seek implements io.Seeker. Errors: the position is before the beginning; those of Size, for a position from the end.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		size, err := r.Size()
		if err == nil && size < 0 {
			err = errors.New("the upstream does not say where the content ends")
		}
		if err != nil {
			return r.at, err
		}
		offset += size
	}
	if offset < 0 {
		return r.at, errors.New("a position before the beginning")
	}
	r.at = offset
	return offset, nil
}

// Close ends reading. The download goes on while others read, or if it is nearly done, and otherwise for lingerTime.
func (r *Reader) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	return r.flight.left()
}
