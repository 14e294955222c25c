package soak

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Media types (OCI image spec).
const (
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// client is a client of the registry.
type client struct {
	http *http.Client
	url  string
}

// answer is an answer of the registry with its body.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) digest() digest.Digest { return digest.Digest(a.header.Get("Docker-Content-Digest")) }

// String is for messages of the tests.
func (a answer) String() string { return fmt.Sprintf("%d %.300s", a.status, a.body) }

// do sends a request and reads the answer. Errors: there was no answer, or it was incomplete.
func (c *client) do(ctx context.Context, method, path string, body []byte, headers ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.absolute(path), bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	return answer{resp.StatusCode, resp.Header, b}, nil
}

// absolute returns the URL of a path or a Location.
func (c *client) absolute(path string) string {
	if strings.HasPrefix(path, "/") {
		return c.url + path
	}
	return path
}

// descriptor points to content (OCI image spec).
type descriptor struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
}

func describe(mediaType string, content []byte) descriptor {
	return descriptor{mediaType, digest.FromBytes(content), int64(len(content))}
}

// document is a manifest or an index.
type document struct {
	Schema      int               `json:"schemaVersion"`
	MediaType   string            `json:"mediaType"`
	Config      *descriptor       `json:"config,omitempty"`
	Layers      []descriptor      `json:"layers,omitempty"`
	Manifests   []descriptor      `json:"manifests,omitempty"`
	Subject     *descriptor       `json:"subject,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// encode returns the bytes to push.
func (d document) encode() []byte {
	d.Schema = 2
	b, err := json.Marshal(d)
	if err != nil {
		panic(err) // a mistake in this test: strings and numbers can be encoded
	}
	return b
}
