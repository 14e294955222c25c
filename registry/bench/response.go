package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
)

const (
	// bodyBuffer is what a body is read into. A body that fits is kept whole.
	bodyBuffer = 256 << 10
	// headBuffer bounds a line of a head; what fits of a body comes with it in one read.
	headBuffer = 16 << 10
	// maxLines bounds a head and a trailer.
	maxLines = 256
	// worthDiscarding is from which size on it pays to treat the rest of a body apart.
	worthDiscarding = 1 << 20
	// maxInterim is how many answers may precede the final one (RFC 9110, 15.2).
	maxInterim = 16
)

// response is an answer. Its slices are good until the next one is read into it.
type response struct {
	status    int
	length    int64 // of the body as it came; with HEAD as it is promised, -1 without a promise
	body      []byte
	location  []byte
	digest    []byte // Docker-Content-Digest
	challenge []byte // WWW-Authenticate, several separated by a comma
	closing   bool   // the connection cannot be used again
	truncated bool   // body has not all of it

	buf  []byte
	sum  hash.Hash // gets the body, if it is set
	conn net.Conn  // where large bodies may be discarded; nil: nowhere
}

var errMalformed = errors.New("the answer is no HTTP/1.1")

func malformed(what string) error { return fmt.Errorf("%w: %s", errMalformed, what) }

// framing is what a head says about the body's end (RFC 9112, 6.3).
type framing struct {
	length  int64 // -1: not told
	chunked bool
}

// read takes one answer from a connection, to a request with this method. Errors: io.EOF if there is nothing,
// io.ErrUnexpectedEOF if it ends early, errMalformed, and what the connection reports.
func (r *response) read(in *bufio.Reader, method string) error {
	for range maxInterim {
		f, err := r.readHead(in)
		if err != nil {
			return err
		}
		if r.status/100 != 1 {
			return r.readBody(in, method, f)
		}
		if r.status == 101 {
			return malformed("it changes to a protocol that nobody asked for")
		}
	}
	return malformed("too many interim answers")
}

func (r *response) readHead(in *bufio.Reader) (framing, error) {
	r.length, r.closing, r.truncated = 0, false, false
	r.body, r.location, r.digest, r.challenge = nil, r.location[:0], r.digest[:0], r.challenge[:0]
	f := framing{length: -1}
	if _, err := in.Peek(1); err != nil {
		return f, err
	}
	line, err := readLine(in)
	if err != nil {
		return f, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) || line[8] != ' ' {
		return f, malformed("its first line")
	}
	status, ok := number(line[9:12], 10)
	if !ok || status < 100 {
		return f, malformed("its status")
	}
	r.status, r.closing = int(status), line[7] == '0'
	for range maxLines {
		line, err := readLine(in)
		if err != nil || len(line) == 0 {
			return f, err
		}
		if err := r.field(line, &f); err != nil {
			return f, err
		}
	}
	return f, malformed("too many header fields")
}

// field takes what is needed of a header field.
func (r *response) field(line []byte, f *framing) error {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return malformed("a header field without a name")
	}
	name, value := line[:colon], bytes.TrimSpace(line[colon+1:])
	switch {
	case is(name, "content-length"):
		n, ok := number(value, 10)
		if !ok || f.length >= 0 && f.length != n {
			return malformed("its Content-Length")
		}
		f.length = n
	case is(name, "transfer-encoding"):
		if !is(value, "chunked") {
			return malformed("its Transfer-Encoding")
		}
		f.chunked = true
	case is(name, "connection"):
		r.closing = r.closing && !is(value, "keep-alive") || is(value, "close")
	case is(name, "location"):
		r.location = append(r.location[:0], value...)
	case is(name, "docker-content-digest"):
		r.digest = append(r.digest[:0], value...)
	case is(name, "www-authenticate"):
		if len(r.challenge) > 0 {
			r.challenge = append(r.challenge, ", "...)
		}
		r.challenge = append(r.challenge, value...)
	}
	return nil
}

// is compares without regard to case; lower is in lower case.
func is(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// number reads digits alone, up to a size that nothing has.
func number(b []byte, base int64) (n int64, ok bool) {
	for _, c := range b {
		d := int64(99)
		switch {
		case '0' <= c && c <= '9':
			d = int64(c - '0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			d = int64(c|0x20-'a') + 10
		}
		if d >= base || n > 1<<50 {
			return 0, false
		}
		n = n*base + d
	}
	return n, len(b) > 0
}

// readLine returns a line without its end.
func readLine(in *bufio.Reader) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, malformed("a line is too long")
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
}

func (r *response) readBody(in *bufio.Reader, method string, f framing) error {
	if f.chunked && f.length >= 0 {
		return malformed("Content-Length and Transfer-Encoding contradict each other")
	}
	r.open()
	switch {
	case method == "HEAD" || r.status == 204 || r.status == 304:
		r.length = f.length
		return nil
	case f.chunked:
		return r.readChunks(in)
	case f.length >= 0:
		return r.take(in, f.length)
	}
	r.closing = true
	return r.takeAll(in)
}

// open makes the buffer ready for a body.
func (r *response) open() {
	if r.buf == nil {
		r.buf = make([]byte, bodyBuffer)
	}
	r.body = r.buf[:0]
}

func (r *response) readChunks(in *bufio.Reader) error {
	for {
		line, err := readLine(in)
		if err != nil {
			return err
		}
		size, _, _ := bytes.Cut(line, []byte(";"))
		n, ok := number(bytes.TrimSpace(size), 16)
		if !ok {
			return malformed("the size of a chunk")
		}
		if n == 0 {
			return skipTrailer(in)
		}
		if err := r.take(in, n); err != nil {
			return err
		}
		if line, err = readLine(in); err != nil {
			return err
		}
		if len(line) != 0 {
			return malformed("a chunk is longer than it says")
		}
	}
}

func skipTrailer(in *bufio.Reader) error {
	for range maxLines {
		line, err := readLine(in)
		if err != nil || len(line) == 0 {
			return err
		}
	}
	return malformed("too many trailer fields")
}

// take reads n bytes of the body. What does not fit goes over the buffer's beginning, again and again.
func (r *response) take(in *bufio.Reader, n int64) error {
	for n > 0 {
		if n > worthDiscarding && r.sum == nil && r.conn != nil && in.Buffered() == 0 {
			if ok, err := discard(r.conn, n, r.buf); ok {
				r.truncated, r.length = true, r.length+n
				return err
			}
		}
		got, err := r.once(in, n)
		n -= int64(got)
		if err != nil && n > 0 {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// takeAll reads up to the end of the connection.
func (r *response) takeAll(in *bufio.Reader) error {
	for {
		if _, err := r.once(in, int64(len(r.buf))); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// once reads once, at most n bytes.
func (r *response) once(in io.Reader, n int64) (int, error) {
	at, room := len(r.body), int64(len(r.buf))
	if r.truncated = r.truncated || int64(at) == room || n > room; r.truncated {
		at = 0
	}
	got, err := in.Read(r.buf[at : at+int(min(n, room-int64(at)))])
	r.body = r.buf[:at+got]
	r.length += int64(got)
	if r.sum != nil {
		r.sum.Write(r.body[at:])
	}
	return got, err
}
