package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// need is what a scenario reads, as a set.
type need int

const (
	needBlobs need = 1 << iota // the large and the small blob
	needImages
	needTags // all of them, not one for each image alone
	needReferrers
	needRepos
)

// operation does one, and returns how many bytes of content went over the wire, in either direction. With check
// the answers are compared with the content. Errors: what went wrong; errExhausted.
type operation func(check bool) (int64, error)

// errExhausted tells that there is nothing left to do, as with what was made to be deleted.
var errExhausted = errors.New("nothing is left")

// scenario is one kind of operation.
type scenario struct {
	name, about string
	needs       need
	// prepare makes what the phase uses up; nil: nothing. It is told for how many connections. So that the timed part
	// has the most of it, the warm-up is one operation each then.
	prepare func(ctx context.Context, r *runner, connections int) error
	// start makes the operation of one connection.
	start func(r *runner, w *worker) (operation, error)
}

// probing is a number of connections that means: one operation will do.
const probing = 0

// worker is one connection of a phase.
type worker struct {
	*caller
	rng *rand.Rand
}

func (r *runner) newWorker(ctx context.Context, n int) (*worker, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w := &worker{caller: r.target.connect(ctx), rng: rand.New(rand.NewPCG(r.options.Seed, uint64(n)))}
	w.conn.setDeadline(time.Now().Add(overtime))
	return w, nil
}

// scenarios are all there are, in the order in which they run: what only reads comes first.
var scenarios = []scenario{
	{"blob-get-64MiB", "pull of one blob of 64 MiB", needBlobs, nil,
		func(r *runner, w *worker) (operation, error) { return getBlob(r, w, r.content.large), nil }},
	{"blob-get-4KiB", "pull of one blob of 4 KiB", needBlobs, nil,
		func(r *runner, w *worker) (operation, error) { return getBlob(r, w, r.content.small), nil }},
	{"manifest-get-tag", "pull of a manifest by a tag, any of them", needImages | needTags, nil,
		func(r *runner, w *worker) (operation, error) { return readTags(r, w, "GET"), nil }},
	{"manifest-head-tag", "HEAD of a manifest by a tag, any of them, as a pull begins", needImages | needTags, nil,
		func(r *runner, w *worker) (operation, error) { return readTags(r, w, "HEAD"), nil }},
	{"manifest-get-digest", "pull of a manifest by its digest, any of 100", needImages, nil, getByDigest},
	{"blob-head-missing", "HEAD of a blob that is not there, as a push begins", needImages, nil, headMissing},
	{"tags-list", "a page of 100 tags of the large repository, behind any tag", needImages | needTags, nil, listTags},
	{"catalog", "a page of 100 repositories, behind any of them", needRepos, nil, listRepos},
	{"referrers", "the 100 referrers of a manifest", needImages | needReferrers, nil, listReferrers},
	{"admission", "a verdict on a pod with three images: POST /validate", needImages | needTags, nil, validate},
	{"blob-push-64MiB", "push of a new blob of 64 MiB: POST, PUT", 0, nil,
		func(r *runner, w *worker) (operation, error) { return pushLarge(r, w, 0), nil }},
	{"blob-push-chunked", "push of a new blob of 64 MiB in PATCHes of 8 MiB", 0, nil,
		func(r *runner, w *worker) (operation, error) { return pushLarge(r, w, r.options.large/8), nil }},
	{"image-push-small", "push of a new image: configuration, 3 layers of 4 to 60 KiB, manifest by a tag; HEADs first", 0, nil, pushImages},
	{"mount", "mount of a blob of 4 KiB into a new repository", needBlobs, nil, mount},
	{"manifest-delete", "delete of a manifest by its digest, of as many as could be pushed before", 0, prepareDeletes, deleteManifests},
}

// acceptField is what a container runtime sends.
var acceptField = field{"Accept", strings.Join([]string{v1.MediaTypeImageManifest, v1.MediaTypeImageIndex,
	"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json", "*/*"}, ", ")}

// ---- Reading

// read asks for content: it must have the size, and with check be the content.
func (w *worker) read(q *request, p piece, check bool) (int64, error) {
	if check && q.method == "GET" {
		w.sum = sha256.New()
	}
	sum := w.sum
	resp, err := w.want(q, 200)
	switch {
	case err != nil:
		return 0, err
	case resp.length != int64(len(p.bytes)):
		return 0, fmt.Errorf("%s %s: %d bytes instead of %d", q.method, q.path, resp.length, len(p.bytes))
	case check && len(resp.digest) > 0 && string(resp.digest) != p.digest:
		return 0, fmt.Errorf("%s %s: Docker-Content-Digest is %.80s instead of %s", q.method, q.path, resp.digest, p.digest)
	case sum != nil && "sha256:"+fmt.Sprintf("%x", sum.Sum(nil)) != p.digest:
		return 0, fmt.Errorf("%s %s: the content is not that of %s", q.method, q.path, p.digest)
	case q.method == "HEAD":
		return 0, nil
	}
	return resp.length, nil
}

