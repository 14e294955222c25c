package registry

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry/namespace"
	"trow/storage"
)

// endpoint is what a path addresses, whatever the method. The end-N are the rows in the distribution spec's table of
// endpoints.
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
	endpointHistory                   // /v2/<name>/manifest_history/<tag> (not in the spec; see OldPaths)
)

func (e endpoint) String() string {
	return [...]string{"base", "catalog", "blob", "manifest", "uploads", "upload", "tags", "referrers", "history"}[e]
}

// route is a parsed path.
type route struct {
	endpoint endpoint
	repo     string
	ref      string        // of a manifest: its tag or digest; of an upload: its ID
	digest   digest.Digest // of a blob, of referrers, and of a manifest that is addressed by digest
}

// uploads reports whether a request can bring bytes of a blob.
func (r *route) uploads(method string) bool {
	switch r.endpoint {
	case endpointUploads:
		return true
	case endpointUpload:
		return method == http.MethodPatch || method == http.MethodPut
	}
	return false
}

const (
	// maxName bounds a repository's name. Many clients allow 255 characters for host and name together (distribution
	// spec, "Pulling manifests").
	maxName = 255
	// maxUploadID bounds the ID of an upload before anything looks it up; ours have 63 characters, see sessions.
	maxUploadID = 64
)

// parseRoute parses a URL's path from the right, because a repository's name may contain any word of the API. No
// other code parses paths. Errors: NAME_INVALID, DIGEST_INVALID, MANIFEST_INVALID for a tag, BLOB_UPLOAD_UNKNOWN, and
// 404 for a path that is not part of the API.
func parseRoute(u *url.URL) (route, error) {
	path := u.Path
	switch path {
	case "/v2", "/v2/":
		return route{endpoint: endpointBase}, nil
	case "/v2/_catalog":
		return route{endpoint: endpointCatalog}, nil
	}
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok && isHistory(path) {
		rest, ok = path[1:], true
	}
	if !ok || strings.Contains(strings.ToLower(u.RawPath), "%2f") { // an escaped slash would move the boundaries
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

// split finds the endpoint's words in what follows /v2/. It does not check name and ref.
func split(rest string) (route, bool) {
	if repo, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		return route{endpoint: endpointTags, repo: repo}, true
	}
	if repo, ok := strings.CutSuffix(rest, "/blobs/uploads"); ok { // some clients omit the final slash
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
	if repo, ok := strings.CutSuffix(head, historyWord); ok {
		return route{endpoint: endpointHistory, repo: repo, ref: last}, true
	}
	return route{}, false
}

// checkRef checks the last element of the path, and parses it if it is a digest.
func (r *route) checkRef() error {
	var err error
	switch r.endpoint {
	case endpointBlob, endpointReferrers:
		r.digest, err = parseDigest(r.ref)
	case endpointManifest:
		if strings.Contains(r.ref, ":") { // no tag has a colon
			r.digest, err = parseDigest(r.ref)
			return err
		}
		if !namespace.ValidTag(r.ref) {
			return tagInvalid(r.ref)
		}
	case endpointHistory:
		if !namespace.ValidTag(r.ref) {
			return tagInvalid(r.ref)
		}
	case endpointUpload:
		if len(r.ref) > maxUploadID || strings.Contains(r.ref, "/") {
			return uploadUnknown(r.ref)
		}
	}
	return err
}

// parseDigest parses a digest of the path or the query. Errors: DIGEST_INVALID.
func parseDigest(s string) (digest.Digest, error) {
	d, err := storage.ParseDigest(s)
	if err != nil {
		return "", digestInvalid(s)
	}
	return d, nil
}

// ValidName reports whether name can be a repository's: elements of lower-case letters and digits, with '.', '_',
// '__' or any number of '-' between them, separated by slashes (distribution spec, "Pulling manifests").
func ValidName(name string) bool {
	return len(name) <= maxName && namespace.ValidRepo(name)
}
