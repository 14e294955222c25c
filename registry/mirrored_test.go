package registry_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
	"trow/registry/auth/authtest"
	"trow/registry/namespace"
	"trow/registry/settings"
	"trow/registry/upstream"
	"trow/storage"
	"trow/storage/storagetest"
)

// origin is another registry: manifests by tag and digest. It records what it was asked.
type origin struct {
	*httptest.Server
	mu        sync.Mutex
	manifests map[string][]byte
	asked     []string
	blobs     map[string][]byte // by their path
	unsized   bool              // blobs come without a Content-Length
	rest      chan struct{}     // not nil: the second half of a blob waits for it
	status    int               // not 0: what it answers to everything
	hold      chan struct{}     // not nil: each answer waits for it
	noHead    bool              // it answers 405 to a HEAD
}

func (o *origin) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	o.mu.Lock()
	o.asked = append(o.asked, req.Method+" "+req.URL.Path)
	body, status, hold := o.manifests[strings.TrimPrefix(req.URL.Path, "/v2/")], o.status, o.hold
	content, isBlob := o.blobs[strings.TrimPrefix(req.URL.Path, "/v2/")]
	rest, unsized := o.rest, o.unsized
	if o.noHead && req.Method == http.MethodHead {
		isBlob, body, status = false, nil, http.StatusMethodNotAllowed
	}
	o.mu.Unlock()
	if isBlob && status == 0 {
		if !unsized {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		}
		_, _ = w.Write(content[:len(content)/2])
		if rest != nil || unsized {
			_ = http.NewResponseController(w).Flush()
		}
		if rest != nil {
			select {
			case <-rest:
			case <-req.Context().Done():
			}
		}
		_, _ = w.Write(content[len(content)/2:])
		return
	}
	if hold != nil {
		select {
		case <-hold:
		case <-req.Context().Done():
		}
	}
	if status == 0 && body == nil {
		status = http.StatusNotFound
	}
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", typeManifest)
	if bytes.Contains(body, []byte(typeIndex)) {
		w.Header().Set("Content-Type", typeIndex)
	}
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(body).String())
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

// push makes a tag name a new manifest there.
func (o *origin) push(repo, tag, content string) (body []byte, d digest.Digest) {
	body = image([]byte(content), []byte("layer "+content))
	d = digest.FromBytes(body)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.manifests[repo+"/manifests/"+tag], o.manifests[repo+"/manifests/"+d.String()] = body, body
	return body, d
}

// set changes how it answers.
func (o *origin) set(status int, hold chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.status, o.hold = status, hold
}

// requests returns what it was asked since the last call.
func (o *origin) requests() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := strings.Join(o.asked, "\n")
	o.asked = nil
	return all
}

// newCache is a registry with quay.io as its upstream, which is an origin.
func newCache(t *testing.T, fresh string) (*server, *origin) {
	t.Helper()
	return newCacheWith(t, fresh, nil)
}

// newCacheWith is newCache whose room is what reserve gives.
func newCacheWith(t *testing.T, fresh string, reserve func(int64) (func(), bool)) (*server, *origin) {
	t.Helper()
	return newCacheOf(t, fresh, reserve, func(*registry.Options) {})
}

// newCacheOf is newCacheWith with more options.
func newCacheOf(t *testing.T, fresh string, reserve func(int64) (func(), bool), more option) (*server, *origin) {
	t.Helper()
	return newCacheEntry(t, fresh, reserve, more, func(*upstream.Entry) {})
}

// newCacheEntry is newCacheOf with a change of the upstream's entry.
func newCacheEntry(t *testing.T, fresh string, reserve func(int64) (func(), bool), more option,
	change func(*upstream.Entry)) (*server, *origin) {
	t.Helper()
	blobs, journal := inMemory()
	return newCacheOver(t, blobs, journal, fresh, reserve, more, change)
}

