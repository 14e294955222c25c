package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"

	"trow/registry/client"
)

const (
	// tries is how often an endpoint is asked for one thing.
	tries = 3
	// firstWait is before the second try; it doubles. Those who wait for an answer are people and kubelets, and after a
	// few tries the next endpoint is the better choice.
	firstWait = 100 * time.Millisecond
	// maxWait bounds a wait within a request. If the endpoint asks for more, it is left alone for that time.
	maxWait = 2 * time.Second
	// maxRedirects bounds how often an answer may lead on. Registries need one or two.
	maxRedirects = 5
)

// endpoint is a registry that answers for an upstream. It is safe for concurrent use.
type endpoint struct {
	host             string // host[:port]
	login, anonymous *client.Client
	breaker          breaker
	transport        *http.Transport

	mu   sync.Mutex // guards rate
	rate Rate
}

func newEndpoint(k endpointKey, guard *Guard, secrets Secrets) (*endpoint, error) {
	base, err := url.Parse(k.url)
	if err != nil {
		return nil, err
	}
	logins, err := k.logins(secrets)
	if err != nil {
		return nil, err
	}
	e := &endpoint{host: base.Host, transport: guard.transport(k.written())}
	e.transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if k.ca != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pool.AppendCertsFromPEM([]byte(k.ca))
		e.transport.TLSClientConfig.RootCAs = pool
	}
	o := client.Options{URL: k.url, Once: true,
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

// errRedirect is the refusal of a redirect.
var errRedirect = errors.New("it redirects to a URL that is not https, or too often")

// redirects follows what is as safe as the first request. The client has removed the login where another host follows.
func redirects(insecure bool) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects || req.URL.User != nil || req.URL.Scheme != "https" && !insecure {
			return errRedirect
		}
		req.Header.Del("Referer") // a signed URL is a secret too
		return nil
	}
}

// realmError is the refusal of a token server.
type realmError struct{ realm, host string }

func (e *realmError) Error() string {
	return fmt.Sprintf("it wants a login at %.255s, which is not https, or neither at the domain of %.255s nor named "+
		"in realm: of the upstream", e.realm, e.host)
}

// checkRealm decides whether a token for base may be fetched from a token server: only over https, and with a login
// only at the same registrable domain (such as docker.io) or from a host that the settings name. Errors: *realmError.
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

// sameDomain reports whether two hosts belong to one owner: to one domain below a public suffix (publicsuffix.org). An
// IP address belongs to no domain.
func sameDomain(a, b string) bool {
	x, err := publicsuffix.EffectiveTLDPlusOne(a)
	if err != nil || strings.Trim(a, "0123456789.") == "" || strings.Contains(a, ":") {
		return false
	}
	y, err := publicsuffix.EffectiveTLDPlusOne(b)
	return err == nil && x == y
}

// request is what an endpoint is asked for.
type request struct {
	method, repo, kind, ref string
	header                  http.Header
	anonymous               bool
}

// ask asks one endpoint, some times. Errors: *Error.
func (e *endpoint) ask(ctx context.Context, r request) (*http.Response, *Error) {
	failure := &Error{Kind: ErrUnavailable, Reason: "it did not answer before, or asked to wait"}
	for try := 1; ; try++ {
		wait, ok := e.breaker.allow(r.kind)
		if !ok {
			failure.Retry = wait
			return nil, failure
		}
		resp, last, again := e.once(ctx, r)
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

// once asks one endpoint once; again reports whether it is worth to ask it again.
func (e *endpoint) once(ctx context.Context, r request) (resp *http.Response, failure *Error, again bool) {
	c := e.login
	if r.anonymous {
		c = e.anonymous
	}
	resp, err := c.Fetch(ctx, r.method, r.repo, r.kind, r.ref, r.header)
	if err != nil {
		failure = failed(err)
		switch _, answered := errors.AsType[*client.Error](err); {
		case errors.Is(ctx.Err(), context.Canceled): // says nothing about the endpoint
			e.breaker.done(unknown)
		case failure.Kind != ErrUnavailable: // a login that is refused, or an address
			e.breaker.done(alive)
		case answered: // by the token server
			e.breaker.done(down)
			again = true
		default:
			e.breaker.done(down)
			again = ctx.Err() == nil
		}
		return nil, failure, again
	}
	if rate, ok := parseRate(resp.Header); ok {
		e.mu.Lock()
		e.rate = rate
		e.mu.Unlock()
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		e.breaker.done(alive)
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
		e.breaker.pause(r.kind, failure.Retry)
	}
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		e.breaker.done(down)
		return nil, failure, true
	}
	// Who is busy answers, so it is not down; and a 500 may be about this one content.
	e.breaker.done(alive)
	return nil, failure, busy || resp.StatusCode >= 500
}

// lastRate returns what the endpoint last said.
func (e *endpoint) lastRate() Rate {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rate
}
