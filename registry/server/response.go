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

	"golang.org/x/sync/semaphore"

	"trow/registry/socket"
)

const (
	// piece is what is written under one deadline, and the size of a buffer: small enough that a slow reader takes it
	// within the stall timeout, large enough that setting the deadline costs nothing in comparison.
	piece = 64 << 10
	// sendfileStep is what is handed to sendfile at once. It may be larger than a piece, because a step that is
	// interrupted reports how many bytes were sent.
	sendfileStep = 4 << 20
	// held is how much net/http holds back before it writes to the connection. Writing that much cannot stall before
	// the end of the request, so no deadline is set for it. If net/http held less, the deadline of a small answer would
	// be set a moment later, by finish.
	held = 2 << 10
)

// buffers are for copying. Small ones are for clients that read so slowly that most of a large one would only occupy
// memory.
var (
	buffers      = sync.Pool{New: func() any { b := make([]byte, piece); return &b }}
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, recordSize); return &b }}
)

// large bounds the number of whole pieces that are in memory while they are written. Other answers, and those to slow
// clients, are written in records: with a thousand slow clients that takes a third of the memory.
var large = semaphore.NewWeighted(64)

// slow is how long a client may take for a piece until it counts as slow. At 1 MB/s it takes 64 ms.
const slow = 250 * time.Millisecond

// errStalled is the error by which a client that stalls is cut off. For errors.Is it is os.ErrDeadlineExceeded.
type errStalled time.Duration

func (e errStalled) Error() string { return fmt.Sprintf("stalled for %s", time.Duration(e)) }
func (e errStalled) Unwrap() error { return os.ErrDeadlineExceeded }

// response is the outermost ResponseWriter: it counts, and cuts off a client that stalls. As any ResponseWriter, it is
// used by one goroutine at a time.
type response struct {
	http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration
	body  *body // nil: the request has none
	conn  *conn // nil in tests that have no connection

	isHead   bool
	isTLS    bool
	sendfile bool // the connection can send a file

	status int
	bytes  int64     // of the body, handed to the connection
	err    error     // the first error of writing
	armed  time.Time // when the write deadline was last set
}

func newResponse(inner http.ResponseWriter, r *http.Request, stall time.Duration) *response {
	_, from := inner.(io.ReaderFrom)
	c, _ := r.Context().Value(connKey{}).(*conn)
	return &response{
		ResponseWriter: inner,
		conn:           c,
		rc:             http.NewResponseController(inner),
		stall:          stall,
		isHead:         r.Method == http.MethodHead,
		isTLS:          r.TLS != nil,
		sendfile:       from && r.TLS == nil,
	}
}

// Unwrap lets http.ResponseController find the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader keeps the status. Informational ones, such as 103, come before the status and do not count.
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

// pass writes one piece to net/http. Several TLS records are sent with one call, and so are the header and a body of
// one piece, which net/http would send with two.
func (w *response) pass(p []byte) (int, error) {
	records := w.isTLS && len(p) > recordSize
	whole := !w.isHead && w.bytes == 0 && len(p) > held && w.contentLength() == int64(len(p))
	if w.conn == nil || !records && !whole || !large.TryAcquire(1) {
		return w.ResponseWriter.Write(p)
	}
	defer large.Release(1)
	w.conn.hold()
	n, err := w.ResponseWriter.Write(p)
	if whole && err == nil {
		err = w.rc.Flush() // net/http holds the end of the piece back, and would send it after our flush
	}
	// The flush must follow in any case: it ends the holding.
	if ferr := w.conn.flush(); err == nil && ferr != nil {
		n, err = 0, ferr
	}
	return n, err
}

// contentLength is the length of the body in the header, or -1 if the header has no length.
func (w *response) contentLength() int64 {
	if n, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64); err == nil {
		return n
	}
	return -1
}

// begin sets the status of an answer whose handler has not.
func (w *response) begin() {
	if w.status == 0 {
		w.status = http.StatusOK
	}
}

// wrote counts the bytes and keeps the first error. It returns the error for the handler.
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
	// A body where none is allowed is a mistake of the handler; only errors of the connection are the client's.
	if w.err == nil && !errors.Is(err, http.ErrBodyNotAllowed) && !errors.Is(err, http.ErrContentLength) {
		w.err = err
	}
	return err
}

