package mirror_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/upstream"
)

// empty is a Store that holds nothing, and forgets what it records.
type empty struct{ mirror.Store }

func (empty) Resolve(context.Context, string, string) (mirror.Held, bool, error) {
	return mirror.Held{}, false, nil
}

func (empty) Record(context.Context, string, string, digest.Digest, *upstream.Manifest) error {
	return nil
}

// newMirror returns a Mirror of slow.example, whose endpoint is h, and of up.example, which answers with size bytes.
func newMirror(t *testing.T, h http.Handler, size int) *mirror.Mirror {
	t.Helper()
	other := answers(size, nil)
	origins := []*httptest.Server{httptest.NewServer(h), httptest.NewServer(other)}
	names := namespace.NewTable(nil)
	up := upstream.New(upstream.Config{Names: names})
	var entries []upstream.Entry
	for i, host := range []string{"slow.example", "up.example"} {
		t.Cleanup(origins[i].Close)
		entries = append(entries, upstream.Entry{Host: host, Insecure: true,
			Endpoints: []upstream.Endpoint{{URL: origins[i].URL}}})
	}
	if err := up.Set(entries); err != nil {
		t.Fatal(err)
	}
	m := mirror.New(mirror.Options{Names: names, Upstreams: up, Store: empty{}})
	t.Cleanup(m.Close)
	return m
}

// answers is an origin with a manifest of size bytes under each tag. It calls half, if that is set, when it has sent
// half of one.
func answers(size int, half func(*http.Request)) http.Handler {
	start := `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `","x":"`
	body := []byte(start + strings.Repeat("x", size-len(start)-len(`"}`)) + `"}`)
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(body).String())
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		if req.Method == http.MethodHead {
			return
		}
		_, _ = w.Write(body[:size/2])
		_ = http.NewResponseController(w).Flush()
		if half != nil {
			half(req)
		}
		_, _ = w.Write(body[size/2:])
	})
}

// TestQuestionsOfClientsThatLeaveAreBounded: they go on without the client, so that 300 requests for tags of a slow
// upstream took 1.8 GiB. They leave room for other upstreams, and give it back.
func TestQuestionsOfClientsThatLeaveAreBounded(t *testing.T) {
	const asked = 400
	var under, most atomic.Int64
	rest := make(chan struct{})
	done := sync.OnceFunc(func() { close(rest) })
	m := newMirror(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		most.Store(max(most.Load(), under.Add(1)))
		<-rest
		under.Add(-1)
		answers(1<<10, nil).ServeHTTP(w, req)
	}), 1<<10)
	t.Cleanup(done) // before the origin is closed, which waits for its requests
	busy := 0
	for i := range asked {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if _, err := m.Refresh(ctx, "f/slow.example/a", fmt.Sprint("v", i)); errors.Is(err, upstream.ErrBusy) {
			busy++
		}
		cancel()
	}
	if most.Load() > 256 || busy == 0 { // of some the context ends before they are refused
		t.Errorf("%d questions were under way at once, and %d of %d were refused", most.Load(), busy, asked)
	}
	if _, err := m.Refresh(t.Context(), "f/up.example/a", "v"); err != nil {
		t.Errorf("another upstream: %v", err)
	}
	done()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		_, err := m.Refresh(t.Context(), "f/slow.example/a", "again")
		if err == nil {
			break
		}
		if !errors.Is(err, upstream.ErrBusy) || time.Now().After(deadline) {
			t.Fatalf("afterwards: %v", err)
		}
	}
}

// TestLargeAnswersAreBounded, in bytes and of all questions together. Those that arrive slowly keep out no small ones
// and no other upstream, and give the memory back.
func TestLargeAnswersAreBounded(t *testing.T) {
	const size = 4 << 20
	rest := make(chan struct{})
	done := sync.OnceFunc(func() { close(rest) })
	large := answers(size, func(*http.Request) { <-rest })
	small := answers(1<<10, nil)
	m := newMirror(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/small/") {
			small.ServeHTTP(w, req)
			return
		}
		large.ServeHTTP(w, req)
	}), 1<<20)
	t.Cleanup(done) // before the origin is closed, which waits for its requests
	const asked = 20
	results := make(chan error, asked+1)
	ask := func(tag string) {
		_, err := m.Refresh(t.Context(), "f/slow.example/a", tag)
		results <- err
	}
	for i := range asked {
		go ask(fmt.Sprint("v", i))
	}
	// One upstream alone has memory for one of the largest size; the others read as far as there is some.
	for range asked - 4 {
		select {
		case err := <-results:
			if !errors.Is(err, upstream.ErrBusy) {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("none is refused")
		}
	}
	for _, repo := range []string{"f/slow.example/small", "f/up.example/a"} {
		if _, err := m.Refresh(t.Context(), repo, "v"); err != nil {
			t.Errorf("%s: %v", repo, err)
		}
	}
	done()
	for range 4 {
		<-results
	}
	go ask("again")
	if err := <-results; err != nil {
		t.Error(err)
	}
}
