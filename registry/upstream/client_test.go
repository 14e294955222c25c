package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/client"
)

// origin is a registry without a network: it notes what it is asked for, and answers as next says.
type origin struct {
	next http.HandlerFunc

	mu    sync.Mutex
	asked []string
}

func (o *origin) RoundTrip(req *http.Request) (*http.Response, error) {
	o.mu.Lock()
	o.asked = append(o.asked, req.Method+" "+req.URL.RequestURI())
	o.mu.Unlock()
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	o.next(w, req)
	resp := w.Result()
	resp.Request = req
	if resp.ContentLength = -1; w.Header().Get("Content-Length") != "" {
		_, _ = fmt.Sscan(w.Header().Get("Content-Length"), &resp.ContentLength)
	}
	return resp, nil
}

// upstreamOf is an upstream whose endpoints are these.
func upstreamOf(t *testing.T, origins ...http.RoundTripper) *Upstream {
	t.Helper()
	u := &Upstream{Host: "up.example", Name: "up.example"}
	for i, o := range origins {
		base := &url.URL{Scheme: "https", Host: fmt.Sprintf("e%d.up.example", i+1)}
		c, err := client.New(client.Options{URL: base.String(), Once: true,
			HTTP:  &http.Client{Transport: o, CheckRedirect: redirects(false)},
			Realm: func(u *url.URL) error { return checkRealm(u, base, nil, false, true) }})
		if err != nil {
			t.Fatal(err)
		}
		u.endpoints = append(u.endpoints, &endpoint{host: base.Host, login: c, anonymous: c})
	}
	return u
}

const imageType = v1.MediaTypeImageManifest

var (
	image       = `{"schemaVersion":2,"mediaType":"` + imageType + `","config":{},"layers":[]}`
	imageDigest = digest.FromString(image)
)

func give(w http.ResponseWriter, body string, headers ...string) {
	for i := 0; i < len(headers); i += 2 {
		w.Header().Set(headers[i], headers[i+1])
	}
	_, _ = io.WriteString(w, body)
}

