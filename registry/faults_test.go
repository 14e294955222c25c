package registry_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/storagetest"
)

// flow is a sequence of requests. run returns the last answer. holds reports whether the registry shows what a success
// promises.
type flow struct {
	name  string
	run   func(w *server) *answer
	holds func(w *server) bool
}

var (
	flowBlob  = []byte("a new blob")
	flowDone  = digest.FromBytes(flowBlob)
	flowOther = []byte("a blob of another repository")
)

func (w *server) shows(path string, want []byte) bool {
	a := w.do("GET", path, nil)
	return a.status == 200 && bytes.Equal(a.body, want)
}

func (w *server) lacks(path string) bool { return w.do("GET", path, nil).status == 404 }

// flows returns all ways to write. Before, the repository a has an image v of a config and a layer, an index i of that
// image, and a blob that no manifest refers to; b has a blob.
func flows() []flow {
	image := image([]byte("c0"), []byte("l0"), `,"annotations":{"new":"yes"}`)
	imageDigest := digest.FromBytes(image).String()
	unused := digest.FromString("unused").String()
	v := digest.FromBytes(firstImage()).String()
	put := func(ref string, body []byte) func(*server) *answer {
		return func(w *server) *answer {
			return w.do("PUT", "/v2/a/manifests/"+ref, body, "Content-Type", typeManifest)
		}
	}
	session := func(w *server, chunks ...string) *answer {
		a := w.do("POST", "/v2/a/blobs/uploads/", nil)
		for _, chunk := range chunks {
			if a.status != 202 {
				return a
			}
			a = w.do("PATCH", a.header.Get("Location"), []byte(chunk))
		}
		if a.status != 202 {
			return a
		}
		return w.do("PUT", a.header.Get("Location")+"?digest="+flowDone.String(), nil)
	}
	blob := func(w *server) bool { return w.shows("/v2/a/blobs/"+flowDone.String(), flowBlob) }
	return []flow{
		{"a blob in one request", func(w *server) *answer {
			return w.do("POST", "/v2/a/blobs/uploads/?digest="+flowDone.String(), flowBlob)
		}, blob},
		{"a blob in chunks", func(w *server) *answer { return session(w, "a new", " blob") }, blob},
		{"a mount", func(w *server) *answer {
			return w.do("POST", "/v2/a/blobs/uploads/?from=b&mount="+digest.FromBytes(flowOther).String(), nil)
		}, func(w *server) bool { return w.shows("/v2/a/blobs/"+digest.FromBytes(flowOther).String(), flowOther) }},
		{"a manifest by tag", put("new", image), func(w *server) bool { return w.shows("/v2/a/manifests/new", image) }},
		{"a manifest by digest", put(imageDigest, image),
			func(w *server) bool { return w.shows("/v2/a/manifests/"+imageDigest, image) }},
		{"a tag that moves", put("v", image), func(w *server) bool { return w.shows("/v2/a/manifests/v", image) }},
		{"deletion of a tag", func(w *server) *answer { return w.do("DELETE", "/v2/a/manifests/v", nil) },
			func(w *server) bool {
				return w.lacks("/v2/a/manifests/v") && w.shows("/v2/a/manifests/"+v, firstImage())
			}},
		{"deletion of a manifest", func(w *server) *answer { return w.do("DELETE", "/v2/a/manifests/i", nil) },
			func(w *server) bool { return w.lacks("/v2/a/manifests/i") }},
		{"deletion of a blob", func(w *server) *answer { return w.do("DELETE", "/v2/a/blobs/"+unused, nil) },
			func(w *server) bool { return w.lacks("/v2/a/blobs/" + unused) }},
	}
}

func firstImage() []byte { return image([]byte("c0"), []byte("l0")) }

// prepare pushes what the flows start from.
func prepare(w *server) {
	for _, b := range []string{"c0", "l0", "unused"} {
		w.pushBlob("a", []byte(b))
	}
	w.pushBlob("b", flowOther)
	w.do("PUT", "/v2/a/manifests/v", firstImage(), "Content-Type", typeManifest).is(201)
	w.do("PUT", "/v2/a/manifests/i", index(firstImage()), "Content-Type", typeIndex).is(201)
}

// TestNoFaultIsReportedAsSuccess makes the n-th call of each method of each engine fail in each flow, for every n,
// before and after it took effect, because the disk is full or broken. A success must be true, a failure must have
// its JSON body, reads must go on, and the same request must succeed when it is sent again.
func TestNoFaultIsReportedAsSuccess(t *testing.T) {
	injected := 0
	for _, method := range []string{"Stat", "Open", "Create", "Resume", "Write", "Commit", "Close", "Cancel", "Journal",
		"Head"} {
		for _, f := range flows() {
			for _, after := range []bool{false, true} {
				for _, err := range []error{syscall.EIO, fmt.Errorf("%w: %w", storage.ErrFull, syscall.ENOSPC)} {
					for n := 1; injectFault(t, f, method, n, after, err); n++ {
						injected++
					}
				}
			}
		}
	}
	t.Logf("%d faults", injected)
	if injected < 100 {
		t.Errorf("only %d faults were injected", injected)
	}
}