// newCacheOver is newCacheEntry over engines.
func newCacheOver(t *testing.T, blobs storage.Blobs, journal storage.Journal, fresh string,
	reserve func(int64) (func(), bool), more option, change func(*upstream.Entry)) (*server, *origin) {
	t.Helper()
	o := &origin{manifests: map[string][]byte{}, blobs: map[string][]byte{}}
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	names := namespace.NewTable(nil)
	up := upstream.New(upstream.Config{Guard: upstream.NewGuard(), Names: names})
	entry := upstream.Entry{Host: "quay.io", Insecure: true, Endpoints: []upstream.Endpoint{{URL: o.URL}}}
	if fresh == "always" {
		entry.Fresh = new(settings.Duration)
	}
	change(&entry)
	if err := up.Set([]upstream.Entry{entry}); err != nil {
		t.Fatal(err)
	}
	fetcher := upstream.NewFetcher(upstream.FetcherOptions{Dir: t.TempDir(), Spool: 1 << 30, Reserve: reserve})
	w := serve(t, blobs, journal,
		func(r *registry.Options) { r.Namespaces, r.Upstreams, r.Fetcher = names, up, fetcher }, more)
	t.Cleanup(fetcher.Close)
	return w, o
}

// TestAManifestOfAnUpstream, as containerd asks for it: HEAD by tag, GET by digest.
func TestAManifestOfAnUpstream(t *testing.T) {
	w, o := newCache(t, "")
	body, d := o.push("team/app", "v", "1")
	at := "/v2/team/app/manifests/"
	w.do("HEAD", at+"v?ns=quay.io", nil).is(200).has("Docker-Content-Digest", d.String(), "Content-Type", typeManifest,
		"OCI-Namespace", "quay.io", "Trow-Stale", "")
	// A HEAD, and one GET by digest: Docker Hub counts one.
	want := fmt.Sprintf("HEAD %sv\nGET %s%s", at, at, d)
	if got := o.requests(); got != want {
		t.Fatalf("the upstream was asked\n%s\nwant\n%s", got, want)
	}
	w.do("GET", at+d.String()+"?ns=quay.io", nil).is(200).equals(string(body))
	w.do("GET", "/v2/f/quay.io/team/app/manifests/v", nil).is(200).equals(string(body)) // it is fresh
	w.do("GET", "/v2/f/quay.io/team/app/tags/list", nil, "Cache-Control", "only-if-cached").is(200).contains(`["v"]`)
	if got := o.requests(); got != "" {
		t.Errorf("the upstream was asked\n%s", got)
	}
	// By a digest alone.
	other, d2 := o.push("team/app", "other", "2")
	w.do("GET", at+d2.String()+"?ns=quay.io", nil).is(200).equals(string(other))
	w.do("GET", "/v2/f/quay.io/team/app/tags/list", nil, "Cache-Control", "only-if-cached").is(200).contains(`["v"]`)
	if got := o.requests(); got != "GET "+at+d2.String() {
		t.Errorf("the upstream was asked\n%s", got)
	}
	// Nothing of other repositories comes from there.
	w.do("GET", "/v2/team/app/manifests/v", nil).is(404)
	w.do("GET", "/v2/f/team/app/manifests/v", nil).is(404)
	w.do("GET", at+"v?ns=ghcr.io", nil).is(404)
	if got := o.requests(); got != "" {
		t.Errorf("the upstream was asked\n%s", got)
	}
}

// TestATagMoves as soon as it is not fresh any more; a poll that finds nothing new writes nothing.
func TestATagMoves(t *testing.T) {
	w, o := newCache(t, "always")
	at := "/v2/f/quay.io/team/app/manifests/v"
	first, d1 := o.push("team/app", "v", "1")
	w.do("GET", at, nil).is(200).equals(string(first))
	o.requests()
	history := func() string {
		return string(w.do("GET", "/v2/f/quay.io/team/app/manifest_history/v", nil).is(200).body)
	}
	before := history()
	w.do("GET", at, nil).is(200).equals(string(first))
	if got := o.requests(); got != "HEAD /v2/team/app/manifests/v" || history() != before {
		t.Errorf("asked %s; history %s", got, history())
	}
	second, d2 := o.push("team/app", "v", "2")
	w.do("GET", at, nil).is(200).equals(string(second))
	o.requests()
	// Back to what is held: a HEAD is enough.
	o.push("team/app", "v", "1")
	w.do("GET", at, nil).is(200).equals(string(first))
	if got := o.requests(); got != "HEAD /v2/team/app/manifests/v" {
		t.Errorf("the upstream was asked\n%s", got)
	}
	if h := history(); strings.Count(h, `"digest"`) != 3 || !strings.Contains(h, d1.String()) ||
		!strings.Contains(h, d2.String()) || !strings.Contains(h, `"by":"(upstream)"`) {
		t.Errorf("history %s", h)
	}
}

