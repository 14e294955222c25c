package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"

	"trow/registry/client"
)

const (
	// tries is how often a request is sent to one endpoint.
	tries = 3
	// firstWait is the time before the second try; it doubles. People and kubelets wait for the answer, and after a few
	// tries the next endpoint is the better choice.
	firstWait = 100 * time.Millisecond
	// maxWait bounds the time between two tries. If the endpoint asks for more, the request fails, and the breaker
	// pauses.
	maxWait = 2 * time.Second
	// maxRedirects bounds the redirects of one request. Registries need one or two.
	maxRedirects = 5
	// answerTime bounds the time until an upstream has begun to answer a request: over all endpoints and tries, token
	// servers and redirects included. A kubelet that waits for the answer can go to the origin only afterwards. It is
	// less than stallTime, so that a download that gets no answer counts as a failure of the endpoint.
	answerTime = 25 * time.Second
)

// errNoAnswer is the cause with which a request that has waited too long for an answer is cancelled.
var errNoAnswer = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)

// endpoint is a registry that answers for an upstream. It is safe for concurrent use.
type endpoint struct {
	host             string // host[:port]
	login, anonymous *client.Client
	breaker          breaker
	transport        *http.Transport

	mu   sync.Mutex // guards all below
	rate Rate
	last error // why the last request without an answer got none; nil: it got one
}

// transport returns the transport for an endpoint that the settings name.
func (k *endpointKey) transport(guard *Guard) *http.Transport {
	t := guard.transport(k.written())
	if k.ca != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pool.AppendCertsFromPEM([]byte(k.ca))
		t.TLSClientConfig.RootCAs = pool
	}
	return t
}

// newEndpoint returns an endpoint whose connections are those of a transport, and which keeps so many bytes of tokens,
// see client.Options. Errors: the URL or the login is not valid.
func newEndpoint(k endpointKey, t *http.Transport, tokens int, secrets Secrets) (*endpoint, error) {
	base, err := url.Parse(k.url)
	if err != nil {
		return nil, err
	}
	logins, err := k.logins(secrets)
	if err != nil {
		return nil, err
	}
	e := &endpoint{host: base.Host, transport: t}
	o := client.Options{URL: k.url, Once: true, Tokens: tokens,
		HTTP:  &http.Client{Transport: e.transport, CheckRedirect: redirects(k.insecure)},
		Realm: func(u *url.URL) error { return checkRealm(u, base, nil, k.insecure, false) }}
	if e.anonymous, err = client.New(o); err != nil || logins == nil {
		e.login = e.anonymous
		return e, err
	}
	o.Logins = logins
	o.Realm = func(u *url.URL) error { return checkRealm(u, base, strings.Fields(k.realm), k.insecure, true) }
	e.login, err = client.New(o)
	return e, err
}

// errRedirect refuses a redirect.
var errRedirect = errors.New("it redirects to a URL that is not https, or too often")

// redirects returns an http.Client.CheckRedirect that follows only https, or with insecure also http. package auth of
// oras-go calls it, and removes the login once a redirect leaves the origin (scheme, host and port) of the first
// request.
func redirects(insecure bool) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		secure := req.URL.Scheme == "https" || insecure && req.URL.Scheme == "http"
		if len(via) >= maxRedirects || req.URL.User != nil || !secure {
			return errRedirect
		}
		req.Header.Del("Referer") // the URL before may be a signed one, which is a secret
		return nil
	}
}

// realmError refuses a token server.
type realmError struct{ realm, host string }

func (e *realmError) Error() string {
	return fmt.Sprintf("it wants a login at %.255s, which is not https, or neither at the domain of %.255s nor named "+
		"in realm: of the upstream", e.realm, e.host)
}

// checkRealm returns nil if a token for base may be fetched from a token server: only over https (or http, if base has
// it and insecure is set), and with a login only at the host of base, at its registrable domain (such as docker.io) or
// from a host in named. Errors: *realmError.
func checkRealm(realm, base *url.URL, named []string, insecure, login bool) error {
	host := strings.ToLower(strings.TrimSuffix(realm.Hostname(), "."))
	secure := realm.Scheme == "https" || realm.Scheme == "http" && insecure && base.Scheme == "http"
	ok := !login || host == strings.ToLower(base.Hostname()) || sameDomain(host, strings.ToLower(base.Hostname()))
	for _, n := range named {
		u := url.URL{Host: n}
		ok = ok || u.Hostname() == host && (u.Port() == "" || u.Port() == portOf(realm))
	}
	if !secure || !ok || realm.User != nil {
		return &realmError{realm.Scheme + "://" + realm.Host, base.Host}
	}
	return nil
}

// sameDomain reports whether two hosts have the same registrable domain, and so one owner: the label below a public
// suffix (publicsuffix.org). An IP address has none.
func sameDomain(a, b string) bool {
	x, err := publicsuffix.EffectiveTLDPlusOne(a)
	if err != nil || strings.Trim(a, "0123456789.") == "" || strings.Contains(a, ":") {
		return false
	}
	y, err := publicsuffix.EffectiveTLDPlusOne(b)
	return err == nil && x == y
}