func TestManifest(t *testing.T) {
	large := `{"x":"` + strings.Repeat("x", maxManifest) + `"}`
	old := `{"schemaVersion":1,"name":"a"}`
	sha512 := digest.SHA512.FromString(image)
	for name, c := range map[string]struct {
		ref, body string
		headers   []string
		status    int
		want      error
		reason    string
	}{
		"a tag":               {"v", image, []string{"Content-Type", imageType}, 200, nil, ""},
		"a digest":            {imageDigest.String(), image, []string{"Content-Type", imageType}, 200, nil, ""},
		"a digest of SHA-512": {sha512.String(), image, []string{"Content-Type", imageType}, 200, nil, ""},
		"the digest of the header": {"v", image, []string{"Content-Type", imageType, "Docker-Content-Digest",
			sha512.String()}, 200, nil, ""},
		"parameters of the type": {"v", image, []string{"Content-Type", imageType + "; charset=utf-8"}, 200, nil, ""},
		"the type of a file":     {"v", image, []string{"Content-Type", "application/json"}, 200, nil, ""},
		"another digest": {imageDigest.String(), image + " ", []string{"Content-Type", imageType}, 200, ErrDamaged,
			"another digest"},
		"another digest than said": {"v", image + " ", []string{"Content-Type", imageType, "Docker-Content-Digest",
			imageDigest.String()}, 200, ErrDamaged, "another digest"},
		"no manifest": {"v", "<html>", []string{"Content-Type", "text/html"}, 200, ErrDamaged, "not a manifest"},
		"no type":     {"v", `{"layers":[]}`, nil, 200, ErrDamaged, "not a manifest"},
		"too large":   {"v", large, []string{"Content-Type", imageType}, 200, ErrTooLarge, "4194304 bytes"},
		"too large, and says so": {"v", "{}", []string{"Content-Type", imageType, "Content-Length", "4194305"}, 200,
			ErrTooLarge, "4194304 bytes"},
		"schema 1": {"v", old, []string{"Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws"},
			200, ErrRefused, "schema 1"},
		"schema 1, another type": {"v", old, []string{"Content-Type", "application/json"}, 200, ErrRefused, "schema 1"},
		"not there":              {"v", "", nil, 404, ErrNotFound, ""},
		"no login":               {"v", "", nil, 401, ErrUnauthorized, "401 Unauthorized"},
		"another login": {"v", `{"errors":[{"code":"DENIED","message":"secret"}]}`, nil, 403, ErrUnauthorized,
			"403 Forbidden (DENIED)"},
		"a name that is not possible": {"v", "", nil, 400, ErrRefused, "400 Bad Request"},
		"broken":                      {"v", "secret", nil, 500, ErrUnavailable, "500 Internal Server Error"},
		"busy": {"v", "", []string{"Retry-After", "120"}, 429, ErrUnavailable,
			"too many requests"},
		"down":                  {"v", "", nil, 503, ErrUnavailable, "503 Service Unavailable"},
		"moved without a place": {"v", "", nil, 301, ErrUnavailable, ""},
	} {
		o := &origin{next: func(w http.ResponseWriter, req *http.Request) {
			if !strings.Contains(req.Header.Get("Accept"), "manifest.list.v2+json, ") {
				t.Errorf("%s: accepts %s", name, req.Header.Get("Accept"))
			}
			for i := 0; i < len(c.headers); i += 2 {
				w.Header().Set(c.headers[i], c.headers[i+1])
			}
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
		}}
		m, err := upstreamOf(t, o).Manifest(t.Context(), "a/b", c.ref)
		if c.want != nil {
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.reason) ||
				strings.Contains(err.Error(), "secret") ||
				!strings.HasPrefix(err.Error(), "up.example/a/b "+c.ref+": ") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || string(m.Body) != c.body || m.MediaType != imageType || m.Size != int64(len(c.body)) ||
			m.Digest.Algorithm().FromString(c.body) != m.Digest ||
			strings.Contains(c.ref, ":") && m.Digest.String() != c.ref {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

func TestHead(t *testing.T) {
	whole := []string{"Content-Type", imageType, "Docker-Content-Digest", imageDigest.String(), "Content-Length",
		fmt.Sprint(len(image))}
	for name, c := range map[string]struct {
		ref     string
		headers []string // none: it has no HEAD
		asked   int
		want    error
	}{
		"without HEAD":   {"v", nil, 2, nil},
		"whole":          {"v", whole, 1, nil},
		"without digest": {"v", []string{"Content-Type", imageType, "Content-Length", "5"}, 2, nil},
		"without length": {"v", whole[:4], 2, nil},
		"another digest": {digest.FromString("x").String(), whole, 1, ErrDamaged},
		"schema 1": {"v", append([]string{"Content-Type", "application/vnd.docker.distribution.manifest.v1+json"},
			whole[2:]...), 1, ErrRefused},
		"far too large":   {"v", append(slices.Clone(whole[:4]), "Content-Length", "99999999"), 1, ErrTooLarge},
		"a digest itself": {imageDigest.String(), whole, 1, nil},
	} {
		o := &origin{next: func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodHead && c.headers == nil {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			if req.Method == http.MethodHead {
				give(w, "", c.headers...)
				return
			}
			give(w, image, "Content-Type", imageType)
		}}
		d, err := upstreamOf(t, o).Head(t.Context(), "a", c.ref)
		if !errors.Is(err, c.want) || len(o.asked) != c.asked ||
			err == nil && (d.Digest != imageDigest || d.Size != int64(len(image)) || d.MediaType != imageType) {
			t.Errorf("%s: %+v, %v after %v", name, d, err, o.asked)
		}
	}
}

func TestBlob(t *testing.T) {
	const content = "0123456789"
	d := digest.FromString(content)
	partial := func(w http.ResponseWriter, span, body string) {
		w.Header().Set("Content-Range", "bytes "+span)
		w.WriteHeader(http.StatusPartialContent)
		_, _ = io.WriteString(w, body)
	}
	for name, c := range map[string]struct {
		from       int64
		next       http.HandlerFunc
		begins     int64
		body       string
		size       int64
		asked      int
		want       error
		wantsRange string
	}{
		"whole": {0, func(w http.ResponseWriter, _ *http.Request) { give(w, content, "Content-Length", "10") }, 0,
			content, 10, 1, nil, ""},
		"of unknown length": {0, func(w http.ResponseWriter, _ *http.Request) { give(w, content) }, 0, content, -1,
			1, nil, ""},
		"not coded": {0, func(w http.ResponseWriter, _ *http.Request) {
			give(w, content, "Content-Encoding", "identity")
		}, 0, content, -1, 1, nil, ""},
		"continued": {4, func(w http.ResponseWriter, _ *http.Request) { partial(w, "4-9/10", content[4:]) }, 4,
			content[4:], 10, 1, nil, "bytes=4-"},
		"continued, size unknown": {4, func(w http.ResponseWriter, _ *http.Request) {
			partial(w, "4-9/*",
				content[4:])
		}, 4,
			content[4:], -1, 1, nil, "bytes=4-"},
		"ranges are ignored": {4, func(w http.ResponseWriter, _ *http.Request) { give(w, content) }, 0, content, -1,
			1, nil, "bytes=4-"},
		"continued elsewhere": {4, func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Range") == "" {
				give(w, content)
				return
			}
			partial(w, "0-9/10", content)
		}, 0, content, -1, 2, nil, ""},
		"not satisfiable": {4, func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Range") == "" {
				give(w, content)
				return
			}
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		}, 0, content, -1, 2, nil, ""},
		"never satisfiable": {4, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		}, 0, "", 0, 2, ErrDamaged, ""},
		"a part of a whole": {0, func(w http.ResponseWriter, _ *http.Request) { partial(w, "4-9/10", content[4:]) },
			0, "", 0, 1, ErrDamaged, ""},
		"coded": {0, func(w http.ResponseWriter, _ *http.Request) { give(w, "x", "Content-Encoding", "gzip") }, 0,
			"", 0, 1, ErrDamaged, ""},
		"not there": {0, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, 0, "", 0, 1,
			ErrNotFound, ""},
	} {
		o := &origin{next: func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Accept-Encoding") != "identity" || c.wantsRange != "" &&
				(req.Header.Get("Range") != c.wantsRange || req.Header.Get("If-Range") != `"e"`) {
				t.Errorf("%s: %v", name, req.Header)
			}
			c.next(w, req)
		}}
		b, err := upstreamOf(t, o).Blob(t.Context(), "a", d, c.from, `"e"`)
		if !errors.Is(err, c.want) || len(o.asked) != c.asked {
			t.Errorf("%s: %v after %v", name, err, o.asked)
		}
		if err != nil {
			continue
		}
		if body, err := io.ReadAll(b.Body); err != nil || string(body) != c.body || b.From != c.begins ||
			b.Size != c.size {
			t.Errorf("%s: %q, %+v, %v", name, body, b, err)
		}
	}
}

