package registry

import (
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/namespace"
	"trow/registry/ocierror"
)

// The grammars of the distribution spec.
var (
	specName   = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	specTag    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	specDigest = regexp.MustCompile(`^(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$`)
)

func FuzzRoute(f *testing.F) {
	zeros := strings.Repeat("0", 64)
	for _, s := range []string{"/v2/", "/v2", "/v2/_catalog", "/v2/a/tags/list", "/v2/a/b/manifests/latest",
		"/v2/a/manifests/sha256:" + zeros,
		"/v2/a/blobs/sha256:" + zeros, "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/0-0", "/v2/a/referrers/sha512:" +
			zeros + zeros,
		"/v2/../etc/passwd/tags/list", "/v2/a%2fb/tags/list", "/v2/a/blobs/uploads/..",
		"/v2/manifests/manifests/manifests/manifests"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return
		}
		r, err := parseRoute(u)
		if err != nil {
			if e := ocierror.As(err); e == nil || e.Message == "" || e.HTTPStatus() >= 500 {
				t.Fatalf("%q: %v is not an error for a client", path, err)
			}
			return
		}
		if r.endpoint == endpointBase || r.endpoint == endpointCatalog {
			return
		}
		if !specName.MatchString(r.repo) || len(r.repo) > maxName {
			t.Errorf("%q: repo %q", path, r.repo)
		}
		switch r.endpoint {
		case endpointManifest:
			if !specTag.MatchString(r.ref) && !specDigest.MatchString(r.ref) ||
				(r.digest != "") != specDigest.MatchString(r.ref) {
				t.Errorf("%q: ref %q, digest %q", path, r.ref, r.digest)
			}
		case endpointBlob, endpointReferrers:
			if !specDigest.MatchString(r.digest.String()) {
				t.Errorf("%q: digest %q", path, r.digest)
			}
		case endpointUpload:
			if strings.Contains(r.ref, "/") || len(r.ref) > maxUploadID {
				t.Errorf("%q: upload %q", path, r.ref)
			}
		}
		if back, ok := split(strings.TrimPrefix(u.Path, "/v2/")); !ok || back.endpoint != r.endpoint {
			t.Errorf("%q: parsing it twice gives different routes", path)
		}
	})
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"a", "a/b", "a__b", "a___b", "a._b", "a--b-", "", "/", "a//b", "A",
		strings.Repeat("a", 256)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := ValidName(s), specName.MatchString(s) && len(s) <= maxName &&
			!strings.HasSuffix(s, "\n"); got != want {
			t.Errorf("ValidName(%q) is %v, the spec says %v", s, got, want)
		}
		if got, want := namespace.ValidTag(s), specTag.MatchString(s) && !strings.HasSuffix(s, "\n"); got != want {
			t.Errorf("ValidTag(%q) is %v, the spec says %v", s, got, want)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"0-4", "5-4", "", "-", "0-", "-0", "0-9223372036854775807", "1-9223372036854775807",
		"bytes 0-4/5", "+1-2", "1-+2", " 1-2", "00-01"} {
		f.Add(s, int64(5))
	}
	f.Fuzz(func(t *testing.T, s string, length int64) {
		offset, n, err := contentRange(s, length)
		switch {
		case err != nil || s == "":
		case offset < 0 || n < 1 || offset+n < offset:
			t.Errorf("%q: offset %d, length %d", s, offset, n)
		case length >= 0 && n != length:
			t.Errorf("%q: %d bytes, but Content-Length is %d", s, n, length)
		case !regexp.MustCompile(`^[0-9]+-[0-9]+$`).MatchString(s):
			t.Errorf("%q was accepted; the spec's form is <first>-<last>", s)
		}
	})
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"0-4", "5-4", "", "-", "0-", "-0", "-5", "0-9223372036854775807", "9223372036854775808-",
		"1-2,3-4", "x"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, s string, size int64) {
		if size < 0 {
			return
		}
		parts, satisfiable := requestedRanges(http.Header{"Range": {"bytes=" + s}}, "", size)
		sum := int64(0)
		for _, part := range parts {
			if part.start < 0 || part.length <= 0 || part.start+part.length > size {
				t.Errorf("%q of %d bytes: %+v", s, size, part)
			}
			sum += part.length
		}
		if sum > size || len(parts) > 0 && !satisfiable {
			t.Errorf("%q of %d bytes: %+v, %v", s, size, parts, satisfiable)
		}
	})
}

