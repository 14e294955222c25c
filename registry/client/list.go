package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// Repositories calls each with the names of the repositories, page by page. Errors: *Error, where the registry has no
// catalog or the login may not read it; those of each.
func (c *Client) Repositories(ctx context.Context, each func([]string) error) error {
	r := &remote.Registry{RepositoryOptions: remote.RepositoryOptions{Client: c.auth,
		Reference: registry.Reference{Registry: c.base.Host}, PlainHTTP: c.base.Scheme == "http"}}
	return c.convert(r.Repositories(ctx, "", each))
}

// Tags calls each with the tags of a repository, page by page. Errors: as Resolve; those of each.
func (c *Client) Tags(ctx context.Context, repo string, each func([]string) error) error {
	return c.convert(c.repository(repo).Tags(ctx, "", each))
}

// HeldTags is Tags with only those tags that the registry holds itself. It is for a registry that also caches others,
// such as Trow, whose list has the tags of the upstream as well (RFC 9111, section 5.2.1.7).
func (c *Client) HeldTags(ctx context.Context, repo string, each func([]string) error) error {
	r := c.repository(repo)
	r.Client = heldOnly{c.auth}
	return c.convert(r.Tags(ctx, "", each))
}

// heldOnly is a client whose requests are about what the registry holds.
type heldOnly struct{ remote.Client }

func (h heldOnly) Do(req *http.Request) (*http.Response, error) {
	req.Header.Set("Cache-Control", "only-if-cached")
	return h.Client.Do(req)
}

// Referrers calls each with the manifests whose subject is desc, page by page; where the registry has no API for them,
// with those of the tag that stands for it (distribution spec, "Unavailable Referrers API"). Errors: as Resolve; those
// of each.
func (c *Client) Referrers(ctx context.Context, repo string, desc v1.Descriptor,
	each func([]v1.Descriptor) error) error {
	return c.convert(c.repository(repo).Referrers(ctx, desc, "", each))
}

// Delete deletes a tag, or a manifest with all its tags (end-9). ref is a tag or a digest; a tag is deleted only while
// it names the manifest now, where the registry knows conditions. Errors: *Error.
func (c *Client) Delete(ctx context.Context, repo, ref string, now digest.Digest) error {
	ctx = auth.AppendRepositoryScope(ctx, c.reference(repo), auth.ActionDelete)
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, c.url(repo, "manifests", ref), nil)
	if err != nil {
		return err
	}
	if now != "" {
		req.Header.Set("If-Match", `"`+now.String()+`"`)
	}
	resp, err := c.do(req, http.StatusAccepted, http.StatusOK, http.StatusNoContent)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Target is what a tag names, or named before.
type Target struct {
	Digest digest.Digest `json:"digest"`
	Date   time.Time     `json:"date"` // from when on
	By     string        `json:"by"`   // who set it; empty if that is not known, or not for this login
}

// History returns what a tag names and named before, the newest first. It is an API of Trow, which other registries and
// earlier versions do not have. Errors: *Error; that the answer is not a history.
func (c *Client) History(ctx context.Context, repo, tag string) ([]Target, error) {
	// Who has set a tag is shown to those who may push. A token server gives what the login has of this.
	ctx = c.pushing(ctx, repo)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url(repo, "manifest_history", tag), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.do(req, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	const max = 1 << 20 // bytes; 50 targets, each with a name of up to 512 bytes, have less
	var answer struct {
		History []Target `json:"history"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, max)).Decode(&answer)
	if err == nil && answer.History == nil {
		err = errors.New("it has no list of this name")
	}
	if err != nil {
		return nil, fmt.Errorf("the registry's answer is not the history of a tag: %w", err)
	}
	return answer.History, nil
}

// PushReferrer pushes a manifest that has a subject, and adds it to the tag of the subject's referrers where the
// registry has no API for them. Errors: *Error.
func (c *Client) PushReferrer(ctx context.Context, repo string, desc v1.Descriptor, body []byte) error {
	return c.convert(c.repository(repo).Manifests().Push(c.pushing(ctx, repo), desc, bytes.NewReader(body)))
}