// TestAnUpstreamThatIsGone: what is held is answered, with a warning, and never 404; what is not held is 503.
func TestAnUpstreamThatIsGone(t *testing.T) {
	w, o := newCache(t, "always")
	at := "/v2/team/app/manifests/"
	body, d := o.push("team/app", "v", "1")
	w.do("GET", at+"v?ns=quay.io", nil).is(200)
	stale := func(what string) {
		t.Helper()
		for _, method := range []string{"GET", "HEAD"} {
			a := w.do(method, at+"v?ns=quay.io", nil).is(200).has("Trow-Stale", "upstream")
			a.has("Docker-Content-Digest", d.String())
			if !strings.HasPrefix(a.header.Get("Warning"), `299 - "stale: quay.io/team/app v: `) {
				t.Errorf("%s: Warning %s", what, a.header.Get("Warning"))
			}
		}
		w.do("GET", at+d.String()+"?ns=quay.io", nil).is(200).equals(string(body)).has("Trow-Stale", "", "Warning", "")
	}
	hold := make(chan struct{})
	o.set(0, hold)
	stale("it hangs")
	close(hold)
	for w.do("GET", at+"v?ns=quay.io", nil).is(200).header.Get("Trow-Stale") != "" {
		time.Sleep(10 * time.Millisecond) // those who come later wait for the question that is still under way
	}
	o.set(500, nil)
	stale("it fails")
	w.do("GET", at+"new?ns=quay.io", nil).code(503, "UNAVAILABLE").has("OCI-Namespace", "quay.io")
	o.Close()
	stale("it is gone")
	logged := func() bool {
		note, _ := w.notes.Load("err")
		return strings.Contains(fmt.Sprint(note), "connection refused")
	}
	for n := 0; !logged(); n++ { // the first answers do not wait until it is known
		if n == 500 {
			t.Fatal("the log does not say why")
		}
		time.Sleep(10 * time.Millisecond)
		w.do("GET", at+"v?ns=quay.io", nil).is(200).has("Trow-Stale", "upstream")
	}
	w.notes.Delete("err")
	a := w.do("GET", at+digest.FromString("x").String()+"?ns=quay.io", nil).code(503, "UNAVAILABLE")
	if !logged() || strings.Contains(string(a.body), "refused") {
		note, _ := w.notes.Load("err")
		t.Errorf("the log alone says why: %v; %s", note, a.body)
	}
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

// TestWhatAnUpstreamDoesNotHave is asked for once, in a burst of requests.
func TestWhatAnUpstreamDoesNotHave(t *testing.T) {
	for status, want := range map[int]int{404: 404, 401: 401, 403: 401} {
		w, o := newCache(t, "")
		o.set(status, nil)
		for range 5 {
			a := w.do("GET", "/v2/team/app/manifests/v?ns=quay.io", nil).is(want)
			if want == 401 && a.header.Get("Www-Authenticate") == "" {
				t.Error("401 without a challenge")
			}
		}
		if got := o.requests(); got != "HEAD /v2/team/app/manifests/v" {
			t.Errorf("%d: the upstream was asked\n%s", status, got)
		}
	}
}

// TestManyAskOnce: clients that ask at the same time wait for one answer.
func TestManyAskOnce(t *testing.T) {
	w, o := newCache(t, "")
	_, d := o.push("team/app", "v", "1")
	hold := make(chan struct{})
	o.set(0, hold)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { w.do("HEAD", "/v2/team/app/manifests/v?ns=quay.io", nil).is(200) })
	}
	close(hold)
	wg.Wait()
	want := fmt.Sprintf("HEAD /v2/team/app/manifests/v\nGET /v2/team/app/manifests/%s", d)
	if got := o.requests(); got != want {
		t.Errorf("the upstream was asked\n%s", got)
	}
}