func FuzzManifest(f *testing.F) {
	d := digest.FromString("x").String()
	f.Add(typeOCIManifest,
		[]byte(`{"schemaVersion":2,"config":{"digest":"`+d+`","size":1},`+
			`"layers":[{"digest":"`+d+`","size":1,"urls":["x"]}],"subject":{"digest":"`+d+`"}}`))
	f.Add(typeOCIIndex, []byte(`{"schemaVersion":2,"manifests":[{"digest":"`+d+`","size":1}]}`))
	f.Add("", []byte(`{"mediaType":"x/y","blobs":[{"digest":"`+d+`"}]}`))
	f.Add("text/plain", []byte(`x`))
	f.Add(typeDockerManifest+"; charset=utf-8", []byte(`{"schemaVersion":2,"layers":[],"layers":[]}`))
	f.Add("", []byte(`{"schemaVersion":2,"manifests":[],"Manifests":[{"digest":"`+d+`","size":1}]}`))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		p, err := parseManifest(contentType, body)
		if err != nil {
			if e := ocierror.As(err); e == nil || e.Code != ocierror.ManifestInvalid || len(e.Message) > 2000 {
				t.Fatalf("%v is not an error for a client", err)
			}
			return
		}
		if p.mediaType == "" {
			t.Error("accepted without a media type")
		}
		if len(p.needs)+len(p.elsewhere) > len(p.refs) {
			t.Errorf("%d needs, %d elsewhere, %d references", len(p.needs), len(p.elsewhere), len(p.refs))
		}
		for _, d := range append(p.refs, p.needs...) {
			if !specDigest.MatchString(d.String()) {
				t.Errorf("refers to %q", d)
			}
		}
		if !validMediaType(p.mediaType) {
			t.Errorf("media type %q", p.mediaType)
		}
		if knownType(p.mediaType) && validForGo(body) && !slices.Equal(asGo(t, body), p.refs) {
			t.Errorf("refers to %v; encoding/json reads %v", p.refs, asGo(t, body))
		}
		if p.subject != "" && !specDigest.MatchString(p.subject.String()) {
			t.Errorf("subject %q", p.subject)
		}
	})
}

// validForGo reports whether encoding/json can decode a manifest. It knows more members than the registry.
func validForGo(body []byte) bool {
	var m v1.Manifest
	var i v1.Index
	return json.Unmarshal(body, &m) == nil && json.Unmarshal(body, &i) == nil
}

func TestTheCacheEvictsTheLeastRecentlyUsed(t *testing.T) {
	c := newCache[digest.Digest, int](10 * 1256)
	key := func(i int) digest.Digest { return digest.Digest(strconv.Itoa(i)) }
	for i := range 10 {
		c.put(key(i), i, 1000)
	}
	c.get(key(0))
	c.put(key(10), 10, 1000)
	if _, ok := c.get(key(1)); ok {
		t.Error("the least recently used value was not evicted")
	}
	if v, ok := c.get(key(0)); !ok || v != 0 {
		t.Error("a recently used value was evicted")
	}
	c.put(key(11), 11, 10*1256)
	if _, ok := c.get(key(11)); ok {
		t.Error("a value as large as the cache was kept")
	}
	c.put(key(0), 5, 1000)
	if v, _ := c.get(key(0)); v != 0 {
		t.Error("a second put changed the value")
	}
	for i := range 11 {
		c.remove(key(i))
	}
	if c.used != 0 || c.order.Len() != 0 || len(c.items) != 0 {
		t.Errorf("after all values were removed: %d bytes, %d entries", c.used, len(c.items))
	}
}

func TestWarningsAreQuotedAndBounded(t *testing.T) {
	h := http.Header{}
	warn(headerOnly(h), "a \"b\" \\c\r\nd"+strings.Repeat("x", 5000))
	if got := h.Get("Warning"); !strings.HasPrefix(got, `299 - "a \"b\" \\c  dx`) || len(got) > 600 {
		t.Errorf("Warning is %.100q, %d bytes", got, len(got))
	}
}

type headerOnly http.Header

func (h headerOnly) Header() http.Header         { return http.Header(h) }
func (h headerOnly) Write(p []byte) (int, error) { return len(p), nil }
func (h headerOnly) WriteHeader(int)             {}
