package registry

import (
	"io"
	"sync"
	"time"

	"trow/storage"
)

const (
	// pieceSize is how much one write takes: with larger pieces a thousand uploads at once would need more than 125
	// MiB, with smaller ones the system calls would cost more.
	pieceSize = 128 << 10
	// maxPipelined bounds the uploads that have a second buffer. The others write each piece before they read the next,
	// and are a little slower.
	maxPipelined = 64
)

var (
	pieces    = sync.Pool{New: func() any { b := make([]byte, pieceSize); return &b }}
	pipelined = make(chan struct{}, maxPipelined)
)

// receive appends a body to an upload: exactly length bytes, or all if length is negative. The upload keeps what came
// before an error, so that the client can continue from there.
func receive(u storage.Upload, body io.Reader, length int64) error {
	src := body
	if length >= 0 {
		src = io.LimitReader(body, length)
	}
	n, rerr, werr := pump(u, src)
	switch {
	case werr != nil:
		return uploadError(u.ID(), "", werr)
	case rerr != nil:
		return bodyEnded(rerr)
	case length >= 0 && n < length:
		return bodyEnded(io.ErrUnexpectedEOF)
	case length >= 0:
		var more [1]byte
		if extra, _ := body.Read(more[:]); extra > 0 {
			return sizeInvalid("the body is longer than its Content-Range")
		}
	}
	return nil
}

// pump writes all of src to dst. It reads a piece while it writes the one before, so that network and disk do not
// wait for each other. It returns how many bytes it read, and the errors of both sides separately.
func pump(dst io.Writer, src io.Reader) (n int64, rerr, werr error) {
	piece := pieces.Get().(*[]byte)
	defer func() { pieces.Put(piece) }()
	size, rerr := fill(src, *piece)
	if rerr == nil { // there is more than one piece
		select {
		case pipelined <- struct{}{}:
			defer func() { <-pipelined }()
			next := pieces.Get().(*[]byte)
			defer func() { pieces.Put(next) }()
			for rerr == nil {
				n += int64(size)
				written := start(dst, (*piece)[:size])
				size, rerr = fill(src, *next)
				// Wait for the write also if reading failed: the piece goes back to the pool.
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
	if size > 0 { // the last piece, and what came before an error
		n += int64(size)
		_, werr = dst.Write((*piece)[:size])
	}
	return n, rerr, werr
}

// start writes p to dst in the background. The caller must not touch p until the outcome is in.
func start(dst io.Writer, p []byte) <-chan error {
	outcome := make(chan error, 1)
	go func() {
		_, err := dst.Write(p)
		outcome <- err
	}()
	return outcome
}

// patience bounds how long one piece is filled. What comes slowly must reach the disk soon: a client that has lost its
// connection continues from there.
const patience = 10 * time.Millisecond

// fill reads until p is full, src ends or patience has passed. Its error, also io.EOF, may come with bytes.
func fill(src io.Reader, p []byte) (n int, err error) {
	for begin := time.Now(); n < len(p) && err == nil && (n == 0 || time.Since(begin) < patience); {
		var m int
		m, err = src.Read(p[n:])
		n += m
	}
	return n, err
}
