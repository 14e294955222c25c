package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Blob is a blob of an upstream on its way. The caller closes Body, and compares the bytes with the digest.
type Blob struct {
	Body io.ReadCloser
	From int64  // the offset of the first byte of Body: what was asked for, or 0 if the upstream starts over
	Size int64  // of the whole blob; -1: the upstream does not say
	ETag string // for a request that continues this one; empty: none
}

// Blob opens a blob at an offset. etag is that of the answer that is continued, empty if it is not known. An upstream
// that cannot continue gives the blob from its beginning; see Blob.From. Errors: *Error.
func (u *Upstream) Blob(ctx context.Context, repo string, d digest.Digest, from int64, etag string) (*Blob, error) {
	r := request{method: http.MethodGet, repo: repo, kind: "blobs", ref: d.String(),
		// No coding: the bytes are compared with the digest.
		header: http.Header{"Accept-Encoding": {"identity"}}}
	if from > 0 {
		r.header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		// Only a strong validator says that the bytes are the same (RFC 9110, section 13.1.5). Without one the digest
		// does.
		if etag != "" && !strings.HasPrefix(etag, "W/") {
			r.header.Set("If-Range", etag)
		}
	}
	resp, err := u.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	b, ok := opened(resp, from)
	if !ok && from > 0 { // it may not know ranges: once more, from the beginning
		resp.Body.Close()
		return u.Blob(ctx, repo, d, 0, "")
	}
	if !ok || resp.Header.Get("Content-Encoding") != "" {
		resp.Body.Close()
		return nil, u.failure(ErrDamaged, repo, d.String(), "the answer is not the content of a blob")
	}
	return b, nil
}

// opened reads where an answer begins. It reports false for one that neither continues at from nor starts over.
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

// contentRange reads "bytes START-END/SIZE", in which SIZE may be * (RFC 9110, section 14.4); size is -1 then.
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

// ask asks the endpoints in order until one has it. It says that there is no such content only if every one says so.
// Errors: *Error.
func (u *Upstream) ask(ctx context.Context, r request) (*http.Response, error) {
	if err := u.mayAsk(r); err != nil {
		return nil, err
	}
	var worst *Error
	for _, e := range u.endpoints {
		resp, failure := e.ask(ctx, r)
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

// mayAsk reports whether the settings permit a request. Errors: ErrRefused.
func (u *Upstream) mayAsk(r request) error {
	if u.offline {
		return u.failure(ErrRefused, r.repo, r.ref, "the server is offline (upstream-offline)")
	}
	return u.fits(r.repo)
}

// graver reports whether a failure says less for certain than another: that an endpoint has nothing counts only if all
// others say so too.
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
