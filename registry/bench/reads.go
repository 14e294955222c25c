package bench

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The scenarios that only read.

// read requests content and compares its size with p. If check is set, it compares the digest as well.
func (w *worker) read(q *request, p piece, check bool) (int64, error) {
	if check && q.method == "GET" {
		w.sum = sha256.New()
	}
	sum := w.sum // want clears it
	resp, err := w.want(q, 200)
	switch {
	case err != nil:
		return 0, err
	case resp.length != int64(len(p.bytes)):
		return 0, fmt.Errorf("%s %s: got %d bytes, want %d", q.method, q.path, resp.length, len(p.bytes))
	case check && len(resp.digest) > 0 && string(resp.digest) != p.digest:
		return 0, fmt.Errorf("%s %s: Docker-Content-Digest is %.80s, want %s", q.method, q.path, resp.digest, p.digest)
	case sum != nil && "sha256:"+fmt.Sprintf("%x", sum.Sum(nil)) != p.digest:
		return 0, fmt.Errorf("%s %s: the content does not match %s", q.method, q.path, p.digest)
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

// headMissing asks for a different digest each time, so that no cache of the server can know it.
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

// list requests a list. If check is set, examine validates the body.
func (w *worker) list(q *request, check bool, examine func(body []byte) error) (int64, error) {
	resp, err := w.want(q, 200)
	if err != nil {
		return 0, err
	}
	if check {
		if err := examine(resp.body); err != nil {
			return 0, fmt.Errorf("%s: %w", q.path, err)
		}
	}
	return resp.length, nil
}

const pageSize = 100

// pageStart returns a random entry of n after which a page starts. If there are enough entries, a full page follows.
func (w *worker) pageStart(n int) int { return w.rng.IntN(max(1, n-pageSize)) }

func listTags(r *runner, w *worker) (operation, error) {
	q := r.request("GET", "")
	base := q.path + "/tags/list?n=" + strconv.Itoa(pageSize) + "&last="
	tags := r.content.tags
	return func(check bool) (int64, error) {
		i := w.pageStart(len(tags))
		q.path = base + tags[i]
		return w.list(q, check, func(body []byte) error {
			var page struct{ Tags []string }
			return pageError(json.Unmarshal(body, &page), page.Tags, tags[min(i+1, len(tags)-1)], len(tags)-i-1)
		})
	}, nil
}

func listRepos(r *runner, w *worker) (operation, error) {
	q := &request{method: "GET"}
	n := r.content.scale.Repos
	return func(check bool) (int64, error) {
		i := w.pageStart(n)
		q.path = "/v2/_catalog?n=" + strconv.Itoa(pageSize) + "&last=" + r.content.repoName(i)
		return w.list(q, check, func(body []byte) error {
			var page struct{ Repositories []string }
			return pageError(json.Unmarshal(body, &page), page.Repositories, r.content.repoName(i+1), n-i-1)
		})
	}, nil
}

// pageError returns what is wrong with a page, or nil. want entries follow the page's start; the page shows at most
// pageSize of them, beginning with first. err is the error of decoding the page.
func pageError(err error, page []string, first string, want int) error {
	switch {
	case err != nil:
		return fmt.Errorf("not a valid list: %w", err)
	case len(page) < min(want, pageSize) || len(page) > pageSize:
		return fmt.Errorf("%d entries instead of %d", len(page), min(want, pageSize))
	case want > 0 && page[0] != first:
		return fmt.Errorf("the page starts with %.80q instead of %q", page[0], first)
	}
	return nil
}

func listReferrers(r *runner, w *worker) (operation, error) {
	q := r.request("GET", "/referrers/"+r.content.images[0].digest)
	return func(check bool) (int64, error) {
		return w.list(q, check, func(body []byte) error {
			var index v1.Index
			if err := json.Unmarshal(body, &index); err != nil {
				return fmt.Errorf("not a valid index: %w", err)
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
	q := &request{method: "POST", path: "/validate?timeout=5s",
		fields: []field{{"Content-Type", "application/json"}, {"Accept", "application/json"}}}
	q.body[0] = review
	return func(check bool) (int64, error) {
		resp, err := w.want(q, 200)
		if err != nil {
			return 0, err
		}
		if check {
			err = verdictError(resp.body)
		}
		return int64(len(review)) + resp.length, err
	}, nil
}

// verdictError returns what is wrong with a verdict, or nil. A denial is not wrong: the server may know its images by
// a name other than the one in the URL of this run.
func verdictError(body []byte) error {
	var review struct {
		Response *struct {
			UID     string
			Allowed bool
		}
	}
	err := json.Unmarshal(body, &review)
	if err != nil || review.Response == nil || review.Response.UID != reviewUID {
		return errors.New("/validate: the answer is not an AdmissionReview with the request's uid")
	}
	return nil
}
