package registry_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"trow/registry"
	"trow/storage"
)

// takings are Answers that note what is taken and kept. full refuses all.
type takings struct {
	mu   sync.Mutex
	full bool
	took []int64
}

func (c *takings) Take(_ *http.Request, bytes int64) (func(int64), error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.full {
		return nil, busy{}
	}
	c.note(bytes)
	return func(n int64) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.note(n)
	}, nil
}

func (c *takings) note(n int64) { c.took = append(c.took, n) }

// taken returns what was noted since the last call.
func (c *takings) taken() []int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	took := c.took
	c.took = nil
	return took
}

type busy struct{}

func (busy) Error() string   { return "busy" }
func (busy) RetryAfter() int { return 7 }

// TestLargeAnswersAreCounted: 300 clients that did not read manifests of 4 MiB took 1.3 GiB, and 200 that asked for
// lists of referrers kept the webhook waiting for 4 s.
func TestLargeAnswersAreCounted(t *testing.T) {
	c := &takings{}
	w := newServer(t, func(o *registry.Options) { o.Answers = c })
	w.pushImage("a", "small", "x")
	large := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"%s","pad":%q}`, typeOther, strings.Repeat("x", 100_000))
	pushed := w.do("PUT", "/v2/a/manifests/large", large, "Content-Type", typeOther).is(201)
	d := pushed.header.Get("Docker-Content-Digest")
	size := int64(len(large))
	name := strings.Repeat("n", 100)
	for i := range 400 {
		m, _, err := w.index.Resolve(t.Context(), "a", d)
		if err == nil {
			err = w.index.Update(t.Context(), "a", func(tx *storage.Tx) error {
				return tx.SetTag(fmt.Sprint(name, i), m.Digest())
			})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		method, path string
		headers      []string
		want         func([]int64) bool // nil: nothing
	}{
		{"GET", "manifests/small", nil, nil},
		{"HEAD", "manifests/large", nil, nil},
		{"GET", "manifests/large", []string{"If-None-Match", `"` + d + `"`}, nil},
		{"GET", "tags/list?n=10", nil, nil},
		{"GET", "manifests/large", nil, func(n []int64) bool {
			return len(n) == 3 && n[0] == 2*size && n[1] == size && n[2] == 0
		}},
		{"GET", "tags/list", nil, func(n []int64) bool { return len(n) == 2 && n[0] > 2*400*103 && n[1] == 0 }},
		// The list and the manifests that it is made of may be large, which shows only when it is made.
		{"GET", "referrers/" + d, nil, func(n []int64) bool {
			return len(n) == 3 && n[0] >= 4<<20 && n[1] > 0 && n[1] < 300<<10 && n[2] == 0
		}},
		{"GET", "manifests/large", []string{"If-None-Match", `"x"`}, func(n []int64) bool { return len(n) == 3 }},
	} {
		c.taken()
		a := w.do(row.method, "/v2/a/"+row.path, nil, row.headers...)
		n := c.taken()
		for len(n) > 0 && n[len(n)-1] != 0 { // a client has the answer before its memory is given back
			time.Sleep(time.Millisecond)
			n = append(n, c.taken()...)
		}
		if row.want == nil && len(n) > 0 || row.want != nil && !row.want(n) {
			t.Errorf("%s %s %v: %v", row.method, row.path, row.headers, n)
		}
		if row.want == nil {
			continue
		}
		a.is(200)
		c.full = true
		w.do(row.method, "/v2/a/"+row.path, nil, row.headers...).code(429, "TOOMANYREQUESTS").has("Retry-After", "7").
			hasNothingOfASuccess()
		c.full = false
	}
}
