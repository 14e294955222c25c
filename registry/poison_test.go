package registry_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/namespace"
	"trow/registry/upstream"
)

// newCaches is a registry with two upstreams, quay.io and evil.example.
func newCaches(t *testing.T) (w *server, good, evil *origin) {
	t.Helper()
	names := namespace.NewTable(nil)
	up := upstream.New(upstream.Config{Guard: upstream.NewGuard(), Names: names})
	var entries []upstream.Entry
	var all []*origin
	for _, host := range []string{"quay.io", "evil.example"} {
		o := &origin{manifests: map[string][]byte{}, blobs: map[string][]byte{}}
		o.Server = httptest.NewServer(o)
		t.Cleanup(o.Close)
		entries = append(entries, upstream.Entry{Host: host, Insecure: true,
			Endpoints: []upstream.Endpoint{{URL: o.URL}}})
		all = append(all, o)
	}
	if err := up.Set(entries); err != nil {
		t.Fatal(err)
	}
	fetcher := upstream.NewFetcher(upstream.FetcherOptions{Dir: t.TempDir(), Spool: 1 << 30})
	w = newServer(t, func(r *registry.Options) { r.Namespaces, r.Upstreams, r.Fetcher = names, up, fetcher })
	t.Cleanup(fetcher.Close)
	return w, all[0], all[1]
}

// TestAManifestOfAnotherRepository is given only if the repository's own upstream gives it.
func TestAManifestOfAnotherRepository(t *testing.T) {
	w, good, evil := newCaches(t)
	body, d := good.push("team/app", "v", "1")
	w.do("GET", "/v2/team/app/manifests/v?ns=quay.io", nil).is(200).equals(string(body))
	for _, at := range []string{"/v2/other/app/manifests/" + d.String() + "?ns=quay.io",
		"/v2/team/app/manifests/" + d.String() + "?ns=evil.example",
		"/v2/f/evil.example/team/app/manifests/" + d.String(),
		"/v2/team/app/manifests/" + d.String() + "?ns=unknown.example", "/v2/team/app/manifests/" + d.String()} {
		for _, method := range []string{"GET", "HEAD"} {
			if a := w.do(method, at, nil); a.status != 404 {
				t.Errorf("%s %s: %d", method, at, a.status)
			}
		}
	}
	// A tag that names the digest is not enough: the manifest itself has to be given as well.
	evil.mu.Lock()
	evil.manifests["team/fake/manifests/v"] = body
	evil.mu.Unlock()
	w.do("GET", "/v2/team/fake/manifests/v?ns=evil.example", nil).is(404)
	w.do("HEAD", "/v2/team/fake/manifests/v?ns=evil.example", nil).is(404)
	// And another one under the same digest is not taken.
	evil.mu.Lock()
	evil.manifests["team/fake/manifests/"+d.String()] = []byte(strings.Replace(string(body), `"size"`, ` "size"`, 1))
	evil.mu.Unlock()
	w.do("GET", "/v2/team/wrong/manifests/"+d.String()+"?ns=evil.example", nil).is(404)
	w.do("GET", "/v2/team/app/manifests/v?ns=quay.io", nil).is(200).equals(string(body))
}

// TestWrongBytesOfAnotherUpstream reach no client, neither while they arrive nor afterwards.
func TestWrongBytesOfAnotherUpstream(t *testing.T) {
	w, good, evil := newCaches(t)
	content := bytes.Repeat([]byte("right"), 100_000)
	wrong := bytes.Repeat([]byte("wrong"), 100_000)
	d := good.blob("team/app", content)
	evil.mu.Lock()
	evil.blobs["team/app/blobs/"+d.String()] = wrong
	evil.mu.Unlock()
	if resp, err := http.Get(w.url + "/v2/f/evil.example/team/app/blobs/" + d.String()); err == nil {
		all, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode == 200 && err == nil {
			t.Errorf("%d wrong bytes are complete", len(all))
		}
	}
	w.do("GET", "/v2/f/quay.io/team/app/blobs/"+d.String(), nil).is(200).equals(string(content))
	// What is held is linked once evil.example has answered with the same size, and its own bytes are not read.
	w.do("GET", "/v2/f/evil.example/team/app/blobs/"+d.String(), nil).is(200).equals(string(content))
}

// TestBytesAreLinkedForTheirSizeAlone: an upstream that has answered with another size, or with none, gets nothing that
// it does not have, and is not told the size.
func TestBytesAreLinkedForTheirSizeAlone(t *testing.T) {
	for name, wrong := range map[string]string{"shorter": "wrong", "longer": "wrong, and longer than it is"} {
		for _, unsized := range []bool{false, true} {
			w, good, evil := newCaches(t)
			d := good.blob("team/app", []byte("right, private")).String()
			evil.mu.Lock()
			evil.blobs["team/app/blobs/"+d], evil.unsized = []byte(wrong), unsized
			evil.mu.Unlock()
			get := func(when string) {
				t.Helper()
				resp, err := http.Get(w.url + "/v2/f/evil.example/team/app/blobs/" + d)
				if err != nil {
					return
				}
				defer resp.Body.Close()
				all, err := io.ReadAll(resp.Body)
				if resp.StatusCode == 200 && err == nil || bytes.Contains(all, []byte("right")) ||
					bytes.Contains(all, []byte("14")) {
					t.Errorf("%s, without a size: %t: %s: %d %s", name, unsized, when, resp.StatusCode, all)
				}
			}
			get("before it is held")
			w.do("GET", "/v2/f/quay.io/team/app/blobs/"+d, nil).is(200).equals("right, private")
			for range 2 {
				get("once it is held")
			}
		}
	}
}

