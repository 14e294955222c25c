package server

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"trow/registry/ocierror"
)

// Values of headers, each a slice without room for more: an append makes a copy, so that all answers can share them.
var (
	varyOrigin  = []string{"Origin"}
	corsMethods = []string{"GET, HEAD, POST, PATCH, PUT, DELETE"}
	corsHeaders = []string{"Authorization, Accept, Content-Type, Content-Range, Range, If-Match, If-None-Match"}
	corsExposed = []string{"Content-Range, Docker-Content-Digest, Docker-Distribution-Api-Version, " +
		"Docker-Upload-UUID, ETag, Link, Location, OCI-Filters-Applied, OCI-Namespace, OCI-Subject, OCI-Tag, Range, " +
		"Retry-After, Trow-Stale, Warning, Www-Authenticate, X-Request-Id"}
	corsMaxAge = []string{"600"}
)

// endIfAmbiguous makes a request with both Content-Length and Transfer-Encoding the last one of its connection (RFC
// 9112, section 6.1): a proxy may take the rest of it for the next client's request. net/http reads it as chunked, and
// removes the Content-Length before a handler could see it, so that c has to know; where it does not, all chunked
// requests count. Of HTTP/1.0 net/http ignores the Transfer-Encoding, and so may not the proxy: where there may be one,
// the request is the last as well.
func endIfAmbiguous(h http.Header, r *http.Request, c *conn) {
	if len(r.TransferEncoding) > 0 && (c == nil || c.wire.head.ambiguous()) ||
		!r.ProtoAtLeast(1, 1) && (c == nil || c.wire.head.encoded()) {
		h.Set("Connection", "close")
	}
}

// secured adds the headers of [ocierror.Secure] to the answers of h.
func secured(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ocierror.Secure(w.Header())
		h.ServeHTTP(w, r)
	})
}

// origins decides what pages of other origins may do in a browser. Clients that are not browsers send neither Origin
// nor Sec-Fetch-Site, and are not affected.
type origins struct {
	allowed    []string // that may use the API
	tokenPath  string   // beside the API; empty: none
	protection http.CrossOriginProtection
}

// newOrigins returns the origins of valid options.
func newOrigins(o *Options) *origins {
	c := &origins{allowed: o.CORSOrigins, tokenPath: o.TokenPath}
	for _, origin := range o.CORSOrigins {
		_ = c.protection.AddTrustedOrigin(origin) // Validate has checked it; one that is not trusted is refused
	}
	return c
}

// checkOrigins reports the first origin that is not of the form https://host[:port], as browsers send it.
func checkOrigins(all []string) error {
	for _, origin := range all {
		u, err := url.Parse(origin)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Contains(origin, "*") ||
			origin != "https://"+strings.ToLower(u.Host) || u.Port() == "443" || strings.HasSuffix(u.Host, ":") {
			return fmt.Errorf("cors-origins: %.100q is not a valid origin; want https://host[:port], in lower case, "+
				"without a path and without port 443", origin)
		}
	}
	return nil
}

// answer answers a preflight request of an allowed origin, and refuses a request that a page of another origin has made
// to change something. It reports whether it has answered.
func (c *origins) answer(w http.ResponseWriter, r *http.Request) bool {
	if len(c.allowed) > 0 && c.allow(w.Header(), r) {
		w.WriteHeader(http.StatusNoContent)
		return true
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead || c.protection.Check(r) == nil {
		return false
	}
	writeError(w, r, &ocierror.Error{Code: ocierror.Denied, Message: "cross-origin request refused"})
	return true
}

// allow adds what lets the page of an allowed origin see the answer. Cookies are never part of that: the registry has
// none, and Access-Control-Allow-Credentials is not sent. It reports whether the request is a preflight (Fetch
// standard, section 3.3), for which the header says all.
func (c *origins) allow(h http.Header, r *http.Request) (preflight bool) {
	if !ocierror.IsPath(r.URL.Path) && (c.tokenPath == "" || r.URL.Path != c.tokenPath) {
		return false
	}
	h["Vary"] = varyOrigin // also of an answer to another origin, which a cache must not return to an allowed one
	origin := r.Header["Origin"]
	if len(origin) != 1 || !slices.Contains(c.allowed, origin[0]) {
		return false
	}
	h["Access-Control-Allow-Origin"] = []string{origin[0]}
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		h["Access-Control-Expose-Headers"] = corsExposed
		return false
	}
	h["Access-Control-Allow-Methods"] = corsMethods
	h["Access-Control-Allow-Headers"] = corsHeaders
	h["Access-Control-Max-Age"] = corsMaxAge
	return true
}
