package registry

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"trow/registry/namespace"
	"trow/storage"
)

// redirectLife is how long the URL of a redirect is valid. Clients use it at once, but the clock of the service may
// differ from ours by minutes.
const redirectLife = 10 * time.Minute

// beginLife is how long cached content is not chosen for eviction after a client was redirected to it. By then the
// client has begun to read, and services finish an answer that they have begun, even if the object is deleted in the
// meantime.
const beginLife = time.Minute

// answeredHere are the headers of requests that are never redirected. Conditions are about the entity tags of this
// registry; the service has others. Pages in a browser (Origin) may read from this server (CORS), but perhaps not from
// the service.
var answeredHere = []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range",
	"Origin"}

// redirect answers a GET of a blob that the repository holds with a URL of the service that has the bytes, and reports
// whether it did. parts is the number of ranges that are asked for; 0: the whole blob. If it returns false, nothing was
// written, and the bytes are to be sent from here.
func (r *Registry) redirect(w http.ResponseWriter, req *http.Request, b blob, parts int) bool {
	if !r.options.Redirected.Contain(req.RemoteAddr) { // first: it is all that this costs without the setting
		return false
	}
	service, ok := r.options.Blobs.(storage.Redirector)
	// Small blobs are in memory, and bytes from an upstream may not be in the service yet.
	if !ok || b.source != nil || b.size <= smallBlob || !redirectable(req.Header, parts) {
		return false
	}
	to, err := service.Redirect(req.Context(), b.digest, redirectLife)
	if err != nil { // the engine's errors have no URL
		r.annotate(req.Context(), "err", "not redirected: "+err.Error())
		return false
	}
	if len(req.Header["Authorization"]) > 0 {
		// A proxy may have changed the Host: the client knows this registry by one of its names then.
		own := func(name string) bool { return getsLogin(to, name) }
		if own(req.Host) || slices.ContainsFunc(r.options.Names, own) {
			return false
		}
	}
	if r.options.Cache != nil && namespace.Within(b.repo) { // the use of this request ends before the client reads
		time.AfterFunc(beginLife, r.use(b.repo, b.digest))
	}
	h := w.Header()
	h.Set("Location", to)              // a secret, but in no log: the access log has no headers of answers
	h.Set("Cache-Control", "no-store") // the URL is for this client, and expires
	w.WriteHeader(http.StatusTemporaryRedirect)
	return true
}

// redirectable reports whether the service would answer a request with these headers as this registry does. Services
// send one range at most, and some refuse what they cannot parse.
func redirectable(h http.Header, parts int) bool {
	for _, name := range answeredHere {
		if len(h[name]) > 0 {
			return false
		}
	}
	ranges := h["Range"]
	return len(ranges) == 0 || len(ranges) == 1 && parts == 1 && strings.HasPrefix(ranges[0], "bytes=") &&
		!strings.ContainsAny(ranges[0], ", ")
}

// getsLogin reports whether clients would send the login for own, a host[:port], to the URL as well: net/http, and so
// containerd, Docker and podman, sends it to the same host at any port, and to its subdomains. The service must not get
// it, and refuses a request that has a login besides the signature in the URL.
func getsLogin(to, own string) bool {
	u, err := url.Parse(to)
	if err != nil {
		return true
	}
	host, own := strings.ToLower(u.Hostname()), strings.ToLower((&url.URL{Host: own}).Hostname())
	return host == own || strings.HasSuffix(host, "."+own)
}
