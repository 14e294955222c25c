package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"trow/registry/client"
)

// tokenServer is a registry that wants tokens, and counts how often it gives one.
type tokenServer struct {
	gives   atomic.Int64
	answer  string // with %d for the number of the token
	refuses func(token string) bool
}

func (s *tokenServer) RoundTrip(req *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	switch token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer "); {
	case req.URL.Host == "token.example":
		fmt.Fprintf(w, s.answer, s.gives.Add(1))
	case token == "" || s.refuses != nil && s.refuses(token):
		w.Header().Set("WWW-Authenticate",
			`Bearer realm="https://token.example/token",service="s",scope="repository:a:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
	resp := w.Result()
	resp.Request = req
	return resp, nil
}

func (s *tokenServer) client(t *testing.T, o client.Options) *client.Client {
	t.Helper()
	o.URL, o.HTTP = "https://registry.example", &http.Client{Transport: s}
	if o.Realm == nil {
		o.Realm = func(*url.URL) error { return nil }
	}
	c, err := client.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func fetch(ctx context.Context, c *client.Client, repo string) (int, error) {
	resp, err := c.Fetch(ctx, http.MethodGet, repo, "manifests", "v", nil)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// TestTokensEndBeforeTheyExpire: a token is used until shortly before the time that its server said, or for a minute.
func TestTokensEndBeforeTheyExpire(t *testing.T) {
	for answer, life := range map[string]time.Duration{
		`{"token":"t%d","expires_in":300}`:            270 * time.Second,
		`{"access_token":"t%d","expires_in":10}`:      9 * time.Second,
		`{"token":"t%d"}`:                             54 * time.Second,
		`{"token":"t%d","expires_in":-5}`:             54 * time.Second,
		`{"token":"t%d","expires_in":1e300}`:          24*time.Hour - 30*time.Second,
		`{"token":"t%d","expires_in":"not a number"}`: 54 * time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &tokenServer{answer: answer}
			c := s.client(t, client.Options{})
			for _, step := range []struct {
				wait time.Duration
				want int64
			}{{0, 1}, {life - time.Millisecond, 1}, {2 * time.Millisecond, 2}} {
				time.Sleep(step.wait)
				if status, err := fetch(t.Context(), c, "a"); err != nil || status != 200 ||
					s.gives.Load() != step.want {
					t.Errorf("%s: after %s more: %d, %v; %d tokens, want %d", answer, step.wait, status, err,
						s.gives.Load(),
						step.want)
				}
			}
		})
	}
}

// TestATokenIsFetchedOnceForAll who need it at the same time, also if the one that asked first leaves.
func TestATokenIsFetchedOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tokenServer{answer: `{"token":"t%d"}`}
		release := make(chan struct{})
		c := s.client(t, client.Options{Realm: func(*url.URL) error { <-release; return nil }})
		first, leave := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			_, err := fetch(first, c, "a")
			left <- err
		}()
		synctest.Wait()
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if status, err := fetch(t.Context(), c, "a"); err != nil || status != 200 {
					t.Errorf("%d, %v", status, err)
				}
			})
		}
		synctest.Wait()
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
		close(release)
		all.Wait()
		if n := s.gives.Load(); n != 1 {
			t.Errorf("%d tokens were fetched, want 1", n)
		}
	})
}

// TestARealmIsRefused before anything is sent to it, and the error of the caller is returned.
func TestARealmIsRefused(t *testing.T) {
	s := &tokenServer{answer: `{"token":"t%d"}`}
	refusal := errors.New("not there")
	c := s.client(t, client.Options{Username: "u", Password: "p", Realm: func(u *url.URL) error {
		if u.Host != "token.example" {
			t.Errorf("asked about %s", u)
		}
		return refusal
	}})
	if _, err := fetch(t.Context(), c, "a"); !errors.Is(err, refusal) || s.gives.Load() != 0 {
		t.Errorf("%v after %d requests to the realm", err, s.gives.Load())
	}
}

// TestAnAnswerWithATokenIsBounded like every answer.
func TestAnAnswerWithATokenIsBounded(t *testing.T) {
	s := &tokenServer{answer: `{"token":"t%d","x":"` + strings.Repeat("x", 1<<20) + `"}`}
	if _, err := fetch(t.Context(), s.client(t, client.Options{}), "a"); err == nil ||
		!strings.Contains(err.Error(), "more than 131072 bytes") {
		t.Error(err)
	}
}

// TestTokensAreBoundedInBytes: of those that do not fit, the ones that were used the longest ago are fetched again.
// With 1024 tokens of 128 KiB, an upstream took 128 MiB.
func TestTokensAreBoundedInBytes(t *testing.T) {
	for _, test := range []struct{ most, repos, kept int }{{0, 60, 41}, {300_000, 5, 2}, {50_000, 2, 0}} {
		s := &tokenServer{answer: `{"token":"t%d-` + strings.Repeat("x", 100_000) + `"}`}
		c := s.client(t, client.Options{Tokens: test.most})
		ask := func(i int) {
			t.Helper()
			if status, err := fetch(t.Context(), c, fmt.Sprint("r", i)); err != nil || status != http.StatusOK {
				t.Fatal(status, err)
			}
		}
		for i := range test.repos {
			ask(i)
		}
		given := s.gives.Load()
		for i := range test.kept {
			ask(test.repos - 1 - i)
		}
		if again := s.gives.Load() - given; given != int64(test.repos) || again != 0 {
			t.Errorf("%d bytes: %d tokens for %d repositories, then %d for the last %d", test.most, given, test.repos,
				again, test.kept)
		}
		if ask(0); s.gives.Load() != given+1 {
			t.Errorf("%d bytes: the first token of %d is kept", test.most, test.repos)
		}
	}
}

// TestABusyRegistryIsAskedOnce where the caller asked for that.
func TestABusyRegistryIsAskedOnce(t *testing.T) {
	n := 0
	c, err := client.New(client.Options{URL: "http://registry", Once: true, HTTP: &http.Client{
		Transport: transport(func(*http.Request) *http.Response {
			n++
			return &http.Response{StatusCode: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"7"}}}
		})}})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := fetch(t.Context(), c, "a"); err != nil || status != http.StatusTooManyRequests || n != 1 {
		t.Errorf("%d, %v after %d requests", status, err, n)
	}
}
