package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

func TestABlobIsVisibleOnlyInItsRepository(t *testing.T) {
	w := newServer(t)
	d := w.pushBlob("secret/a", []byte("x"))
	w.do("GET", "/v2/other/blobs/"+d.String(), nil).code(404, "BLOB_UNKNOWN")
	w.do("HEAD", "/v2/other/blobs/"+d.String(), nil).is(404)
	w.do("GET", "/v2/secret/a/blobs/"+d.String(), nil).is(200).equals("x")
	w.do("GET", "/v2/secret/a/manifests/"+d.String(), nil).code(404, "MANIFEST_UNKNOWN") // a blob is not a manifest
}

func TestBlobHeadersAndRanges(t *testing.T) {
	w := newServer(t)
	content := random(t, 2048)
	d := w.pushBlob("a", content)
	path := "/v2/a/blobs/" + d.String()
	all := []string{"Content-Type", "application/octet-stream", "Docker-Content-Digest", d.String(),
		"ETag", `"` + d.String() + `"`,
		"Accept-Ranges", "bytes", "Cache-Control", "max-age=31536000, immutable", "Content-Encoding", ""}
	w.do("GET", path, nil, "Accept-Encoding", "zstd, gzip").is(200).
		has(all...).has("Content-Length", "2048").equals(string(content))
	w.do("HEAD", path, nil).is(200).has(all...).has("Content-Length", "2048")
	w.do("GET", path, nil, "If-None-Match", `"`+d.String()+`"`).is(304).equals("")
	for _, row := range []struct {
		header   string
		status   int
		from, to int
	}{
		{"bytes=500-1499", 206, 500, 1500},
		{"bytes=500-", 206, 500, 2048},
		{"bytes=-500", 206, 1548, 2048},
		{"bytes=2000-5000", 206, 2000, 2048},
		{"bytes=0-0", 206, 0, 1},
		{"bytes=0-", 206, 0, 2048},
		{"bytes=-5000", 206, 0, 2048},
		{"bytes=0-99999999999999999999999999", 206, 0, 2048},
		{"bytes= 1-2", 206, 1, 3},
		{"bytes=500-0", 416, 0, 0},
		{"bytes=2048-", 416, 0, 0},
		{"bytes=5000-10000", 416, 0, 0},
		{"bytes=99999999999999999999999999-", 416, 0, 0},
		{"bytes=-0", 416, 0, 0},
		{"bytes=0-1,5000-", 206, 0, 2},                             // one part is left
		{"bytes=5000-,6000-", 416, 0, 0},                           //
		{"bytes=0-1,x", 200, 0, 2048},                              //
		{"bytes=0-1500,1-", 200, 0, 2048},                          // more bytes than the blob has
		{"bytes=0-0" + strings.Repeat(",1-1", 1024), 200, 0, 2048}, // too many parts
		{"bytes=x-y", 200, 0, 2048},                                // an invalid range is ignored
		{"bytes=-", 200, 0, 2048},
		{"bytes=--5", 200, 0, 2048},
		{"bytes=+1-2", 200, 0, 2048},
		{"lines=1-2", 200, 0, 2048},
		{"Bytes=1-2", 206, 1, 3},       // units are case-insensitive (RFC 9110, section 14.1)
		{"bytes=,1-2, ,", 206, 1, 3},   // lists may have empty elements
		{"bytes=,", 200, 0, 2048},      // but not these alone
		{"bytes=1-2,4000-", 206, 1, 3}, // one part is left
		{"bytes=4000-,-0", 416, 0, 0},
	} {
		a := w.do("GET", path, nil, "Range", row.header).is(row.status)
		// ranges are defined for GET alone
		w.do("HEAD", path, nil, "Range", row.header).is(200).has("Content-Length", "2048")
		switch row.status {
		case 416:
			a.code(416, "SIZE_INVALID").has("Content-Range", "bytes */2048")
		case 206:
			a.has("Content-Range", fmt.Sprintf("bytes %d-%d/2048", row.from, row.to-1),
				"Content-Length", fmt.Sprint(row.to-row.from))
			fallthrough
		default:
			a.equals(string(content[row.from:row.to]))
		}
	}
	w.do("GET", path, nil, "Range", "bytes=0-1", "If-Range", `"`+d.String()+`"`).is(206)
	w.do("GET", path, nil, "Range", "bytes=0-1", "If-Range", `"other"`).is(200)
	empty := w.pushBlob("a", nil)
	w.do("GET", "/v2/a/blobs/"+empty.String(), nil).is(200).has("Content-Length", "0").equals("")
	w.do("GET", "/v2/a/blobs/"+empty.String(), nil, "Range", "bytes=0-").is(416)
}