// injectFault reports whether the fault occurred.
func injectFault(t *testing.T, f flow, method string, n int, after bool, err error) bool {
	t.Helper()
	memory, journal := inMemory()
	ofBlobs := &storagetest.Fault{Method: method, After: after, Err: err}
	ofJournal := &storagetest.Fault{Method: method, After: after, Err: err}
	if method == "Journal" { // Commit is a name of both
		ofJournal.Method = "Commit"
	} else if method == "Commit" {
		ofJournal.Method = "none"
	}
	var fired bool
	t.Run(fmt.Sprintf("%s/%s %d/%v/%v", f.name, method, n, after, errors.Is(err, storage.ErrFull)), func(t *testing.T) {
		uploads := &endings{Blobs: storagetest.FailBlobs{Blobs: memory, Fault: ofBlobs}}
		w := serve(t, uploads, storagetest.FailJournal{Journal: journal, Fault: ofJournal})
		prepare(w)
		for _, fault := range []*storagetest.Fault{ofBlobs, ofJournal} {
			fault.N = fault.Calls() + n
		}
		a := f.run(w)
		uploads.want(t)
		if fired = ofBlobs.Fired() || ofJournal.Fired(); !fired {
			return
		}
		ofBlobs.N, ofJournal.N = 0, 0
		wantHonest(t, serve(t, memory, journal), f, a)
		if !w.shows("/v2/a/manifests/"+digest.FromBytes(firstImage()).String(), firstImage()) {
			t.Error("content from before the fault cannot be read")
		}
		if a.status >= 300 {
			again := f.run(w)
			if gone := again.status == 404 && strings.Contains(f.name, "deletion"); again.status >= 300 && !gone ||
				!f.holds(w) {
				t.Errorf("the second try: %d %s", again.status, again.body)
			}
		}
	})
	return fired
}

// endings checks that every request ends the uploads that it creates or resumes.
type endings struct {
	storage.Blobs
	mu      sync.Mutex // guards all below
	open    map[*ending]bool
	created int
}

type ending struct {
	storage.Upload
	of *endings
}

func (e *endings) Create(ctx context.Context, repo string, alg digest.Algorithm) (storage.Upload, error) {
	return e.track(e.Blobs.Create(ctx, repo, alg))
}

func (e *endings) Resume(ctx context.Context, repo, id string, offset int64) (storage.Upload, error) {
	return e.track(e.Blobs.Resume(ctx, repo, id, offset))
}

func (e *endings) track(u storage.Upload, err error) (storage.Upload, error) {
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open == nil {
		e.open = map[*ending]bool{}
	}
	tracked := &ending{u, e}
	e.open[tracked] = true
	e.created++
	return tracked, nil
}

func (u *ending) ended() {
	u.of.mu.Lock()
	defer u.of.mu.Unlock()
	delete(u.of.open, u)
}

func (u *ending) Commit(ctx context.Context, d digest.Digest) error {
	u.ended()
	return u.Upload.Commit(ctx, d)
}

func (u *ending) Cancel(ctx context.Context) error {
	u.ended()
	return u.Upload.Cancel(ctx)
}

func (u *ending) Close(ctx context.Context) error {
	u.ended()
	return u.Upload.Close(ctx)
}

// count returns how many uploads were created or resumed, and how many of them are open.
func (e *endings) count() (created, open int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.created, len(e.open)
}

// want waits until all uploads have ended: a server goes on for a moment after its client has left.
func (e *endings) want(t *testing.T) {
	t.Helper()
	_, open := e.count()
	for tries := 0; open > 0 && tries < 500; tries++ {
		time.Sleep(10 * time.Millisecond)
		_, open = e.count()
	}
	if open > 0 {
		t.Errorf("%d uploads are neither committed, cancelled nor closed", open)
	}
}

// wantHonest compares an answer with what the registry shows after a restart.
func wantHonest(t *testing.T, restarted *server, f flow, a *answer) {
	t.Helper()
	restarted.T = t
	if a.status < 300 {
		if !f.holds(restarted) {
			t.Errorf("the answer was %d, but the registry does not show it", a.status)
		}
		return
	}
	a.errors() // checks the spec's form
	if a.status < 500 {
		t.Errorf("the answer blames the client for a fault of the storage: %d %s", a.status, a.body)
	}
	full := a.status == http.StatusInsufficientStorage || a.status == http.StatusServiceUnavailable
	if full && a.header.Get("Retry-After") == "" {
		t.Errorf("%d without Retry-After", a.status)
	}
}

// TestARefusalReachesAClientThatIsStillSending: the client looks for the answer when it has sent everything, and must
// not find that the connection was reset.
func TestARefusalReachesAClientThatIsStillSending(t *testing.T) {
	fault := &storagetest.Fault{Method: "Create", N: 1, Err: fmt.Errorf("%w: %w", storage.ErrFull, syscall.ENOSPC)}
	memory, journal := inMemory()
	w := serve(t, storagetest.FailBlobs{Blobs: memory, Fault: fault}, journal)
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := make([]byte, 32<<20)
	head := "POST /v2/a/blobs/uploads/?digest=" + digest.FromBytes(body).String() +
		" HTTP/1.1\r\nHost: x\r\nContent-Length: " + fmt.Sprint(len(body)) + "\r\n\r\n"
	if _, err := conn.Write(append([]byte(head), body...)); err != nil {
		t.Fatalf("sending: %v", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("the answer: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusInsufficientStorage {
		t.Errorf("status %d", resp.StatusCode)
	}
}
