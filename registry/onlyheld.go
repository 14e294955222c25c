package registry

import (
	"context"
	"net/http"
	"strings"

	"trow/registry/namespace"
)

// onlyHeldKey is the key of the mark that onlyHeld makes.
type onlyHeldKey struct{}

// onlyHeld returns a request for content of another registry with a mark if it has Cache-Control: only-if-cached (RFC
// 9111, section 5.2.1.7): then it is answered with what is held, and the upstream is not asked. An import finds out in
// this way what it need not send: what the upstream has says nothing about what is held here.
func (c *call) onlyHeld(req *http.Request) *http.Request {
	if !namespace.Within(c.repo) || !onlyIfCached(req.Header) {
		return req
	}
	return req.WithContext(context.WithValue(req.Context(), onlyHeldKey{}, true))
}

// onlyIfCached reports whether a request has Cache-Control: only-if-cached.
func onlyIfCached(h http.Header) bool {
	for _, line := range h["Cache-Control"] {
		for directive := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(directive), "only-if-cached") {
				return true
			}
		}
	}
	return false
}

// isOnlyHeld reports whether a context has the mark of onlyHeld.
func isOnlyHeld(ctx context.Context) bool { return ctx.Value(onlyHeldKey{}) != nil }