// TestSeveralRanges: clients that pull parts of a layer ask for up to 1024 at once.
func TestSeveralRanges(t *testing.T) {
	blobs, journal, _ := engines(t, t.TempDir())
	w := serve(t, blobs, journal)
	for _, size := range []int{3000, 1 << 20} { // in memory, and in a file
		content := random(t, size)
		d := w.pushBlob("a", content)
		path := "/v2/a/blobs/" + d.String()
		many := "bytes=2-2"
		for n := range 1023 {
			many += fmt.Sprintf(",%d-%d", n, n)
		}
		for header, want := range map[string][][2]int{
			"bytes=0-9,20-29":            {{0, 10}, {20, 30}},
			"bytes=100-199, 0-0 ,-5":     {{100, 200}, {0, 1}, {size - 5, size}},
			"bytes=5-6,9999999-,700-800": {{5, 7}, {700, 801}},
			"bytes=0-9,5-14":             {{0, 10}, {5, 15}}, // they overlap, but not by more than the blob has
			many:                         nil,
		} {
			a := w.do("GET", path, nil, "Range", header).is(206).has("Docker-Content-Digest", d.String(),
				"ETag", `"`+d.String()+`"`, "Content-Range", "")
			if a.header.Get("Content-Length") != fmt.Sprint(len(a.body)) {
				t.Errorf("%.99s: %v for %d bytes", header, a.header, len(a.body))
			}
			kind, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
			if err != nil || kind != "multipart/byteranges" {
				t.Fatalf("%.99s: %s, %v", header, kind, err)
			}
			in, n := multipart.NewReader(bytes.NewReader(a.body), params["boundary"]), 0
			for ; ; n++ {
				part, err := in.NextPart()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(part)
				if err != nil || want == nil {
					continue
				}
				if span := want[n]; !bytes.Equal(body, content[span[0]:span[1]]) || part.Header.Get("Content-Range") !=
					fmt.Sprintf("bytes %d-%d/%d", span[0], span[1]-1, size) ||
					part.Header.Get("Content-Type") != "application/octet-stream" {
					t.Errorf("%s: part %d: %v, %d bytes", header, n, part.Header, len(body))
				}
			}
			if n != len(want) && (want != nil || n != 1024) {
				t.Errorf("%.99s: %d parts", header, n)
			}
		}
	}
}

func TestOnDisk(t *testing.T) {
	dir := t.TempDir()
	blobs, journal, _ := engines(t, dir)
	w := serve(t, blobs, journal)
	body, d := w.pushImage("a", "v", "x")
	big := random(t, 10<<20)
	bd := w.pushBlob("a", big)
	w.do("GET", "/v2/a/blobs/"+bd.String(), nil, "Range", "bytes=5000000-").is(206).equals(string(big[5000000:]))

	file := filepath.Join(dir, "blobs", "sha256", d.Encoded())
	if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	w2 := serve(t, blobs, journal) // without the cache
	w2.do("GET", "/v2/a/manifests/v", nil).code(404, "MANIFEST_UNKNOWN")
	w2.do("HEAD", "/v2/a/manifests/v", nil).is(404)
	w2.do("PUT", "/v2/a/manifests/v", body, "Content-Type", typeManifest).is(201)
	w2.do("GET", "/v2/a/manifests/v", nil).is(200).equals(string(body))

	if err := os.Remove(filepath.Join(dir, "blobs", "sha256", bd.Encoded())); err != nil {
		t.Fatal(err)
	}
	w2.do("GET", "/v2/a/blobs/"+bd.String(), nil).code(404, "BLOB_UNKNOWN")
	w2.do("HEAD", "/v2/a/blobs/"+bd.String(), nil).is(404)
	w2.do("POST", "/v2/b/blobs/uploads/?from=a&mount="+bd.String(), nil).is(202)
	config := []byte("{}")
	w2.pushBlob("a", config)
	lossy := image(config, big) // a manifest with a layer that is lost
	w2.do("PUT", "/v2/a/manifests/w", lossy, "Content-Type", typeManifest).code(404, "MANIFEST_BLOB_UNKNOWN")
	w2.pushBlob("b", big) // repairs it in all repositories
	w2.do("GET", "/v2/a/blobs/"+bd.String(), nil).is(200).equals(string(big))
	w2.do("PUT", "/v2/a/manifests/w", lossy, "Content-Type", typeManifest).is(201)
}

