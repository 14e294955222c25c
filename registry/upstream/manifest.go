package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/client"
)

const (
	// maxManifest is how large a manifest may be, in bytes: as large as one that is pushed (distribution spec, "Pushing
	// Manifests").
	maxManifest = 4 << 20
	// manifestTime bounds a request for a manifest, or for a page of referrers, with its body.
	manifestTime = time.Minute
	// maxPages bounds the pages of a list of referrers that are read; the rest is left out.
	maxPages = 16
	// maxMediaType bounds a media type, in bytes (RFC 6838, section 4.2: 127 for each of its two parts).
	maxMediaType = 255
)

// accepted are the media types in Accept. Some registries answer 404, or convert the manifest, if its type is not
// named.
var accepted = strings.Join([]string{v1.MediaTypeImageIndex, v1.MediaTypeImageManifest,
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json", "*/*"}, ", ")

// schema1 are the types of manifests of Docker before 1.10. Their digest is that of a part of the bytes, so it cannot
// be verified like others.
var schema1 = map[string]bool{
	"application/vnd.docker.distribution.manifest.v1+json":      true,
	"application/vnd.docker.distribution.manifest.v1+prettyjws": true,
}

const schema1Reason = "it is a manifest of Docker's schema 1, which current runtimes do not pull; pull it with an " +
	"old Docker, and push it again with a new one"

// Manifest is a manifest of an upstream, whose digest is verified.
type Manifest struct {
	v1.Descriptor // MediaType, Digest and Size
	Body          []byte
}

// Head returns the descriptor of what a tag or a digest names. Docker Hub does not count a HEAD. If the answer lacks
// type, size or digest, Head gets the manifest. Errors: *Error.
func (u *Upstream) Head(ctx context.Context, repo, ref string) (v1.Descriptor, error) {
	defer u.question.forget(u.question.kept()) // a manifest that it gets
	resp, err := u.ask(ctx, request{method: http.MethodHead, repo: repo, kind: "manifests", ref: ref,
		header: accepts()})
	if knowsNoHead(err) {
		m, err := u.Manifest(ctx, repo, ref)
		return m.Descriptor, err
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	resp.Body.Close()
	desc := v1.Descriptor{MediaType: mediaType(resp.Header), Size: resp.ContentLength,
		Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest"))}
	switch {
	case schema1[desc.MediaType]:
		return desc, u.failure(ErrRefused, repo, ref, schema1Reason)
	case desc.Size > maxManifest:
		return desc, u.failure(ErrTooLarge, repo, ref, tooLarge)
	case desc.Digest.Validate() != nil || desc.Size <= 0 || desc.MediaType == "":
		m, err := u.Manifest(ctx, repo, ref)
		return m.Descriptor, err
	}
	if want := digest.Digest(ref); want.Validate() == nil && want != desc.Digest {
		return desc, u.failure(ErrDamaged, repo, ref, "the upstream says that it has another digest")
	}
	return desc, nil
}

var tooLarge = fmt.Sprintf("a manifest may have %d bytes", maxManifest)

// Manifest returns a manifest, verified with the digest that ref is or, for a tag, that the upstream sends. Errors:
// *Error.
func (u *Upstream) Manifest(ctx context.Context, repo, ref string) (Manifest, error) {
	m := Manifest{}
	ctx, cancel := context.WithTimeout(ctx, manifestTime)
	defer cancel()
	resp, err := u.ask(ctx, request{method: http.MethodGet, repo: repo, kind: "manifests", ref: ref, header: accepts()})
	if err != nil {
		return m, err
	}
	defer resp.Body.Close()
	body, err := u.read(resp, repo, ref)
	if err != nil {
		return m, err
	}
	var shape struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
	}
	isJSON := json.Unmarshal(body, &shape) == nil
	m.Body, m.MediaType, m.Size = body, mediaType(resp.Header), int64(len(body))
	if m.MediaType == "" || m.MediaType == "application/json" || m.MediaType == "text/plain" {
		m.MediaType = shape.MediaType // registries that are file servers send the type of a file
	}
	switch {
	case schema1[m.MediaType] || shape.SchemaVersion == 1:
		return m, u.failure(ErrRefused, repo, ref, schema1Reason)
	case !isJSON || m.MediaType == "" || len(m.MediaType) > maxMediaType:
		return m, u.failure(ErrDamaged, repo, ref, "the answer is not a manifest")
	}
	// For a tag, the digest that the upstream sends is all that shows whether the body is damaged; without it, the body
	// defines the digest.
	m.Digest = digest.Digest(ref)
	if m.Digest.Validate() != nil {
		m.Digest = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	}
	if m.Digest.Validate() != nil {
		m.Digest = digest.FromBytes(body)
	}
	if m.Digest.Algorithm().FromBytes(body) != m.Digest {
		return m, u.failure(ErrDamaged, repo, ref, "the bytes have another digest")
	}
	return m, nil
}

// Size returns the number of bytes of a blob; -1 if the upstream does not say. It fetches nothing. Errors: *Error.
func (u *Upstream) Size(ctx context.Context, repo string, d digest.Digest) (int64, error) {
	resp, err := u.ask(ctx, request{method: http.MethodHead, repo: repo, kind: "blobs", ref: d.String(),
		header: http.Header{"Accept-Encoding": {"identity"}}})
	if knowsNoHead(err) {
		return -1, nil
	}
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.ContentLength, nil
}

// knowsNoHead reports whether an error is the answer of a server that has what was asked for, maybe, and no HEAD.
func knowsNoHead(err error) bool {
	answer, ok := errors.AsType[*client.Error](err)
	return ok && errors.Is(err, ErrRefused) && answer.Status == http.StatusMethodNotAllowed
}

func accepts() http.Header { return http.Header{"Accept": {accepted}} }

// mediaType returns the type of an answer without parameters.
func mediaType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// read reads the body of an answer, and takes the memory for it as it arrives. Errors: ErrTooLarge above maxManifest;
// ErrUnavailable.
func (u *Upstream) read(resp *http.Response, repo, ref string) ([]byte, error) {
	if resp.ContentLength > maxManifest {
		return nil, u.failure(ErrTooLarge, repo, ref, tooLarge)
	}
	// A body that is slow may take manifestTime; one that has stopped does not.
	stop := time.AfterFunc(answerTime, func() { resp.Body.Close() })
	body := make([]byte, 0, bytes.MinRead)
	for {
		n, err := resp.Body.Read(body[len(body):cap(body)])
		if body = body[:len(body)+n]; n > 0 {
			stop.Reset(answerTime)
		}
		late := err != nil && !stop.Stop()
		switch {
		case len(body) > maxManifest:
			stop.Stop()
			return nil, u.failure(ErrTooLarge, repo, ref, tooLarge)
		case err == io.EOF:
			return body, nil
		case err != nil:
			if late {
				err = errors.Join(errNoAnswer, err)
			}
			e := failed(err)
			e.Host, e.Repo, e.Ref = u.Host, repo, ref
			return nil, e
		case len(body) < cap(body):
			continue
		}
		more := min(2*cap(body), maxManifest+1) - cap(body)
		if !u.question.keep(more) {
			stop.Stop()
			return nil, u.busy(repo, "large answers of upstreams take all memory that they may")
		}
		body = slices.Grow(body, more)
	}
}

// Referrers returns the manifests whose subject has this digest: from the API or, without one, from the tag that
// replaces it (distribution spec, "Unavailable Referrers API"), which tag then is. Incomplete descriptors are left out.
// Errors: *Error.
func (u *Upstream) Referrers(ctx context.Context, repo string, subject digest.Digest) (all []v1.Descriptor, tag string,
	err error) {
	ref := subject.String()
	for range maxPages {
		page, next, err := u.referrers(ctx, repo, ref)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrRefused) && ref == subject.String() {
			return u.fallback(ctx, repo, subject)
		}
		if err != nil {
			return nil, "", err
		}
		if all = append(all, page...); next == "" {
			break
		}
		ref = subject.String() + "?" + next
	}
	return all, "", nil
}

// referrers returns one page, and the query of the next.
func (u *Upstream) referrers(ctx context.Context, repo, ref string) (page []v1.Descriptor, next string, err error) {
	ctx, cancel := context.WithTimeout(ctx, manifestTime)
	defer cancel()
	resp, err := u.ask(ctx, request{method: http.MethodGet, repo: repo, kind: "referrers", ref: ref,
		header: http.Header{"Accept": {v1.MediaTypeImageIndex}}})
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if mediaType(resp.Header) != v1.MediaTypeImageIndex { // such as an HTML page of a registry without the API
		return nil, "", u.failure(ErrNotFound, repo, ref, "")
	}
	body, err := u.read(resp, repo, ref)
	if err != nil {
		return nil, "", err
	}
	var index v1.Index
	if json.Unmarshal(body, &index) != nil {
		return nil, "", u.failure(ErrDamaged, repo, ref, "the list of referrers is not JSON")
	}
	return whole(index.Manifests), nextPage(resp.Header.Get("Link")), nil
}

// nextPage returns the query of a Link to the next page (RFC 8288); empty if there is none. The rest of the URL is
// ignored: it could lead to another host or repository.
func nextPage(link string) string {
	target, parameters, ok := strings.Cut(link, ">")
	if !ok || !strings.Contains(parameters, "next") {
		return ""
	}
	at, err := url.Parse(strings.TrimPrefix(strings.TrimSpace(target), "<"))
	if err != nil {
		return ""
	}
	return at.Query().Encode()
}

// whole returns the descriptors that are complete and within the limits.
func whole(all []v1.Descriptor) (some []v1.Descriptor) {
	for _, d := range all {
		if d.Digest.Validate() == nil && d.Size > 0 && d.Size <= maxManifest && len(d.MediaType) <= maxMediaType {
			some = append(some, d)
		}
	}
	return some
}

// fallback returns the referrers in the index that the tag of the subject names; none without that tag. Errors: *Error.
func (u *Upstream) fallback(ctx context.Context, repo string, subject digest.Digest) (all []v1.Descriptor, tag string,
	err error) {
	tag = subject.Algorithm().String() + "-" + subject.Encoded()
	tag = tag[:min(len(tag), 128)]
	// A HEAD first: there is nearly always none, and a GET may count against a limit.
	if _, err := u.Head(ctx, repo, tag); err != nil {
		if errors.Is(err, ErrNotFound) {
			return nil, "", nil
		}
		return nil, "", err
	}
	m, err := u.Manifest(ctx, repo, tag)
	if err != nil {
		return nil, "", err
	}
	var index v1.Index
	if m.MediaType != v1.MediaTypeImageIndex || json.Unmarshal(m.Body, &index) != nil {
		return nil, "", nil // a tag of this name that is something else
	}
	return whole(index.Manifests), tag, nil
}
