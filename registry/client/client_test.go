package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/client"
	"trow/registry/ocierror"
)

// fake is a registry that answers as a test says, and records the requests.
type fake struct {
	*testing.T
	url    string
	http   *http.Client
	mu     sync.Mutex
	asked  []string // METHOD path?query; guarded by mu
	answer http.HandlerFunc
}

func newFake(t *testing.T, answer http.HandlerFunc) *fake {
	t.Helper()
	f := &fake{T: t, answer: answer}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	f.url, f.http = s.URL, s.Client()
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, req.Method+" "+req.URL.RequestURI())
	f.mu.Unlock()
	f.answer(w, req)
}

func (f *fake) client(o client.Options) *client.Client {
	f.Helper()
	o.URL, o.HTTP = f.url, f.http
	c, err := client.New(o)
	if err != nil {
		f.Fatal(err)
	}
	return c
}

// want compares the requests since the last call.
func (f *fake) want(requests ...string) {
	f.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.asked, requests) {
		f.Errorf("requests\n%s\nwant\n%s", strings.Join(f.asked, "\n"), strings.Join(requests, "\n"))
	}
	f.asked = nil
}

// unused is an Open for a test in which nothing may be sent.
func unused() (io.ReadCloser, int64, error) { return nil, 0, errors.New("opened") }

func content(text string) client.Open {
	return func() (io.ReadCloser, int64, error) {
		return io.NopCloser(strings.NewReader(text)), int64(len(text)), nil
	}
}

func TestOnlyAWholeURLIsTaken(t *testing.T) {
	for _, url := range []string{"", "registry.example", "registry.example:5000", "ftp://registry.example", "https://",
		"https://a/b", "https://a b"} {
		if _, err := client.New(client.Options{URL: url}); err == nil {
			t.Errorf("%q was taken", url)
		}
	}
	for _, url := range []string{"http://a", "https://a:5000", "https://a/"} {
		if c, err := client.New(client.Options{URL: url}); err != nil || c.URL() != strings.TrimSuffix(url, "/") {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// errorBody is an error in the OCI form.
func errorBody(w http.ResponseWriter, req *http.Request, code ocierror.Code, status int) {
	ocierror.Write(w, req, &ocierror.Error{Code: code, Status: status, Message: "because"})
}

// accepted is every type, and by name those that Distribution hands out to nobody who does not name them.
const accepted = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, " +
	"application/vnd.docker.distribution.manifest.v2+json, */*"

func TestReading(t *testing.T) {
	const body = `{"of":"a type that the library does not know"}`
	d := digest.FromString(body)
	f := newFake(t, func(w http.ResponseWriter, req *http.Request) {
		switch {
		case strings.HasPrefix(req.URL.Path, "/v2/none/"):
			errorBody(w, req, ocierror.NameUnknown, 0)
			return
		case strings.Contains(req.URL.Path, "/manifests/") && req.Header.Get("Accept") != accepted:
			t.Errorf("%s: Accept %q, want %q", req.URL, req.Header.Get("Accept"), accepted)
		}
		w.Header().Set("Content-Type", "application/x-mine")
		w.Header().Set("Docker-Content-Digest", d.String())
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		if req.Method == http.MethodGet {
			io.WriteString(w, body)
		}
	})
	c, ctx := f.client(client.Options{}), t.Context()
	want := v1.Descriptor{MediaType: "application/x-mine", Digest: d, Size: int64(len(body))}
	for _, ref := range []string{"v1", d.String()} {
		if got, err := c.Resolve(ctx, "a/b", ref); err != nil || got.Digest != want.Digest ||
			got.MediaType != want.MediaType {
			t.Errorf("Resolve %s: %+v, %v", ref, got, err)
		}
		got, r, err := c.Manifest(ctx, "a/b", ref)
		if err != nil || got.Digest != want.Digest || read(t, r) != body {
			t.Errorf("Manifest %s: %+v, %v", ref, got, err)
		}
	}
	if got, err := c.ResolveBlob(ctx, "a/b", d); err != nil || got.Size != want.Size {
		t.Errorf("ResolveBlob: %+v, %v", got, err)
	}
	if r, err := c.Blob(ctx, "a/b", d, want.Size); err != nil || read(t, r) != body {
		t.Errorf("Blob: %v", err)
	}
	if _, err := c.Blob(ctx, "a/b", d, 3); err == nil {
		t.Error("a blob of another size was taken")
	}
	f.want("HEAD /v2/a/b/manifests/v1", "GET /v2/a/b/manifests/v1", "HEAD /v2/a/b/manifests/"+d.String(),
		"GET /v2/a/b/manifests/"+d.String(), "HEAD /v2/a/b/blobs/"+d.String(),
		"GET /v2/a/b/blobs/"+d.String(), "GET /v2/a/b/blobs/"+d.String())

	_, err := c.Resolve(ctx, "none", "v1")
	_, _, merr := c.Manifest(ctx, "none", "v1")
	_, berr := c.ResolveBlob(ctx, "none", d)
	_, gerr := c.Blob(ctx, "none", d, 1)
	for i, err := range []error{err, merr, berr, gerr} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d: error %v, want one that is fs.ErrNotExist", i, err)
		}
	}
}

func read(t *testing.T, r io.ReadCloser) string {
	t.Helper()
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestAnErrorHasTheCodeOfTheAnswer(t *testing.T) {
	for want, answer := range map[string]http.HandlerFunc{
		"registry: DENIED: because": func(w http.ResponseWriter, req *http.Request) {
			errorBody(w, req, ocierror.Denied, 507)
		},
		"registry: 507 Insufficient Storage": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(507)
			io.WriteString(w, "no JSON")
		},
	} {
		c := newFake(t, answer).client(client.Options{})
		d := digest.FromString("x")
		_, _, get := c.Manifest(t.Context(), "a", "v1")
		_, push := c.PushBlob(t.Context(), "a", d, unused)
		put := c.PushManifest(t.Context(), "a", "", v1.Descriptor{Digest: d}, []byte("x"))
		for _, err := range []error{get, push, put} {
			var e *client.Error
			if !errors.As(err, &e) || e.Status != 507 || err.Error() != want || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("error %v, want %s", err, want)
			}
		}
	}
}

