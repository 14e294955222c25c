// Package client is a client of one registry: of Trow itself, over TLS or over the socket in its data directory, and of
// any other registry that speaks the OCI distribution protocol.
//
// # Words
//
//   - descriptor, manifest, blob, tag, mount, session: as in the OCI specifications.
//   - challenge: the header WWW-Authenticate of an answer with status 401. It names the way to log in: Basic, or a
//     token from a token server (Bearer).
//   - busy: an answer with status 429 or 503, which may carry Retry-After.
//
// # Invariants
//
//  1. Credentials and tokens are sent to the registry's host and to the token server that its challenge names, and to
//     no other host; never over plain HTTP if the registry was reached over TLS.
//  2. A blob is streamed with its size as Content-Length. It is never held in memory.
//  3. The reader of a blob is not used after PushBlob has returned, although net/http may read a request's body for a
//     moment longer.
//  4. An upload session for content that cannot be opened is deleted.
//  5. A busy registry is asked again, [maxRetries] times, after the time that it asked for, unless Options.Once is set.
//  6. How many tokens are kept is bounded, and none is sent when it is about to expire.
//
// # What it does not do
//
// It does not compare content with its digest: the caller does, because the caller decides what damage means. It reads
// no files with credentials but Docker's, and those only where [Logins] are asked for. It does not resume a transfer
// within a blob.
//
// # Why oras-go
//
// Both oras-go v2 (registry/remote 2.7.0) and cue-labs ociregistry (ociclient, v0.0.0-20251212221603) were tried, with
// one program each that pushes, fetches, resolves, lists and mounts. Neither brings a further module with it.
// The binary (CGO_ENABLED=0 go build -trimpath -ldflags="-s -w") grows from 31,535,266 bytes by 274,432 with oras-go,
// and by 245,760 with ociregistry. Both take any http.RoundTripper, so the unix socket needs nothing special; both
// stream a blob of known size with a Content-Length; both fetch and cache tokens. What decided:
//
//   - oras-go retries by a policy that can read Retry-After; ociregistry does not retry.
//   - oras-go bounds where a password goes: not to a token server on an internal address, nor to one without TLS if the
//     registry has it. ociregistry sends it wherever the challenge says.
//   - oras-go has releases and keeps its API; ociregistry has no release yet.
//   - ociregistry computes SHA-256 for every manifest and so cannot push one that is known by SHA-512.
//
// Two things are written here, on top of oras-go's transport. A push that a mount declines: oras-go leaves the session
// behind when the content cannot be opened, and ociregistry always does. A manifest that is pushed by digest and tagged
// in the same request (distribution spec, "Pushing Manifests"): neither can.
package client

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/retry"
)

const (
	// maxRetries is how often a busy registry is asked again. With waits of up to 30 seconds this bridges a restart,
	// which is worth it in the middle of a copy that takes hours.
	maxRetries = 10
	minWait    = time.Second
	maxWait    = 30 * time.Second
)

// Options say which registry, and who asks it.
type Options struct {
	URL                string       // scheme and host[:port], http or https
	HTTP               *http.Client // makes the connections; nil: http.DefaultClient
	Username, Password string       // empty: no login
	Logins             Logins       // without a Username: where to look for one; nil: no login
	// Realm decides, by returning nil, whether a token may be fetched from this URL, which the registry named or to
	// which a token server redirects. nil: from any that is not on an internal address, see oras-go.
	Realm func(*url.URL) error
	// Tokens bounds the bytes of the tokens that are kept; 0: 4 MiB. Others are fetched for each request.
	Tokens int
	Once   bool // a busy registry is not asked again: the caller has its own way to do that
	// Busy is called before each wait for a registry that has too much to do, or stops, with its answer, for people who
	// wait as well. Optional.
	Busy func(*http.Response)
}

// Client is a client of one registry. It is safe for concurrent use.
type Client struct {
	base *url.URL
	auth *auth.Client
}

// New returns a client. It connects when it is used. Errors: the URL is not valid.
func New(o Options) (*Client, error) {
	base, err := url.Parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	if base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.Path != "" && base.Path != "/" {
		return nil, fmt.Errorf("registry: %.100q is not a valid URL; want https://host[:port]", o.URL)
	}
	base.Path = ""
	var h http.Client
	if o.HTTP != nil {
		h = *o.HTTP
	}
	h.Transport = &marking{cmp.Or[http.RoundTripper](h.Transport, http.DefaultTransport), base.Host}
	h.Transport = &tokenTransport{base: h.Transport, realm: o.Realm}
	if !o.Once {
		p := policy(o.Busy)
		h.Transport = &retry.Transport{Base: h.Transport, Policy: func() retry.Policy { return p }}
	}
	c := &Client{base: base, auth: &auth.Client{Client: &h, Cache: newTokens(o.Tokens)}}
	if o.Realm != nil {
		c.auth.BlockedRealmPrefixes = []netip.Prefix{} // Realm decides instead
	}
	switch {
	case o.Username == "" && o.Logins != nil:
		c.auth.Credential = auth.CredentialFunc(readable(o.Logins))
	case o.Username != "":
		c.auth.Credential = auth.StaticCredential(base.Host,
			auth.Credential{Username: o.Username, Password: o.Password})
	}
	return c, nil
}

