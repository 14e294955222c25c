// Package registry is the OCI distribution API over storage: https://github.com/opencontainers/distribution-spec,
// version 1.1.1 and what its main branch has since added, and Docker's catalog.
//
// # Words
//
// As the spec has them: repository (repo), tag, digest, blob, manifest, referrer, subject; ref is a tag or a
// digest. An upload is a blob in the making. A fault is an error that a client is told.
//
// # Invariants
//
//   - A request is parsed, authorized and only then acted upon; nothing is read of a body before that.
//   - Bytes are stored and returned exactly as they came, under the media type they came with.
//   - A manifest is taken only if the repository holds all that it consists of, a subject excepted.
//   - Every answer under /v2 that is not a success has the spec's JSON body.
//   - Status and headers go out after the last thing that can fail. What fails later breaks the connection, so
//     that a short body never looks whole.
//
// # What it does not do
//
// It knows nothing of Kubernetes, and it does not decide who may do what (package auth does), nor how much (package limit).
// It writes nothing down: who did what is told to the program.
package registry

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"trow/registry/audit"
	"trow/registry/auth"
	"trow/registry/limit"
	"trow/storage"
)

// Options are what a Registry is made of.
type Options struct {
	Blobs storage.Blobs
	Index *storage.Index
	Auth  auth.Authorizer
	// Names are the host[:port] under which this registry is known. A pull that says by ?ns= that it is meant
	// for another one is not answered with what happens to have the same name here.
	Names []string
	// Check is told of content whose bytes were not found as they should be; it looks into it. Optional.
	Check func(ctx context.Context, d digest.Digest) error
	// Immutable tells whether a tag may never name anything else once it is set, nor end. Optional.
	Immutable func(repo, tag string) bool
	// MaxRequests is how many requests may be under way at once: so many that push, and so many others, so that
	// neither keep the others out. More are refused. 0 means no limit.
	MaxRequests int
	// Limits bound what each identity may take. Optional.
	Limits *limit.Limits
	// NoQuotas: pushes are taken whatever the Index's quotas say.
	NoQuotas bool
	// Annotate attaches a fact about the request to its line in the access log; keys are route, repo, ref,
	// digest, user, code and err. Optional.
	Annotate func(ctx context.Context, key, value string)
	// RequestID names a request towards the client and in the log. Optional.
	RequestID func(ctx context.Context) string
	// Audit is told of each manifest that is pushed, of all that is deleted, and of who is refused. Failed logins the
	// Authorizer tells. Optional.
	Audit func(context.Context, audit.Event)
}

// Registry serves everything under /v2. Make it with [New].
type Registry struct {
	options   Options
	contents  *cache[digest.Digest, []byte]        // bytes of manifests and small blobs, verified
	referrers *cache[storage.Descriptor, referrer] // their descriptors in a list of referrers

	pushing, others atomic.Int64 // requests under way
}

// The caches are bounded by bytes. 16 MiB is about 8,000 manifests of images.
const (
	contentCacheSize  = 16 << 20
	referrerCacheSize = 4 << 20
)

// New makes a Registry.
func New(o Options) *Registry {
	if o.Check == nil {
		o.Check = func(context.Context, digest.Digest) error { return nil }
	}
	if o.Immutable == nil {
		o.Immutable = func(string, string) bool { return false }
	}
	if o.Annotate == nil {
		o.Annotate = func(context.Context, string, string) {}
	}
	if o.Audit == nil {
		o.Audit = func(context.Context, audit.Event) {}
	}
	return &Registry{options: o, contents: newCache[digest.Digest, []byte](contentCacheSize), referrers: newCache[storage.Descriptor, referrer](referrerCacheSize)}
}

func (r *Registry) annotate(ctx context.Context, key, value string) {
	if value != "" {
		r.options.Annotate(ctx, key, value)
	}
}

// handler answers one method of one endpoint.
type handler struct {
	action auth.Action
	serve  func(*Registry, http.ResponseWriter, *http.Request, route) error
}

