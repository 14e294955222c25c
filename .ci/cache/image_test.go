package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// The types of manifests, and what belongs to them.
const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	accepted       = ociManifest + ", " + ociIndex + ", " + dockerManifest + ", " + dockerList + ", */*"
)

// descriptor names a content in a manifest.
type descriptor struct {
	MediaType string            `json:"mediaType"`
	Digest    string            `json:"digest"`
	Size      int64             `json:"size"`
	Platform  map[string]string `json:"platform,omitempty"`
}

func describe(mediaType string, content []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: sha(content), Size: int64(len(content))}
}

func sha(content []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(content)) }

// image is an image, or an index without its children.
type image struct {
	mediaType string
	manifest  []byte
	blobs     [][]byte // the config is the first one
	largest   descriptor
	size      int64 // of all
}

func (i *image) digest() string { return sha(i.manifest) }

// random returns bytes that no compression makes smaller, the same ones for each seed.
func random(seed uint64, size int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// newImage makes an image of layers of these sizes; images with the same seed are the same.
func newImage(seed uint64, sizes ...int) *image { return newImageOf(ociManifest, seed, sizes...) }

func newImageOf(mediaType string, seed uint64, sizes ...int) *image {
	config, layer := "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar"
	if mediaType == dockerManifest {
		config = "application/vnd.docker.container.image.v1+json"
		layer = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	}
	i := &image{mediaType: mediaType}
	i.blobs = [][]byte{fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers",`+
		`"diff_ids":[]},"config":{"Labels":{"seed":"%d"}}}`, seed)}
	m := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{2, mediaType, describe(config, i.blobs[0]), nil}
	for n, size := range sizes {
		content := random(seed<<16+uint64(n), size)
		d := describe(layer, content)
		m.Layers = append(m.Layers, d)
		i.blobs = append(i.blobs, content)
		if d.Size > i.largest.Size {
			i.largest = d
		}
	}
	// Indented in a way that no registry uses: who writes a manifest anew changes it.
	i.manifest, _ = json.MarshalIndent(m, " ", "   ")
	i.size = int64(len(i.manifest))
	for _, b := range i.blobs {
		i.size += int64(len(b))
	}
	return i
}

// client sends requests as clients of a registry do.
type client struct {
	*http.Client
	t    testing.TB
	url  string // of the registry
	user string // empty: no login
	pass string
	ns   string // not empty: sent as ?ns=

	moved func() // not nil: called when bytes of a blob have arrived
}

