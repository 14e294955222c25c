package registry

import (
	"io"
	"sync"
	"time"

	"trow/storage"
)

const (
	// pieceSize keeps the number of writes low; a thousand uploads at once take 125 MiB.
	pieceSize = 128 << 10
	// mostAhead bounds the uploads that have a second buffer. Whose turn it is not goes without, a little slower.
	mostAhead = 64
)

var (
	pieces = sync.Pool{New: func() any { b := make([]byte, pieceSize); return &b }}
	ahead  = make(chan struct{}, mostAhead)
)

// receive appends a body to an upload: exactly length bytes, or all there is if that is negative. What came
// before an error is kept: the client can ask how much that is.
func receive(u storage.Upload, body io.Reader, length int64) error {
	src := body
	if length >= 0 {
		src = io.LimitReader(body, length)
	}
	n, rerr, werr := pump(u, src)
	switch {
	case werr != nil:
		return uploadFault(u.ID(), "", werr)
	case rerr != nil:
		return bodyFault(rerr)
	case length >= 0 && n < length:
		return bodyFault(io.ErrUnexpectedEOF)
	case length >= 0:
		var more [1]byte
		if extra, _ := body.Read(more[:]); extra > 0 {
			return &fault{code: codeSizeInvalid, message: "the body is longer than its Content-Range says"}
		}
	}
	return nil
}

// pump writes all of src to dst, and fills a piece while the one before is written, so that network and disk do not
// wait for each other. It returns how much was read, and the errors of both sides apart.
func pump(dst io.Writer, src io.Reader) (n int64, rerr, werr error) {
	piece := pieces.Get().(*[]byte)
	defer func() { pieces.Put(piece) }()
	size, rerr := fill(src, *piece)
	if rerr == nil { // there is more than a piece of it
		select {
		case ahead <- struct{}{}:
			defer func() { <-ahead }()
			next := pieces.Get().(*[]byte)
			defer func() { pieces.Put(next) }()
			for rerr == nil {
				n += int64(size)
				written := start(dst, (*piece)[:size])
				size, rerr = fill(src, *next)
				if werr = <-written; werr != nil {
					return n, nil, werr
				}
				piece, next = next, piece
			}
		default:
			for rerr == nil {
				n += int64(size)
				if _, werr = dst.Write((*piece)[:size]); werr != nil {
					return n, nil, werr
				}
				size, rerr = fill(src, *piece)
			}
		}
	}
	if rerr == io.EOF {
		rerr = nil
	}
	if size > 0 {
		n += int64(size)
		_, werr = dst.Write((*piece)[:size])
	}
	return n, rerr, werr
}

// start writes p to dst beside the caller, who may touch p again when the outcome has come.
func start(dst io.Writer, p []byte) <-chan error {
	outcome := make(chan error, 1)
	go func() {
		_, err := dst.Write(p)
		outcome <- err
	}()
	return outcome
}

// patience is how long a piece is filled: what comes slowly is not kept back from the disk, where a client that has lost
// its connection finds it again.
const patience = 10 * time.Millisecond

// fill reads until p is full, src has no more or patience has passed; its error, io.EOF too, may come with bytes.
func fill(src io.Reader, p []byte) (n int, err error) {
	for begin := time.Now(); n < len(p) && err == nil && (n == 0 || time.Since(begin) < patience); {
		var m int
		m, err = src.Read(p[n:])
		n += m
	}
	return n, err
}