// TestWhatIsNotTakenOver: what no client should get is not recorded either.
func TestWhatIsNotTakenOver(t *testing.T) {
	w, o := newCache(t, "")
	bad := []byte(`{"schemaVersion":2,"mediaType":"` + typeManifest + `","config":{},"config":{},"layers":[]}`)
	for ref, body := range map[string][]byte{"dup": bad, "sha": []byte("{}"), "html": []byte("<html>")} {
		d := digest.FromBytes(body)
		o.mu.Lock()
		o.manifests["team/app/manifests/"+ref], o.manifests["team/app/manifests/"+d.String()] = body, body
		o.mu.Unlock()
		a := w.do("GET", "/v2/team/app/manifests/"+ref+"?ns=quay.io", nil)
		if a.status != 502 {
			t.Errorf("%s: %d %s", ref, a.status, a.body)
		}
	}
	w.do("GET", "/v2/f/quay.io/team/app/tags/list", nil).is(404)
}

// blob makes a repository there have a blob.
func (o *origin) blob(repo string, content []byte) digest.Digest {
	d := digest.FromBytes(content)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.blobs[repo+"/blobs/"+d.String()] = content
	return d
}

// TestABlobOfAnUpstream is downloaded once for all, and reaches them while it arrives.
func TestABlobOfAnUpstream(t *testing.T) {
	w, o := newCache(t, "")
	content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	d := o.blob("team/app", content)
	rest := make(chan struct{})
	o.mu.Lock()
	o.rest = rest
	o.mu.Unlock()
	path := "/v2/team/app/blobs/" + d.String() + "?ns=quay.io"
	var wg sync.WaitGroup
	first := make(chan error, 20)
	for range 20 {
		wg.Go(func() {
			resp, err := http.Get(w.url + path)
			if err != nil {
				first <- err
				return
			}
			defer resp.Body.Close()
			begin := make([]byte, len(content)/4)
			_, err = io.ReadFull(resp.Body, begin)
			first <- err
			all, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(append(begin, all...), content) ||
				resp.Header.Get("Docker-Content-Digest") != d.String() {
				t.Errorf("%d bytes, %v", len(begin)+len(all), err)
			}
		})
	}
	for range 20 { // all have a part of it before the upstream has sent the second half
		if err := <-first; err != nil {
			t.Fatal(err)
		}
	}
	close(rest)
	wg.Wait()
	w.do("GET", path, nil, "Range", "bytes=1048570-").is(206).equals("abcdef")
	w.do("HEAD", "/v2/f/quay.io/team/app/blobs/"+d.String(), nil).is(200)
	if got := o.requests(); got != "GET /v2/team/app/blobs/"+d.String() {
		t.Errorf("the upstream was asked\n%s", got)
	}
}

// TestARangeOfABlobOfAnUpstream is answered as of any blob, while all of it is stored.
func TestARangeOfABlobOfAnUpstream(t *testing.T) {
	w, o := newCache(t, "")
	d := o.blob("team/app", []byte("0123456789")).String()
	path := "/v2/f/quay.io/team/app/blobs/" + d
	w.do("GET", path, nil, "Range", "bytes=2-4").is(206).equals("234").has("Content-Range", "bytes 2-4/10")
	w.do("GET", path, nil).is(200).equals("0123456789")
}

// TestBytesOfAnotherRepository are given only if the repository's own upstream gives them.
func TestBytesOfAnotherRepository(t *testing.T) {
	w, o := newCache(t, "")
	d := o.blob("private/app", []byte("secret")).String()
	w.do("GET", "/v2/f/quay.io/private/app/blobs/"+d, nil).is(200).equals("secret")
	o.requests()
	for range 3 {
		w.do("GET", "/v2/f/quay.io/evil/app/blobs/"+d, nil).code(404, "BLOB_UNKNOWN")
	}
	if got := o.requests(); got != "GET /v2/evil/app/blobs/"+d {
		t.Errorf("the upstream was asked\n%s", got)
	}
	// One of another size is not the same.
	o.mu.Lock()
	o.blobs["other/app/blobs/"+d] = []byte("secret and more")
	o.mu.Unlock()
	w.do("GET", "/v2/f/quay.io/other/app/blobs/"+d, nil).is(502)
	// And what it gives is linked, not stored again.
	o.blob("public/app", []byte("secret"))
	w.do("GET", "/v2/f/quay.io/public/app/blobs/"+d, nil).is(200).equals("secret")
	w.do("HEAD", "/v2/f/quay.io/public/app/blobs/"+d, nil).is(200)
	w.do("HEAD", "/v2/f/quay.io/evil/app/blobs/"+d, nil).is(404)
	w.do("GET", "/v2/own/blobs/"+d, nil).is(404)
}