// TestPushManifest: a tag is set with the manifest where the registry knows that (its answer lists the tag), and with a
// request of its own elsewhere: Distribution, zot and Docker Hub ignore the parameter and answer 201.
func TestPushManifest(t *testing.T) {
	body := []byte(`{"schemaVersion":2}`)
	d := digest.SHA512.FromBytes(body)
	byDigest := "PUT /v2/a/b/manifests/" + d.String()
	for name, c := range map[string]struct {
		tag, answer, tagged string
		want                []string
		err                 string
	}{
		"no tag":                     {want: []string{byDigest}},
		"the registry lists the tag": {tag: "v1", answer: "v0, v1", want: []string{byDigest + "?tag=v1"}},
		"it ignores the parameter":   {tag: "v1", want: []string{byDigest + "?tag=v1", "PUT /v2/a/b/manifests/v1"}},
		"it lists another tag": {tag: "v1", answer: "v10",
			want: []string{byDigest + "?tag=v1", "PUT /v2/a/b/manifests/v1"}},
		"it knows SHA-256 alone": {tag: "v1", tagged: "sha256:1",
			err:  "the tag v1 names sha256:1, and the registry cannot",
			want: []string{byDigest + "?tag=v1", "PUT /v2/a/b/manifests/v1"}},
	} {
		f := newFake(t, func(w http.ResponseWriter, req *http.Request) {
			if got, _ := io.ReadAll(req.Body); !bytes.Equal(got, body) || req.Header.Get("Content-Type") != "x/y" {
				t.Errorf("%s: got %s as %s", name, got, req.Header.Get("Content-Type"))
			}
			w.Header().Set("OCI-Tag", c.answer)
			if strings.HasSuffix(req.URL.Path, "/v1") {
				w.Header().Set("Docker-Content-Digest", c.tagged)
			}
			w.WriteHeader(http.StatusCreated)
		})
		err := f.client(client.Options{}).PushManifest(t.Context(), "a/b", c.tag,
			v1.Descriptor{MediaType: "x/y", Digest: d}, body)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: error %v, want %q", name, err, c.err)
		}
		f.want(c.want...)
	}
}

