// Package registry serves the OCI distribution API over storage: version 1.1.1 of
// https://github.com/opencontainers/distribution-spec, what its main branch has added since, and Docker's catalog.
//
// # Words
//
// The words are those of the specification: repository (repo), tag, digest, blob, manifest, referrer, subject. In
// addition:
//
//   - ref: a tag or a digest.
//   - upload: a blob that is being pushed. A session is an upload as one request holds it.
//   - call: one request, with what it addresses, who sent it and what was decided about it.
//   - place: the right to be under way; Options.MaxRequests bounds how many there are.
//
// # Invariants
//
//   - A request is parsed, then authorized, then carried out. Nothing of its body is read before it is authorized.
//   - Content is stored and returned byte for byte as pushed, with the media type it was pushed with.
//   - A manifest is accepted only if the repository holds everything it consists of, except its subject.
//   - Every answer under /v2 with the status of an error has the JSON body of the specification.
//   - Status and headers are sent after the last step that can fail with an answer. A failure after that breaks the
//     connection, so that a truncated body never looks complete.
//   - All content is read through manifest, manifestBytes, blob and openBlob, and all lists through tags, repos and
//     referrersOf (read.go).
//
// # What it does not do
//
// It knows nothing of Kubernetes. It does not decide who may do what (package auth) or how much (package limit). It
// writes no log: it reports who did what to Options.Audit and Options.Annotate.
package registry

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/address"
	"trow/registry/audit"
	"trow/registry/auth"
	"trow/registry/limit"
	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/ocierror"
	"trow/registry/upstream"
	"trow/storage"
)

// Options are the parts that a Registry consists of.
type Options struct {
	Blobs storage.Blobs
	Index *storage.Index
	Auth  auth.Authorizer
	// Redirected are the networks whose clients read blobs from the service behind Blobs, if that is a
	// [storage.Redirector]. Optional.
	Redirected address.Networks
	// Names are the host[:port] under which clients know this registry. A request with another name in ?ns= is meant
	// for a repository of another registry, which is below f/ here.
	Names []string
	// Namespaces maps those repositories to names below f/, and host names of this registry to other registries.
	// Optional.
	Namespaces *namespace.Table
	// Upstreams are asked for content that repositories below f/ do not hold; their Config.Names is Namespaces.
	// Optional.
	Upstreams *upstream.Upstreams
	// Fetcher downloads their blobs. Optional.
	Fetcher *upstream.Fetcher
	// Platforms are those for which images of other registries are fetched ahead. Where only held images may run, an
	// image must be here for all of them before a tag moves to it. nil: all platforms.
	Platforms []mirror.Platform
	// FetchFailed is called with each error of fetching ahead, and the upstream. Optional.
	FetchFailed func(upstream string, err error)
	// Cache bounds how much of their content is stored. Optional; with it, Drop deletes the bytes of contents that no
	// repository holds any more.
	Cache *mirror.Cache
	Drop  func(context.Context, []digest.Digest) error
	// Prefix is the path below which clients see /v2, for the locations and links of answers: /path, or empty. The
	// requests come without it.
	Prefix string
	// ReadOnly refuses everything but pulls and lists: nothing can be written to Blobs and Index.
	ReadOnly bool
	// Check verifies the bytes of content that could not be read as recorded, and records the damage. Optional.
	Check func(ctx context.Context, d digest.Digest) error
	// Immutable reports whether a tag must not be moved or deleted once it exists. Optional.
	Immutable func(repo, tag string) bool
	// RefuseForeign refuses images with layers that are not meant to be in a registry.
	RefuseForeign bool
	// Sparse reports whether a repository accepts an index of which only some manifests are here. Optional.
	Sparse func(repo string) bool
	// MaxReferences bounds the descriptors of a manifest that the repository does not hold yet. 0 means no limit.
	MaxReferences int
	// MaxRequests bounds the requests under way: pushes and all others have this many places each, so that neither
	// keeps the others out; limit.Places has how many of them one client may hold. 0 means no limit.
	MaxRequests int
	// Bodies bounds the memory of manifests that are pushed.
	Bodies Bodies
	// Answers bounds the memory of manifests and lists that clients receive; nil: there is no bound.
	Answers Answers
	// UploadTimeout is how long a session without bytes is valid; 0: 6 hours. UploadKey authenticates the IDs of
	// sessions; without it they end with the process. MaxUploadsPerClient bounds the uploads in storage of one client:
	// beyond it, its own that was idle the longest gives way. 0: no bound.
	UploadTimeout       time.Duration
	UploadKey           []byte
	MaxUploadsPerClient int
	// Limits bound the requests and bytes of each identity. Optional.
	Limits *limit.Limits
	// Annotate adds a fact to the request's line in the access log; the keys are route, repo, ref, digest, user, code
	// and err. Optional.
	Annotate func(ctx context.Context, key, value string)
	// RequestID returns the name of a request, for the client and the log. Optional.
	RequestID func(ctx context.Context) string
	// Audit receives each push of a manifest, each deletion and each refusal. The Authorizer reports failed logins.
	// Optional.
	Audit func(context.Context, audit.Event)
}