func getBlob(r *runner, w *worker, p piece) operation {
	q := r.request("GET", "/blobs/"+p.digest)
	q.stream = len(p.bytes) > smallBlob
	return func(check bool) (int64, error) { return w.read(q, p, check) }
}

// request is one of the main repository.
func (r *runner) request(method, rest string, fields ...field) *request {
	return &request{method: method, path: "/v2/" + r.content.repo + rest, repo: r.content.repo, fields: fields}
}

func readTags(r *runner, w *worker, method string) operation {
	q := r.request(method, "", acceptField)
	base := q.path + "/manifests/"
	return func(check bool) (int64, error) {
		i := w.rng.IntN(r.content.scale.Tags)
		q.path = base + r.content.tags[i]
		return w.read(q, r.content.tagged(i), check)
	}
}

func getByDigest(r *runner, w *worker) (operation, error) {
	q := r.request("GET", "", acceptField)
	base := q.path + "/manifests/"
	return func(check bool) (int64, error) {
		p := r.content.images[w.rng.IntN(len(r.content.images))]
		q.path = base + p.digest
		return w.read(q, p, check)
	}, nil
}

func headMissing(r *runner, w *worker) (operation, error) {
	q := r.request("HEAD", "")
	base := q.path + "/blobs/sha256:"
	return func(bool) (int64, error) {
		tail := newTail()
		q.path = base + string(tail[:]) + string(tail[:])
		_, err := w.want(q, 404)
		return 0, err
	}, nil
}

// list asks for a list, and with check gives it to a function that finds fault with it.
func (w *worker) list(q *request, check bool, look func(body []byte) error) (int64, error) {
	resp, err := w.want(q, 200)
	if err != nil {
		return 0, err
	}
	if check {
		if err := look(resp.body); err != nil {
			return 0, fmt.Errorf("%s: %w", q.path, err)
		}
	}
	return resp.length, nil
}

const pageSize = 100

// behind chooses where a page starts: any, as long as a full page follows, if there is such a one.
func (w *worker) behind(n int) int { return w.rng.IntN(max(1, n-pageSize)) }

func listTags(r *runner, w *worker) (operation, error) {
	q := r.request("GET", "")
	base := q.path + "/tags/list?n=" + strconv.Itoa(pageSize) + "&last="
	return func(check bool) (int64, error) {
		i := w.behind(r.content.scale.Tags)
		q.path = base + r.content.tags[i]
		return w.list(q, check, func(body []byte) error {
			var page struct{ Tags []string }
			return pageFault(json.Unmarshal(body, &page), page.Tags, r.content.tags[min(i+1, len(r.content.tags)-1)], r.content.scale.Tags-i-1)
		})
	}, nil
}

func listRepos(r *runner, w *worker) (operation, error) {
	q := &request{method: "GET"}
	return func(check bool) (int64, error) {
		i := w.behind(r.content.scale.Repos)
		q.path = "/v2/_catalog?n=" + strconv.Itoa(pageSize) + "&last=" + r.content.repoName(i)
		return w.list(q, check, func(body []byte) error {
			var page struct{ Repositories []string }
			return pageFault(json.Unmarshal(body, &page), page.Repositories, r.content.repoName(i+1), r.content.scale.Repos-i-1)
		})
	}, nil
}

// pageFault finds what is wrong with a page of which want entries are known, up to the page's size.
func pageFault(err error, page []string, first string, want int) error {
	switch {
	case err != nil:
		return fmt.Errorf("it is no list: %w", err)
	case len(page) < min(want, pageSize) || len(page) > pageSize:
		return fmt.Errorf("%d entries instead of %d", len(page), min(want, pageSize))
	case want > 0 && page[0] != first:
		return fmt.Errorf("the page begins with %.80q instead of %q", page[0], first)
	}
	return nil
}

func listReferrers(r *runner, w *worker) (operation, error) {
	q := r.request("GET", "/referrers/"+r.content.images[0].digest)
	return func(check bool) (int64, error) {
		return w.list(q, check, func(body []byte) error {
			var index v1.Index
			if err := json.Unmarshal(body, &index); err != nil {
				return fmt.Errorf("it is no index: %w", err)
			}
			if n := len(index.Manifests); n < len(r.content.referrers) {
				return fmt.Errorf("%d referrers instead of %d", n, len(r.content.referrers))
			}
			return nil
		})
	}, nil
}