func TestPushBlob(t *testing.T) {
	mounted := digest.FromString("mounted")
	f := newFake(t, func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.Method == http.MethodPost && req.URL.Query().Get("mount") == mounted.String():
			w.WriteHeader(http.StatusCreated)
		case req.Method == http.MethodPost:
			w.Header().Set("Location", "/v2/a/blobs/uploads/1?state=x")
			w.WriteHeader(http.StatusAccepted)
		case req.Method == http.MethodPut:
			body, _ := io.ReadAll(req.Body)
			if d := digest.FromBytes(body).String(); req.URL.Query().Get("digest") != d ||
				req.ContentLength != int64(len(body)) {
				t.Errorf("%s: got %q with Content-Length %d", req.URL, body, req.ContentLength)
			}
			w.WriteHeader(http.StatusCreated)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})
	c, ctx := f.client(client.Options{}), t.Context()
	if sent, err := c.PushBlob(ctx, "a", mounted, unused); err != nil || sent != 0 {
		t.Errorf("a mount: sent %d, %v", sent, err)
	}
	escaped := func(d digest.Digest) string { return strings.Replace(d.String(), ":", "%3A", 1) }
	f.want("POST /v2/a/blobs/uploads/?mount=" + escaped(mounted))
	for _, text := range []string{"some bytes", ""} {
		d := digest.FromString(text)
		if sent, err := c.PushBlob(ctx, "a", d, content(text)); err != nil || sent != int64(len(text)) {
			t.Errorf("%q: sent %d, %v", text, sent, err)
		}
		f.want("POST /v2/a/blobs/uploads/?mount="+escaped(d), "PUT /v2/a/blobs/uploads/1?digest="+escaped(d)+"&state=x")
	}

	// A session for content that cannot be opened is not left behind.
	d := digest.FromString("x")
	if _, err := c.PushBlob(ctx, "a", d, unused); err == nil || err.Error() != "opened" {
		t.Errorf("content that cannot be opened: %v", err)
	}
	f.want("POST /v2/a/blobs/uploads/?mount="+escaped(d), "DELETE /v2/a/blobs/uploads/1?state=x")
}

// TestACopyThatIsStoppedLeavesNoSession: what a session has got when somebody stops a copy is of no use, and registries
// bound how many sessions there are.
func TestACopyThatIsStoppedLeavesNoSession(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	deleted := make(chan string, 1)
	f := newFake(t, func(w http.ResponseWriter, req *http.Request) {
		switch req.Method {
		case http.MethodPost:
			w.Header().Set("Location", "/v2/a/blobs/uploads/1")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			stop()
			_, _ = io.Copy(io.Discard, req.Body)
		case http.MethodDelete:
			deleted <- req.URL.Path
			w.WriteHeader(http.StatusNoContent)
		}
	})
	text := strings.Repeat("x", 1<<20)
	_, err := f.client(client.Options{}).PushBlob(ctx, "a", digest.FromString(text), content(text))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	select {
	case path := <-deleted:
		if path != "/v2/a/blobs/uploads/1" {
			t.Error(path)
		}
	default:
		t.Error("the session is still there")
	}
}