// Registry serves all paths under /v2. Make it with [New].
type Registry struct {
	options   Options
	contents  *cache[digest.Digest, []byte]        // verified bytes of manifests and small blobs
	referrers *cache[storage.Descriptor, referrer] // how manifests appear in lists of referrers
	// artifactTypes has more manifests than referrers, for lists of which only a part is asked for.
	artifactTypes *cache[storage.Descriptor, string]

	pushing, others *limit.Places // requests under way
	sessions        *sessions
	names           map[string]bool // canonical, of Options.Names
	cursors         cursors
	mirror          *mirror.Mirror // nil: there are no upstreams
	platforms       *platforms
}

// The caches are bounded by bytes. 16 MiB hold about 8,000 manifests of images.
const (
	contentCacheSize  = 16 << 20
	referrerCacheSize = 4 << 20
	artifactCacheSize = 4 << 20
)

// New returns a Registry that serves what o.Index and o.Blobs hold.
func New(o Options) *Registry {
	if o.Check == nil {
		o.Check = func(context.Context, digest.Digest) error { return nil }
	}
	if o.Answers == nil {
		o.Answers = unbounded{}
	}
	if o.Immutable == nil {
		o.Immutable = func(string, string) bool { return false }
	}
	if o.Sparse == nil {
		o.Sparse = func(string) bool { return false }
	}
	if o.Annotate == nil {
		o.Annotate = func(context.Context, string, string) {}
	}
	if o.Audit == nil {
		o.Audit = func(context.Context, audit.Event) {}
	}
	sessions := newSessions(o.UploadKey, o.UploadTimeout, o.MaxUploadsPerClient)
	r := &Registry{options: o,
		contents:  newCache[digest.Digest, []byte](contentCacheSize),
		referrers: newCache[storage.Descriptor, referrer](referrerCacheSize),
		pushing:   limit.NewPlaces(o.MaxRequests),
		others:    limit.NewPlaces(o.MaxRequests),
		sessions:  sessions,
		names:     canonical(o.Names),
		cursors:   newCursors(sessions.key),

		artifactTypes: newCache[storage.Descriptor, string](artifactCacheSize)}
	r.mirror, r.platforms = r.newMirror(), newPlatforms(r.contents.get, r.content, false)
	return r
}

// canonical returns the canonical forms of names that have one.
func canonical(names []string) map[string]bool {
	all := map[string]bool{}
	for _, name := range names {
		if host, err := address.Host(name); err == nil {
			all[host] = true
		}
	}
	return all
}

func (r *Registry) annotate(ctx context.Context, key, value string) {
	if value != "" {
		r.options.Annotate(ctx, key, value)
	}
}

// call is one request on its way through the registry. It travels by pointer, and each step fills in its part: serve
// the route and the action, identify the identity, handle the verdict.
type call struct {
	route        // its repo is the one here
	asked  asked // how the client names it
	action auth.Action
	who    *auth.Identity // nil until the request is identified
	client limit.Client   // who, or the address without a login
	hidden bool           // who must not learn whether the repository exists
	create error          // not nil: who may create and not push; an ErrCreateOnly
}

// handler answers one method of one endpoint.
type handler struct {
	action auth.Action
	serve  func(*Registry, http.ResponseWriter, *http.Request, *call) error
}

