package auth

import (
	"net/http"
	"net/netip"
	"strings"
)

// local is anonymous as the sender of private requests: see [Guard.private].
var local = &Identity{local: true}

// private reports whether a request has certainly come from this machine, and not through a proxy or a browser: the
// listener is a loopback one, there is no public-url, the Host is a loopback name or address, and no header says that
// someone has forwarded the request. Each condition counts: a proxy on this machine connects from it, and a page whose
// name resolves to 127.0.0.1 (DNS rebinding) is the browser's, but its Host is that of the page.
//
// A proxy that rewrites the Host and adds no header cannot be recognized. Its owner must set public-url.
func (g *Guard) private(r *http.Request) bool {
	return g.options.Loopback && g.url == nil && loopbackHost(r.Host) && !forwarded(r.Header)
}

// loopbackHost reports whether a Host header names this machine: localhost or a name below it (RFC 6761, section 6.3),
// 127.0.0.0/8 or [::1], with or without a port.
func loopbackHost(host string) bool {
	if !ValidHost(host) {
		return false
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return addr.Unmap().IsLoopback()
	}
	host = strings.ToLower(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// forwarded reports whether a proxy says that it has forwarded the request: Forwarded (RFC 7239), Via (RFC 9110,
// section 7.6.3), and what proxies used before there was a standard.
func forwarded(h http.Header) bool {
	for key := range h {
		if key == "Forwarded" || key == "Via" || key == "X-Real-Ip" || strings.HasPrefix(key, "X-Forwarded-") {
			return true
		}
	}
	return false
}

// here returns who, or who as the sender of a private request. It is decided for each request, because the same token
// can come through a proxy the next time. Users and robots have the same rights wherever they come from.
func (g *Guard) here(r *http.Request, who *Identity) *Identity {
	if !g.options.Loopback || !who.Anonymous() && !who.Cluster && !who.cert || !g.private(r) {
		return who
	}
	if who == anonymous {
		return local
	}
	private := *who // others have the same identity, and may not be here
	private.local = true
	return &private
}