func TestReferrers(t *testing.T) {
	subject := digest.FromString("subject")
	index := func(names ...string) string {
		x := v1.Index{MediaType: v1.MediaTypeImageIndex}
		x.SchemaVersion = 2
		for _, n := range names {
			x.Manifests = append(x.Manifests, v1.Descriptor{MediaType: imageType,
				Digest: digest.FromString(n), Size: 5})
		}
		b, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	tag := "/v2/a/manifests/sha256-" + subject.Encoded()
	api := "/v2/a/referrers/" + subject.String()
	for name, c := range map[string]struct {
		next  http.HandlerFunc
		want  int
		asked []string
		err   error
	}{
		"by the API": {func(w http.ResponseWriter, _ *http.Request) {
			give(w, index("x", "y"), "Content-Type", v1.MediaTypeImageIndex)
		}, 2, []string{"GET " + api}, nil},
		"in pages": {func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Query().Get("last") == "" {
				w.Header().Set("Link", `<https://elsewhere.example/x?last=x%26y>; rel="next"`)
			}
			give(w, index("x"), "Content-Type", v1.MediaTypeImageIndex)
		}, 2, []string{"GET " + api, "GET " + api + "?last=x%26y"}, nil},
		"in endless pages": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", `<?last=x>; rel="next"`)
			give(w, index("x"), "Content-Type", v1.MediaTypeImageIndex)
		}, maxPages, nil, nil},
		"by the tag": {func(w http.ResponseWriter, req *http.Request) {
			if !strings.HasPrefix(req.URL.Path, tag) {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			b := index("x")
			give(w, b, "Content-Type", v1.MediaTypeImageIndex, "Content-Length", fmt.Sprint(len(b)),
				"Docker-Content-Digest",
				digest.FromString(b).String())
		}, 1, []string{"GET " + api, "HEAD " + tag, "GET " + tag}, nil},
		"none": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, 0,
			[]string{"GET " + api, "HEAD " + tag}, nil},
		"a page for people": {func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path != api {
				w.WriteHeader(http.StatusNotFound)
			}
			give(w, "<html>", "Content-Type", "text/html")
		}, 0, []string{"GET " + api, "HEAD " + tag}, nil},
		"no such method": {func(w http.ResponseWriter, req *http.Request) {
			w.WriteHeader(map[bool]int{true: 405, false: 404}[req.URL.Path == api])
		}, 0, []string{"GET " + api, "HEAD " + tag}, nil},
		"not known": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, 0,
			[]string{"GET " + api}, ErrUnauthorized},
	} {
		o := &origin{next: c.next}
		all, byTag, err := upstreamOf(t, o).Referrers(t.Context(), "a", subject)
		if (byTag != "") != (name == "by the tag") {
			t.Errorf("%s: the tag is %q", name, byTag)
		}
		if !errors.Is(err, c.err) || len(all) != c.want || c.asked != nil && !slices.Equal(o.asked, c.asked) {
			t.Errorf("%s: %d, %v after %v", name, len(all), err, o.asked)
		}
	}
}