// handlers is the API: endpoint, method, what the client must be allowed to do, and what answers.
var handlers = map[endpoint]map[string]handler{
	endpointBase: {
		http.MethodGet:  {auth.Login, (*Registry).base},
		http.MethodHead: {auth.Login, (*Registry).base},
	},
	endpointCatalog: {
		http.MethodGet:  {auth.Catalog, (*Registry).listRepos},
		http.MethodHead: {auth.Catalog, (*Registry).listRepos},
	},
	endpointTags: {
		http.MethodGet:  {auth.Pull, (*Registry).listTags},
		http.MethodHead: {auth.Pull, (*Registry).listTags},
	},
	endpointReferrers: {
		http.MethodGet:  {auth.Pull, (*Registry).listReferrers},
		http.MethodHead: {auth.Pull, (*Registry).listReferrers},
	},
	endpointHistory: {
		http.MethodGet:  {auth.Pull, (*Registry).history},
		http.MethodHead: {auth.Pull, (*Registry).history},
	},
	endpointManifest: {
		http.MethodGet:    {auth.Pull, (*Registry).getManifest},
		http.MethodHead:   {auth.Pull, (*Registry).getManifest},
		http.MethodPut:    {auth.Push, (*Registry).putManifest},
		http.MethodDelete: {auth.Delete, (*Registry).deleteManifest},
	},
	endpointBlob: {
		http.MethodGet:    {auth.Pull, (*Registry).getBlob},
		http.MethodHead:   {auth.Pull, (*Registry).getBlob},
		http.MethodDelete: {auth.Delete, (*Registry).deleteBlob},
	},
	endpointUploads: {
		http.MethodPost: {auth.Push, (*Registry).startUpload},
	},
	endpointUpload: {
		http.MethodGet:    {auth.Push, (*Registry).uploadStatus},
		http.MethodPatch:  {auth.Push, (*Registry).patchUpload},
		http.MethodPut:    {auth.Push, (*Registry).putUpload},
		http.MethodDelete: {auth.Push, (*Registry).cancelUpload},
	},
}

// ServeHTTP answers a request to a path under /v2.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0") // legacy, but old clients look for it
	if err := r.serve(w, req); err != nil {
		r.writeError(w, req, err)
	}
}

// serve parses the request, finds its handler, and takes the steps that all requests share.
func (r *Registry) serve(w http.ResponseWriter, req *http.Request) error {
	rt, err := parseRoute(req.URL)
	if err != nil {
		return err
	}
	ctx := req.Context()
	r.annotate(ctx, "route", rt.endpoint.String())
	r.annotate(ctx, "ref", rt.ref)
	h, ok := handlers[rt.endpoint][req.Method]
	if !ok {
		r.annotate(ctx, "repo", rt.repo)
		return methodUnsupported(rt.endpoint)
	}
	c := &call{route: rt, action: h.action}
	err = r.place(req, c)
	r.annotate(ctx, "repo", c.repo)
	if err != nil {
		return err
	}
	req = c.onlyHeld(c.marked(req))
	ctx = req.Context()

	// The place comes first: verifying credentials can take long, and so counts as being under way.
	places := r.placesFor(c.action)
	defer places.Leave()
	if !places.Take() && !r.unlimited(req) {
		return tooManyRequests()
	}
	addr := auth.Address(req)
	if err := r.identify(req, c, places, addr); err != nil {
		return err
	}
	r.annotate(ctx, "user", c.who.Name)
	held, ok := places.Hold(c.client)
	defer held.Release()
	if !ok && !c.who.Unlimited() {
		return tooManyOfClient(c.client)
	}
	pass, err := r.options.Limits.Enter(c.who, addr, rt.uploads(req.Method))
	if err != nil {
		return limitError(err)
	}
	defer pass.Leave()
	w, body := pass.Shape(ctx, w, req.Body)
	if body != req.Body { // the caller's request must not change
		shaped := *req
		shaped.Body, req = body, &shaped
	}
	err = r.handle(w, req, c, h)
	r.auditRefusal(req, c, err)
	return err
}

// identify finds out who has sent a request. While credentials are being verified, which can take long, the request
// counts for its address: credentials that may be made up must not keep other clients out.
func (r *Registry) identify(req *http.Request, c *call, places *limit.Places, addr netip.Addr) (err error) {
	if len(req.Header["Authorization"]) > 0 {
		who := limit.Unverified(addr)
		held, ok := places.Hold(who)
		defer held.Release()
		if !ok && !r.unlimited(req) {
			return tooManyOfClient(who)
		}
	}
	if c.who, err = r.options.Auth.Identify(req); err != nil {
		return r.refusal(req, c, err)
	}
	c.client = limit.ClientOf(c.who, addr)
	return nil
}

// placesFor returns the places that a request of this action shares with others.
func (r *Registry) placesFor(a auth.Action) *limit.Places {
	if a == auth.Push {
		return r.pushing
	}
	return r.others
}