func validate(r *runner, w *worker) (operation, error) {
	review, err := r.content.review(r.target.url)
	if err != nil {
		return nil, err
	}
	q := &request{method: "POST", path: "/validate?timeout=5s", fields: []field{{"Content-Type", "application/json"}, {"Accept", "application/json"}}}
	q.body[0] = review
	return func(check bool) (int64, error) {
		resp, err := w.want(q, 200)
		if err != nil {
			return 0, err
		}
		if check {
			err = verdictFault(resp.body)
		}
		return int64(len(review)) + resp.length, err
	}, nil
}

// verdictFault finds what is wrong with a verdict. That it is a denial is not: the server may know its images by
// another name than the one it is called by here.
func verdictFault(body []byte) error {
	var review struct {
		Response *struct {
			UID     string
			Allowed bool
		}
	}
	if err := json.Unmarshal(body, &review); err != nil || review.Response == nil || review.Response.UID != reviewUID {
		return errors.New("/validate: the answer is no AdmissionReview with the request's uid")
	}
	return nil
}

// ---- Writing

// session starts an upload and returns where it goes on.
func (w *worker) session(repo string) (string, error) {
	resp, err := w.want(&request{method: "POST", path: "/v2/" + repo + "/blobs/uploads/", repo: repo}, 202)
	if err != nil {
		return "", err
	}
	return w.location(resp)
}

// location is where an answer leads, on this server.
func (c *caller) location(resp *response) (string, error) {
	at := string(resp.location)
	for _, scheme := range []string{"http://", "https://"} {
		if rest, ok := strings.CutPrefix(at, scheme); ok {
			host, path, _ := strings.Cut(rest, "/")
			if host != c.target.host || !strings.HasPrefix(c.target.url, scheme) {
				return "", fmt.Errorf("the server sends uploads to %.80s, and that is not measured; give the address that it knows itself by", scheme+host)
			}
			return "/" + path, nil
		}
	}
	if !strings.HasPrefix(at, "/") {
		return "", fmt.Errorf("the server sends uploads to %.80q, which is no address", at)
	}
	return at, nil
}

// withDigest ends an upload's address.
func withDigest(at, digest string) string {
	sep := "?"
	if strings.Contains(at, "?") {
		sep = "&"
	}
	return at + sep + "digest=" + digest
}

var octets = []field{{"Content-Type", "application/octet-stream"}}

// push sends a blob in one piece.
func (w *worker) push(repo, digest string, body [2][]byte) error {
	at, err := w.session(repo)
	if err != nil {
		return err
	}
	_, err = w.want(&request{method: "PUT", path: withDigest(at, digest), repo: repo, fields: octets, body: body}, 201)
	return err
}

// pushLarge pushes new large blobs, in pieces of a size or, with 0, in one.
func pushLarge(r *runner, w *worker, chunk int) operation {
	repo := r.content.repo + "/upload"
	return func(bool) (int64, error) {
		f, err := r.moulds.large.cast()
		if err != nil {
			return 0, err
		}
		size := int64(r.moulds.large.size())
		if chunk == 0 {
			return size, w.push(repo, f.digest, [2][]byte{f.base, f.tail})
		}
		return size, w.pushChunks(repo, f, chunk)
	}
}

func (w *worker) pushChunks(repo string, f fresh, chunk int) error {
	at, err := w.session(repo)
	if err != nil {
		return err
	}
	for start := 0; start < len(f.base); start += chunk {
		part := [2][]byte{f.base[start:min(start+chunk, len(f.base))]}
		size := len(part[0])
		if start+chunk >= len(f.base) {
			part[1] = f.tail
			size += len(f.tail)
		}
		resp, err := w.want(&request{method: "PATCH", path: at, repo: repo, body: part, fields: []field{octets[0],
			{"Content-Range", fmt.Sprintf("%d-%d", start, start+size-1)}}}, 202)
		if err != nil {
			return err
		}
		if at, err = w.location(resp); err != nil {
			return err
		}
	}
	_, err = w.want(&request{method: "PUT", path: withDigest(at, f.digest), repo: repo}, 201)
	return err
}

// pushImages pushes new images, each under a tag of its own.
func pushImages(r *runner, w *worker) (operation, error) {
	repo := r.content.repo + "/push"
	return func(bool) (int64, error) {
		image, err := w.newImage(r, repo, true)
		if err != nil {
			return 0, err
		}
		tag := newTail()
		return image.size + int64(len(image.bytes)), w.putManifest(repo, string(tag[:]), v1.MediaTypeImageManifest, image.bytes)
	}, nil
}

