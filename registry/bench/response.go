package bench

import (
	"errors"
	"hash"
	"io"
)

const (
	// maxBody bounds the bodies that are kept: lists, manifests, small blobs, error messages.
	maxBody = 16 << 20
	// streamBuffer is what a streamed body is read into, again and again.
	streamBuffer = 256 << 10
)

// errTooLarge reports a body that is larger than anything a registry should answer.
var errTooLarge = errors.New("the answer has more than 16 MiB")

// response is an answer. Its slices are valid until the next request of the same connection.
type response struct {
	status    int
	length    int64  // bytes of the body; for HEAD the announced length; -1 if not announced
	body      []byte // empty if the body was streamed
	location  []byte
	digest    []byte // Docker-Content-Digest
	challenge []byte // WWW-Authenticate; several are separated by commas

	buffer []byte
}

// readStream reads a body to its end and counts it. If keep is set, the body is kept as well. sum, if not nil, gets
// the body.
func (r *response) readStream(body io.Reader, keep bool, sum hash.Hash) error {
	if r.buffer == nil {
		r.buffer = make([]byte, streamBuffer)
	}
	r.body, r.length = r.body[:0], 0
	for {
		n, err := body.Read(r.buffer)
		r.length += int64(n)
		if sum != nil {
			sum.Write(r.buffer[:n])
		}
		if keep {
			r.body = append(r.body, r.buffer[:n]...)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case keep && r.length > maxBody:
			return errTooLarge
		}
	}
}
