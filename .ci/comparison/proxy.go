package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// proxy counts and records what goes to a server. It is used where speed does not matter. It must be closed.
type proxy struct {
	url      string
	listener *http.Server
	mu       sync.Mutex // guards what follows
	blobs    int        // pushed: PUTs of uploads that were answered 201
	images   int        // the same for manifests
	answer   []byte     // to the first review
}

// newProxy starts a proxy for a server. It uses no TLS itself. It replaces its own address in reviews with that of the
// server, so that the server answers as it would answer its clients.
func newProxy(s *server) (*proxy, error) {
	target, err := url.Parse(s.url)
	if err != nil {
		return nil, err
	}
	trust := x509.NewCertPool()
	if s.ca != "" {
		ca, err := os.ReadFile(s.ca)
		if err != nil {
			return nil, err
		}
		trust.AppendCertsFromPEM(ca)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{url: "http://" + l.Addr().String()}
	forward := &httputil.ReverseProxy{
		Transport:      &http.Transport{MaxIdleConnsPerHost: 16, TLSClientConfig: &tls.Config{RootCAs: trust}},
		ModifyResponse: p.observe,
		Rewrite: func(q *httputil.ProxyRequest) {
			q.SetURL(target)
			q.Out.Host = q.In.Host
			rename(q.Out, q.In.Host, target.Host)
		},
	}
	p.listener = &http.Server{Handler: forward, ReadHeaderTimeout: 10 * time.Second}
	go p.listener.Serve(l) // until it is closed
	return p, nil
}

func (p *proxy) close() { p.listener.Close() }

// rename replaces a host in the body of a review.
func rename(q *http.Request, from, to string) {
	if q.URL.Path != "/validate" || q.Body == nil {
		return
	}
	body, err := io.ReadAll(io.LimitReader(q.Body, 1<<20))
	if err != nil {
		return // the server refuses half a review, so the run fails
	}
	body = bytes.ReplaceAll(body, []byte(from), []byte(to))
	q.Body, q.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	q.Header.Set("Content-Length", strconv.Itoa(len(body)))
}

// observe counts pushes and records the first answer to a review.
func (p *proxy) observe(r *http.Response) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	path := r.Request.URL.Path
	created := r.Request.Method == http.MethodPut && r.StatusCode == http.StatusCreated
	switch {
	case created && strings.Contains(path, "/manifests/"):
		p.images++
	case created:
		p.blobs++
	case path == "/validate" && p.answer == nil:
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		r.Body, p.answer = io.NopCloser(bytes.NewReader(body)), body
		return err
	}
	return nil
}

// pushed returns the number of operations of a scenario that went through.
func (p *proxy) pushed(scenario string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if scenario == pushImage {
		return p.images
	}
	return p.blobs
}

// recordAnswer returns the answer of a Trow that has the content to the review that trow bench sends.
func (l *laboratory) recordAnswer(ctx context.Context) ([]byte, error) {
	dir, err := os.MkdirTemp(l.dir, "answer-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s, err := l.start(ctx, l.peers[0], dir, true)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	err = l.trowBench(ctx, s.url, "--cacert", s.ca, "--populate-only", "--scenarios", admission)
	if err != nil {
		return nil, err
	}
	p, err := newProxy(s)
	if err != nil {
		return nil, err
	}
	defer p.close()
	err = l.trowBench(ctx, p.url, "--no-populate", "--scenarios", admission, "--connections", "1", "--duration", "10ms")
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.TrimSpace(p.answer), nil
}
