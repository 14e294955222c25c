package storage

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Format is the newest version of the data format that is known here: the journal's keys and values, and the layout of
// the data directory. An engine refuses data of a newer version. New data has FirstFormat, and a newer version from the
// first fact on that needs it (see Kind.Format), so that earlier programs open what they can read.
const (
	Format      = 3
	FirstFormat = 1
)

// Format returns the version of the data format that facts of this kind need.
func (k Kind) Format() int {
	switch k {
	case KindHistory:
		return 2
	case KindDeparted, kindPlace, kindRecord:
		return 3
	}
	if !k.known() {
		return Format + 1
	}
	return FirstFormat
}

// known reports whether facts of this kind are of a format that is known here.
func (k Kind) known() bool {
	switch k {
	case KindLink, KindManifest, KindTag, KindHistory, KindDeparted, kindCondemned, kindQuarantined,
		kindPlace, kindRecord:
		return true
	}
	return false
}

// Manifest is what is recorded of a manifest.
type Manifest struct {
	Digest    digest.Digest
	MediaType string
	Size      int64           // bytes
	Subject   digest.Digest   // the manifest it refers to (OCI image spec, "subject"); empty for most
	Refs      []digest.Digest // blobs and manifests that it consists of; links to them are kept
	Time      int64           // when it was pushed, Unix seconds
	// Cached: it came from the repo's upstream, and can come from there again. See Tx.Evict.
	Cached bool
}

// errFact: a fact cannot be read, or contradicts the facts before it.
var errFact = errors.New("damaged fact")

// The values of facts. They are binary, so that a hundred thousand of them load in a moment. Numbers are varints,
// strings follow their length. A reader ignores what follows the fields it knows, so later versions can add fields.

// linkValue has, after the time, whether the blob is cached. Values of earlier versions end with the time.
func linkValue(size, unix int64, cached bool) []byte {
	buf := binary.AppendVarint(binary.AppendVarint(nil, size), unix)
	if cached {
		buf = binary.AppendUvarint(buf, 1)
	}
	return buf
}

// tagValue has, after the time in seconds, the tag's order as a distance from that time in nanoseconds, and then the
// number of targets in its history. Values of earlier versions end with the time or the order.
func tagValue(d key, unix, order int64, targets uint32) []byte {
	buf := binary.AppendVarint(appendString(nil, string(d)), unix)
	buf = binary.AppendVarint(buf, order-momentOf(unix).nanos())
	if targets == 0 {
		return buf
	}
	return binary.AppendVarint(buf, int64(targets))
}

// condemnedValue has, after the time, who set the mark: a random text of one run.
func condemnedValue(unix int64, by string) []byte {
	return appendString(binary.AppendVarint(nil, unix), by)
}

func quarantinedValue(reason string, unix int64) []byte {
	return binary.AppendVarint(appendString(nil, reason), unix)
}

func manifestValue(m Manifest) []byte {
	buf := binary.AppendVarint(nil, m.Size)
	buf = binary.AppendVarint(buf, m.Time)
	buf = appendString(buf, m.MediaType)
	buf = appendString(buf, string(keyOf(m.Subject)))
	buf = binary.AppendUvarint(buf, uint64(len(m.Refs)))
	for _, d := range m.Refs {
		buf = appendString(buf, string(keyOf(d)))
	}
	if m.Cached {
		buf = binary.AppendUvarint(buf, 1)
	}
	return buf
}

func appendString(buf []byte, s string) []byte {
	return append(binary.AppendUvarint(buf, uint64(len(s))), s...)
}

// reader reads the fields of a value in order. When a field is missing, err is set, and that field and all after it are
// zero.
type reader struct {
	buf []byte
	err error
}

func (r *reader) number() int64 {
	n, l := binary.Varint(r.buf)
	if l <= 0 {
		r.err = errFact
		return 0
	}
	r.buf = r.buf[l:]
	return n
}

func (r *reader) length() uint64 {
	n, l := binary.Uvarint(r.buf)
	if l <= 0 {
		r.err = errFact
		return 0
	}
	r.buf = r.buf[l:]
	return n
}

func (r *reader) bytes() []byte {
	n := r.length()
	if r.err != nil || n > uint64(len(r.buf)) {
		r.err = errFact
		return nil
	}
	b := r.buf[:n]
	r.buf = r.buf[n:]
	return b
}

// key reads the binary form of a digest. It may be empty only if it is optional.
func (r *reader) key(optional bool) []byte {
	b := r.bytes()
	if !validKey(b) && (!optional || len(b) > 0) {
		r.err = errFact
		return nil
	}
	return b
}

func parseLink(v []byte) (size, unix int64, cached bool, err error) {
	r := reader{buf: v}
	size, unix = r.number(), r.number()
	cached = r.err == nil && len(r.buf) > 0 && r.length() == 1
	return size, unix, cached, r.err
}

// tagFact is a tag's value. digest is a part of it, not a copy. order and targets are 0 if it has none.
type tagFact struct {
	digest      []byte
	unix, order int64
	targets     uint32
}

func parseTag(v []byte) (tagFact, error) {
	r := reader{buf: v}
	t := tagFact{digest: r.key(false), unix: r.number()}
	if r.err == nil && len(r.buf) > 0 {
		t.order = momentOf(t.unix).nanos() + r.number()
	}
	if r.err == nil && len(r.buf) > 0 {
		t.targets = uint32(r.number())
	}
	return t, r.err
}

func parseQuarantined(v []byte) (Damage, error) {
	r := reader{buf: v}
	d := Damage{Reason: string(r.bytes()), Time: r.number()}
	return d, r.err
}

// manifestFact is a manifest's value, read without copying; refs are still encoded.
type manifestFact struct {
	size, time         int64
	mediaType, subject []byte
	refs               reader
	count              int
}

func parseManifest(v []byte) (manifestFact, error) {
	r := reader{buf: v}
	m := manifestFact{size: r.number(), time: r.number(), mediaType: r.bytes(), subject: r.key(true)}
	n := r.length()
	// Each reference takes at least one byte, so that a damaged count cannot cause a large allocation.
	if r.err == nil && n > uint64(len(r.buf)) {
		r.err = errFact
	}
	m.refs, m.count = r, int(n)
	return m, r.err
}

// eachRef calls f with the binary form of every reference.
func (m *manifestFact) eachRef(f func(k []byte)) error {
	_, err := m.rest(f)
	return err
}

// rest is eachRef that reads what follows the references as well: whether the manifest is cached. Earlier versions
// leave that out, and ignore it.
func (m *manifestFact) rest(f func(k []byte)) (cached bool, err error) {
	r := m.refs
	for range m.count {
		k := r.key(false)
		if r.err != nil {
			return false, r.err
		}
		f(k)
	}
	return len(r.buf) > 0 && r.length() == 1, r.err
}

// damaged adds to err which fact it is about.
func damaged(repo string, f Fact, err error) error {
	name := f.Name
	if f.Kind != KindTag {
		name = string(key(f.Name).digest())
	}
	return fmt.Errorf("journal: %w: repository %q, kind %q, name %q", err, repo, f.Kind, name)
}