// URL returns the scheme and host of the registry, without a slash at the end.
func (c *Client) URL() string { return c.base.String() }

// policy retries what a busy registry refused, and calls report, if it is not nil, before each wait. Errors of the
// connection are not retried: net/http does that where it is safe.
func policy(report func(*http.Response)) retry.Policy {
	return &retry.GenericPolicy{
		Retryable: func(resp *http.Response, err error) (bool, error) { return err == nil && busy(resp), err },
		Backoff: func(_ int, resp *http.Response) time.Duration {
			if report != nil {
				report(resp)
			}
			return retryAfter(resp)
		},
		MinWait: minWait, MaxWait: maxWait, MaxRetry: maxRetries,
	}
}

func busy(resp *http.Response) bool {
	return resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable
}

// retryAfter returns how long a busy registry asks to wait, 0 if it does not say.
func retryAfter(resp *http.Response) time.Duration {
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// Do sends a request to the registry. It adds the credentials that the registry asks for, and retries while the
// registry is busy if the body can be read again (http.Request.GetBody). The caller closes the body of the answer,
// whatever its status. Errors: those of the connection; that there are no credentials (see [Error]).
func (c *Client) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.auth.Do(req)
	return resp, c.convert(err)
}

// do is Do for an answer that must have one of the statuses. Errors: *Error for any other status.
func (c *Client) do(req *http.Request, statuses ...int) (*http.Response, error) {
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	for _, status := range statuses {
		if resp.StatusCode == status {
			return resp, nil
		}
	}
	defer resp.Body.Close()
	return nil, readError(resp)
}

// Fetch sends a GET or a HEAD for something in a repository, with the right to pull from it: kind is manifests, blobs
// or referrers, and ref a tag or a digest. The names must be valid. The caller closes the body of the answer, whatever
// its status; see [ReadError]. Errors: as Do.
func (c *Client) Fetch(ctx context.Context, method, repo, kind, ref string, h http.Header) (*http.Response, error) {
	ctx = auth.AppendRepositoryScope(ctx, c.reference(repo), auth.ActionPull)
	req, err := http.NewRequestWithContext(ctx, method, c.url(repo, kind, ref), nil)
	if err != nil {
		return nil, err
	}
	if h != nil {
		req.Header = h.Clone()
	}
	return c.Do(req)
}

// repository returns the library's client of one repository.
func (c *Client) repository(name string) *remote.Repository {
	return &remote.Repository{Client: c.auth, Reference: c.reference(name), PlainHTTP: c.base.Scheme == "http",
		ManifestMediaTypes: manifestTypes}
}

// manifestTypes are what a request for a manifest accepts: everything, also types that the library does not know.
// Distribution answers 404 for an OCI manifest, and makes an image of a list, where the types are not named one by one.
var manifestTypes = []string{v1.MediaTypeImageIndex, v1.MediaTypeImageManifest,
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json", "*/*"}

func (c *Client) reference(repo string) registry.Reference {
	return registry.Reference{Registry: c.base.Host, Repository: repo}
}

// url returns the URL of something in a repository. The names must be valid.
func (c *Client) url(repo, kind, ref string) string {
	return c.URL() + "/v2/" + repo + "/" + kind + "/" + ref
}

// Resolve returns the descriptor of a manifest. ref is a tag or a digest. Errors: *Error; fs.ErrNotExist if there is no
// such manifest.
func (c *Client) Resolve(ctx context.Context, repo, ref string) (v1.Descriptor, error) {
	desc, err := c.repository(repo).Manifests().Resolve(ctx, ref)
	return desc, c.convert(err)
}

// Manifest opens a manifest. The caller closes it. Errors: as Resolve.
func (c *Client) Manifest(ctx context.Context, repo, ref string) (v1.Descriptor, io.ReadCloser, error) {
	desc, body, err := c.repository(repo).Manifests().FetchReference(ctx, ref)
	return desc, body, c.convert(err)
}

// ResolveBlob returns the descriptor of a blob. Errors: as Resolve.
func (c *Client) ResolveBlob(ctx context.Context, repo string, d digest.Digest) (v1.Descriptor, error) {
	desc, err := c.repository(repo).Blobs().Resolve(ctx, d.String())
	return desc, c.convert(err)
}

// Blob opens a blob of known size. The caller closes it. Errors: as Resolve; that it has another size.
func (c *Client) Blob(ctx context.Context, repo string, d digest.Digest, size int64) (io.ReadCloser, error) {
	body, err := c.repository(repo).Blobs().Fetch(ctx, v1.Descriptor{Digest: d, Size: size})
	return body, c.convert(err)
}