// withoutSizes is an engine whose readers do not say a size at once, as those behind a network.
type withoutSizes struct{ storage.Blobs }

func (b withoutSizes) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	f, err := b.Blobs.Open(ctx, d)
	return struct{ io.ReadSeekCloser }{f}, err
}

// TestABlobThatEndsEarlyIsQuarantined by the first pull that notices, whole or of ranges; the next push repairs it.
func TestABlobThatEndsEarlyIsQuarantined(t *testing.T) {
	for _, ranges := range []string{"", "bytes=0-9,900000-900009"} {
		dir := t.TempDir()
		blobs, journal, _ := engines(t, dir)
		w := serve(t, withoutSizes{blobs}, journal)
		content := random(t, 1<<20)
		d := w.pushBlob("a", content)
		if err := os.Truncate(filepath.Join(dir, "blobs", "sha256", d.Encoded()), 600_000); err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), "GET", w.url+"/v2/a/blobs/"+d.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if ranges != "" {
			req.Header.Set("Range", ranges)
		}
		req.Close = true
		resp, err := (&http.Transport{}).RoundTrip(req) // which does not ask again on a new connection
		if err == nil {
			var got []byte
			if got, err = io.ReadAll(resp.Body); err == nil {
				t.Errorf("%q: a pull of a blob that ends early is complete, with %d bytes", ranges, len(got))
			}
			resp.Body.Close()
		}
		if !w.index.Quarantined(d) {
			t.Errorf("%q: the damage is not recorded", ranges)
		}
		w.do("GET", "/v2/a/blobs/"+d.String(), nil).code(404, "BLOB_UNKNOWN")
		w.pushBlob("a", content)
		w.do("GET", "/v2/a/blobs/"+d.String(), nil).is(200).equals(string(content))
	}
}

// TestLostBytesAreNotCached: the answer for a digest whose bytes are lost must not be kept by caches, and a list that
// needs them says that it leaves a referrer out. The damage is recorded either way.
func TestLostBytesAreNotCached(t *testing.T) {
	dir := t.TempDir()
	blobs, journal, _ := engines(t, dir)
	w := serve(t, blobs, journal)
	body, d := w.pushImage("a", "v", "x")
	config := []byte("{}")
	w.pushBlob("a", config)
	signature := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[],"subject":%s}`,
		typeManifest, desc("x/y", config), desc(typeManifest, body))
	w.do("PUT", "/v2/a/manifests/signature", signature, "Content-Type", typeManifest).is(201)
	small, big := digest.FromString("layer x"), w.pushBlob("a", random(t, 1<<20))
	lost := []digest.Digest{d, small, big, digest.FromBytes(signature)}
	for _, d := range lost {
		if err := os.Remove(filepath.Join(dir, "blobs", "sha256", d.Encoded())); err != nil {
			t.Fatal(err)
		}
	}
	w = serve(t, blobs, journal) // without the cache
	none := []string{"Cache-Control", ""}
	w.do("GET", "/v2/a/manifests/"+d.String(), nil).code(404, "MANIFEST_UNKNOWN").has(none...).has("ETag", "")
	w.do("GET", "/v2/a/blobs/"+small.String(), nil).code(404, "BLOB_UNKNOWN").has(none...)
	w.do("GET", "/v2/a/blobs/"+big.String(), nil).code(404, "BLOB_UNKNOWN").has(none...)
	w.do("GET", "/v2/a/referrers/"+d.String(), nil).is(200).contains(`"manifests":[]`).
		has("Warning",
			`299 - "1 manifests are left out of this list because the registry cannot read them; push them again"`)
	for _, d := range lost {
		if !w.index.Quarantined(d) {
			t.Errorf("the damage of %s is not recorded", d)
		}
	}
}
