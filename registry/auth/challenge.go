package auth

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"trow/registry/address"
)

// basicChallenge asks for a user name and a password (RFC 7617).
const basicChallenge = `Basic realm="trow", charset="UTF-8"`

// TokenPath is the path of the token endpoint.
const TokenPath = "/token"

// Challenge implements Authorizer. Bearer is for registry clients, Basic for all others. But Docker obeys every
// challenge on GET /v2/, and without credentials gives up at Basic: where something is open to all, there is only
// Bearer. Docker shows the description to its user: without it, it reports that access is denied where all that is
// missing is a login.
func (g *Guard) Challenge(r *http.Request, repo string, a Action, err error) []string {
	scheme, host := g.base(r)
	realm := scheme + "://" + host + g.prefix() + TokenPath + realmQuery(r)
	bearer := `Bearer realm="` + realm + `",service="` + host + `"`
	if scope := scopeOf(repo, a); scope != "" {
		bearer += `,scope="` + scope + `"`
	}
	if t := (*tokenError)(nil); errors.As(err, &t) {
		bearer += `,error="` + t.code + `",error_description="` + t.message + `"`
	}
	if a == Login && !g.state.Load().policy.closed() {
		return []string{bearer}
	}
	return []string{bearer, basicChallenge}
}

// scopeOf returns the scope that a token needs for an action. repo is a valid name.
func scopeOf(repo string, a Action) string {
	switch a {
	case Pull, Delete:
		return "repository:" + repo + ":" + string(a)
	case Create, Push: // Docker's clients know no other word
		return "repository:" + repo + ":pull,push"
	case Catalog:
		return "registry:catalog:*"
	}
	return ""
}

// base returns the address by which the client reaches the registry: the setting public-url, or the Host header. The
// headers that proxies add are ignored, because any client can send them, except the scheme that a trusted proxy says.
func (g *Guard) base(r *http.Request) (scheme, host string) {
	_, site := g.options.Namespaces.Site(r.Host)
	switch {
	case g.url != nil && !site:
		return g.url.Scheme, g.url.Host
	case g.url != nil && ValidHost(r.Host): // the host says which registry is meant
		return g.url.Scheme, strings.ToLower(r.Host)
	}
	scheme = "http"
	if r.TLS != nil || g.behindTLS(r) {
		scheme = "https"
	}
	if host = strings.ToLower(r.Host); ValidHost(host) {
		return scheme, host
	}
	return scheme, g.fallback
}

// behindTLS reports whether a trusted proxy says that its client speaks TLS. Where several proxies follow each other,
// and each adds its own client's scheme, the first value is what the client itself speaks. A client that sends such a
// header misleads only itself.
func (g *Guard) behindTLS(r *http.Request) bool {
	if len(g.proxies) == 0 {
		return false
	}
	said, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Proto"), ",")
	if !strings.EqualFold(strings.TrimSpace(said), "https") {
		return false
	}
	return g.proxies.Contain(r.RemoteAddr)
}

// parseProxies reads the setting trusted-proxies.
func parseProxies(all []string) (address.Networks, error) {
	proxies, err := address.ParseNetworks(all)
	if err != nil {
		return nil, fmt.Errorf("trusted-proxies: %w", err)
	}
	return proxies, nil
}

// ValidHost reports whether s is a host[:port] that can stand in a challenge: an IP address or a name of letters,
// digits, '.', '_' and '-'. The command pull-secret checks the names of servers with it.
func ValidHost(s string) bool {
	const max = 255
	if s == "" || len(s) > max {
		return false
	}
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i != -1 && !strings.HasSuffix(s, "]") {
		host, port = s[:i], s[i+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		addr, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		return err == nil && strings.HasSuffix(inner, "]") && addr.Is6() && addr.Zone() == ""
	}
	return host != "" && !strings.ContainsFunc(host, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("._-", c))
	})
}

// validPrefix reports whether a path is empty, or elements of letters, digits, '.', '_', '~' and '-', none of them . or
// ..
func validPrefix(path string) bool {
	if path == "" {
		return true
	}
	for element := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if element == "" || strings.Trim(element, ".") == "" || strings.ContainsFunc(element, func(c rune) bool {
			return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
				strings.ContainsRune("._~-", c))
		}) {
			return false
		}
	}
	return true
}

// Prefix returns the path of public-url, below which clients see /v2: /path, or empty. The options are valid.
func (o *Options) Prefix() string {
	u, err := parseURL(o.PublicURL)
	if err != nil || u == nil {
		return ""
	}
	return u.Path
}

// prefix is Options.Prefix.
func (g *Guard) prefix() string {
	if g.url == nil {
		return ""
	}
	return g.url.Path
}

// parseURL reads the setting public-url. nil: it is not set.
func parseURL(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(strings.TrimSuffix(text, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || !ValidHost(u.Host) || !validPrefix(u.EscapedPath()) ||
		u.RawQuery != "" || u.User != nil || u.Fragment != "" {
		return nil, errors.New("public-url: want https://host[:port][/path]; the elements of a path have letters, " +
			"digits and . _ ~ -, and no % escapes")
	}
	if u.Path == "/v2" || strings.HasPrefix(u.Path, "/v2/") {
		return nil, errors.New("public-url: the path must not start with /v2, where the API is; a proxy that leaves " +
			"a part of that away changes the names of repositories")
	}
	u.Host = strings.ToLower(u.Host)
	return u, nil
}