// request is a request to an endpoint.
type request struct {
	method, repo, kind, ref string
	header                  http.Header
	anonymous               bool
}

// askWithin is ask for an endpoint that must begin to answer within a time. The body may take longer.
func (e *endpoint) askWithin(ctx context.Context, most time.Duration, r request) (*http.Response, *Error) {
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(most, func() { cancel(errNoAnswer) })
	resp, failure := e.ask(ctx, r)
	if !late.Stop() && failure == nil { // it came at the last moment, and its body is cancelled
		resp.Body.Close()
		failure = failed(errNoAnswer)
	}
	if failure != nil {
		cancel(nil)
		return nil, failure
	}
	resp.Body = &cancelling{resp.Body, cancel}
	return resp, nil
}

// cancelling is a body that releases the context of its request when it is closed.
type cancelling struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (c *cancelling) Close() error {
	err := c.ReadCloser.Close()
	c.cancel(nil)
	return err
}

// ask sends a request to one endpoint, up to tries times. The caller closes the body of the answer, whose status is
// 200, 206 or 416.
func (e *endpoint) ask(ctx context.Context, r request) (*http.Response, *Error) {
	failure := &Error{Kind: ErrUnavailable, Reason: "it did not answer before, or asked to wait"}
	for try := 1; ; try++ {
		p, wait := e.breaker.allow(e.limited(r))
		if p == none {
			failure.Retry, failure.Cause = wait, e.lastFailure()
			return nil, failure
		}
		resp, last, again := e.once(ctx, r, p)
		if last == nil {
			return resp, nil
		}
		failure = last
		if wait = max(failure.Retry, jittered(firstWait<<(try-1))); !again || try == tries || wait > maxWait {
			return nil, failure
		}
		select {
		case <-ctx.Done():
			return nil, failure
		case <-time.After(wait):
		}
	}
}

// limited names what an endpoint that asks for a pause limits: requests of this kind, with the login or without it.
// Docker Hub counts requests without a login by address, and others by account: those that find out what may be read
// without the login must not stop the pulls with it.
func (e *endpoint) limited(r request) string {
	if r.anonymous && e.login != e.anonymous {
		return r.kind + " without the login"
	}
	return r.kind
}

// once sends a request once; again reports whether a retry may succeed.
func (e *endpoint) once(ctx context.Context, r request, p permit) (resp *http.Response, failure *Error, again bool) {
	c := e.login
	if r.anonymous {
		c = e.anonymous
	}
	resp, err := c.Fetch(ctx, r.method, r.repo, r.kind, r.ref, r.header)
	if err != nil {
		failure = failed(err)
		switch _, answered := errors.AsType[*client.Error](err); {
		case errors.Is(context.Cause(ctx), errNoAnswer):
			failure = failed(errors.Join(errNoAnswer, err))
			e.breaker.done(p, down)
		case errors.Is(ctx.Err(), context.Canceled): // by the caller, which says nothing about the endpoint
			e.breaker.done(p, unknown)
		case failure.Kind != ErrUnavailable: // a refused login or address: the endpoint itself may work
			e.breaker.done(p, alive)
		case answered: // by the token server
			e.breaker.done(p, down)
			again = true
		default:
			e.breaker.done(p, down)
			again = ctx.Err() == nil
		}
		if !errors.Is(ctx.Err(), context.Canceled) || errors.Is(context.Cause(ctx), errNoAnswer) {
			e.failed(err)
		}
		return nil, failure, again
	}
	e.failed(nil)
	// The rate without the login is another one, and says nothing about how much is left for the login.
	if rate, ok := parseRate(resp.Header); ok && c == e.login {
		e.mu.Lock()
		e.rate = rate
		e.mu.Unlock()
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		e.breaker.done(p, alive)
		return resp, nil, false
	}
	defer resp.Body.Close()
	failure = answered(client.ReadError(resp))
	failure.Retry = retryAfter(resp.Header)
	busy := resp.StatusCode == http.StatusTooManyRequests
	if busy && failure.Retry == 0 {
		failure.Retry = defaultPause
	}
	if failure.Retry > maxWait {
		e.breaker.pause(e.limited(r), failure.Retry)
	}
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		e.breaker.done(p, down)
		return nil, failure, true
	}
	// An endpoint that answers 429 is not down, and a 500 may be about this content alone.
	e.breaker.done(p, alive)
	return nil, failure, busy || resp.StatusCode >= 500
}

// failed notes why a request got no answer; nil: it got one.
func (e *endpoint) failed(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = err
}

// lastFailure returns why the last request got no answer; nil if it got one.
func (e *endpoint) lastFailure() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// lastRate returns the rate that the endpoint has sent last; zero if it has sent none.
func (e *endpoint) lastRate() Rate {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rate
}