// TestTags: all pages, sorted, and within bounds.
func TestTags(t *testing.T) {
	list := "/v2/a/tags/list?n=1000"
	for name, c := range map[string]struct {
		next  http.HandlerFunc
		want  []string
		more  bool
		asked []string
		err   error
	}{
		"one page": {func(w http.ResponseWriter, _ *http.Request) {
			give(w, `{"tags":["b","a","b","_x","bad tag",".y"]}`)
		}, []string{"_x", "a", "b"}, false, []string{"GET " + list}, nil},
		"pages": {func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Query().Get("last") == "" {
				w.Header().Set("Link", `</v2/a/tags/list?n=2&last=z>; rel="next"`)
				give(w, `{"tags":["z"]}`)
				return
			}
			give(w, `{"tags":["a"]}`)
		}, []string{"a", "z"}, false, []string{"GET " + list, "GET /v2/a/tags/list?last=z&n=2"}, nil},
		"the same page for ever": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", `</v2/a/tags/list?n=1000>; rel="next"`)
			give(w, `{"tags":["a"]}`)
		}, []string{"a"}, false, []string{"GET " + list}, nil},
		"endless": {func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Link", `</v2/a/tags/list?last=`+req.URL.Query().Get("last")+`x>; rel="next"`)
			give(w, `{"tags":["a"]}`)
		}, []string{"a"}, true, nil, nil},
		"empty":  {func(w http.ResponseWriter, _ *http.Request) { give(w, `{"tags":null}`) }, nil, false, nil, nil},
		"absent": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, nil, false, nil, ErrNotFound},
		"text":   {func(w http.ResponseWriter, _ *http.Request) { give(w, `<html>`) }, nil, false, nil, ErrDamaged},
		"large": {func(w http.ResponseWriter, _ *http.Request) {
			give(w, strings.Repeat(" ", maxManifest+1))
		}, nil, false, nil, ErrTooLarge},
	} {
		o := &origin{next: c.next}
		tags, more, err := upstreamOf(t, o).Tags(t.Context(), "a")
		if !errors.Is(err, c.err) || !slices.Equal(tags, c.want) || more != c.more ||
			c.asked != nil && !slices.Equal(o.asked, c.asked) {
			t.Errorf("%s: %q, %v, %v after %v", name, tags, more, err, o.asked)
		}
	}
}

