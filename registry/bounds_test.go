package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"k8s.io/apimachinery/pkg/api/resource"

	"trow/registry"
	"trow/registry/audit"
	"trow/registry/auth"
	"trow/registry/limit"
)

// strict reads the name of the user from a header. Alice may do everything; bob may do nothing, and repositories are
// hidden from him; the token of scoped is for something else.
type strict struct{ auth.Authorizer }

func (strict) Identify(r *http.Request) (*auth.Identity, error) {
	if r.Header.Get("X-User") == "unknown" {
		return nil, auth.ErrUnauthorized
	}
	return auth.Named(r.Header.Get("X-User"), nil), nil
}

func (strict) Authorize(_ context.Context, who *auth.Identity, repo string, a auth.Action) error {
	switch {
	case who.Anonymous():
		return auth.ErrUnauthorized
	case who.Name == "alice":
		return nil
	case who.Name == "scoped":
		return fmt.Errorf("%w: the token is for something else", auth.ErrUnauthorized)
	case a == auth.Pull:
		return auth.ErrHidden
	}
	return fmt.Errorf("%w: bob may not %s here", auth.ErrDenied, a)
}

// events collects audit events as lines.
type events struct {
	mu  sync.Mutex
	all []string
}

func (e *events) audit(_ context.Context, a audit.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, fmt.Sprintf("%s %s %s/%s %s %s %s %v %.14s %.30s", a.What, a.Outcome, a.Kind, a.User, a.From,
		a.Action, a.Repo, a.Tags, a.Digest, a.Reason))
}

func (e *events) want(t *testing.T, want ...string) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Equal(e.all, want) {
		t.Errorf("events:\n%s\nwant:\n%s", strings.Join(e.all, "\n"), strings.Join(want, "\n"))
	}
	e.all = nil
}