// TestBytesThatAreOnTheirWay for another repository are not given either.
func TestBytesThatAreOnTheirWay(t *testing.T) {
	w, o := newCache(t, "")
	content := bytes.Repeat([]byte("secret"), 64<<10)
	d := o.blob("private/app", content).String()
	o.blob("public/app", content)
	rest := make(chan struct{})
	o.mu.Lock()
	o.rest = rest
	o.mu.Unlock()
	begun, done := make(chan error, 1), make(chan error, 1)
	go func() {
		resp, err := http.Get(w.url + "/v2/f/quay.io/private/app/blobs/" + d)
		if err != nil {
			begun <- err
			return
		}
		defer resp.Body.Close()
		_, err = io.ReadFull(resp.Body, make([]byte, 100))
		begun <- err
		_, err = io.Copy(io.Discard, resp.Body)
		done <- err
	}()
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	w.do("GET", "/v2/f/quay.io/evil/app/blobs/"+d, nil).code(404, "BLOB_UNKNOWN")
	close(rest)
	w.do("GET", "/v2/f/quay.io/public/app/blobs/"+d, nil).is(200).equals(string(content))
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestWrongBytesBreakTheConnection, or, of a blob whose first byte waits for the last one, are an error; nothing of
// them is kept.
func TestWrongBytesBreakTheConnection(t *testing.T) {
	w, o := newCache(t, "")
	for _, wrong := range []string{"wrong", strings.Repeat("wrong", 100_000)} {
		d := digest.FromString("right" + wrong)
		o.set(0, nil)
		o.mu.Lock()
		o.blobs["team/app/blobs/"+d.String()] = []byte(wrong)
		o.mu.Unlock()
		if at := "/v2/f/quay.io/team/app/blobs/" + d.String(); len(wrong) <= upstream.HeldBack {
			w.do("GET", at, nil).code(502, "UNAVAILABLE").contains("another digest")
		} else if resp, err := http.Get(w.url + at); err == nil {
			var all []byte
			all, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == 200 && err == nil {
				t.Errorf("%d bytes are complete", len(all))
			}
		}
		w.do("HEAD", "/v2/f/quay.io/team/app/blobs/"+d.String(), nil).is(404) // of who may push: it is not kept
		o.set(500, nil)
		w.do("GET", "/v2/f/quay.io/team/app/blobs/"+d.String(), nil).is(503)
	}
}

// TestWhoMayReadOfAnUpstreamWithALogin: what it gives without a login may be read by everybody, nothing else; also
// where this registry itself is closed.
func TestWhoMayReadOfAnUpstreamWithALogin(t *testing.T) {
	o := &origin{manifests: map[string][]byte{}, blobs: map[string][]byte{}}
	closed := func(w http.ResponseWriter, req *http.Request) {
		if strings.HasPrefix(req.URL.Path, "/v2/private/") {
			if user, _, _ := req.BasicAuth(); user != "alice" {
				w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
		o.ServeHTTP(w, req)
	}
	o.Server = httptest.NewServer(http.HandlerFunc(closed))
	t.Cleanup(o.Close)
	names := namespace.NewTable(nil)
	up := upstream.New(upstream.Config{Guard: upstream.NewGuard(), Names: names})
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("p4ssw0rd"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := up.Set([]upstream.Entry{{Host: "quay.io", Insecure: true, Endpoints: []upstream.Endpoint{{URL: o.URL,
		Username: "alice", PasswordFile: password}}}}); err != nil {
		t.Fatal(err)
	}
	guard := authtest.New(t, auth.Options{User: "owner", Password: "p", Readers: up.Readers, Learn: up.Learn,
		Namespaces: names, Dir: t.TempDir()})
	w := newServer(t, func(r *registry.Options) { r.Namespaces, r.Upstreams, r.Auth = names, up, guard })
	open, _ := o.push("open/app", "v", "1")
	private, d := o.push("private/app", "v", "2")
	w.do("GET", "/v2/open/app/manifests/v?ns=quay.io", nil).is(200).equals(string(open))
	w.do("GET", "/v2/f/quay.io/open/app/tags/list", nil).is(200)
	w.do("GET", "/v2/private/app/manifests/v?ns=quay.io", nil).is(401)
	w.do("GET", "/v2/f/quay.io/private/app/manifests/v", nil, "Authorization", "Basic b3duZXI6cA==").is(200).
		equals(string(private))
	// Now it is held, and is as closed as before.
	w.do("GET", "/v2/private/app/manifests/"+d.String()+"?ns=quay.io", nil).is(401)
	w.do("GET", "/v2/private/app/tags/list?ns=quay.io", nil).is(401)
	o.set(500, nil)
	w.do("GET", "/v2/open/app/manifests/v?ns=quay.io", nil).is(200)
	w.do("GET", "/v2/private/app/manifests/v?ns=quay.io", nil).is(401)
	w.do("GET", "/v2/never/asked/manifests/v?ns=quay.io", nil).is(503).has("Retry-After", "1")
	// Where this registry has no logins, a client goes there as well, and not away.
	o.set(0, nil)
	guard = authtest.New(t, auth.Options{Anonymous: "pull", Readers: up.Readers, Learn: up.Learn, Namespaces: names,
		Dir: t.TempDir()})
	w = newServer(t, func(r *registry.Options) { r.Namespaces, r.Upstreams, r.Auth = names, up, guard })
	w.do("GET", "/v2/open/app/manifests/v?ns=quay.io", nil).is(200)
	w.do("GET", "/v2/private/app/manifests/v?ns=quay.io", nil).code(401, "UNAUTHORIZED").
		has("Www-Authenticate", `Basic realm="quay.io"`)
}

// TestAHeadOfABlobOfAnUpstream fetches nothing.
func TestAHeadOfABlobOfAnUpstream(t *testing.T) {
	w, o := newCacheOf(t, "", nil, func(r *registry.Options) { r.Auth = pullOnly{} })
	content := bytes.Repeat([]byte("layer"), 100_000)
	d := o.blob("team/app", content)
	at := "/v2/team/app/blobs/" + d.String()
	w.do("HEAD", at+"?ns=quay.io", nil).is(200).has("Content-Length", fmt.Sprint(len(content)),
		"Docker-Content-Digest", d.String())
	if got := o.requests(); got != "HEAD "+at {
		t.Errorf("the upstream was asked\n%s", got)
	}
	absent := "/v2/team/app/blobs/" + digest.FromString("absent").String()
	w.do("HEAD", absent+"?ns=quay.io", nil).is(404)
	w.do("HEAD", absent+"?ns=quay.io", nil).is(404)
	if got := o.requests(); got != "HEAD "+absent {
		t.Errorf("the upstream was asked\n%s", got)
	}
	// One that has no HEAD is asked for the blob itself.
	o.mu.Lock()
	o.noHead = true
	o.mu.Unlock()
	d = o.blob("team/app", []byte("other"))
	w.do("HEAD", "/v2/team/app/blobs/"+d.String()+"?ns=quay.io", nil).is(200).has("Content-Length", "5")
	o.set(503, nil)
	w.do("HEAD", "/v2/team/app/blobs/"+digest.FromString("third").String()+"?ns=quay.io", nil).is(503)
}

// TestAHeadBeforeAPush: who may push below f/ learns what is held, and sends the rest.
func TestAHeadBeforeAPush(t *testing.T) {
	w, o := newCache(t, "")
	body, _ := o.whole("team/app", "v", "1")
	config := "/v2/team/app/blobs/" + digest.FromString("1").String() + "?ns=quay.io"
	w.do("HEAD", config, nil).is(404)
	if got := o.requests(); got != "" {
		t.Errorf("the upstream was asked\n%s", got)
	}
	w.pushBlob("f/quay.io/team/app", []byte("1"))
	w.pushBlob("f/quay.io/team/app", []byte("layer 1"))
	w.do("HEAD", config, nil).is(200)
	w.do("PUT", "/v2/f/quay.io/team/app/manifests/mine", body, "Content-Type", typeManifest).is(201)
	w.do("GET", config, nil).is(200).equals("1")
}

// TestADiskThatFillsUpUnderADownload: its client gets the rest from the upstream, and does not notice.
func TestADiskThatFillsUpUnderADownload(t *testing.T) {
	content := bytes.Repeat([]byte("layer"), 400_000)
	for _, row := range []struct {
		method string
		nth    int
		from   int  // where the client's range begins
		wrong  bool // the upstream has other bytes
	}{{"Write", 5, 0, false}, {"Write", 5, 0, true}, {"Commit", 1, 0, false}, {"Commit", 1, 0, true},
		{"Write", 5, 100_000, false}, {"Write", 5, 1_500_000, false}, {"Commit", 1, 1_500_000, false}} {
		blobs, journal := inMemory()
		full := &storagetest.Fault{Method: row.method, N: row.nth, Err: storage.ErrFull}
		w, o := newCacheOver(t, storagetest.FailBlobs{Blobs: blobs, Fault: full}, journal, "",
			func(int64) (func(), bool) { return func() {}, true }, func(*registry.Options) {}, func(*upstream.Entry) {})
		d := o.blob("team/app", content)
		if row.wrong {
			o.mu.Lock()
			o.blobs["team/app/blobs/"+d.String()] = slices.Concat(content[1:], content[:1])
			o.mu.Unlock()
		}
		at := "/v2/team/app/blobs/" + d.String()
		req, err := http.NewRequest("GET", w.url+at+"?ns=quay.io", nil)
		if err != nil {
			t.Fatal(err)
		}
		if row.from > 0 {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", row.from))
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if row.wrong != (err != nil) || row.wrong == bytes.Equal(got, content[row.from:]) || len(got) == 0 {
			t.Errorf("%+v: %d bytes of %d, %v", row, len(got), len(content)-row.from, err)
		}
		if n := strings.Count(o.requests(), "GET "+at); !full.Fired() || !row.wrong && (n < 2 || n > 3) {
			t.Errorf("%+v: fired %v; the upstream was asked %d times", row, full.Fired(), n)
		}
	}
}

// TestABlobThatThereIsNoRoomFor reaches the client all the same, and is not stored.
func TestABlobThatThereIsNoRoomFor(t *testing.T) {
	w, o := newCacheWith(t, "", func(int64) (func(), bool) { return nil, false })
	content := bytes.Repeat([]byte("layer"), 100_000)
	d := o.blob("team/app", content)
	at := "/v2/team/app/blobs/" + d.String()
	for range 2 {
		w.do("GET", at+"?ns=quay.io", nil).is(200).equals(string(content))
	}
	w.do("GET", at+"?ns=quay.io", nil, "Range", "bytes=1000-1999").is(206).equals(string(content[1000:2000]))
	w.do("GET", at+"?ns=quay.io", nil, "Range", "bytes=-5").is(206).equals("layer")
	w.do("GET", at+"?ns=quay.io", nil, "Range", "bytes=0-4,10-14").is(206)
	if n := strings.Count(o.requests(), "GET "+at); n < 5 {
		t.Errorf("the upstream was asked %d times: something is stored", n)
	}
	// Bytes that are wrong do not arrive whole.
	wrong := digest.FromString("another content")
	o.mu.Lock()
	o.blobs["team/app/blobs/"+wrong.String()] = content
	o.mu.Unlock()
	resp, err := http.Get(w.url + "/v2/team/app/blobs/" + wrong.String() + "?ns=quay.io")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err == nil || len(got) == len(content) {
		t.Errorf("%d wrong bytes have arrived, %v", len(got), err)
	}
}