// TestEndpointsAreAskedInOrder, and that there is nothing counts only if every one says so.
func TestEndpointsAreAskedInOrder(t *testing.T) {
	status := func(code int) *origin {
		return &origin{next: func(w http.ResponseWriter, _ *http.Request) {
			if code == 200 {
				give(w, image, "Content-Type", imageType)
				return
			}
			w.WriteHeader(code)
		}}
	}
	for _, c := range []struct {
		codes []int
		want  error
		asked []int
	}{
		{[]int{200, 200}, nil, []int{1, 0}},
		{[]int{404, 200}, nil, []int{1, 1}},
		{[]int{401, 200}, nil, []int{1, 1}},
		{[]int{503, 200}, nil, []int{tries, 1}},
		{[]int{404, 404}, ErrNotFound, []int{1, 1}},
		{[]int{404, 503}, ErrUnavailable, []int{1, tries}},
		{[]int{500, 404}, ErrUnavailable, []int{tries, 1}},
		{[]int{404, 401}, ErrUnauthorized, []int{1, 1}},
		{[]int{429, 404}, ErrUnavailable, []int{1, 1}},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := status(c.codes[0]), status(c.codes[1])
			_, err := upstreamOf(t, a, b).Manifest(t.Context(), "a", "v")
			if !errors.Is(err, c.want) || len(a.asked) != c.asked[0] || len(b.asked) != c.asked[1] {
				t.Errorf("%v: %v after %d and %d", c.codes, err, len(a.asked), len(b.asked))
			}
		})
	}
}