// ReadFrom writes all of src. Over plain HTTP/1.1 a file is sent with sendfile.
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
	// The header is sent first. If it stalled within ReadFrom, net/http would go on without it, and the second try of
	// send would write the body in its place.
	if err := w.FlushError(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return w.send(limited)
}

// sendable reports whether src is a file of more than a piece, in an answer with a type and a length: net/http would
// read the first bytes to guess a missing type, and cannot use sendfile without a length.
func (w *response) sendable(src *io.LimitedReader) bool {
	_, ok := src.R.(syscall.Conn)
	h := w.Header()
	return ok && src.N > piece && h.Get("Content-Length") != "" && h.Get("Content-Type") != ""
}

// send hands src to the connection step by step. net/http finds a file within one LimitedReader but not within two, so
// each step has a new one around the same file; src.N is updated as if src had been read.
//
// A step may take longer than the deadline: if bytes were sent, the client is slow and has not stalled. The deadline is
// half of the stall timeout, because the second try asks the kernel again: the kernel accepts bytes as soon as there is
// room for any, but wakes a waiting writer only when there is room for many.
func (w *response) send(src *io.LimitedReader) (total int64, err error) {
	w.armed = time.Time{} // the deadline below replaces the one that arm has set
	if w.conn != nil {
		socket.Cork(w.conn.Conn, true)
		defer socket.Cork(w.conn.Conn, false)
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
		// Bytes that were taken from the file but not sent are lost, so there is no second try.
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

// copy writes src through a buffer, a large one as long as the client is quick.
func (w *response) copy(src io.Reader) (total int64, err error) {
	if large.TryAcquire(1) {
		var quick bool
		buf := buffers.Get().(*[]byte)
		total, quick, err = w.copyBuffer(*buf, src, slow)
		buffers.Put(buf)
		large.Release(1)
		if quick || err != nil {
			return total, err
		}
	}
	buf := smallBuffers.Get().(*[]byte)
	defer smallBuffers.Put(buf)
	rest, _, err := w.copyBuffer(*buf, src, math.MaxInt64)
	return total + rest, err
}

// copyBuffer writes src through buf, to its end, or until a write has taken longer than patience: then quick is false.
func (w *response) copyBuffer(buf []byte, src io.Reader, patience time.Duration) (total int64, quick bool, err error) {
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

// Flush sends what net/http holds back.
func (w *response) Flush() { _ = w.FlushError() } // wrote keeps the error for the log

// FlushError sends what net/http holds back. Errors: those of the connection, and http.ErrNotSupported.
func (w *response) FlushError() error {
	w.begin()
	w.arm()
	err := w.rc.Flush()
	if errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return w.wrote(0, err)
}

// arm sets the deadlines before a write. Before the first byte of an answer net/http reads the rest of the request's
// body, so reading needs a deadline as well.
func (w *response) arm() {
	now := time.Now()
	// A recent deadline stays, because setting it for each piece would cost too much.
	if now.Sub(w.armed) > w.stall/4 {
		w.armed = now
		w.set(w.stall + w.stall/4) // up to a quarter of it has passed when the next piece starts
	}
	if w.body.isOpen() {
		w.body.set(now.Add(w.stall))
	}
}

// SetReadDeadline sets when the whole body of the request must have arrived. The deadline of a stall stays in effect
// before that. It is for http.ResponseController, also from another goroutine while the handler runs. Errors: those of
// the connection.
func (w *response) SetReadDeadline(t time.Time) error {
	if w.body == nil {
		return nil
	}
	w.heads().awaitBody(time.Now().UnixNano())
	return w.body.setLimit(t)
}

// heads returns the heads of the connection; nil if there are none.
func (w *response) heads() *heads {
	if w.conn == nil {
		return nil
	}
	return w.conn.heads
}

// set sets the write deadline. In tests without a connection it has no effect.
func (w *response) set(d time.Duration) { _ = w.rc.SetWriteDeadline(time.Now().Add(d)) }

// finish sets the deadlines for what net/http does after the handler: it writes what it holds back, and reads the rest
// of the request's body. net/http removes the deadlines before the next request.
func (w *response) finish() {
	w.set(w.stall)
	if w.body != nil && w.body.wide {
		w.conn.narrowed()
	}
	if w.body.isOpen() && w.body.err == nil {
		w.body.set(time.Now().Add(w.stall))
	}
}
