package auth

import (
	"net/http"

	"trow/registry/address"
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
	return g.options.Loopback && g.url == nil && ValidHost(r.Host) && address.Direct(r)
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
