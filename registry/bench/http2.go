package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// http2 is one connection of HTTP/2, by net/http.
type http2 struct {
	ctx       context.Context
	cancel    context.CancelFunc
	watch     *time.Timer // cancels at the deadline
	target    *target
	transport *http.Transport
	answer    response
}

func newHTTP2(ctx context.Context, t *target) *http2 {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(t.tls != nil)
	protocols.SetUnencryptedHTTP2(t.tls == nil)
	c := &http2{target: t}
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.transport = &http.Transport{TLSClientConfig: t.tls.Clone(), Protocols: protocols, MaxConnsPerHost: 1,
		DisableCompression: true, TLSHandshakeTimeout: dialTimeout, ForceAttemptHTTP2: t.tls != nil}
	return c
}

func (c *http2) setDeadline(t time.Time) {
	if c.watch != nil {
		c.watch.Stop()
	}
	if !t.IsZero() {
		c.watch = time.AfterFunc(time.Until(t), c.cancel)
	}
}

func (c *http2) close() {
	if c.watch != nil {
		c.watch.Stop()
	}
	c.cancel()
	c.transport.CloseIdleConnections()
}

func (c *http2) do(q *request, authorization string, sum hash.Hash) (*response, error) {
	resp, err := c.transport.RoundTrip(c.request(q, authorization))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q.method, withoutHTTP2(err))
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 {
		return nil, errNoHTTP2
	}
	return &c.answer, c.take(resp, q, sum)
}

var errNoHTTP2 = errors.New("the server does not support HTTP/2; omit --protocol")

// withoutHTTP2 recognizes the texts by which net/http reports a server without HTTP/2.
func withoutHTTP2(err error) error {
	for _, sign := range []string{"malformed HTTP response", "unexpected ALPN protocol",
		"looked like an HTTP/1.1 header", "no application protocol", "client conn could not be established"} {
		if strings.Contains(err.Error(), sign) {
			return errNoHTTP2
		}
	}
	return err
}

func (c *http2) request(q *request, authorization string) *http.Request {
	path, query, _ := strings.Cut(q.path, "?")
	scheme := "http"
	if c.target.tls != nil {
		scheme = "https"
	}
	req := (&http.Request{Method: q.method, Host: c.target.host, Header: make(http.Header, len(q.fields)+2),
		URL: &url.URL{Scheme: scheme, Host: c.target.addr, Path: path, RawQuery: query}}).WithContext(c.ctx)
	req.Header.Set("User-Agent", "trow-bench")
	for _, f := range q.fields {
		req.Header.Add(f.name, f.value)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	if n := q.size(); n > 0 {
		req.ContentLength = int64(n)
		// net/http asks for the body again if it repeats a request over a new connection.
		req.GetBody = func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(q.body[0]), bytes.NewReader(q.body[1]))), nil
		}
		req.Body, _ = req.GetBody()
	}
	return req
}

// take reads an answer.
func (c *http2) take(resp *http.Response, q *request, sum hash.Hash) error {
	a := &c.answer
	a.status = resp.StatusCode
	a.location = append(a.location[:0], resp.Header.Get("Location")...)
	a.digest = append(a.digest[:0], resp.Header.Get("Docker-Content-Digest")...)
	a.challenge = append(a.challenge[:0], strings.Join(resp.Header.Values("WWW-Authenticate"), ", ")...)
	err := a.readStream(resp.Body, !q.stream || resp.StatusCode != http.StatusOK, sum)
	if err != nil {
		return err
	}
	if q.method == http.MethodHead {
		a.length = resp.ContentLength
	} else if resp.ContentLength >= 0 && a.length != resp.ContentLength {
		return errShort
	}
	return nil
}