func (w *worker) putManifest(repo, ref, mediaType string, body []byte) error {
	_, err := w.want(&request{method: "PUT", path: "/v2/" + repo + "/manifests/" + ref, repo: repo,
		fields: []field{{"Content-Type", mediaType}}, body: [2][]byte{body}}, 201)
	return err
}

// newImage is a manifest whose blobs were pushed, and their size.
type newImage struct {
	bytes []byte
	size  int64
}

// newImage pushes the blobs of a new image, asking for each first as clients do.
func (w *worker) newImage(r *runner, repo string, ask bool) (newImage, error) {
	var image newImage
	image.bytes = append(image.bytes, `{"schemaVersion":2,"mediaType":"`+v1.MediaTypeImageManifest+`","config":`...)
	parts := [4]*mould{&r.moulds.config, &r.moulds.layers[0], &r.moulds.layers[1], &r.moulds.layers[2]}
	for i, m := range parts {
		f, err := m.cast()
		if err != nil {
			return image, err
		}
		if ask {
			if _, err := w.want(&request{method: "HEAD", path: "/v2/" + repo + "/blobs/" + f.digest, repo: repo}, 404); err != nil {
				return image, err
			}
		}
		if err := w.push(repo, f.digest, [2][]byte{f.base, f.tail}); err != nil {
			return image, err
		}
		mediaType := v1.MediaTypeImageLayer
		if i == 0 {
			mediaType = v1.MediaTypeImageConfig
		}
		image.size += int64(m.size())
		image.bytes = fmt.Appendf(image.bytes, `%s{"mediaType":"%s","digest":"%s","size":%d}`,
			[]string{"", `,"layers":[`, ",", ","}[i], mediaType, f.digest, m.size())
	}
	image.bytes = append(image.bytes, "]}"...)
	return image, nil
}

// mount mounts the small blob into repositories that are not there yet.
func mount(r *runner, w *worker) (operation, error) {
	return func(bool) (int64, error) {
		tail := newTail()
		repo := r.content.repo + "/m" + string(tail[:])
		_, err := w.want(&request{method: "POST", repo: repo, path: "/v2/" + repo + "/blobs/uploads/?mount=" + r.content.small.digest +
			"&from=" + r.content.repo}, 201)
		return 0, err
	}, nil
}

// ---- Deleting

// doomed are the digests that a phase may delete, and how many it has taken.
type doomed struct {
	mu      sync.Mutex
	digests []string
	taken   atomic.Int64
}

const (
	// maxDoomed bounds what is made to be deleted: that is the work of a minute for most servers.
	maxDoomed = 50_000
	// leastDoomed is what each connection makes: one for the warm-up, and some.
	leastDoomed = 4
)

// prepareDeletes pushes manifests, for as long as the phase will take, on as many connections.
func prepareDeletes(ctx context.Context, r *runner, connections int) error {
	d := &doomed{}
	r.doomed = d
	until := time.Now().Add(r.options.Duration)
	if connections == probing {
		connections, until = 1, time.Now()
	}
	return r.parallel(ctx, connections, func(w *worker) error {
		image, err := w.newImage(r, r.content.repo+"/delete", false)
		if err != nil {
			return err
		}
		for i := 0; i < leastDoomed || time.Now().Before(until); i++ {
			digest, err := w.pushDoomed(r, image.bytes)
			if err != nil {
				return err
			}
			d.mu.Lock()
			d.digests = append(d.digests, digest)
			full := len(d.digests) >= maxDoomed
			d.mu.Unlock()
			if full {
				break
			}
		}
		return nil
	})
}

// pushDoomed pushes a manifest that differs from others by an annotation alone.
func (w *worker) pushDoomed(r *runner, image []byte) (string, error) {
	tail := newTail()
	body := bytes.TrimSuffix(slices.Clone(image), []byte("}"))
	p := newPiece(v1.MediaTypeImageManifest, append(body, `,"annotations":{"bench":"`+string(tail[:])+`"}}`...))
	return p.digest, w.putManifest(r.content.repo+"/delete", p.digest, p.mediaType, p.bytes)
}

func deleteManifests(r *runner, w *worker) (operation, error) {
	repo := r.content.repo + "/delete"
	return func(bool) (int64, error) {
		i := r.doomed.taken.Add(1) - 1
		if i >= int64(len(r.doomed.digests)) {
			return 0, errExhausted
		}
		_, err := w.want(&request{method: "DELETE", path: "/v2/" + repo + "/manifests/" + r.doomed.digests[i], repo: repo}, 202)
		return 0, err
	}, nil
}
