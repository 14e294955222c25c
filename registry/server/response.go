package server

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	// piece is what is written under one deadline, and the size of a buffer: small enough that a slow reader
	// takes it within Stall, large enough that the deadline costs nothing beside it.
	piece = 64 << 10
	// sendfileStep is what is handed to sendfile at once. It needs no deadline of its own size, because a
	// step that is cut short tells how far it came.
	sendfileStep = 4 << 20
	// held is how much net/http keeps back before it writes to the connection . Nothing up to that can stall
	// before the end of the request, so no deadline is set for it. Should net/http hold less, a small answer is watched
	// a moment later.
	held = 2 << 10
)

// buffers are what is copied through; small ones are for those who take so little at a time that a large one would only
// be waiting memory.
var (
	buffers      = sync.Pool{New: func() any { b := make([]byte, piece); return &b }}
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, recordSize); return &b }}
)

// large are the turns to keep a whole piece in memory while it is written. Whoever has none, because so many others have
// one or because he takes his time, is served by records: a thousand slow readers cost a third that way.
var large = make(turns, 64)

// turns bounds how many do something at once.
type turns chan struct{}

func (t turns) take() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

func (t turns) give() { <-t }

// slow is how long a piece may take until its reader counts as slow. A reader of 1 MB/s takes 64 ms.
const slow = 250 * time.Millisecond

// errStalled is why the front cuts a peer. It is os.ErrDeadlineExceeded for errors.Is.
type errStalled time.Duration

func (e errStalled) Error() string { return fmt.Sprintf("stalled for %s", time.Duration(e)) }
func (e errStalled) Unwrap() error { return os.ErrDeadlineExceeded }

// response is the outermost ResponseWriter: it counts, and cuts a peer that stalls. Used by one goroutine at a
// time, as any ResponseWriter.
type response struct {
	http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration
	body  *body // nil: the request has none
	wire  *wire // nil in tests that have no connection

	isHead   bool
	isTLS    bool
	sendfile bool

	status int
	bytes  int64     // of the body, handed to the connection
	err    error     // the first that writing gave
	armed  time.Time // when the write deadline was last set
}

func newResponse(inner http.ResponseWriter, r *http.Request, stall time.Duration) *response {
	_, from := inner.(io.ReaderFrom)
	below, _ := r.Context().Value(wireKey{}).(*wire)
	return &response{
		wire:           below,
		ResponseWriter: inner,
		rc:             http.NewResponseController(inner),
		stall:          stall,
		isHead:         r.Method == http.MethodHead,
		isTLS:          r.TLS != nil,
		sendfile:       from && r.TLS == nil,
	}
}

// Unwrap lets http.ResponseController find the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the status. The informational ones come before it.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write writes p in pieces, each under its own deadline.
func (w *response) Write(p []byte) (n int, err error) {
	for {
		part := p[n:min(len(p), n+piece)]
		m, err := w.write(part)
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// write writes one piece.
func (w *response) write(p []byte) (int, error) {
	w.begin()
	quick := w.bytes+int64(len(p)) <= held
	if !quick {
		w.arm()
	}
	n, err := w.pass(p)
	return n, w.wrote(int64(n), err)
}

// recordSize is the most that goes into one record of TLS (RFC 8446, section 5.1).
const recordSize = 16 << 10

// pass writes one piece to net/http. What takes several records goes out at once, and so does a body of one piece with
// the header before it, which net/http would divide.
func (w *response) pass(p []byte) (int, error) {
	records := w.isTLS && len(p) > recordSize
	whole := !w.isHead && w.bytes == 0 && len(p) > held && w.promised() == int64(len(p))
	if w.wire == nil || !records && !whole || !large.take() {
		return w.ResponseWriter.Write(p)
	}
	defer large.give()
	w.wire.hold()
	n, err := w.ResponseWriter.Write(p)
	if whole && err == nil {
		err = w.rc.Flush()
	}
	if ferr := w.wire.flush(); err == nil && ferr != nil {
		n, err = 0, ferr
	}
	return n, err
}

// promised is the length of the body that the header tells, -1 if it tells none.
func (w *response) promised() int64 {
	if n, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64); err == nil {
		return n
	}
	return -1
}

// begin notes the status of an answer whose handler did not.
func (w *response) begin() {
	if w.status == 0 {
		w.status = http.StatusOK
	}
}

// wrote counts, and keeps the first error.
func (w *response) wrote(n int64, err error) error {
	if !w.isHead {
		w.bytes += n
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errStalled(w.stall)
	}
	// That a status or a HEAD takes no body is the handler's doing, not the client's.
	if w.err == nil && !errors.Is(err, http.ErrBodyNotAllowed) && !errors.Is(err, http.ErrContentLength) {
		w.err = err
	}
	return err
}

// ReadFrom writes all of src. A file over plain HTTP/1.1 goes by sendfile.
func (w *response) ReadFrom(src io.Reader) (int64, error) {
	w.begin()
	if !w.sendfile || w.isHead {
		return w.copy(src)
	}
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: src, N: 1<<63 - 1}
	}
	if !w.sendable(limited) {
		return w.copy(src)
	}
	// The header goes ahead. Within ReadFrom net/http would go on without it if it stalled, and the second try of
	// send would put the body in its place.
	if err := w.FlushError(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return w.send(limited)
}

