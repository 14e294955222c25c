package address

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Local reports whether a request has certainly come from this machine, and not through a proxy or a browser that was
// misled: its connection comes from a loopback address, its Host is a loopback name or address, and no header says that
// someone has forwarded it. Each condition counts: a proxy on this machine connects from it, and a page whose name
// resolves to 127.0.0.1 (DNS rebinding) is the browser's, but its Host is that of the page.
//
// A proxy that rewrites the Host and adds no header cannot be recognized.
func Local(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback() && Direct(r)
}

// Direct reports whether a request names this machine, and nothing says that someone has forwarded it. A client that
// sends a whole URL takes this server for a proxy; where there is one before it, that may have looked at the Host
// header, while the Host of the request is that of the URL (RFC 9112, section 3.2.2).
func Direct(r *http.Request) bool {
	return r.URL.Host == "" && LoopbackHost(r.Host) && !Forwarded(r.Header)
}

// LoopbackHost reports whether a Host header names this machine: localhost or a name below it (RFC 6761, section 6.3),
// 127.0.0.0/8 or [::1], with or without a port.
func LoopbackHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return addr.Unmap().IsLoopback()
	}
	host = strings.ToLower(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// Forwarded reports whether a proxy says that it has forwarded the request: Forwarded (RFC 7239), Via (RFC 9110,
// section 7.6.3), and what proxies used before there was a standard, or use beside it: X-Forwarded-*, X-Real-IP,
// CF-Connecting-IP, True-Client-IP, X-Envoy-External-Address, X-Original-URL and the like, also with underscores.
func Forwarded(h http.Header) bool {
	for key := range h {
		if key == "Via" || strings.Contains(key, "orward") || strings.HasSuffix(key, "-Ip") ||
			// net/http writes only the first letter and those after hyphens in upper case
			strings.HasSuffix(key, "_ip") ||
			strings.HasPrefix(key, "X-Envoy-") || strings.HasPrefix(key, "X-Original-") {
			return true
		}
	}
	return false
}
