package client

import (
	"context"
	"net/http"
	"strings"
)

// marks are what the requests of a context have in addition to their method and path.
type marks struct {
	namespace string // for ?ns=
	held      bool
}

type marksKey struct{}

func marksOf(ctx context.Context) marks {
	m, _ := ctx.Value(marksKey{}).(marks)
	return m
}

// ForNamespace returns a context whose requests mean repositories of another registry, of which this one has the
// content: they have ?ns=HOST (distribution spec, "Registry Proxying").
func ForNamespace(ctx context.Context, host string) context.Context {
	m := marksOf(ctx)
	m.namespace = host
	return context.WithValue(ctx, marksKey{}, m)
}

// OnlyHeld returns a context whose requests ask only for what the registry holds: they have Cache-Control:
// only-if-cached, so that Trow does not ask an upstream.
func OnlyHeld(ctx context.Context) context.Context {
	m := marksOf(ctx)
	m.held = true
	return context.WithValue(ctx, marksKey{}, m)
}

// IsOnlyHeld reports whether a context was made by OnlyHeld.
func IsOnlyHeld(ctx context.Context) bool { return marksOf(ctx).held }

// NamespaceOf returns the host that ForNamespace has set, or an empty string.
func NamespaceOf(ctx context.Context) string { return marksOf(ctx).namespace }

// marking adds the marks of the context to requests to the API of one host: not to those for tokens, nor to where that
// host redirects.
type marking struct {
	base http.RoundTripper
	host string
}

func (t *marking) RoundTrip(req *http.Request) (*http.Response, error) {
	m := marksOf(req.Context())
	if m == (marks{}) || req.URL.Host != t.host || !strings.HasPrefix(req.URL.Path, "/v2/") {
		return t.base.RoundTrip(req)
	}
	req = req.Clone(req.Context())                               // a RoundTripper must not change its request
	if q := req.URL.Query(); m.namespace != "" && !q.Has("ns") { // a Location has it already
		q.Set("ns", m.namespace)
		req.URL.RawQuery = q.Encode()
	}
	if m.held {
		req.Header.Set("Cache-Control", "only-if-cached")
	}
	return t.base.RoundTrip(req)
}
