package auth

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// basicChallenge asks for a user and a password (RFC 7617).
const basicChallenge = `Basic realm="trow", charset="UTF-8"`

// TokenPath is where the token endpoint has to be.
const TokenPath = "/token"

// Challenge implements Authorizer. Bearer is for the clients of registries, Basic for all others. But Docker heeds every
// challenge that it finds on GET /v2/, and without credentials gives up at the second one: so where something is open to
// all, there is only the first. The description is what Docker tells its user: without one it says that he may not, where
// all that he has to do is to log in.
func (g *Guard) Challenge(r *http.Request, repo string, a Action, err error) []string {
	scheme, host := g.base(r)
	bearer := `Bearer realm="` + scheme + "://" + host + TokenPath + `",service="` + host + `"`
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

// scopeOf is what a token has to be good for. repo is a valid name.
func scopeOf(repo string, a Action) string {
	switch a {
	case Pull, Delete:
		return "repository:" + repo + ":" + string(a)
	case Push:
		return "repository:" + repo + ":pull,push"
	case Catalog:
		return "registry:catalog:*"
	}
	return ""
}

// base is the address by which the client reaches us: what the settings say, or the Host that the client itself has
// asked for. Whatever a proxy adds is not believed: anybody could.
func (g *Guard) base(r *http.Request) (scheme, host string) {
	if g.url != nil {
		return g.url.Scheme, g.url.Host
	}
	scheme = "http"
	if r.TLS != nil {
		scheme = "https"
	}
	if host = strings.ToLower(r.Host); ValidHost(host) {
		return scheme, host
	}
	return scheme, g.fallback
}

// ValidHost checks a host[:port]: an IP address or a name of letters, digits, '.', '_' and '-'.
func ValidHost(s string) bool {
	const most = 255
	if s == "" || len(s) > most {
		return false
	}
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
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
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-')
	})
}

// parseURL reads the setting public-url.
func parseURL(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(strings.TrimSuffix(text, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || !ValidHost(u.Host) || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
		return nil, errors.New("it is not https://host[:port]")
	}
	u.Host = strings.ToLower(u.Host)
	return u, nil
}