func TestNothingIsSentToAnotherHost(t *testing.T) {
	other := newFake(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) })
	f := newFake(t, func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.Method == http.MethodPost:
			w.Header().Set("Location", other.url+"/v2/a/blobs/uploads/1")
			w.WriteHeader(http.StatusAccepted)
		default:
			http.Redirect(w, req, other.url+"/elsewhere", http.StatusTemporaryRedirect)
		}
	})
	c := f.client(client.Options{Username: "u", Password: "secret"})
	if _, err := c.PushBlob(t.Context(), "a", digest.FromString("x"), unused); err == nil ||
		!strings.Contains(err.Error(), "another host") {
		t.Errorf("a Location on another host: %v", err)
	}
	other.want()
	other.answer = func(w http.ResponseWriter, req *http.Request) {
		if header := req.Header.Get("Authorization"); header != "" {
			t.Errorf("the target of a redirect got %s", header)
		}
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(http.StatusUnauthorized)
	}
	if _, err := c.Blob(t.Context(), "a", digest.FromString("x"), 1); err == nil {
		t.Error("no error for an answer with status 401")
	}
}

func TestTheContentIsNotReadAfterPushBlobHasReturned(t *testing.T) {
	f := newFake(t, func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPost {
			w.Header().Set("Location", "/v2/a/blobs/uploads/1")
			w.WriteHeader(http.StatusAccepted)
			return
		}
		w.WriteHeader(http.StatusBadRequest) // without having read the body
	})
	c := f.client(client.Options{})
	for range 20 {
		r := &owned{T: t}
		_, err := c.PushBlob(t.Context(), "a", digest.FromString("x"), func() (io.ReadCloser, int64, error) {
			return r, 1 << 40, nil
		})
		r.mine.Lock() // a data race if a read is under way
		r.back = true
		r.mine.Unlock()
		if err == nil {
			t.Fatal("no error")
		}
	}
}

// owned is endless content that may not be read when it is back with its owner.
type owned struct {
	*testing.T
	mine sync.Mutex
	back bool
}

func (o *owned) Close() error { return nil }

func (o *owned) Read(p []byte) (int, error) {
	o.mine.Lock()
	defer o.mine.Unlock()
	if o.back {
		o.Error("read after PushBlob had returned")
	}
	return len(p), nil
}

// transport is a connection to a registry without a network, for tests with a fake clock.
type transport func(req *http.Request) *http.Response

func (f transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp := f(req)
	resp.Request = req
	if resp.Body == nil {
		resp.Body = http.NoBody
	}
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		_ = req.Body.Close()
	}
	return resp, nil
}

func TestABusyRegistryIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var asked []string
		busyFor := map[string]int{http.MethodPost: 2, http.MethodPut: 1}
		waits := 0
		c, err := client.New(client.Options{URL: "http://registry", Busy: func(resp *http.Response) {
			if waits++; resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("told to wait because of %d", resp.StatusCode)
			}
		},
			HTTP: &http.Client{Transport: transport(func(req *http.Request) *http.Response {
				asked = append(asked, fmt.Sprintf("%s after %s", req.Method, time.Since(start)))
				resp := &http.Response{StatusCode: http.StatusCreated, Header: http.Header{}}
				if req.Method == http.MethodPost {
					resp.StatusCode = http.StatusAccepted
					resp.Header.Set("Location", "/v2/a/blobs/uploads/1")
				}
				if busyFor[req.Method] > 0 {
					busyFor[req.Method]--
					resp.StatusCode = http.StatusServiceUnavailable
					resp.Header.Set("Retry-After", "7")
				}
				return resp
			})}})
		if err != nil {
			t.Fatal(err)
		}
		opened := 0
		sent, err := c.PushBlob(t.Context(), "a", digest.FromString("x"), func() (io.ReadCloser, int64, error) {
			opened++
			return content("x")()
		})
		// The content that was refused goes to a new session, because the old one may have got some of it.
		want := []string{"POST after 0s", "POST after 7s", "POST after 14s", "PUT after 14s", "POST after 21s",
			"PUT after 21s"}
		if err != nil || sent != 1 || opened != 2 || waits != 3 || !slices.Equal(asked, want) {
			t.Errorf("sent %d, opened %d times, waited %d times, %v; requests %v, want %v", sent, opened, waits, err,
				asked, want)
		}
	})
}

func TestARegistryThatStaysBusyIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		c, err := client.New(client.Options{URL: "http://registry",
			HTTP: &http.Client{Transport: transport(func(*http.Request) *http.Response {
				n++
				return &http.Response{StatusCode: http.StatusTooManyRequests,
					Header: http.Header{"Retry-After": {"3600"}}}
			})}})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err = c.Resolve(t.Context(), "a", "v1")
		var e *client.Error
		if !errors.As(err, &e) || e.Status != http.StatusTooManyRequests || n != 11 {
			t.Errorf("error %v after %d requests; want status 429 after 11", err, n)
		}
		if waited := time.Since(start); waited != 5*time.Minute {
			t.Errorf("waited %s, want at most 30s each time", waited)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Resolve(ctx, "a", "v1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a wait that was cut short: %v", err)
		}
	})
}

// tokens makes f a registry that wants tokens, which it gives at /token to u with the password p.
func tokens(f *fake, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/token" {
			if user, password, _ := req.BasicAuth(); user != "u" || password != "p" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fmt.Fprintf(w, `{"token":%q}`, strings.Join(req.URL.Query()["scope"], "+"))
			return
		}
		scope := "repository:a:pull"
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			scope = "repository:a:pull,push"
		}
		if req.Header.Get("Authorization") != "Bearer "+scope {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+f.url+`/token",service="s",scope="`+scope+`"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next(w, req)
	}
}

func TestTokens(t *testing.T) {
	f := newFake(t, nil)
	f.answer = tokens(f, func(w http.ResponseWriter, req *http.Request) {
		switch req.Method {
		case http.MethodPost:
			w.Header().Set("Location", "/v2/a/blobs/uploads/1")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			w.WriteHeader(http.StatusCreated)
		default:
			w.Header().Set("Content-Length", "1")
			io.WriteString(w, "x")
		}
	})
	c, d := f.client(client.Options{Username: "u", Password: "p"}), digest.FromString("x")
	for range 2 {
		if r, err := c.Blob(t.Context(), "a", d, 1); err != nil || read(t, r) != "x" {
			t.Errorf("Blob: %v", err)
		}
		if _, err := c.PushBlob(t.Context(), "a", d, content("x")); err != nil {
			t.Errorf("PushBlob: %v", err)
		}
	}
	escaped := strings.Replace(d.String(), ":", "%3A", 1)
	get, post := "GET /v2/a/blobs/"+d.String(), "POST /v2/a/blobs/uploads/?mount="+escaped
	put := "PUT /v2/a/blobs/uploads/1?digest=" + escaped
	f.want(get, "GET /token?scope=repository%3Aa%3Apull&service=s", get,
		post, "GET /token?scope=repository%3Aa%3Apull%2Cpush&service=s", post, put,
		get, post, put) // the second time with the tokens of the first

	var e *client.Error
	_, err := f.client(client.Options{Username: "u", Password: "wrong"}).Blob(t.Context(), "a", d, 1)
	if !errors.As(err, &e) || e.Status != 401 {
		t.Errorf("a wrong password: %v", err)
	}
}

// TestTheHistoryIsAskedForByThoseWhoMayPush: a token that allows pull alone does not show who set a tag.
func TestTheHistoryIsAskedForByThoseWhoMayPush(t *testing.T) {
	f := newFake(t, nil)
	f.answer = func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.URL.Path == "/token":
			fmt.Fprintf(w, `{"token":%q}`, req.URL.Query().Get("scope"))
		case req.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+f.url+`/token",service="s",scope="repository:a:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			fmt.Fprintf(w, `{"history":[{"by":%q}]}`, req.Header.Get("Authorization"))
		}
	}
	h, err := f.client(client.Options{Username: "u", Password: "p"}).History(t.Context(), "a", "v1")
	if err != nil || len(h) != 1 || h[0].By != "Bearer repository:a:pull,push" {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestBasic(t *testing.T) {
	f := newFake(t, func(w http.ResponseWriter, req *http.Request) {
		if user, password, _ := req.BasicAuth(); user != "u" || password != "p" {
			w.Header().Set("WWW-Authenticate", `Basic realm="trow"`)
			errorBody(w, req, ocierror.Unauthorized, 0)
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
	d := digest.FromString("x")
	for user, ok := range map[string]bool{"u": true, "v": false, "": false} {
		_, err := f.client(client.Options{Username: user, Password: "p"}).PushBlob(t.Context(), "a", d, unused)
		var e *client.Error
		if ok && err != nil || !ok && (!errors.As(err, &e) || e.Status != 401 || e.Code != ocierror.Unauthorized) {
			t.Errorf("user %q: %v", user, err)
		}
	}
}

func TestNoPasswordLeavesTLS(t *testing.T) {
	plain := newFake(t, func(http.ResponseWriter, *http.Request) {})
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+plain.url+`/token"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer s.Close()
	c, err := client.New(client.Options{URL: s.URL, HTTP: s.Client(), Username: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resolve(t.Context(), "a", "v1"); err == nil {
		t.Error("a token server without TLS was used for a registry with TLS")
	}
	plain.want()
}

func TestAuthorization(t *testing.T) {
	f := newFake(t, nil)
	f.answer = tokens(f, func(http.ResponseWriter, *http.Request) { t.Error("the request reached the registry") })
	c, ctx := f.client(client.Options{Username: "u", Password: "p"}), t.Context()
	bearer := `Bearer realm="` + f.url + `/token",service="s",scope="repository:a:pull"`
	got, err := c.Authorization(ctx, "a", nil, bearer+`, Basic realm="trow"`, "")
	if err != nil || got != "Bearer repository:a:pull" {
		t.Errorf("got %q, %v", got, err)
	}
	// The same answer comes from the cache; a token that was refused does not.
	for _, refused := range []string{"", got} {
		if again, err := c.Authorization(ctx, "a", nil, bearer, refused); refused == "" &&
			(again != got || err != nil) {
			t.Errorf("again: %q, %v", again, err)
		} else if refused != "" && err == nil {
			t.Errorf("a token that was refused was returned: %q", again)
		}
	}
	f.want("GET /token?scope=repository%3Aa%3Apull&service=s", "GET /token?scope=repository%3Aa%3Apull&service=s")
	if got, err := c.Authorization(ctx, "a", []string{"pull", "push"}, bearer, ""); err != nil ||
		got != "Bearer repository:a:pull,push" {
		t.Errorf("with more actions: %q, %v", got, err)
	}
	const basic = "Basic dTpw"
	c = f.client(client.Options{Username: "u", Password: "p"})
	if got, err := c.Authorization(ctx, "a", nil, `Basic realm="trow"`, ""); err != nil || got != basic {
		t.Errorf("Basic: %q, %v", got, err)
	}
	var e *client.Error
	if _, err := c.Authorization(ctx, "a", nil, `Basic realm="trow"`, basic); !errors.As(err, &e) || e.Status != 401 {
		t.Errorf("a password that was refused: %v", err)
	}
	if _, err := f.client(client.Options{}).Authorization(ctx, "a", nil, "Basic", ""); !errors.As(err, &e) ||
		e.Status != 401 {
		t.Errorf("without a login: %v", err)
	}
}

func TestAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	created := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }
	s := &http.Server{Handler: http.HandlerFunc(created)}
	go s.Serve(l)
	defer s.Close()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	c, err := client.New(client.Options{URL: "http://trow",
		HTTP: &http.Client{Transport: &http.Transport{DialContext: dial}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.PushBlob(t.Context(), "a", digest.FromString("x"), unused); err != nil {
		t.Error(err)
	}
}
