package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/storage"
)

// Registry is a running registry.
type Registry struct {
	HTTP *http.Client // connects as somebody who may do what it is used for
	URL  string       // scheme and host, without a slash at the end
}

// refusal is an answer that is not a success.
type refusal struct {
	status int
	text   string
	wait   time.Duration // Retry-After; 0: none
}

func (r *refusal) Error() string {
	if r.text == "" {
		return "the registry says " + http.StatusText(r.status)
	}
	return "the registry says: " + r.text
}

// Is makes a 404 what the file system's callers know.
func (r *refusal) Is(target error) bool {
	return target == fs.ErrNotExist && r.status == http.StatusNotFound
}

// refused tells whether a request failed by its content, so that others may do better.
func refused(err error) bool {
	var r *refusal
	if !errors.As(err, &r) {
		return false
	}
	switch r.status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusRequestedRangeNotSatisfiable:
		return true
	}
	return false
}

// do sends a request. Errors: *refusal for a status that is not one of good.
func (r *Registry) do(req *http.Request, good ...int) (*http.Response, error) {
	resp, err := r.HTTP.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the URL says nothing to anybody
		}
		return nil, err
	}
	for _, status := range good {
		if resp.StatusCode == status {
			return resp, nil
		}
	}
	defer resp.Body.Close()
	return nil, readRefusal(resp)
}

func readRefusal(resp *http.Response) *refusal {
	r := &refusal{status: resp.StatusCode}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		r.wait = time.Duration(seconds) * time.Second
	}
	var body struct {
		Errors []struct{ Code, Message string }
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if json.Unmarshal(text, &body) == nil && len(body.Errors) > 0 {
		r.text = body.Errors[0].Code + ": " + body.Errors[0].Message
	}
	return r
}

// patiently does what a busy registry may ask to do again a little later, which is worth it after hours of copying.
func patiently[T any](ctx context.Context, do func() (T, error)) (T, error) {
	for range 10 {
		v, err := do()
		var r *refusal
		if !errors.As(err, &r) || r.status != http.StatusTooManyRequests && r.status != http.StatusServiceUnavailable {
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, ctx.Err()
		case <-time.After(min(max(r.wait, time.Second), 30*time.Second)):
		}
	}
	return do()
}

// path is the URL of something in a repository. Name and ref have been checked.
func (r *Registry) path(repo, kind, ref string) string {
	return r.URL + "/v2/" + repo + "/" + kind + "/" + ref
}

// repositories calls each with what every repository holds.
func (r *Registry) repositories(ctx context.Context, each func(storage.Holdings) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+"/admin/repositories", nil)
	if err != nil {
		return err
	}
	resp, err := r.do(req, http.StatusOK)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for in := json.NewDecoder(resp.Body); ; {
		var h storage.Holdings
		if err := in.Decode(&h); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("the list of repositories: %w", err)
		}
		if err := each(h); err != nil {
			return err
		}
	}
}

// get opens a blob ("blobs") or a manifest ("manifests").
func (r *Registry) get(ctx context.Context, repo, kind string, d digest.Digest) (io.ReadCloser, error) {
	return patiently(ctx, func() (io.ReadCloser, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.path(repo, kind, d.String()), nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept", "*/*")
		resp, err := r.do(req, http.StatusOK)
		if err != nil {
			return nil, err
		}
		return resp.Body, nil
	})
}

// has tells whether a repository holds a blob or a manifest; ref may be a tag. What it is told of stays for a while.
func (r *Registry) has(ctx context.Context, repo, kind, ref string) (digest.Digest, error) {
	return patiently(ctx, func() (digest.Digest, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, r.path(repo, kind, ref), nil)
		if err != nil {
			return "", err
		}
		req.Header.Set("Accept", "*/*")
		resp, err := r.do(req, http.StatusOK, http.StatusNotFound)
		if err != nil {
			return "", err
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return "", nil
		}
		return digest.Digest(resp.Header.Get("Docker-Content-Digest")), nil
	})
}

// putManifest pushes a manifest, under a tag if there is one.
func (r *Registry) putManifest(ctx context.Context, repo, tag string, desc v1.Descriptor, body []byte) error {
	_, err := patiently(ctx, func() (struct{}, error) {
		at := r.path(repo, "manifests", desc.Digest.String())
		if tag != "" {
			at += "?tag=" + url.QueryEscape(tag)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, at, bytes.NewReader(body))
		if err != nil {
			return struct{}{}, err
		}
		req.Header.Set("Content-Type", desc.MediaType)
		resp, err := r.do(req, http.StatusCreated)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, resp.Body.Close()
	})
	return err
}

// putBlob makes a repository hold a blob: from another repository, or from what open gives.
func (r *Registry) putBlob(ctx context.Context, repo string, d digest.Digest, open func() (io.ReadCloser, int64, error)) (sent int64, err error) {
	return patiently(ctx, func() (int64, error) {
		session, err := r.mount(ctx, repo, d)
		if err != nil || session == "" {
			return 0, err
		}
		in, size, err := open()
		if err != nil {
			return 0, errors.Join(err, r.cancel(ctx, session))
		}
		defer in.Close()
		return size, r.send(ctx, session, d, in, size)
	})
}

// mount asks for a blob that the registry may have in another repository. If it has not, session is where to send it.
func (r *Registry) mount(ctx context.Context, repo string, d digest.Digest) (session string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost,
		r.path(repo, "blobs", "uploads/")+"?mount="+url.QueryEscape(d.String()), nil)
	if err != nil {
		return "", err
	}
	resp, err := r.do(req, http.StatusCreated, http.StatusAccepted)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusCreated {
		return "", nil
	}
	at, err := req.URL.Parse(resp.Header.Get("Location"))
	if err != nil {
		return "", fmt.Errorf("the registry's answer has no usable Location: %w", err)
	}
	return at.String(), nil
}

// send ends a session with all of its content.
func (r *Registry) send(ctx context.Context, session string, d digest.Digest, in io.Reader, size int64) error {
	at, err := url.Parse(session)
	if err != nil {
		return err
	}
	q := at.Query()
	q.Set("digest", d.String())
	at.RawQuery = q.Encode()
	body := &lent{in: in}
	defer body.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, at.String(), body)
	if err != nil {
		return err
	}
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := r.do(req, http.StatusCreated)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (r *Registry) cancel(ctx context.Context, session string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, session, nil)
	if err != nil {
		return err
	}
	resp, err := r.do(req, http.StatusNoContent)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// lent is a body that its owner takes back: net/http may go on reading it after it has answered.
type lent struct {
	mu     sync.Mutex
	in     io.Reader
	closed bool
}

func (l *lent) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, io.ErrClosedPipe
	}
	return l.in.Read(p)
}

func (l *lent) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return nil
}

// content is what is read of a manifest or index of any type.
type content struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	Manifests     []v1.Descriptor `json:"manifests"`
	Blobs         []v1.Descriptor `json:"blobs"` // OCI artifact manifests
}

// blobs are the descriptors of what is no manifest.
func (c *content) blobs() []v1.Descriptor {
	all := append(c.Layers[:len(c.Layers):len(c.Layers)], c.Blobs...)
	if c.Config != nil {
		all = append(all, *c.Config)
	}
	return all
}