// handlers is the API: endpoint, method, what it takes to be allowed, what happens.
var handlers = map[endpoint]map[string]handler{
	endpointBase: {
		http.MethodGet:  {auth.Login, (*Registry).base},
		http.MethodHead: {auth.Login, (*Registry).base},
	},
	endpointCatalog: {
		http.MethodGet:  {auth.Catalog, (*Registry).catalog},
		http.MethodHead: {auth.Catalog, (*Registry).catalog},
	},
	endpointTags: {
		http.MethodGet:  {auth.Pull, (*Registry).tags},
		http.MethodHead: {auth.Pull, (*Registry).tags},
	},
	endpointReferrers: {
		http.MethodGet:  {auth.Pull, (*Registry).listReferrers},
		http.MethodHead: {auth.Pull, (*Registry).listReferrers},
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
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0") // legacy, but old tools look for it
	if err := r.serve(w, req); err != nil {
		r.writeError(w, req, err)
	}
}

// serve parses, and finds the handler.
func (r *Registry) serve(w http.ResponseWriter, req *http.Request) error {
	rt, err := parseRoute(req.URL)
	if err != nil {
		return err
	}
	ctx := req.Context()
	r.annotate(ctx, "route", rt.endpoint.String())
	r.annotate(ctx, "repo", rt.repo)
	r.annotate(ctx, "ref", rt.ref)
	h, ok := handlers[rt.endpoint][req.Method]
	if !ok {
		return methodUnsupported(rt.endpoint)
	}
	under := &r.others
	if h.action == auth.Push {
		under = &r.pushing
	}
	defer under.Add(-1)
	if n := under.Add(1); r.options.MaxRequests > 0 && n > int64(r.options.MaxRequests) {
		return &fault{code: codeTooManyRequests, header: retryAfter(1),
			message: "the registry has too many requests at once; nothing was lost, try again in a moment"}
	}
	if rt.who, err = r.identify(req); err != nil {
		return r.refusal(req, rt.repo, h.action, err)
	}
	pass, err := r.options.Limits.Enter(rt.who, auth.Address(req), rt.uploads(req.Method))
	if err != nil {
		return limitFault(err)
	}
	defer pass.Leave()
	w, req = pass.Shape(w, req)
	rt.hidden, err = r.handle(w, req, rt, h)
	r.auditRefusal(req, rt, h.action, err)
	return err
}

// handle authorizes and dispatches.
func (r *Registry) handle(w http.ResponseWriter, req *http.Request, rt route, h handler) (hidden bool, err error) {
	err = r.options.Auth.Authorize(req.Context(), rt.who, rt.repo, h.action)
	rt.hidden = errors.Is(err, auth.ErrHidden)
	if err != nil && !rt.hidden {
		return false, r.refusal(req, rt.repo, h.action, err)
	}
	if err := r.checkNamespace(w, req); err != nil {
		return rt.hidden, err
	}
	if rt.hidden {
		return true, r.absent(w, req, rt)
	}
	return false, h.serve(r, w, req, rt)
}

func methodUnsupported(e endpoint) *fault {
	var allow []string
	for method := range handlers[e] {
		allow = append(allow, method)
	}
	slices.Sort(allow)
	return &fault{code: codeUnsupported, message: "this path does not know the method; it knows " + strings.Join(allow, ", "),
		header: http.Header{"Allow": {strings.Join(allow, ", ")}}}
}

// identify tells who a request comes from, and notes it. From here on it is in the route.
func (r *Registry) identify(req *http.Request) (*auth.Identity, error) {
	who, err := r.options.Auth.Identify(req)
	if err == nil {
		r.annotate(req.Context(), "user", who.Name)
	}
	return who, err
}

// refusal turns what the Authorizer says into faults.
func (r *Registry) refusal(req *http.Request, repo string, a auth.Action, err error) error {
	switch {
	case errors.Is(err, auth.ErrUnauthorized):
		return &fault{code: codeUnauthorized, message: err.Error(),
			header: http.Header{"Www-Authenticate": r.options.Auth.Challenge(req, repo, a, err)}}
	case errors.Is(err, auth.ErrDenied):
		return &fault{code: codeDenied, message: err.Error()}
	case errors.Is(err, auth.ErrBusy):
		return &fault{code: codeTooManyRequests, message: err.Error(), header: retryAfter(1)}
	case errors.Is(err, auth.ErrUnavailable):
		return &fault{code: codeUnknown, status: http.StatusServiceUnavailable, cause: err, header: retryAfter(1), message: auth.ErrUnavailable.Error()}
	}
	return err
}

// absent answers whoever may not know whether the repository is there, as if it were not.
func (r *Registry) absent(w http.ResponseWriter, req *http.Request, rt route) error {
	switch rt.endpoint {
	case endpointManifest:
		return manifestUnknown(rt.repo, rt.ref)
	case endpointBlob:
		return blobUnknown(rt.repo, rt.digest)
	case endpointReferrers:
		return r.listReferrers(w, req, rt)
	}
	return r.tags(w, req, rt)
}

// checkNamespace honours ?ns=, by which a client that uses this registry as a mirror says whose repository it
// means (distribution spec, "Registry Proxying"). Ours are those that are pushed here.
func (r *Registry) checkNamespace(w http.ResponseWriter, req *http.Request) error {
	if req.URL.RawQuery == "" || req.Method != http.MethodGet && req.Method != http.MethodHead {
		return nil
	}
	ns := req.URL.Query().Get("ns")
	if ns == "" {
		return nil
	}
	if !slices.Contains(r.options.Names, strings.ToLower(ns)) {
		return &fault{code: codeNameUnknown, detail: map[string]string{"ns": clip(ns)},
			message: "this registry is no mirror of that one; if it is a name of this registry, add it to --names"}
	}
	w.Header().Set("OCI-Namespace", ns)
	return nil
}

// base answers end-1: yes, this is a registry.
func (r *Registry) base(w http.ResponseWriter, req *http.Request, _ route) error {
	write(w, req, http.StatusOK, "application/json", []byte("{}"))
	return nil
}

// warn adds a warning, which clients show to their users (distribution spec, "Warnings"; RFC 7234, 5.5).
func warn(w http.ResponseWriter, text string) {
	const most = 512 // of 4096 bytes that all warnings of an answer may have
	if len(text) > most {
		text = text[:most]
	}
	text = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\r", " ", "\n", " ").Replace(text)
	w.Header().Add("Warning", `299 - "`+text+`"`)
}
