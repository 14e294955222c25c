package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// pushing returns a context that asks for a token with which one may push to a repository.
func (c *Client) pushing(ctx context.Context, repo string) context.Context {
	return auth.AppendRepositoryScope(ctx, c.reference(repo), auth.ActionPull, auth.ActionPush)
}

// PushManifest pushes a manifest, and sets a tag to it if tag is not empty. It is pushed by its digest, so that the
// algorithm of the digest is kept (distribution spec, end-7). Errors: *Error; that the registry cannot tag a manifest
// of this digest.
func (c *Client) PushManifest(ctx context.Context, repo, tag string, desc v1.Descriptor, body []byte) error {
	at := c.url(repo, "manifests", desc.Digest.String())
	if tag != "" {
		at += "?tag=" + url.QueryEscape(tag)
	}
	h, err := c.putManifest(ctx, repo, at, desc, body)
	if err != nil || tag == "" || tagged(h, tag) {
		return err
	}
	// Most registries ignore the parameter (end-7b is newer than version 1.1 of the specification), and their answer
	// does not name the tag: it takes a second request.
	h, err = c.putManifest(ctx, repo, c.url(repo, "manifests", tag), desc, body)
	if err != nil {
		return err
	}
	if d := h.Get("Docker-Content-Digest"); d != "" && d != desc.Digest.String() {
		return fmt.Errorf("registry: the tag %s names %.150s, and the registry cannot set it to %s", tag, d,
			desc.Digest)
	}
	return nil
}

// putManifest sends a manifest to a URL, and returns the header of the answer.
func (c *Client) putManifest(ctx context.Context, repo, at string, desc v1.Descriptor, body []byte) (
	http.Header, error) {
	req, err := http.NewRequestWithContext(c.pushing(ctx, repo), http.MethodPut, at, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", desc.MediaType)
	resp, err := c.do(req, http.StatusCreated)
	if err != nil {
		return nil, err
	}
	return resp.Header, resp.Body.Close()
}

// tagged reports whether the answer to a push says that it set the tag (end-7b): the header lists tags, and may be
// repeated.
func tagged(h http.Header, tag string) bool {
	for _, line := range h.Values("OCI-Tag") {
		for name := range strings.SplitSeq(line, ",") {
			if strings.TrimSpace(name) == tag {
				return true
			}
		}
	}
	return false
}

// Open opens content to be pushed, and returns its size. The receiver closes it.
type Open func() (content io.ReadCloser, size int64, err error)

// PushBlob makes a repository hold a blob. If the registry cannot mount it from another of its repositories, PushBlob
// sends what open returns; it calls open again when it has to start over. It returns the number of bytes sent, 0 after
// a mount. Errors: *Error; an error of open, as it is.
func (c *Client) PushBlob(ctx context.Context, repo string, d digest.Digest, open Open) (sent int64, err error) {
	return c.PushBlobFrom(ctx, repo, "", d, open)
}

// PushBlobFrom is PushBlob for a blob that the repository from of the registry may have: most registries mount only
// from a repository that is named. from may be empty.
func (c *Client) PushBlobFrom(ctx context.Context, repo, from string, d digest.Digest, open Open) (
	sent int64, err error) {
	ctx = c.pushing(ctx, repo)
	if from != "" { // the token has to be for both
		ctx = auth.AppendRepositoryScope(ctx, c.reference(from), auth.ActionPull)
	}
	for range maxRetries {
		sent, err = c.pushBlob(ctx, repo, from, d, open)
		var b *busyError
		if !errors.As(err, &b) {
			return sent, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(min(max(b.wait, minWait), maxWait)):
		}
	}
	return c.pushBlob(ctx, repo, from, d, open)
}

// busyError is the answer of a busy registry to the content of a blob. The transport cannot retry that: how much of the
// content the session has got is not known, so it takes a new session.
type busyError struct {
	answer *Error
	wait   time.Duration
}

func (b *busyError) Error() string { return b.answer.Error() }
func (b *busyError) Unwrap() error { return b.answer }

func (c *Client) pushBlob(ctx context.Context, repo, from string, d digest.Digest, open Open) (int64, error) {
	s, err := c.mount(ctx, repo, from, d)
	if err != nil || s == nil {
		return 0, err
	}
	// The content is opened after the mount was declined: the registry may have what the caller does not.
	content, size, err := open()
	if err != nil {
		return 0, errors.Join(err, c.cancel(ctx, s))
	}
	defer content.Close()
	err = c.send(ctx, s, d, content, size)
	if err != nil && ctx.Err() != nil {
		// Somebody stopped the copy: what the session has got is of no use, because another one starts at the
		// beginning, and registries bound how many sessions there are. If this fails, the registry drops it later.
		cctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelTime)
		defer stop()
		_ = c.cancel(cctx, s)
	}
	return size, err
}

// cancelTime bounds how long a copy that was stopped waits for the deletion of its session.
const cancelTime = 2 * time.Second

// session is an upload session.
type session struct {
	url           *url.URL
	authorization string // the header with which it was opened
}

// mount asks for a blob that the registry may have in the repository from or, if from is empty, in any (end-11). It
// returns nil if the repository holds the blob now, and otherwise the session to send it to.
func (c *Client) mount(ctx context.Context, repo, from string, d digest.Digest) (*session, error) {
	at := c.url(repo, "blobs", "uploads/") + "?mount=" + url.QueryEscape(d.String())
	if from != "" {
		at += "&from=" + url.QueryEscape(from)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.do(req, http.StatusCreated, http.StatusAccepted)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusCreated {
		return nil, nil
	}
	location, err := req.URL.Parse(resp.Header.Get("Location"))
	if err != nil {
		return nil, fmt.Errorf("registry: invalid Location: %w", err)
	}
	// Elsewhere we would send the content, and the credentials below, to whom the user did not name.
	if location.Host != c.base.Host || location.Scheme != c.base.Scheme {
		return nil, fmt.Errorf("registry: Location %.100q is on another host", location.Redacted())
	}
	// The body of the next request can be read only once, so it must not be refused because it has no login.
	return &session{location, resp.Request.Header.Get("Authorization")}, nil
}

// send sends all content of a blob to its session and closes the session (end-6).
func (c *Client) send(ctx context.Context, s *session, d digest.Digest, content io.Reader, size int64) error {
	at := *s.url
	q := at.Query()
	q.Set("digest", d.String())
	at.RawQuery = q.Encode()
	body := &borrowedReader{r: content}
	defer body.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, at.String(), body)
	if err != nil {
		return err
	}
	if req.ContentLength = size; size == 0 {
		req.Body = http.NoBody // otherwise net/http takes 0 for an unknown length
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	if s.authorization != "" {
		req.Header.Set("Authorization", s.authorization)
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusCreated:
		return nil
	case busy(resp):
		return &busyError{readError(resp), retryAfter(resp)}
	}
	return readError(resp)
}

// cancel deletes a session (end-14 of Distribution's protocol), because registries bound how many there are.
func (c *Client) cancel(ctx context.Context, s *session) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, s.url.String(), nil)
	if err != nil {
		return err
	}
	resp, err := c.do(req, http.StatusNoContent)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// borrowedReader reads from r until it is closed. net/http may go on reading a body after it has returned the answer,
// and r belongs to the caller again by then.
type borrowedReader struct {
	mu     sync.Mutex // held while reading, so that Close waits for a read under way
	r      io.Reader
	closed bool
}

func (b *borrowedReader) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, io.ErrClosedPipe
	}
	return b.r.Read(p)
}

func (b *borrowedReader) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}
