package s3

import (
	"bytes"
	"crypto/rand"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// record is what the Journal keeps of a session: an upload that continues in later requests, at any process.
//
// Its epoch counts the writers. Each takes the session over with a conditional change of the record, which also has a
// random number of its own, so that after a change whose answer was lost the writer sees whether the record is his.
// Numbers of parts are reserved in the record before they are used, and next is above all that any epoch may have used:
// a request of an earlier writer that arrives late has a number that no later one names.
type record struct {
	epoch      uint64
	writer     [8]byte
	committing bool      // the writer completes it: no other one may take it over
	used       time.Time // to the second
	alg        digest.Algorithm
	size       int64  // bytes that it has: those of the parts and the tail
	state      []byte // of the hash after size bytes; empty if it is not known
	place      string // of the object that the parts will be; empty: there is no multipart upload
	upload     string // ID of the multipart upload
	next       int    // the first number of a part that no writer has reserved
	parts      []part
	tail       tail
}

// part is an uploaded part that the object will consist of.
type part struct {
	number int
	size   int64
	etag   string // as the service has it: it need not be an MD5
}

// tail is what came after the last part and is too short for one: an object like others. If nothing follows and there
// is no part, it is the object itself.
type tail struct {
	place string // empty: there is none
	size  int64
}

// recordVersion is the version of the format. A reader leaves records of others alone.
const recordVersion = 1

var errVersion = errors.New("the upload's record is of another version of this program")

func newWriter() (id [8]byte) {
	_, _ = rand.Read(id[:]) // it never fails
	return id
}

func (r *record) encode() []byte {
	b := make([]byte, 0, 256+24*len(r.parts))
	b = append(b, recordVersion)
	b = binary.AppendUvarint(b, r.epoch)
	b = append(b, r.writer[:]...)
	if r.committing {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = binary.AppendUvarint(b, uint64(r.used.Unix()))
	b = appendString(b, string(r.alg))
	b = binary.AppendUvarint(b, uint64(r.size))
	b = appendString(b, string(r.state))
	b = appendString(b, r.place)
	b = appendString(b, r.upload)
	b = binary.AppendUvarint(b, uint64(r.next))
	b = appendString(b, r.tail.place)
	b = binary.AppendUvarint(b, uint64(r.tail.size))
	b = binary.AppendUvarint(b, uint64(len(r.parts)))
	last := 0
	for _, p := range r.parts {
		b = binary.AppendUvarint(b, uint64(p.number-last))
		b = binary.AppendUvarint(b, uint64(p.size))
		last = p.number
		// 32 hex digits are the usual form. An empty text stands for 16 bytes that follow.
		if raw, err := hex.DecodeString(p.etag); err == nil && len(raw) == 16 && hex.EncodeToString(raw) == p.etag {
			b = append(append(b, 0), raw...)
			continue
		}
		b = appendString(b, p.etag)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decoder reads a record; a malformed one sets bad.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v := d.uint()
	if v > 1<<62 {
		d.bad = true
		return 0
	}
	return int64(v)
}

func (d *decoder) text() string { return string(d.bytes(d.uint())) }

func decodeRecord(b []byte) (*record, error) {
	if len(b) == 0 || b[0] != recordVersion {
		return nil, errVersion
	}
	d := &decoder{b: b[1:]}
	r := &record{epoch: d.uint()}
	copy(r.writer[:], d.bytes(uint64(len(r.writer))))
	r.committing = bytes.Equal(d.bytes(1), []byte{1})
	r.used = time.Unix(d.int(), 0)
	r.alg = digest.Algorithm(d.text())
	r.size = d.int()
	r.state = []byte(d.text())
	r.place, r.upload = d.text(), d.text()
	r.next = int(d.int())
	r.tail = tail{d.text(), d.int()}
	n, last := d.uint(), 0
	for range min(n, maxParts) {
		p := part{number: last + int(d.int()), size: d.int()}
		last = p.number
		if l := d.uint(); l == 0 {
			p.etag = hex.EncodeToString(d.bytes(16))
		} else {
			p.etag = string(d.bytes(l))
		}
		if d.bad {
			break
		}
		r.parts = append(r.parts, p)
	}
	if d.bad || n > maxParts || len(d.b) > 0 || !storage.Supported(r.alg) {
		return nil, errVersion
	}
	return r, nil
}

// partial returns the bytes in parts.
func (r *record) partial() (n int64) {
	for _, p := range r.parts {
		n += p.size
	}
	return n
}

// stateOf returns the state of a hash, and nil if it cannot be kept.
func stateOf(h hash.Hash) []byte {
	if m, ok := h.(encoding.BinaryMarshaler); ok {
		if state, err := m.MarshalBinary(); err == nil {
			return state
		}
	}
	return nil
}

// hashFrom returns a hash in a state, and nil if the state is not known here: another version of Go may have another
// form. Then the bytes have to be read again.
func hashFrom(alg digest.Algorithm, state []byte, size int64) hash.Hash {
	h := alg.Hash()
	if size == 0 {
		return h
	}
	u, ok := h.(encoding.BinaryUnmarshaler)
	if !ok || len(state) == 0 || u.UnmarshalBinary(state) != nil {
		return nil
	}
	return h
}