// TestAnEndpointThatIsDownIsLeftAlone, and asked again by one request after a while.
func TestAnEndpointThatIsDownIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down error = errors.New("connection refused")
		o := &origin{next: func(w http.ResponseWriter, _ *http.Request) { give(w, image, "Content-Type", imageType) }}
		u := upstreamOf(t, transportFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := o.RoundTrip(req)
			if down != nil {
				return nil, down
			}
			return resp, err
		}))
		if _, err := u.Manifest(t.Context(), "a", "v"); !errors.Is(err, ErrUnavailable) || len(o.asked) != tries {
			t.Errorf("%v after %d requests", err, len(o.asked))
		}
		start := time.Now()
		_, err := u.Manifest(t.Context(), "a", "v")
		wait, ok := RetryAfter(err)
		if !ok || wait < time.Second || wait > 3*time.Second || len(o.asked) != tries || !time.Now().Equal(start) {
			t.Errorf("%v, again after %s; %d requests", err, wait, len(o.asked))
		}
		for range 20 { // the pauses get longer, up to a bound
			time.Sleep(time.Hour)
			_, _ = u.Manifest(t.Context(), "a", "v")
		}
		_, err = u.Manifest(t.Context(), "a", "v")
		if wait, _ = RetryAfter(err); wait < 40*time.Second || wait > 80*time.Second {
			t.Errorf("again after %s", wait)
		}
		if n := len(o.asked); n != tries+20 {
			t.Errorf("%d requests, want one after each pause", n)
		}
		down = nil
		time.Sleep(time.Hour)
		for range 2 {
			if _, err := u.Manifest(t.Context(), "a", "v"); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestAnUpstreamThatHangs is waited for as long as it could still be alive, and no longer: one that answers later than
// others, and then sends its body slowly, is read to the end.
func TestAnUpstreamThatHangs(t *testing.T) {
	hangs := transportFunc(func(req *http.Request) (*http.Response, error) {
		<-req.Context().Done()
		return nil, req.Context().Err()
	})
	slow := transportFunc(func(req *http.Request) (*http.Response, error) {
		time.Sleep(answerTime - time.Second)
		body := readerFunc(func(p []byte) (int, error) {
			time.Sleep(answerTime - time.Second)
			if req.Context().Err() != nil {
				return 0, req.Context().Err()
			}
			return copy(p, image), io.EOF
		})
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {imageType}}, Request: req,
			ContentLength: int64(len(image)), Body: io.NopCloser(body)}, nil
	})
	stops := transportFunc(func(req *http.Request) (*http.Response, error) {
		r, w := io.Pipe()
		go func() { _, _ = io.WriteString(w, image[:10]) }()
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {imageType}}, Request: req,
			ContentLength: int64(len(image)), Body: r}, nil
	})
	gives := &origin{next: func(w http.ResponseWriter, _ *http.Request) { give(w, image, "Content-Type", imageType) }}
	for name, c := range map[string]struct {
		endpoints []http.RoundTripper
		took      time.Duration
		want      error
	}{
		"alone":                  {[]http.RoundTripper{hangs}, answerTime, ErrUnavailable},
		"all":                    {[]http.RoundTripper{hangs, hangs, hangs}, answerTime, ErrUnavailable},
		"the first of two":       {[]http.RoundTripper{hangs, gives}, answerTime / 2, nil},
		"slow":                   {[]http.RoundTripper{slow}, 2 * (answerTime - time.Second), nil},
		"in the middle":          {[]http.RoundTripper{stops}, answerTime, ErrUnavailable},
		"the first, and then no": {[]http.RoundTripper{hangs, stops}, answerTime + answerTime/2, ErrUnavailable},
	} {
		synctest.Test(t, func(t *testing.T) {
			u, begun := upstreamOf(t, c.endpoints...), time.Now()
			m, err := u.Manifest(t.Context(), "a", "v")
			if took := time.Since(begun); !errors.Is(err, c.want) || took != c.took ||
				err == nil && string(m.Body) != image {
				t.Errorf("%s: %v after %v, want %v after %v", name, err, took, c.want, c.took)
			}
			if err != nil && !strings.Contains(err.Error(), "in time") {
				t.Errorf("%s: %v", name, err)
			}
			if name == "alone" && u.endpoints[0].breaker.failures == 0 {
				t.Errorf("%s: it does not count as a failure", name)
			}
		})
	}
}

// TestOneOutageIsOneFailure for the length of the pause, however many asked at that time.
func TestOneOutageIsOneFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := upstreamOf(t, transportFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return nil, errors.New("connection reset by peer")
		}))
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				_, err := u.Head(t.Context(), "a", "v")
				if wait, _ := RetryAfter(err); wait > 3*time.Second ||
					!strings.Contains(err.Error(), "the connection failed") {
					t.Errorf("%v, again after %s", err, wait)
				}
			})
		}
		all.Wait()
	})
}

