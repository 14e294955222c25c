package server

import (
	"net/http"
	"net/url"
	"strings"

	"trow/registry/ocierror"
)

// MethodNotAllowed answers requests whose path exists and whose method does not. api answers those below /v2 in the
// form of the distribution API.
func MethodNotAllowed(api http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if ocierror.IsPath(r.URL.Path) {
			api.ServeHTTP(w, r)
			return
		}
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	}
}

// Route annotates the requests of a handler with a route, for the access log and the metrics.
func Route(route string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		Annotate(r.Context(), "route", route)
		h.ServeHTTP(w, r)
	})
}

// NotFound answers requests to other paths; hint says where something is.
func NotFound(hint string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not found: "+hint, http.StatusNotFound) }
}

// below returns a URL without the prefix of its path, and others as they are. The prefix has no characters that need
// escaping.
func below(prefix string, u *url.URL) *url.URL {
	path, ok := strings.CutPrefix(u.Path, prefix)
	raw, rawOK := strings.CutPrefix(u.RawPath, prefix)
	if !ok || u.RawPath != "" && !rawOK || path != "" && path[0] != '/' {
		return u
	}
	cut := *u
	if cut.Path, cut.RawPath = path, raw; path == "" {
		cut.Path = "/"
	}
	return &cut
}
