package bench

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The scenarios that push, mount and delete.

// startUpload starts an upload and returns the path at which it continues.
func (w *worker) startUpload(repo string) (string, error) {
	resp, err := w.want(&request{method: "POST", path: "/v2/" + repo + "/blobs/uploads/", repo: repo}, 202)
	if err != nil {
		return "", err
	}
	return w.location(resp)
}

// location returns the path of an answer's Location. Errors: that it leads to another server.
func (c *caller) location(resp *response) (string, error) {
	at := string(resp.location)
	for _, scheme := range []string{"http://", "https://"} {
		rest, absolute := strings.CutPrefix(at, scheme)
		if !absolute {
			continue
		}
		host, path, _ := strings.Cut(rest, "/")
		if host != c.target.host || !strings.HasPrefix(c.target.url, scheme) {
			return "", fmt.Errorf("the server redirects uploads to %.80s, which is not measured; "+
				"use the address that the server has for itself", scheme+host)
		}
		return "/" + path, nil
	}
	if !strings.HasPrefix(at, "/") {
		return "", fmt.Errorf("the server redirects uploads to %.80q, which is not a valid address", at)
	}
	return at, nil
}

// withDigest adds the digest to the path of an upload.
func withDigest(at, digest string) string {
	sep := "?"
	if strings.Contains(at, "?") {
		sep = "&"
	}
	return at + sep + "digest=" + digest
}

var octets = []field{{"Content-Type", "application/octet-stream"}}

// finish sends the last request of an upload, with the rest of the content or all of it.
func (w *worker) finish(repo, at, digest string, body [2][]byte) error {
	q := &request{method: "PUT", path: withDigest(at, digest), repo: repo, body: body}
	if q.size() > 0 {
		q.fields = octets
	}
	_, err := w.want(q, 201)
	return err
}

// push sends a blob in one request after the POST.
func (w *worker) push(repo, digest string, body [2][]byte) error {
	at, err := w.startUpload(repo)
	if err != nil {
		return err
	}
	return w.finish(repo, at, digest, body)
}

// pushLarge pushes new large blobs in chunks of a size, or in one piece if chunk is 0.
func pushLarge(r *runner, w *worker, chunk int) operation {
	repo := r.content.repo + "/upload"
	return func(bool) (int64, error) {
		b, err := r.templates.large.make()
		if err != nil {
			return 0, err
		}
		size := int64(r.templates.large.size())
		if chunk == 0 {
			return size, w.push(repo, b.digest, [2][]byte{b.base, b.tail})
		}
		return size, w.pushChunks(repo, b, chunk)
	}
}

func (w *worker) pushChunks(repo string, b newBlob, chunk int) error {
	at, err := w.startUpload(repo)
	if err != nil {
		return err
	}
	for start := 0; start < len(b.base); start += chunk {
		part := [2][]byte{b.base[start:min(start+chunk, len(b.base))]}
		size := len(part[0])
		if start+chunk >= len(b.base) {
			part[1] = b.tail
			size += len(b.tail)
		}
		contentRange := field{"Content-Range", fmt.Sprintf("%d-%d", start, start+size-1)}
		resp, err := w.want(&request{method: "PATCH", path: at, repo: repo, body: part,
			fields: []field{octets[0], contentRange}}, 202)
		if err != nil {
			return err
		}
		if at, err = w.location(resp); err != nil {
			return err
		}
	}
	return w.finish(repo, at, b.digest, [2][]byte{})
}

// pushImages pushes new images, each by a tag of its own.
func pushImages(r *runner, w *worker) (operation, error) {
	repo := r.content.repo + "/push"
	return func(bool) (int64, error) {
		image, err := w.newImage(r, repo, true)
		if err != nil {
			return 0, err
		}
		tag := newTail()
		size := image.size + int64(len(image.bytes))
		return size, w.putManifest(repo, string(tag[:]), v1.MediaTypeImageManifest, image.bytes)
	}, nil
}

func (w *worker) putManifest(repo, ref, mediaType string, body []byte) error {
	_, err := w.want(&request{method: "PUT", path: "/v2/" + repo + "/manifests/" + ref, repo: repo,
		fields: []field{{"Content-Type", mediaType}}, body: [2][]byte{body}}, 201)
	return err
}

// newImage is a manifest whose blobs were pushed.
type newImage struct {
	bytes []byte
	size  int64 // of the blobs
}

