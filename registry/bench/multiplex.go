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

// multiplex is a connection of HTTP/2, by net/http.
type multiplex struct {
	ctx       context.Context
	cancel    context.CancelFunc
	watch     *time.Timer
	target    *target
	transport *http.Transport
	resp      response
}

func newMultiplex(ctx context.Context, t *target) *multiplex {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(t.tls != nil)
	protocols.SetUnencryptedHTTP2(t.tls == nil)
	m := &multiplex{target: t}
	m.ctx, m.cancel = context.WithCancel(ctx)
	m.transport = &http.Transport{TLSClientConfig: t.tls.Clone(), Protocols: protocols, MaxConnsPerHost: 1,
		DisableCompression: true, TLSHandshakeTimeout: dialTimeout, ForceAttemptHTTP2: t.tls != nil}
	return m
}

func (m *multiplex) until(t time.Time) {
	if m.watch != nil {
		m.watch.Stop()
	}
	if !t.IsZero() {
		m.watch = time.AfterFunc(time.Until(t), m.cancel)
	}
}

func (m *multiplex) close() {
	if m.watch != nil {
		m.watch.Stop()
	}
	m.cancel()
	m.transport.CloseIdleConnections()
}

func (m *multiplex) do(q *request, authorization string, sum hash.Hash) (*response, error) {
	req, err := m.request(q, authorization)
	if err != nil {
		return nil, err
	}
	resp, err := m.transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q.method, withoutHTTP2(err))
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 {
		return nil, errors.New("the server speaks no HTTP/2; leave --protocol out")
	}
	return &m.resp, m.take(resp, q.method, sum)
}

// withoutHTTP2 knows how net/http says that a server has no HTTP/2.
func withoutHTTP2(err error) error {
	for _, sign := range []string{"malformed HTTP response", "unexpected ALPN protocol", "looked like an HTTP/1.1 header", "no application protocol",
		"client conn could not be established"} {
		if strings.Contains(err.Error(), sign) {
			return errors.New("the server speaks no HTTP/2; leave --protocol out")
		}
	}
	return err
}

func (m *multiplex) request(q *request, authorization string) (*http.Request, error) {
	path, query, _ := strings.Cut(q.path, "?")
	scheme := "http"
	if m.target.tls != nil {
		scheme = "https"
	}
	req := (&http.Request{Method: q.method, Host: m.target.host, Header: make(http.Header, len(q.fields)+2),
		URL: &url.URL{Scheme: scheme, Host: m.target.addr, Path: path, RawQuery: query}}).WithContext(m.ctx)
	req.Header.Set("User-Agent", "trow-bench")
	for _, f := range q.fields {
		req.Header.Add(f.name, f.value)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	if n := q.size(); n > 0 {
		req.ContentLength = int64(n)
		req.GetBody = func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(q.body[0]), bytes.NewReader(q.body[1]))), nil
		}
		req.Body, _ = req.GetBody()
	}
	return req, nil
}

// take reads an answer as wire does.
func (m *multiplex) take(resp *http.Response, method string, sum hash.Hash) error {
	r := &m.resp
	r.status, r.sum, r.length, r.truncated = resp.StatusCode, sum, 0, false
	r.location = append(r.location[:0], resp.Header.Get("Location")...)
	r.digest = append(r.digest[:0], resp.Header.Get("Docker-Content-Digest")...)
	r.challenge = append(r.challenge[:0], strings.Join(resp.Header.Values("WWW-Authenticate"), ", ")...)
	r.open()
	for {
		if _, err := r.once(resp.Body, int64(len(r.buf))); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	if method == http.MethodHead {
		r.length = resp.ContentLength
	} else if resp.ContentLength >= 0 && r.length != resp.ContentLength {
		return errors.New("the answer ends early")
	}
	return nil
}
