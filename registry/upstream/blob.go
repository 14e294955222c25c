package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Blob is an answer with a blob of an upstream. The caller closes Body, and verifies the digest.
type Blob struct {
	Body io.ReadCloser
	From int64  // the offset of the first byte of Body: what was asked for, or 0 if the upstream starts over
	Size int64  // of the whole blob; -1: the upstream does not say
	ETag string // for a request that continues this one; empty: none
}

// Blob opens a blob at an offset. etag is that of the answer that is continued; empty: it is not known. If the upstream
// cannot continue, the answer is the blob from its beginning; see Blob.From. Errors: *Error.
func (u *Upstream) Blob(ctx context.Context, repo string, d digest.Digest, from int64, etag string) (*Blob, error) {
	r := request{method: http.MethodGet, repo: repo, kind: "blobs", ref: d.String(),
		// No content coding: the digest is that of the bytes as they are.
		header: http.Header{"Accept-Encoding": {"identity"}}}
	if from > 0 {
		r.header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		// If-Range needs a strong validator (RFC 9110, section 13.1.5). Without one, other bytes than before are found
		// by the digest.
		if etag != "" && !strings.HasPrefix(etag, "W/") {
			r.header.Set("If-Range", etag)
		}
	}
	resp, err := u.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	b, ok := opened(resp, from)
	if !ok && from > 0 { // such as 416 from an upstream without ranges: once more, from the beginning
		resp.Body.Close()
		return u.Blob(ctx, repo, d, 0, "")
	}
	if coding := resp.Header.Get("Content-Encoding"); !ok || coding != "" && !strings.EqualFold(coding, "identity") {
		resp.Body.Close()
		return nil, u.failure(ErrDamaged, repo, d.String(), "the answer is not the content of a blob")
	}
	return b, nil
}

// opened returns the Blob of an answer. It reports false for an answer that neither continues at from nor starts over.
func opened(resp *http.Response, from int64) (*Blob, bool) {
	b := &Blob{Body: resp.Body, Size: -1, ETag: resp.Header.Get("ETag")}
	switch resp.StatusCode {
	case http.StatusOK:
		b.Size = resp.ContentLength
		return b, true
	case http.StatusPartialContent:
		start, size, ok := contentRange(resp.Header.Get("Content-Range"))
		b.From, b.Size = start, size
		return b, ok && from > 0 && start == from
	}
	return nil, false
}

// contentRange parses "bytes START-END/SIZE" (RFC 9110, section 14.4). SIZE may be *; then size is -1.
func contentRange(text string) (start, size int64, ok bool) {
	text, ok = strings.CutPrefix(text, "bytes ")
	span, total, cut := strings.Cut(text, "/")
	first, _, dash := strings.Cut(span, "-")
	start, err := strconv.ParseInt(first, 10, 64)
	if !ok || !cut || !dash || err != nil {
		return 0, 0, false
	}
	if total == "*" {
		return start, -1, true
	}
	size, err = strconv.ParseInt(total, 10, 64)
	return start, size, err == nil && size > start
}

// ask sends a request to the endpoints in order until one succeeds, for answerTime at most; the body of the answer has
// no such bound. If none does, it returns the failure that leaves most open (see graver), so ErrNotFound only if every
// endpoint answers that. Errors: *Error.
func (u *Upstream) ask(ctx context.Context, r request) (*http.Response, error) {
	if err := u.mayAsk(r); err != nil {
		return nil, err
	}
	var worst *Error
	begun := time.Now()
	for i, e := range u.endpoints {
		// An equal share of what is left: if one hangs, there is time to ask the next.
		share := (answerTime - time.Since(begun)) / time.Duration(len(u.endpoints)-i)
		resp, failure := e.askWithin(ctx, share, r)
		if failure == nil {
			return resp, nil
		}
		if worst == nil || graver(failure, worst) {
			worst = failure
		}
		if ctx.Err() != nil {
			break
		}
	}
	if worst == nil {
		worst = &Error{Kind: ErrUnavailable, Reason: "it has no endpoints"}
	}
	worst.Host, worst.Repo, worst.Ref = u.Host, r.repo, r.ref
	return nil, worst
}

// mayAsk returns nil if the settings permit a request. Errors: ErrRefused.
func (u *Upstream) mayAsk(r request) error {
	if u.offline {
		return u.failure(ErrRefused, r.repo, r.ref, "the server is offline (upstream-offline)")
	}
	return u.fits(r.repo)
}

// graver reports whether failure a leaves more open than b. ErrNotFound leaves least: it is the answer only if no
// endpoint failed in another way.
func graver(a, b *Error) bool {
	order := []error{ErrNotFound, ErrRefused, ErrUnauthorized, ErrUnavailable}
	rank := func(e *Error) int {
		for i, kind := range order {
			if errors.Is(e.Kind, kind) {
				return i
			}
		}
		return len(order)
	}
	return rank(a) > rank(b)
}

// failure makes an Error of this upstream.
func (u *Upstream) failure(kind error, repo, ref, reason string) *Error {
	return &Error{Kind: kind, Host: u.Host, Repo: repo, Ref: ref, Reason: reason}
}