// newImage pushes the blobs of a new image. If ask is set, it sends a HEAD for each blob first, as clients do.
func (w *worker) newImage(r *runner, repo string, ask bool) (newImage, error) {
	var image newImage
	image.bytes = append(image.bytes, `{"schemaVersion":2,"mediaType":"`+v1.MediaTypeImageManifest+`","config":`...)
	t := &r.templates
	for i, blob := range [4]*template{&t.config, &t.layers[0], &t.layers[1], &t.layers[2]} {
		b, err := blob.make()
		if err != nil {
			return image, err
		}
		if ask {
			head := &request{method: "HEAD", path: "/v2/" + repo + "/blobs/" + b.digest, repo: repo}
			if _, err := w.want(head, 404); err != nil {
				return image, err
			}
		}
		if err := w.push(repo, b.digest, [2][]byte{b.base, b.tail}); err != nil {
			return image, err
		}
		mediaType := v1.MediaTypeImageLayer
		if i == 0 {
			mediaType = v1.MediaTypeImageConfig
		}
		image.size += int64(blob.size())
		image.bytes = fmt.Appendf(image.bytes, `%s{"mediaType":"%s","digest":"%s","size":%d}`,
			[]string{"", `,"layers":[`, ",", ","}[i], mediaType, b.digest, blob.size())
	}
	image.bytes = append(image.bytes, "]}"...)
	return image, nil
}

// mount mounts the small blob into new repositories.
func mount(r *runner, w *worker) (operation, error) {
	return func(bool) (int64, error) {
		tail := newTail()
		repo := r.content.repo + "/m" + string(tail[:])
		_, err := w.want(mountRequest(repo, r.content.small.digest, r.content.repo), 201)
		return 0, err
	}, nil
}

// mountRequest returns the request that mounts a blob of repository from.
func mountRequest(repo, digest, from string) *request {
	return &request{method: "POST", repo: repo,
		path: "/v2/" + repo + "/blobs/uploads/?mount=" + digest + "&from=" + from}
}

// toDelete has the digests that a phase may delete, and counts those that are taken.
type toDelete struct {
	mu      sync.Mutex // guards digests while they are pushed
	digests []string
	taken   atomic.Int64
}

const (
	// maxToDelete bounds the preparation; most servers need more than a minute to delete that many.
	maxToDelete = 50_000
	// minToDelete is what each connection prepares at least: one for the warm-up, and some for the timed part.
	minToDelete = 4
)

// prepareDeletes pushes manifests, on as many connections and for as long as the phase will last.
func prepareDeletes(ctx context.Context, r *runner, connections int) error {
	d := &toDelete{}
	r.toDelete = d
	end := time.Now().Add(r.options.Duration)
	if connections == probing {
		connections, end = 1, time.Now()
	}
	return r.parallel(ctx, connections, func(w *worker) error {
		image, err := w.newImage(r, r.content.repo+"/delete", false)
		if err != nil {
			return err
		}
		for i := 0; i < minToDelete || time.Now().Before(end); i++ {
			digest, err := w.pushToDelete(r, image.bytes)
			if err != nil {
				return err
			}
			d.mu.Lock()
			d.digests = append(d.digests, digest)
			full := len(d.digests) >= maxToDelete
			d.mu.Unlock()
			if full {
				break
			}
		}
		return nil
	})
}

// pushToDelete pushes a manifest that differs from the others only by an annotation, and returns its digest.
func (w *worker) pushToDelete(r *runner, image []byte) (string, error) {
	tail := newTail()
	body := bytes.TrimSuffix(slices.Clone(image), []byte("}"))
	p := newPiece(v1.MediaTypeImageManifest, append(body, `,"annotations":{"bench":"`+string(tail[:])+`"}}`...))
	return p.digest, w.putManifest(r.content.repo+"/delete", p.digest, p.mediaType, p.bytes)
}

func deleteManifests(r *runner, w *worker) (operation, error) {
	repo := r.content.repo + "/delete"
	return func(bool) (int64, error) {
		i := r.toDelete.taken.Add(1) - 1
		if i >= int64(len(r.toDelete.digests)) {
			return 0, errExhausted
		}
		return 0, w.deleteManifest(repo, r.toDelete.digests[i])
	}, nil
}

func (w *worker) deleteManifest(repo, digest string) error {
	_, err := w.want(&request{method: "DELETE", path: "/v2/" + repo + "/manifests/" + digest, repo: repo}, 202)
	return err
}