type transportFunc func(*http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// TestAnEndpointIsAskedAgainAfterTheTimeThatItAskedFor if that is short, and left alone if it is long: for manifests,
// where they are what is limited.
func TestAnEndpointIsAskedAgainAfterTheTimeThatItAskedFor(t *testing.T) {
	for after, c := range map[string]struct {
		least, most, pause time.Duration
		asked              int
	}{
		"1":                             {2 * time.Second, 2 * time.Second, 0, 3},
		"":                              {0, 0, defaultPause, 1},
		"30":                            {0, 0, 30 * time.Second, 1},
		"86400":                         {0, 0, maxPause, 1},
		"Sat, 01 Jan 2000 00:00:40 GMT": {0, 0, 40 * time.Second, 1}, // synctest begins in 2000
		"soon":                          {0, 0, defaultPause, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			o := &origin{next: func(w http.ResponseWriter, req *http.Request) {
				if strings.Contains(req.URL.Path, "/blobs/") {
					give(w, "x")
					return
				}
				w.Header().Set("Retry-After", after)
				w.WriteHeader(http.StatusTooManyRequests)
			}}
			u, start := upstreamOf(t, o), time.Now()
			_, err := u.Manifest(t.Context(), "a", "v")
			if took := time.Since(start); !errors.Is(err, ErrUnavailable) || took < c.least || took > c.most ||
				len(o.asked) != c.asked {
				t.Errorf("%q: %v after %s and %d requests", after, err, took, len(o.asked))
			}
			if c.pause == 0 {
				return
			}
			if wait, ok := RetryAfter(err); !ok || wait != c.pause {
				t.Errorf("%q: clients shall come after %s", after, wait)
			}
			time.Sleep(c.pause - time.Millisecond)
			if _, err := u.Manifest(t.Context(), "a", "v"); err == nil || len(o.asked) != c.asked {
				t.Errorf("%q: asked within the pause", after)
			}
			if b, err := u.Blob(t.Context(), "a", digest.FromString("x"), 0, ""); err != nil {
				t.Errorf("%q: a blob: %v", after, err)
			} else {
				b.Body.Close()
			}
			time.Sleep(time.Millisecond)
			if _, _ = u.Manifest(t.Context(), "a", "v"); len(o.asked) != c.asked+2 {
				t.Errorf("%q: not asked after the pause", after)
			}
		})
	}
}

// TestWhoLeavesSaysNothingAboutTheEndpoint, and who waited in vain does.
func TestWhoLeavesSaysNothingAboutTheEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := upstreamOf(t, transportFunc(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		}))
		for range 10 {
			ctx, leave := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, leave)
			if _, err := u.Head(ctx, "a", "v"); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		}
		if u.endpoints[0].breaker.failures != 0 {
			t.Error("those who left count as failures")
		}
		for range breakAfter {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			if _, err := u.Head(ctx, "a", "v"); !errors.Is(err, ErrUnavailable) ||
				!strings.Contains(err.Error(), "in time") {
				t.Errorf("%v", err)
			}
			cancel()
		}
		start := time.Now()
		if _, err := u.Head(t.Context(), "a", "v"); !errors.Is(err, ErrUnavailable) || time.Since(start) != 0 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// TestRates as Docker Hub sends them.
func TestRates(t *testing.T) {
	for _, c := range []struct {
		limit, remaining string
		want             Rate
		ok, poll         bool
	}{
		{"100;w=21600", "76;w=21600", Rate{Limit: 100, Remaining: 76, Window: 6 * time.Hour}, true, true},
		{"100;w=21600", "24;w=21600", Rate{Limit: 100, Remaining: 24, Window: 6 * time.Hour}, true, false},
		{"100; w=3600", " 0 ", Rate{Limit: 100, Window: time.Hour}, true, false},
		{"0;w=60", "0;w=60", Rate{Window: time.Minute}, true, false},
		{"", "", Rate{}, false, true},
		{"many", "76", Rate{}, false, true},
		{"-1;w=1", "1", Rate{}, false, true},
		{"100;w=x", "76;w=21600", Rate{}, false, true},
		{"100;w=99999999999999", "76", Rate{}, false, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			u := upstreamOf(t, &origin{next: func(w http.ResponseWriter, _ *http.Request) {
				give(w, image, "Content-Type", imageType, "RateLimit-Limit", c.limit, "ratelimit-remaining",
					c.remaining)
			}})
			if _, err := u.Manifest(t.Context(), "a", "v"); err != nil {
				t.Fatal(err)
			}
			got, ok := u.Rates()["e1.up.example"]
			if c.want.At = got.At; ok != c.ok || got != c.want || u.MayPoll() != c.poll {
				t.Errorf("%q, %q: %+v, %t", c.limit, c.remaining, got, u.MayPoll())
			}
			if time.Sleep(c.want.Window); !u.MayPoll() {
				t.Errorf("%q, %q: no polling after the window", c.limit, c.remaining)
			}
		})
	}
}

