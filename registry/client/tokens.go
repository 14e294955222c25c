package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
)

const (
	// maxTokens bounds the cached tokens, of which those that were used last stay: a client may name any number of
	// repositories, each of which takes a token of some kilobytes.
	maxTokens = 1024
	// maxTokenBytes bounds what they take. The token server decides how long they are, up to maxTokenAnswer.
	maxTokenBytes = 4 << 20
	// tokenLife is the lifetime of a token without expires_in (token specification).
	tokenLife = time.Minute
	// maxTokenLife bounds expires_in, so that the duration does not overflow.
	maxTokenLife = 24 * time.Hour
	// tokenMargin is how long before it expires a token is no longer used, or a tenth of its lifetime if that is less:
	// a request takes time, and clocks differ.
	tokenMargin = 30 * time.Second
	// maxTokenAnswer bounds the answer of a token server, in bytes; a header with a token has at most some ten
	// thousand.
	maxTokenAnswer = 128 << 10
	// tokenTime bounds how long a token server may take: the request is shared, so no caller's context ends it.
	tokenTime = 30 * time.Second
)

// tokens is an auth.Cache in which tokens expire, and whose size is bounded.
type tokens struct {
	flight singleflight.Group
	all    *lru.Cache[string, token]
	most   int // bytes

	mu     sync.Mutex // guards what follows, and is held while all changes
	bytes  int        // that all takes
	scheme auth.Scheme
}

type token struct {
	text string
	ends time.Time // zero: never, as a password
}

// newTokens returns an empty cache of so many bytes at most; 0: maxTokenBytes.
func newTokens(most int) *tokens {
	all, err := lru.New[string, token](maxTokens)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &tokens{all: all, most: cmp.Or(most, maxTokenBytes)}
}

// add keeps a token, and drops those that were used the longest ago, so that all fit.
func (t *tokens) add(name string, got token) {
	size := func(name string, of token) int { return len(name) + len(of.text) }
	t.mu.Lock()
	defer t.mu.Unlock()
	if old, ok := t.all.Peek(name); ok {
		t.all.Remove(name)
		t.bytes -= size(name, old)
	}
	n := size(name, got)
	if n > t.most {
		return // it is good for the requests that wait for it
	}
	for t.all.Len() == maxTokens || t.bytes+n > t.most {
		old, of, _ := t.all.RemoveOldest()
		t.bytes -= size(old, of)
	}
	t.all.Add(name, got)
	t.bytes += n
}

// GetScheme implements auth.Cache. A Client has one registry, so there is one scheme.
func (t *tokens) GetScheme(context.Context, string) (auth.Scheme, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.scheme == auth.SchemeUnknown {
		return t.scheme, errdef.ErrNotFound
	}
	return t.scheme, nil
}

// GetToken implements auth.Cache.
func (t *tokens) GetToken(_ context.Context, host string, scheme auth.Scheme, key string) (string, error) {
	got, ok := t.all.Get(tokenKey(host, scheme, key))
	if !ok || !got.ends.IsZero() && !time.Now().Before(got.ends) {
		return "", errdef.ErrNotFound
	}
	return got.text, nil
}

func tokenKey(host string, scheme auth.Scheme, key string) string {
	return host + " " + scheme.String() + " " + key
}

// Set implements auth.Cache. Callers that need the same token at the same time share one request, which does not depend
// on the context of any of them.
func (t *tokens) Set(ctx context.Context, host string, scheme auth.Scheme, key string,
	fetch func(context.Context) (string, error)) (string, error) {
	name := tokenKey(host, scheme, key)
	done := t.flight.DoChan(name, func() (any, error) {
		life := new(lifetime)
		ctx, cancel := context.WithTimeout(context.WithValue(context.WithoutCancel(ctx), lifetimeKey{}, life),
			tokenTime)
		defer cancel()
		text, err := fetch(ctx)
		if err != nil {
			return "", err
		}
		t.mu.Lock()
		t.scheme = scheme
		t.mu.Unlock()
		t.add(name, token{text, life.ends})
		return text, nil
	})
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case r := <-done:
		text, _ := r.Val.(string)
		return text, r.Err
	}
}

// lifetime receives the time at which the token that is being fetched expires. lifetimeKey is its key in the context of
// the request, by which tokenTransport recognizes requests to token servers.
type (
	lifetime    struct{ ends time.Time }
	lifetimeKey struct{}
)

// tokenTransport checks the URLs from which tokens are fetched, and notes when tokens expire: the library does neither.
type tokenTransport struct {
	base  http.RoundTripper
	realm func(*url.URL) error // nil: any
}

// RoundTrip implements http.RoundTripper.
func (t *tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	life, _ := req.Context().Value(lifetimeKey{}).(*lifetime)
	if life == nil {
		return t.base.RoundTrip(req)
	}
	// Checked here, because a redirect of the request passes through here as well, with the password if it stays at the
	// same origin.
	if t.realm != nil {
		if err := t.realm(req.URL); err != nil {
			return nil, err
		}
	}
	resp, err := t.base.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer+1))
	resp.Body.Close()
	if err == nil && len(body) > maxTokenAnswer {
		err = fmt.Errorf("the answer of the token server has more than %d bytes", maxTokenAnswer)
	}
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	life.ends = time.Now().Add(usable(body))
	return resp, nil
}

// usable returns how long the token in an answer may be used.
func usable(body []byte) time.Duration {
	var answer struct {
		ExpiresIn float64 `json:"expires_in"` // in seconds
	}
	life := tokenLife
	if json.Unmarshal(body, &answer) == nil && answer.ExpiresIn > 0 {
		life = time.Duration(min(answer.ExpiresIn, maxTokenLife.Seconds()) * float64(time.Second))
	}
	return life - min(tokenMargin, life/10)
}
