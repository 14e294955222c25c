package client

import (
	"bytes"
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
	// maxTokens bounds how many tokens are kept, those that were used last: a client of ours may name any number of
	// repositories, each of which takes a token. A token has some kilobytes.
	maxTokens = 1024
	// tokenLife is that of a token whose server does not say how long it is valid (token specification, "expires_in").
	tokenLife = time.Minute
	// maxTokenLife bounds what a server says, so that nothing overflows.
	maxTokenLife = 24 * time.Hour
	// tokenMargin is how long before its end a token is no longer used, or a tenth of its life if that is less: a
	// request takes time, and clocks differ.
	tokenMargin = 30 * time.Second
	// maxTokenAnswer bounds the answer of a token server, in bytes; a header with a token has at most some ten
	// thousand.
	maxTokenAnswer = 128 << 10
	// tokenTime bounds how long a token server may take: the request is shared, so no caller's context ends it.
	tokenTime = 30 * time.Second
)

// tokens is an auth.Cache whose tokens end, and whose number is bounded.
type tokens struct {
	flight singleflight.Group
	all    *lru.Cache[string, token]

	mu     sync.Mutex // guards scheme
	scheme auth.Scheme
}

type token struct {
	text string
	ends time.Time // zero: never, as a password
}

func newTokens() *tokens {
	all, err := lru.New[string, token](maxTokens)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &tokens{all: all}
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

// Set implements auth.Cache. Those who ask for the same token at the same time share one request; the one that asked
// first may leave.
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
		t.all.Add(name, token{text, life.ends})
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

// lifetime is when the token ends that is being fetched; lifetimeKey is its key in the context of that request, which
// so marks the requests to token servers.
type (
	lifetime    struct{ ends time.Time }
	lifetimeKey struct{}
)

// tokenTransport checks where tokens are fetched from, and notes when they end: the library does neither.
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
	// Here, because each redirect of the request comes through here too, with the password if it is on the same host.
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
