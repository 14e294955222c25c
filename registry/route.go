package registry

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry/auth"
	"trow/storage"
)

// endpoint is what a path addresses, independent of the method. The end-N are the rows of the distribution
// spec's table of endpoints.
type endpoint int

const (
	endpointBase      endpoint = iota // /v2/ (end-1)
	endpointCatalog                   // /v2/_catalog (not in the spec; Docker's)
	endpointBlob                      // /v2/<name>/blobs/<digest> (end-2, end-10)
	endpointManifest                  // /v2/<name>/manifests/<tag-or-digest> (end-3, end-7, end-9)
	endpointUploads                   // /v2/<name>/blobs/uploads/ (end-4, end-11)
	endpointUpload                    // /v2/<name>/blobs/uploads/<id> (end-5, end-6, end-13, end-14)
	endpointTags                      // /v2/<name>/tags/list (end-8)
	endpointReferrers                 // /v2/<name>/referrers/<digest> (end-12)
)

func (e endpoint) String() string {
	return [...]string{"base", "catalog", "blob", "manifest", "uploads", "upload", "tags", "referrers"}[e]
}

// route is a path taken apart, and who takes it.
type route struct {
	endpoint endpoint
	repo     string
	ref      string        // of a manifest: tag or digest; of an upload: its id
	digest   digest.Digest // of a blob, of referrers, and of a manifest that is named by digest

	who    *auth.Identity // nil until the request is identified
	hidden bool           // the repository is not for who: it is as if it were not there
}

// uploads tells whether a request brings, or may bring, bytes of a blob.
func (r *route) uploads(method string) bool {
	return r.endpoint == endpointUploads || r.endpoint == endpointUpload && (method == http.MethodPatch || method == http.MethodPut)
}

const (
	// maxName bounds a repository's name; clients bound host, slash and name together likewise
	// (distribution spec, "Pulling manifests").
	maxName = 255
	maxTag  = 128
	// maxUploadID bounds the id of an upload before anybody looks it up.
	maxUploadID = 64
)

// parseRoute takes a URL's path apart, from the right, since any word is legal in a name. It is the only code
// that understands paths. Errors: NAME_INVALID, DIGEST_INVALID, a 404 for what is no endpoint.
func parseRoute(u *url.URL) (route, error) {
	path := u.Path
	switch path {
	case "/v2", "/v2/":
		return route{endpoint: endpointBase}, nil
	case "/v2/_catalog":
		return route{endpoint: endpointCatalog}, nil
	}
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok || strings.Contains(strings.ToLower(u.RawPath), "%2f") { // an escaped slash would move the borders
		return route{}, errNoEndpoint
	}
	r, ok := split(rest)
	if !ok {
		return route{}, errNoEndpoint
	}
	if !ValidName(r.repo) {
		return route{}, nameInvalid(r.repo)
	}
	return r, r.checkRef()
}

// split finds the endpoint's words in what follows /v2/.
func split(rest string) (route, bool) {
	if repo, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		return route{endpoint: endpointTags, repo: repo}, true
	}
	if repo, ok := strings.CutSuffix(rest, "/blobs/uploads"); ok { // the slash at the end is often forgotten
		return route{endpoint: endpointUploads, repo: repo}, true
	}
	i := strings.LastIndexByte(rest, '/')
	if i < 0 {
		return route{}, false
	}
	head, last := rest[:i], rest[i+1:]
	if repo, ok := strings.CutSuffix(head, "/blobs/uploads"); ok {
		if last == "" {
			return route{endpoint: endpointUploads, repo: repo}, true
		}
		return route{endpoint: endpointUpload, repo: repo, ref: last}, true
	}
	if repo, ok := strings.CutSuffix(head, "/manifests"); ok {
		return route{endpoint: endpointManifest, repo: repo, ref: last}, true
	}
	if repo, ok := strings.CutSuffix(head, "/blobs"); ok {
		return route{endpoint: endpointBlob, repo: repo, ref: last}, true
	}
	if repo, ok := strings.CutSuffix(head, "/referrers"); ok {
		return route{endpoint: endpointReferrers, repo: repo, ref: last}, true
	}
	return route{}, false
}

// checkRef checks the last word.
func (r *route) checkRef() error {
	switch r.endpoint {
	case endpointBlob, endpointReferrers:
		return r.parseDigest()
	case endpointManifest:
		if strings.Contains(r.ref, ":") {
			return r.parseDigest()
		}
		if !ValidTag(r.ref) {
			return tagInvalid(r.ref)
		}
	case endpointUpload:
		if len(r.ref) > maxUploadID || strings.Contains(r.ref, "/") {
			return uploadUnknown(r.ref)
		}
	}
	return nil
}

func (r *route) parseDigest() (err error) {
	if r.digest, err = storage.ParseDigest(r.ref); err != nil {
		return digestInvalid(r.ref)
	}
	return nil
}

// ValidName checks a repository's name: elements of lower-case letters and digits, with '.', '_', '__' or any
// number of '-' between them, separated by slashes (distribution spec, "Pulling manifests").
func ValidName(name string) bool {
	if len(name) > maxName {
		return false
	}
	for {
		element, rest, more := strings.Cut(name, "/")
		if !validElement(element) {
			return false
		}
		if !more {
			return true
		}
		name = rest
	}
}

func validElement(s string) bool {
	if s == "" || !alphanumeric(s[0]) || !alphanumeric(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if alphanumeric(s[i]) {
			i++
			continue
		}
		from := i
		for !alphanumeric(s[i]) { // the last one is
			i++
		}
		if sep := s[from:i]; sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// ValidTag checks a tag: [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127} (distribution spec, "Pulling manifests").
func ValidTag(s string) bool {
	if s == "" || len(s) > maxTag || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !alphanumeric(c) && !('A' <= c && c <= 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}