// unlimited reports whether a request gets a place although all are taken. It leaves out the credentials: verifying
// them is what an overloaded registry must not do, and the one identity without limits, the socket's, has none.
func (r *Registry) unlimited(req *http.Request) bool {
	bare := *req
	bare.Header = http.Header{}
	who, err := r.options.Auth.Identify(&bare)
	return err == nil && who.Unlimited()
}

// handle authorizes a call and calls its handler. It alone decides what hidden means.
func (r *Registry) handle(w http.ResponseWriter, req *http.Request, c *call, h handler) error {
	if err := r.fold(req.Context(), c); err != nil {
		return err
	}
	err := r.authorize(req.Context(), c)
	c.hidden = errors.Is(err, auth.ErrHidden)
	if errors.Is(err, auth.ErrCreateOnly) { // what it pushes may be new: admissible decides, when it sees the tags
		c.create, err = err, nil
	}
	if err != nil && !c.hidden {
		return r.refusal(req, c, err)
	}
	if r.options.ReadOnly && (c.action == auth.Push || c.action == auth.Delete) {
		return readOnly(c.endpoint)
	}
	if c.action == auth.Push || c.action == auth.Delete {
		if err := r.options.Index.Sealed(); err != nil {
			return err // before bytes are sent; see internal
		}
	}
	return r.answer(w, req, c, h)
}

// authorize returns nil if a call may do what it asks for. If a read of content of another registry is refused, that
// registry may have to be asked whether everybody may read it; then it decides again. Errors: as auth.Authorizer;
// UNAVAILABLE if that registry cannot be asked.
func (r *Registry) authorize(ctx context.Context, c *call) error {
	err := r.options.Auth.Authorize(ctx, c.who, c.repo, c.action)
	if err == nil || r.options.Upstreams == nil || c.action != auth.Pull || !namespace.Within(c.repo) {
		return err
	}
	kind, ref := "", ""
	switch c.endpoint {
	case endpointManifest:
		kind, ref = "manifests", c.ref
	case endpointBlob:
		kind, ref = "blobs", c.digest.String()
	}
	if learnErr := r.options.Upstreams.Learn(ctx, c.repo, kind, ref); errors.Is(learnErr, upstream.ErrUnavailable) {
		return mirrorError(&ocierror.Error{}, learnErr)
	}
	return r.options.Auth.Authorize(ctx, c.who, c.repo, c.action)
}

// refusal turns an error of the Authorizer into what the client gets.
func (r *Registry) refusal(req *http.Request, c *call, err error) error {
	switch {
	case errors.Is(err, auth.ErrUnauthorized):
		challenge := r.options.Auth.Challenge(req, c.repo, c.action, err)
		return &ocierror.Error{Code: ocierror.Unauthorized, Message: err.Error(),
			Header: http.Header{"Www-Authenticate": challenge}}
	case errors.Is(err, auth.ErrDenied):
		if n, ok := r.options.Namespaces.Upstream(c.repo); ok && c.action == auth.Pull && c.who.Anonymous() {
			return pullThere(n.Host, err, n.String()+" is not for everybody, and this registry has no logins")
		}
		return &ocierror.Error{Code: ocierror.Denied, Message: err.Error()}
	case errors.Is(err, auth.ErrBusy):
		return &ocierror.Error{Code: ocierror.TooManyRequests, Message: err.Error(), Header: ocierror.RetryAfter(1)}
	case errors.Is(err, auth.ErrUnavailable):
		// Not err's own text: it may name machines of the cluster.
		return &ocierror.Error{Code: ocierror.Unavailable, Cause: err,
			Header: ocierror.RetryAfter(1), Message: auth.ErrUnavailable.Error()}
	}
	return err
}

// absent answers about a hidden repository exactly as the handlers answer about one that does not exist. Only pulls are
// hidden, so the endpoints here are those with the action Pull.
func (r *Registry) absent(w http.ResponseWriter, req *http.Request, c *call) error {
	switch c.endpoint {
	case endpointManifest, endpointHistory:
		return manifestUnknown(c.repo, c.ref)
	case endpointBlob:
		return blobUnknown(c.repo, c.digest)
	case endpointReferrers:
		q, err := parseReferrersQuery(req.URL.Query())
		if err != nil {
			return err
		}
		return r.writeReferrers(w, req, c, q, referrersFound{}, uncounted)
	}
	if _, err := parsePage(req.URL.Query()); err != nil {
		return err
	}
	return nameUnknown(c.repo)
}

// base answers end-1: the API is here.
func (r *Registry) base(w http.ResponseWriter, req *http.Request, _ *call) error {
	write(w, req, "application/json", []byte("{}"))
	return nil
}
