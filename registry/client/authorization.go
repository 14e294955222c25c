package client

import (
	"context"
	"net/http"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// Authorization returns the header Authorization that answers a challenge, for those who send their requests by other
// means: it logs in, or fetches a token for these actions (pull, push, delete) in a repository and for what the
// challenge asks for. If several challenges are joined by commas, the first one counts. refused is the header that the
// registry has just refused, empty if there was none. Errors: *Error with status 401 if there are no credentials, or if
// the same header is all there is; those of the token server.
func (c *Client) Authorization(ctx context.Context, repo string, actions []string, challenge, refused string) (
	string, error) {
	if repo != "" {
		ctx = auth.AppendRepositoryScope(ctx, c.reference(repo), actions...)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL()+"/v2/", nil)
	if err != nil {
		return "", err
	}
	// The library logs in only for requests that it sends itself. This request goes to a transport that answers it with
	// the challenge until it comes with a new header; requests to the token server take the ordinary way.
	h, login := *c.auth.Client, *c.auth
	h.Transport = &challenger{base: h.Transport, url: req.URL.String(), challenge: challenge, refused: refused}
	login.Client = &h
	resp, err := login.Do(req)
	if err != nil {
		return "", c.convert(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnauthorized {
		return "", readError(resp)
	}
	return resp.Request.Header.Get("Authorization"), nil
}

// challenger answers requests for url with a challenge, unless they have a header that has not been refused.
type challenger struct {
	base                    http.RoundTripper
	url, challenge, refused string
}

func (c *challenger) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.String() != c.url {
		return c.base.RoundTrip(req)
	}
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: req}
	if header := req.Header.Get("Authorization"); header == "" || header == c.refused {
		resp.StatusCode = http.StatusUnauthorized
		resp.Header.Set("WWW-Authenticate", c.challenge)
	}
	return resp, nil
}