func newClient(t testing.TB, url string) *client {
	transport := &http.Transport{MaxIdleConnsPerHost: 512, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &client{Client: &http.Client{Transport: transport}, t: t, url: url}
}

// do sends a request; the caller closes the body of the answer.
func (c *client) do(ctx context.Context, method, path string, body []byte, header ...string) (*http.Response, error) {
	at := path
	if !strings.HasPrefix(at, "http") {
		at = c.url + "/v2/" + path
	}
	req, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if c.user != "" {
		req.SetBasicAuth(c.user, c.pass)
	}
	if c.ns != "" {
		q := req.URL.Query()
		q.Set("ns", c.ns)
		req.URL.RawQuery = q.Encode()
	}
	return c.Do(req)
}

// ask sends a request, and returns the answer with its body.
func (c *client) ask(method, path string, body []byte, header ...string) (*http.Response, []byte) {
	c.t.Helper()
	resp, err := c.do(c.t.Context(), method, path, body, header...)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, got
}

// want is ask, for one status.
func (c *client) want(status int, method, path string, body []byte, header ...string) (*http.Response, []byte) {
	c.t.Helper()
	resp, got := c.ask(method, path, body, header...)
	if resp.StatusCode != status {
		c.t.Fatalf("%s %s: %d, want %d: %.300s", method, path, resp.StatusCode, status, got)
	}
	return resp, got
}

// push pushes an image under tags; without any, by its digest.
func (c *client) push(repo string, i *image, tags ...string) {
	c.t.Helper()
	for _, blob := range i.blobs {
		resp, _ := c.want(http.StatusAccepted, http.MethodPost, repo+"/blobs/uploads/", nil)
		at, err := resp.Location()
		if err != nil {
			c.t.Fatal(err)
		}
		q := at.Query()
		q.Set("digest", sha(blob))
		at.RawQuery = q.Encode()
		c.want(http.StatusCreated, http.MethodPut, at.String(), blob, "Content-Type", "application/octet-stream")
	}
	if len(tags) == 0 {
		tags = []string{i.digest()}
	}
	for _, tag := range tags {
		c.want(http.StatusCreated, http.MethodPut, repo+"/manifests/"+url.PathEscape(tag), i.manifest,
			"Content-Type", i.mediaType)
	}
}

// pulled is what a pull was like.
type pulled struct {
	manifest []byte
	took     time.Duration
	first    time.Duration // until the first byte of the largest layer
	size     int64
	stale    bool // the answer to the tag was marked as stale
}

// hashing says whether a pull checks what it gets: that takes time on the client's side.
type hashing bool

// pull gets an image: the manifest, then the config and all layers at once. began is called with the digest of each
// blob when its first byte is here; it may be nil. Errors: an answer other than 200, other bytes than the digest says,
// a broken connection.
func (c *client) pull(ctx context.Context, repo, ref string, check hashing, began func(string)) (*pulled, error) {
	begin := time.Now()
	resp, err := c.do(ctx, http.MethodGet, repo+"/manifests/"+ref, nil, "Accept", accepted)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("manifest %s: %s, %v: %.300s", ref, resp.Status, err, body)
	}
	p := &pulled{manifest: body, size: int64(len(body)), stale: resp.Header.Get("Trow-Stale") != ""}
	var m struct {
		Config descriptor
		Layers []descriptor
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	var largest descriptor
	for _, d := range m.Layers {
		if d.Size > largest.Size {
			largest = d
		}
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	var errs []error
	for _, d := range append(m.Layers, m.Config) {
		all.Go(func() {
			err := c.blob(ctx, repo, d, check, func() {
				if began != nil {
					began(d.Digest)
				}
				if d.Digest == largest.Digest {
					mu.Lock()
					p.first = time.Since(begin)
					mu.Unlock()
				}
			})
			mu.Lock()
			defer mu.Unlock()
			p.size += d.Size
			if err != nil {
				errs = append(errs, fmt.Errorf("blob %s: %w", d.Digest, err))
			}
		})
	}
	all.Wait()
	p.took = time.Since(begin)
	return p, errors.Join(errs...)
}

// blob gets a blob.
func (c *client) blob(ctx context.Context, repo string, d descriptor, check hashing, began func()) error {
	resp, err := c.do(ctx, http.MethodGet, repo+"/blobs/"+d.Digest, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	var sum hash.Hash
	buf, size := make([]byte, 128<<10), int64(0)
	if check {
		sum = sha256.New()
	}
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 && size == 0 {
			began()
		}
		if n > 0 && c.moved != nil {
			c.moved()
		}
		size += int64(n)
		if sum != nil {
			sum.Write(buf[:n])
		}
		switch {
		case err == io.EOF && size != d.Size:
			return fmt.Errorf("%d bytes, want %d", size, d.Size)
		case err == io.EOF && sum != nil && fmt.Sprintf("sha256:%x", sum.Sum(nil)) != d.Digest:
			return errors.New("other bytes than the digest says")
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// pulls is pull without errors.
func (c *client) pulls(repo, ref string, check hashing) *pulled {
	c.t.Helper()
	p, err := c.pull(c.t.Context(), repo, ref, check, nil)
	if err != nil {
		c.t.Fatalf("%s of %s: %v", ref, repo, err)
	}
	return p
}