// TestAnUpstreamThatDoesNotSayTheSize gives what it has, also where others hold it, or are fetching it.
func TestAnUpstreamThatDoesNotSayTheSize(t *testing.T) {
	w, good, other := newCaches(t)
	content := bytes.Repeat([]byte("right"), 100_000)
	d := good.blob("team/app", content).String()
	other.blob("team/app", content)
	for _, o := range []*origin{good, other} {
		o.mu.Lock()
		o.unsized = true
		o.mu.Unlock()
	}
	w.do("GET", "/v2/f/quay.io/team/app/blobs/"+d, nil).is(200).equals(string(content))
	w.do("GET", "/v2/f/evil.example/team/app/blobs/"+d, nil).is(200).equals(string(content))
	if got := other.requests(); got != "GET /v2/team/app/blobs/"+d {
		t.Errorf("it was asked for\n%s", got)
	}
	w.do("HEAD", "/v2/f/evil.example/team/app/blobs/"+d, nil).is(200)

	// On its way for one of them: the other one gets it only if its upstream has it.
	d = good.blob("team/app", append(content, '!')).String()
	other.mu.Lock()
	other.blobs["team/app/blobs/"+d] = []byte("wrong")
	other.mu.Unlock()
	rest := make(chan struct{})
	good.mu.Lock()
	good.rest = rest
	good.mu.Unlock()
	done := make(chan *answer)
	go func() { done <- w.do("GET", "/v2/f/quay.io/team/app/blobs/"+d, nil) }()
	for !strings.Contains(good.requests(), "GET /v2/team/app/blobs/"+d) {
		time.Sleep(time.Millisecond)
	}
	late := make(chan int)
	go func() {
		resp, err := http.Get(w.url + "/v2/f/evil.example/team/app/blobs/" + d)
		if err != nil {
			late <- 0
			return
		}
		resp.Body.Close()
		late <- resp.StatusCode
	}()
	close(rest)
	(<-done).is(200).equals(string(content) + "!")
	if status := <-late; status == 200 {
		t.Error("it is given what its upstream does not have")
	}
}

// TestForeignLayersAreNotFetched: only the upstream itself is asked for a layer, whatever its urls are.
func TestForeignLayersAreNotFetched(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("it was asked")
	}))
	defer elsewhere.Close()
	w, o := newCache(t, "")
	layer := digest.FromString("far")
	body := []byte(`{"schemaVersion":2,"mediaType":"` + typeManifest + `","config":{"mediaType":"x/y","digest":"` +
		digest.FromString("{}").String() + `","size":2},"layers":[{"mediaType":` +
		`"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"` + layer.String() + `","size":3,` +
		`"urls":["` + elsewhere.URL + `/layer"]}]}`)
	o.mu.Lock()
	o.manifests["team/app/manifests/v"], o.manifests["team/app/manifests/"+digest.FromBytes(body).String()] = body, body
	o.mu.Unlock()
	w.do("GET", "/v2/team/app/manifests/v?ns=quay.io", nil).is(200).equals(string(body))
	w.do("GET", "/v2/team/app/blobs/"+layer.String()+"?ns=quay.io", nil).code(404, "BLOB_UNKNOWN")
	w.do("HEAD", "/v2/team/app/blobs/"+layer.String()+"?ns=quay.io", nil).is(404)
}

// TestMoreBytesThanTheManifestSays are not read from an upstream: it could fill the cache, and evict all else, with a
// content that is wrong in the end.
func TestMoreBytesThanTheManifestSays(t *testing.T) {
	for name, reserve := range map[string]func(int64) (func(), bool){
		"stored": nil, "not stored": func(int64) (func(), bool) { return nil, false },
	} {
		for _, sized := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, size %t", name, sized), func(t *testing.T) {
				w, o := newCacheWith(t, "", reserve)
				const most = 64 << 20
				var sent atomic.Int64
				o.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
					if !strings.Contains(req.URL.Path, "/blobs/") {
						o.ServeHTTP(rw, req)
						return
					}
					if sized {
						rw.Header().Set("Content-Length", strconv.Itoa(most))
					}
					piece := make([]byte, 64<<10)
					for sent.Load() < most {
						n, err := rw.Write(piece)
						if sent.Add(int64(n)); err != nil {
							return
						}
					}
				})
				o.push("team/app", "v", "1")
				w.do("GET", "/v2/team/app/manifests/v?ns=quay.io", nil).is(200)
				at := w.url + "/v2/team/app/blobs/" + digest.FromString("layer 1").String() + "?ns=quay.io"
				if resp, err := http.Get(at); err == nil {
					body, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if resp.StatusCode == 200 && err == nil {
						t.Errorf("%d bytes are complete", len(body))
					}
				}
				if n := sent.Load(); n >= most/2 { // the buffers of the connection take some
					t.Errorf("the upstream has sent %d bytes of a layer of 7", n)
				}
			})
		}
	}
}