// sendable reports whether src is a file that is worth a call of its own, in an answer that need not be looked
// at: net/http would guess a missing type from the first bytes, and cannot send without a length.
func (w *response) sendable(src *io.LimitedReader) bool {
	_, ok := src.R.(syscall.Conn)
	h := w.Header()
	return ok && src.N > piece && h.Get("Content-Length") != "" && h.Get("Content-Type") != ""
}

// send hands src to the connection step by step. net/http finds a file within one LimitedReader and not within
// two, so each step has a new one around the same file; src.N is kept as if it had been read from.
//
// A step may take longer than the deadline: if bytes went out, it was slow and not stalled. The deadline is half
// of Stall because the second try asks the kernel again: it accepts bytes as soon as there is room for any, but
// wakes a waiting writer only when there is room for many.
func (w *response) send(src *io.LimitedReader) (total int64, err error) {
	w.armed = time.Time{} // the deadline is another one from here on
	if w.wire != nil {
		cork(w.wire.Conn, true)
		defer cork(w.wire.Conn, false)
	}
	for stalls := 0; src.N > 0; {
		w.set(w.stall / 2)
		step := io.LimitedReader{R: src.R, N: min(src.N, sendfileStep)}
		want := step.N
		n, err := w.ResponseWriter.(io.ReaderFrom).ReadFrom(&step)
		taken := want - step.N
		src.N -= taken
		total += n
		if stalls++; n > 0 {
			stalls = 0
		}
		// Bytes that were taken from the file and did not go out are lost: then there is no second try.
		again := errors.Is(err, os.ErrDeadlineExceeded) && n == taken && stalls < 2
		if again {
			err = nil
		}
		if err = w.wrote(n, err); err != nil || step.N > 0 && !again {
			return total, err
		}
	}
	return total, nil
}

// copy writes src through a buffer of ours, which is large as long as the reader is quick.
func (w *response) copy(src io.Reader) (total int64, err error) {
	if large.take() {
		var quick bool
		buf := buffers.Get().(*[]byte)
		total, quick, err = w.through(*buf, src, slow)
		buffers.Put(buf)
		large.give()
		if quick || err != nil {
			return total, err
		}
	}
	buf := smallBuffers.Get().(*[]byte)
	defer smallBuffers.Put(buf)
	rest, _, err := w.through(*buf, src, math.MaxInt64)
	return total + rest, err
}

// through writes src through buf, to its end, or until a write has taken longer than patience: then it was not quick.
func (w *response) through(buf []byte, src io.Reader, patience time.Duration) (total int64, quick bool, err error) {
	for {
		n, rerr := src.Read(buf)
		if n > 0 {
			begin := time.Now()
			m, err := w.write(buf[:n])
			total += int64(m)
			if err != nil {
				return total, false, err
			}
			if rerr == nil && time.Since(begin) > patience {
				return total, false, nil
			}
		}
		if rerr == io.EOF {
			return total, true, nil
		}
		if rerr != nil {
			return total, false, rerr
		}
	}
}

// Flush sends what is held back.
func (w *response) Flush() { _ = w.FlushError() } // the error is kept for the log

// FlushError sends what is held back. Errors: those of the connection, and http.ErrNotSupported.
func (w *response) FlushError() error {
	w.begin()
	w.arm()
	err := w.rc.Flush()
	if errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return w.wrote(0, err)
}

// arm starts the deadline before something is written. Before the first byte of an answer net/http reads what is
// left of the request's body, so that needs a deadline as well.
func (w *response) arm() {
	now := time.Now()
	if now.Sub(w.armed) > w.stall/4 {
		w.armed = now
		w.set(w.stall + w.stall/4) // up to a quarter of it is gone when the next piece starts
	}
	if w.body.isOpen() {
		_ = w.rc.SetReadDeadline(now.Add(w.stall))
	}
}

// set sets the write deadline. A connection without deadlines (in tests) is not watched.
func (w *response) set(d time.Duration) { _ = w.rc.SetWriteDeadline(time.Now().Add(d)) }

// finish sets the deadlines for what net/http does after the handler: it writes what it holds, and reads
// what is left of the request's body. net/http takes them back before the next request.
func (w *response) finish() {
	w.set(w.stall)
	if w.body.isOpen() && w.body.err == nil {
		_ = w.rc.SetReadDeadline(time.Now().Add(w.stall))
	}
}