func TestOffline(t *testing.T) {
	o := &origin{}
	u := upstreamOf(t, o)
	u.offline = true
	if _, err := u.Head(t.Context(), "a", "v"); !errors.Is(err, ErrRefused) || len(o.asked) != 0 || u.MayPoll() {
		t.Errorf("%v", err)
	}
}

func TestRedirectsThatAreFollowed(t *testing.T) {
	for _, c := range []struct {
		to       string
		insecure bool
		before   int
		ok       bool
	}{
		{"https://cdn.example/x", false, 1, true},
		{"https://cdn.example/x", false, maxRedirects - 1, true},
		{"https://cdn.example/x", false, maxRedirects, false},
		{"http://cdn.example/x", false, 1, false},
		{"http://cdn.example/x", true, 1, true},
		{"ftp://cdn.example/x", true, 1, false},
		{"file:///etc/passwd", true, 1, false},
		{"https://me@cdn.example/x", true, 1, false},
		{"file:///etc/passwd", true, 1, false},
		{"ftp://cdn.example/x", true, 1, false},
	} {
		req := httptest.NewRequest(http.MethodGet, c.to, nil)
		req.Header.Set("Referer", "https://registry.example/?signature=secret")
		err := redirects(c.insecure)(req, make([]*http.Request, c.before))
		if (err == nil) != c.ok || c.ok && req.Header.Get("Referer") != "" {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestRealms(t *testing.T) {
	for _, c := range []struct {
		base, realm string
		named       string
		insecure    bool
		ok          bool
	}{
		{"https://registry-1.docker.io", "https://auth.docker.io/token", "", false, true},
		{"https://ghcr.io", "https://ghcr.io/token", "", false, true},
		{"https://GHCR.io", "https://ghcr.io:444/token", "", false, true},
		{"https://a.example.co.uk", "https://b.example.co.uk/token", "", false, true},
		{"https://a.co.uk", "https://b.co.uk/token", "", false, false},
		{"https://a.github.io", "https://b.github.io/token", "", false, false},
		{"https://docker.io", "https://docker.io.evil.example/token", "", false, false},
		{"https://docker.io", "https://evildocker.io/token", "", false, false},
		{"https://docker.io", "http://auth.docker.io/token", "", false, false},
		{"https://docker.io", "http://auth.docker.io/token", "", true, false},
		{"https://docker.io", "https://me@auth.docker.io/token", "", false, false},
		{"https://r.lan", "https://login.corp/token", "login.corp", false, true},
		{"https://r.lan", "https://login.corp:8443/token", "login.corp", false, true},
		{"https://r.lan", "https://login.corp:8443/token", "login.corp:443", false, false},
		{"https://r.lan", "http://login.corp/token", "login.corp", false, false},
		{"http://r.lan:5000", "http://r.lan:5001/token", "", true, true},
		{"http://r.lan:5000", "http://login.corp/token", "login.corp", true, true},
		{"http://r.lan:5000", "http://login.corp/token", "", true, false},
		{"https://10.0.0.1", "https://11.0.0.1/token", "", false, false},
		{"https://1.1.1.1", "https://2.1.1.1/token", "", false, false},
		{"https://[::1]", "https://[::2]/token", "", false, false},
		{"https://r.example", "file:///etc/passwd", "", false, false},
		{"https://r.example", "https:///token", "", false, false},
	} {
		base, err := url.Parse(c.base)
		if err != nil {
			t.Fatal(err)
		}
		realm, err := url.Parse(c.realm)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkRealm(realm, base, strings.Fields(c.named), c.insecure, true); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
		// Without a login a token may be fetched from elsewhere (lscr.io has ghcr.io), but not in the clear.
		safe := realm.Scheme == "https" && realm.User == nil || realm.Scheme == "http" && base.Scheme == "http"
		if err := checkRealm(realm, base, nil, c.insecure, false); (err == nil) != safe {
			t.Errorf("%+v, without a login: %v", c, err)
		}
	}
}

// readerFunc is an io.Reader.
type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
