package server

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"

	"trow/registry/redact"
)

// record is what the access log knows of one request. It is the request's context itself, which saves an allocation
// and makes a look-up one comparison.
type record struct {
	context.Context

	id     string
	remote string
	header [1]string // the id again, as the value of the response's header without an allocation

	mu     sync.Mutex // guards what follows, because a handler may annotate from several goroutines
	route  string
	fields []field
	room   [6]field // the memory of fields: as many as there are fixed keys besides route
}

// field is one annotation.
type field struct {
	key, value string
}

// recordKey finds the record of a context.
type recordKey struct{}

// Value returns the record itself for recordKey.
func (r *record) Value(key any) any {
	if key == (recordKey{}) {
		return r
	}
	return r.Context.Value(key)
}

func recordOf(ctx context.Context) *record {
	r, _ := ctx.Value(recordKey{}).(*record)
	return r
}

func newRecord(req *http.Request) *record {
	r := &record{Context: req.Context(), id: newID(), remote: req.RemoteAddr}
	r.header[0] = r.id
	r.fields = r.room[:0]
	return r
}

// RemoteAddr returns the address and port of the client whose request ctx belongs to. Empty if ctx does not belong to a
// request.
func RemoteAddr(ctx context.Context) string {
	if r := recordOf(ctx); r != nil {
		return r.remote
	}
	return ""
}

const (
	// idLength characters of 5 bits: among a billion requests the chance of two with the same id is about even, and
	// people search the requests of a day.
	idLength = 12
	// idDigits has no letters that look like others (i, l, o, u), because people read ids to each other.
	idDigits = "0123456789abcdefghjkmnpqrstvwxyz"
)

// newID makes the id of a request. It must be unlikely to occur twice; it need not be hard to guess.
func newID() string {
	var b [idLength]byte
	n := rand.Uint64()
	for i := range b {
		b[i] = idDigits[n&31]
		n >>= 5
	}
	return string(b[:])
}

// RequestID returns the id of the request that ctx belongs to: the X-Request-Id of the response, and req in the access
// log. Empty if ctx does not belong to a request.
func RequestID(ctx context.Context) string {
	if r := recordOf(ctx); r != nil {
		return r.id
	}
	return ""
}

const (
	// maxFields bounds the annotations of a request, in case a handler annotates in a loop.
	maxFields = 16
	// maxValue bounds an annotation and the path in bytes: a repository's name and a digest fit, and a line remains
	// readable.
	maxValue = 512
)

// Annotate adds a field to the access log's line for the request that ctx belongs to, or replaces it. The keys are the
// fixed fields user, repo, ref, digest, code and err, and others. The key "route" is the label of the metrics; its
// values must be few, lower-case words. A value is clipped after 512 bytes. More than 16 keys, an empty value, and a
// call after the end of the request have no effect, nor has one without a request in ctx.
func Annotate(ctx context.Context, key, value string) {
	r := recordOf(ctx)
	if r == nil || value == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if key == "route" {
		r.route = value
		return
	}
	r.set(field{key, clip(value)})
}

// set adds or replaces a field, within maxFields. The caller holds mu.
func (r *record) set(f field) {
	for i := range r.fields {
		if r.fields[i].key == f.key {
			r.fields[i] = f
			return
		}
	}
	if len(r.fields) < maxFields {
		r.fields = append(r.fields, f)
	}
}

// get returns an annotation, or "" if the request has no such annotation.
func (r *record) get(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if key == "route" {
		return r.route
	}
	for _, f := range r.fields {
		if f.key == key {
			return f.value
		}
	}
	return ""
}

// clip bounds a value for the log, and removes secrets of robots. It copies what it keeps, so that the rest does not
// stay in memory.
func clip(s string) string {
	s = redact.Secrets(s) // first: a clipped secret is one as well
	if len(s) <= maxValue {
		return s
	}
	return strings.ToValidUTF8(s[:maxValue], "") + "…"
}