// image pushes a config, and returns the manifest of an image of it without layers.
func (w *server) image(repo string, config string, headers ...string) (manifest []byte) {
	w.Helper()
	d := digest.FromString(config)
	w.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), []byte(config), headers...).is(201)
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[]}`,
		typeManifest, desc("application/vnd.oci.image.config.v1+json", []byte(config)))
}

func TestAuditOfChangesAndRefusals(t *testing.T) {
	e := &events{}
	w := newServer(t, func(o *registry.Options) {
		o.Auth, o.Audit = strict{open{}}, e.audit
		o.Immutable = func(_, tag string) bool { return tag == "fixed" }
	})
	alice, bob := []string{"X-User", "alice"}, []string{"X-User", "bob"}
	m := w.image("a/b", "{}", alice...)
	d := digest.FromBytes(m)
	put := append([]string{"Content-Type", typeManifest}, alice...)
	w.do("PUT", "/v2/a/b/manifests/v1", m, put...).is(201)
	w.do("PUT", "/v2/a/b/manifests/"+d.String()+"?tag=v2&tag=fixed", m, put...).is(201)
	short := d.String()[:14]
	e.want(t, "push ok user/alice 127.0.0.1 push a/b [v1] "+short+" ",
		"push ok user/alice 127.0.0.1 push a/b [v2 fixed] "+short+" ")

	// nothing changed, and no permission was lacking
	w.do("PUT", "/v2/a/b/manifests/v1", m, put...).is(201)
	w.do("PUT", "/v2/a/b/manifests/"+d.String()+"?tag=v2&tag=fixed", m, put...).is(201)
	w.do("PUT", "/v2/a/b/manifests/"+d.String(), m, put...).is(201)
	w.do("PUT", "/v2/a/b/manifests/v1", []byte("garbage"), put...).is(400)
	w.do("GET", "/v2/a/b/manifests/v1", nil, alice...).is(200)
	w.do("GET", "/v2/a/b/manifests/v1", nil).is(401) // only asks for credentials
	w.do("GET", "/v2/a/b/manifests/v1", nil, "X-User", "unknown").is(401)
	e.want(t)

	w.do("GET", "/v2/a/b/manifests/v1", nil, bob...).is(404)
	w.do("GET", "/v2/a/b/blobs/"+digest.FromString("{}").String(), nil, bob...).is(404)
	w.do("PUT", "/v2/a/b/manifests/v9", m, append([]string{"Content-Type", typeManifest}, bob...)...).is(403)
	w.do("POST", "/v2/a/b/blobs/uploads/", nil, "X-User", "scoped").is(401)
	w.do("DELETE", "/v2/a/b/manifests/fixed", nil, alice...).is(403)
	e.want(t, "request hidden user/bob 127.0.0.1 pull a/b [v1]  ",
		"request hidden user/bob 127.0.0.1 pull a/b [] "+digest.FromString("{}").String()[:14]+" ",
		"request denied user/bob 127.0.0.1 push a/b [v9]  requested access to the resour",
		"request denied user/scoped 127.0.0.1 push a/b []  authentication required: the t",
		"request denied user/alice 127.0.0.1 delete a/b [fixed]  tag fixed is immutable (settin")

	w.do("DELETE", "/v2/a/b/manifests/v1", nil, alice...).is(202)
	w.do("DELETE", "/v2/a/b/manifests/v1", nil, alice...).is(404)
	e.want(t, "delete ok user/alice 127.0.0.1 delete a/b [v1] "+short+" ")

	m2 := w.image("x", "{ }", alice...)
	w.do("PUT", "/v2/x/manifests/t", m2, put...).is(201)
	w.do("DELETE", "/v2/x/manifests/"+digest.FromBytes(m2).String(), nil, alice...).is(202)
	w.do("DELETE", "/v2/x/blobs/"+digest.FromString("{ }").String(), nil, alice...).is(202)
	short = digest.FromBytes(m2).String()[:14]
	e.want(t, "push ok user/alice 127.0.0.1 push x [t] "+short+" ",
		"delete ok user/alice 127.0.0.1 delete x [t] "+short+" ",
		"delete ok user/alice 127.0.0.1 delete x [] "+digest.FromString("{ }").String()[:14]+" ")
}

func TestTheAnswerNamesTheLimit(t *testing.T) {
	limits := &limit.Limits{}
	w := newServer(t, func(o *registry.Options) { o.Auth, o.Limits = strict{open{}}, limits })
	if err := limits.Set([]limit.Rule{{Who: []string{"user:alice"}, Requests: 1, Burst: 2}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.do("GET", "/v2/", nil, "X-User", "alice").is(200)
	}
	a := w.do("GET", "/v2/", nil, "X-User", "alice").is(429)
	if after, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || after < 1 || after > 2 {
		t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
	}
	if e := a.errors()[0]; e.Code != "TOOMANYREQUESTS" ||
		!strings.Contains(e.Message, "alice may have 1 requests per second") ||
		!strings.Contains(e.Message, "setting limits, limit 1: requests") {
		t.Errorf("%+v", e)
	}
	w.do("GET", "/v2/", nil, "X-User", "someone").is(403) // others are not limited

	if err := limits.Set([]limit.Rule{{Who: []string{"user:alice"}, Uploads: 1}}); err != nil {
		t.Fatal(err)
	}
	start := w.do("POST", "/v2/a/blobs/uploads/", nil, "X-User", "alice").is(202)
	upload := func() (feed *io.PipeWriter, done chan *answer) {
		body, feed := io.Pipe()
		done = make(chan *answer, 1)
		go func() { done <- w.send("PATCH", start.header.Get("Location"), body, "X-User", "alice") }()
		return feed, done
	}
	feed, done := upload()
	for taken := false; !taken; { // until the server is reading the upload
		select {
		case a := <-done: // a POST of this loop had the only place
			a.is(429)
			feed, done = upload()
		default:
			taken = w.do("POST", "/v2/a/blobs/uploads/", nil, "X-User", "alice").status == 429
		}
	}
	w.do("GET", "/v2/a/tags/list", nil, "X-User", "alice").is(404)
	feed.Close()
	(<-done).is(202)
	w.do("POST", "/v2/a/blobs/uploads/", nil, "X-User", "alice").is(202)
}

// TestARateChangesNoByte of a push or a pull, from memory or from a file.
func TestARateChangesNoByte(t *testing.T) {
	limits := &limit.Limits{}
	if err := limits.Set([]limit.Rule{{Who: []string{"*"}, PullRate: quantity(64 << 20),
		PushRate: quantity(64 << 20)}}); err != nil {
		t.Fatal(err)
	}
	blobs, journal, _ := engines(t, t.TempDir()) // the way out of a file differs from that out of memory
	w := serve(t, blobs, journal, func(o *registry.Options) { o.Auth, o.Limits = strict{open{}}, limits })
	content := bytes.Repeat([]byte("0123456789abcde\n"), 5<<16)
	d := digest.FromBytes(content)
	w.do("POST", "/v2/a/blobs/uploads/?digest="+d.String(), content, "X-User", "alice").is(201)
	if a := w.do("GET", "/v2/a/blobs/"+d.String(), nil, "X-User", "alice").is(200); !bytes.Equal(a.body, content) {
		t.Error("the blob has changed")
	}
	part := w.do("GET", "/v2/a/blobs/"+d.String(), nil, "X-User", "alice", "Range", "bytes=7-3000000").is(206)
	if !bytes.Equal(part.body, content[7:3000001]) {
		t.Error("a part of the blob has changed")
	}
}

// quantity returns a number of bytes.
func quantity(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.BinarySI) }

func quotas(t *testing.T, w *server, all ...limit.Quota) {
	t.Helper()
	read, err := limit.Quotas(all)
	if err != nil {
		t.Fatal(err)
	}
	w.index.SetQuotas(read)
}

// over checks that a quota refuses a push.
func (a *answer) over() {
	a.t.Helper()
	e := a.is(403).errors()[0]
	if e.Code != "DENIED" || !strings.Contains(e.Message, "the quota of the repositories team/** is") ||
		!strings.Contains(e.Message, "(setting quotas); they hold") {
		a.t.Errorf("%.80s: %+v", a.what, e)
	}
}

// bytesKept returns the size of all blobs.
func (w *server) bytesKept() (n int64) {
	w.Helper()
	for b, err := range w.blobs.All(w.Context()) {
		if err != nil {
			w.Fatal(err)
		}
		n += b.Size
	}
	return n
}

func TestAQuotaRefusesEveryWayToPush(t *testing.T) {
	w := newServer(t)
	m := w.image("team/a", "{}")
	size := int64(len(m) + 2)
	quotas(t, w, limit.Quota{Repositories: []string{"team/**"}, Bytes: quantity(size + 100)})
	put := []string{"Content-Type", typeManifest}
	w.do("PUT", "/v2/team/a/manifests/v1", m, put...).is(201)
	kept := w.bytesKept()

	large := bytes.Repeat([]byte("x"), 101)
	d := digest.FromBytes(large)
	w.do("POST", "/v2/team/b/blobs/uploads/?digest="+d.String(), large).over()
	at := w.do("POST", "/v2/team/b/blobs/uploads/", nil).is(202).header.Get("Location")
	// before it is read: its length is announced
	w.do("PATCH", at, large).over()
	w.send("PATCH", at, struct{ io.Reader }{bytes.NewReader(large)}).over() // its length is not announced
	w.do("PATCH", at, []byte("x")).is(202)                                  // it has no bytes still
	w.send("PATCH", at, struct{ io.Reader }{bytes.NewReader(large)}).over()
	w.do("GET", at, nil).is(404) // what was here does not count until the session has been idle for hours
	at = w.do("POST", "/v2/team/b/blobs/uploads/", nil).is(202).header.Get("Location")
	w.send("PUT", at+"?digest="+d.String(), struct{ io.Reader }{bytes.NewReader(large)}).over()
	// nothing can be appended that makes it fit
	w.do("GET", at, nil).is(404)
	w.do("POST", "/v2/other/blobs/uploads/?digest="+d.String(), large).is(201) // a repository without a quota
	// a mount sends no bytes, but they count
	w.do("POST", "/v2/team/b/blobs/uploads/?mount="+d.String()+"&from=other", nil).over()
	if got := w.bytesKept(); got != kept+101 {
		t.Errorf("refused pushes have left bytes: %d before, %d now, 101 of them in the other repository", kept, got)
	}
	m2 := w.image("team/a", "{ }") // its config fits, but its manifest does not
	w.do("PUT", "/v2/team/a/manifests/v2", m2, put...).over()
	w.do("PUT", "/v2/team/a/manifests/v3", m, put...).is(201) // adds nothing
	w.do("POST", "/v2/team/a/blobs/uploads/?digest="+digest.FromString("{}").String(), []byte("{}")).is(201)

	quotas(t, w, limit.Quota{Repositories: []string{"team/**"}, Bytes: quantity(1)}) // less than the repositories hold
	w.do("POST", "/v2/team/a/blobs/uploads/", nil).over()
	w.do("PUT", "/v2/team/a/manifests/v4", m, put...).is(201)
	w.do("DELETE", "/v2/team/a/manifests/"+digest.FromBytes(m).String(), nil).is(202)
	w.do("DELETE", "/v2/team/a/blobs/"+digest.FromString("{}").String(), nil).is(202)
	w.do("DELETE", "/v2/team/a/blobs/"+digest.FromString("{ }").String(), nil).is(202)
	if q := w.index.Quotas()[0]; q.Used != q.Waiting || q.Waiting == 0 {
		t.Errorf("%d bytes are used although nothing is left but what waits to be collected, %d", q.Used, q.Waiting)
	}
	const remedy = "that is deleted and waits to be collected), and this would add 1 B: wait for the next collection " +
		"or ask for one (trow gc), "
	if a := w.do("POST", "/v2/team/a/blobs/uploads/", nil); !strings.Contains(string(a.body), remedy) {
		t.Errorf("%s, want %q", a.body, remedy)
	}
}

// TestConcurrentPushesStayWithinAQuota has many clients push blobs of one size into many repositories.
func TestConcurrentPushesStayWithinAQuota(t *testing.T) {
	const size, room, clients = 1000, 25, 16
	w := newServer(t)
	quotas(t, w, limit.Quota{Repositories: []string{"team/**"}, Bytes: quantity(int64(size) * room)})
	var wg sync.WaitGroup
	var mu sync.Mutex
	taken := map[int]int{}
	for c := range clients {
		wg.Go(func() {
			for i := range 10 {
				content := bytes.Repeat([]byte{byte(c), byte(i)}, size/2)
				a := w.do("POST", fmt.Sprintf("/v2/team/%d/blobs/uploads/?digest=%s", c%5, digest.FromBytes(content)),
					content)
				mu.Lock()
				taken[a.status]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if taken[201] != room || taken[403] != clients*10-room || w.index.Quotas()[0].Used != size*room {
		t.Errorf("%v, %d bytes used; want %d taken", taken, w.index.Quotas()[0].Used, room)
	}
}

// TestOpenUploadsCount for a quota, also if a client opens them and does not finish them.
func TestOpenUploadsCount(t *testing.T) {
	w := newServer(t)
	quotas(t, w, limit.Quota{Repositories: []string{"team/**"}, Bytes: quantity(100)})
	var open []string
	for i := range 10 {
		at := w.do("POST", fmt.Sprintf("/v2/team/%d/blobs/uploads/", i), nil).is(202).header.Get("Location")
		w.do("PATCH", at, bytes.Repeat([]byte("x"), 10)).is(202)
		open = append(open, at)
	}
	a := w.do("POST", "/v2/team/x/blobs/uploads/", nil)
	a.over()
	const want = "they hold 100 B (of these, 100 B in uploads that are not finished), and this would add 1 B: " +
		"finish or cancel"
	if !strings.Contains(string(a.body), want) {
		t.Errorf("%s, want %q", a.body, want)
	}
	w.do("POST", "/v2/other/blobs/uploads/", nil).is(202)
	d := digest.FromBytes(bytes.Repeat([]byte("x"), 10))
	w.do("PUT", open[0]+"?digest="+d.String(), nil).is(201) // it counts already
	w.do("POST", "/v2/team/x/blobs/uploads/", nil).over()
	w.do("DELETE", open[1], nil).is(204)
	w.do("POST", "/v2/team/x/blobs/uploads/?digest="+digest.FromString("0123456789").String(),
		[]byte("0123456789")).is(201)
	if q := w.index.Quotas()[0]; q.Used != 100 || q.Open != 80 {
		t.Errorf("%d used, %d open", q.Used, q.Open)
	}
}

// TestAWholeBlobPushedAgainTakesItsRoomWhileItIsOpen: its bytes are on the disk twice until then. After it they count
// once, however it was sent; and a client that asks first has nothing to send.
func TestAWholeBlobPushedAgainTakesItsRoomWhileItIsOpen(t *testing.T) {
	w := newServer(t)
	content := bytes.Repeat([]byte("x"), 60)
	d := digest.FromBytes(content)
	w.do("POST", "/v2/team/a/blobs/uploads/?digest="+d.String(), content).is(201)
	for room, status := range map[int64]int{60: 201, 59: 403, 0: 403} {
		quotas(t, w, limit.Quota{Repositories: []string{"team/**"}, Bytes: quantity(60 + room)})
		w.do("POST", "/v2/team/a/blobs/uploads/?digest="+d.String(), content).is(status)
		if room > 0 { // a full quota opens no sessions
			at := w.do("POST", "/v2/team/a/blobs/uploads/", nil).is(202).header.Get("Location")
			w.do("PUT", at+"?digest="+d.String(), content).is(status)
			at = w.do("POST", "/v2/team/a/blobs/uploads/", nil).is(202).header.Get("Location")
			w.do("PATCH", at, content[:30]).is(202)
			w.do("PUT", at+"?digest="+d.String(), content[30:]).is(status)
		} else {
			w.do("POST", "/v2/team/a/blobs/uploads/", nil).over()
		}
		w.do("HEAD", "/v2/team/a/blobs/"+d.String(), nil).is(200)
		w.do("POST", "/v2/team/a/blobs/uploads/?mount="+d.String()+"&from=team/a", nil).is(201)
		if q := w.index.Quotas()[0]; q.Used != 60 || q.Open != 0 {
			t.Errorf("room for %d: %d used, %d open", room, q.Used, q.Open)
		}
	}
}

// TestTheUpdateDecidesAboutAQuota has another client take the room after the first look at the quota.
func TestTheUpdateDecidesAboutAQuota(t *testing.T) {
	w := newServer(t)
	quotas(t, w, limit.Quota{Repositories: []string{"team/**"}, Bytes: quantity(10)})
	at := w.do("POST", "/v2/team/b/blobs/uploads/", nil).is(202).header.Get("Location")
	body := &hook{Reader: strings.NewReader("12345678"), at: func() { // before the first byte
		w.do("POST", "/v2/team/c/blobs/uploads/?digest="+digest.FromString("abcdef").String(), []byte("abcdef")).is(201)
	}}
	w.send("PUT", at+"?digest="+digest.FromString("12345678").String(), body).over()
	if used := w.index.Quotas()[0].Used; used != 6 {
		t.Errorf("%d used, want 6", used)
	}
}

// hook calls a function before its first byte.
type hook struct {
	io.Reader
	at func()
}

func (h *hook) Read(p []byte) (int, error) {
	if h.at != nil {
		h.at()
		h.at = nil
	}
	return h.Reader.Read(p)
}
