package registry

import (
	"context"
	"net/http"
	"net/url"

	"trow/registry/address"
	"trow/registry/auth"
	"trow/registry/namespace"
	"trow/registry/ocierror"
)

// This file finds the repository that a request is about. A client that uses this registry as a mirror names the
// registry that it means in ?ns= (distribution spec, "Registry Proxying"), or by the Host (see package namespace): then
// the repository is the one below f/. No other code of this package reads ns.

// asked is how a request names its repository.
type asked struct {
	path     string // the repository in the path
	ns       string // ?ns= as it was sent; empty: there was none
	upstream string // the registry that is meant, in its canonical form; empty: this one
}

// place sets the repository here that a call means. Errors: NAME_UNKNOWN for a namespace that is not valid, or in which
// the repository can have no name here. The status is 404, so that a client goes on to the registry itself.
func (r *Registry) place(req *http.Request, c *call) error {
	c.asked.path = c.repo
	if err := r.findNamespace(req, c); err != nil || c.asked.upstream == "" {
		return err
	}
	if c.repo == "" { // the API and the catalog are this registry's
		if c.asked.ns != "" && !(c.endpoint == endpointBase && r.options.Namespaces.Known(c.asked.upstream)) {
			return namespaceUnknown(c.asked.ns)
		}
		return nil
	}
	local, err := r.options.Namespaces.Here(c.asked.upstream, c.repo)
	if err != nil {
		return namespaceInvalid(c.asked.upstream, err)
	}
	c.repo = local
	return nil
}

// findNamespace finds the registry that a request means. Errors: ns is not valid, or there are two different ones, or
// the query cannot be read, so that it may have one.
func (r *Registry) findNamespace(req *http.Request, c *call) error {
	if req.URL.RawQuery != "" {
		query, err := url.ParseQuery(req.URL.RawQuery)
		if err != nil { // what cannot be read is left out, and ns=docker.io;x would mean a repository of this registry
			return queryInvalid(err)
		}
		all := query["ns"]
		for _, ns := range all {
			if ns != all[0] { // a proxy in front might use another one than we do
				return namespaceTwice(all[0], ns)
			}
			c.asked.ns = ns
		}
	}
	if c.asked.ns == "" {
		if c.repo != "" {
			c.asked.upstream, _ = r.options.Namespaces.Site(req.Host)
		}
		return nil
	}
	if host, err := address.Host(c.asked.ns); err == nil && r.names[host] {
		return nil
	}
	upstream, ok := r.options.Namespaces.Site(c.asked.ns)
	if !ok {
		var err error
		if upstream, err = namespace.Host(c.asked.ns); err != nil {
			return namespaceInvalid(c.asked.ns, err)
		}
	}
	c.asked.upstream = upstream
	return nil
}

// fold replaces another spelling of a repository below f/ by its local name: CRI-O and people write the name of an
// image as it is, such as f/docker.io/nginx. A repository with exactly that name, which an earlier version accepted,
// takes precedence if the caller may access it; for others the answer must not reveal whether it exists.
func (r *Registry) fold(ctx context.Context, c *call) error {
	if c.asked.upstream != "" || !namespace.Within(c.repo) {
		return nil
	}
	n, ok := r.options.Namespaces.Upstream(c.repo)
	if !ok {
		return nil
	}
	local, err := r.options.Namespaces.Local(n)
	if err != nil || local == c.repo {
		return nil
	}
	if r.options.Auth.Authorize(ctx, c.who, c.repo, c.action) == nil {
		if found, err := r.exists(ctx, c.repo); err != nil || found {
			return err
		}
	}
	c.repo = local
	r.annotate(ctx, "repo", local)
	return nil
}

// answer calls the handler of a call that is authorized. A read with the ns of a registry that no setting names gets
// NAME_UNKNOWN for everything that is not here, so that the client goes on to that registry.
func (r *Registry) answer(w http.ResponseWriter, req *http.Request, c *call, h handler) error {
	reads := req.Method == http.MethodGet || req.Method == http.MethodHead
	if c.asked.ns != "" && reads {
		w.Header().Set("OCI-Namespace", c.asked.ns)
	}
	unknown := c.asked.ns != "" && c.asked.upstream != "" && reads && !r.options.Namespaces.Known(c.asked.upstream)
	if unknown && c.endpoint == endpointReferrers { // an empty list would mean that the other registry has none
		found := false
		if !c.hidden {
			var err error
			if found, err = r.exists(req.Context(), c.repo); err != nil {
				return err
			}
		}
		if !found {
			w.Header().Del("OCI-Namespace")
			return namespaceUnknown(c.asked.ns)
		}
	}
	var err error
	if c.hidden {
		err = r.absent(w, req, c)
	} else if err = r.catchUp(w, req, c); err == nil {
		err = h.serve(r, w, req, c)
	}
	if !unknown {
		return err
	}
	if e := ocierror.As(err); e != nil {
		switch e.Code {
		case ocierror.NameUnknown, ocierror.ManifestUnknown, ocierror.BlobUnknown:
			w.Header().Del("OCI-Namespace")
			absent := namespaceUnknown(c.asked.ns)
			absent.Cause = e.Cause
			return absent
		}
	}
	return err
}

// path returns the path of a resource of the call's repository, with the name that the client has used for it.
func (r *Registry) path(c *call, below string) string {
	return r.options.Prefix + "/v2/" + c.asked.path + below
}

// location is path with ns, for clients that follow a Location without adding it.
func (r *Registry) location(c *call, below string) string {
	if c.asked.ns == "" || c.asked.upstream == "" {
		return r.path(c, below)
	}
	return r.path(c, below) + "?ns=" + url.QueryEscape(c.asked.ns)
}

// marked returns the request with the mark of package auth that it is meant for another registry, for which its
// credentials may be.
func (c *call) marked(req *http.Request) *http.Request {
	if c.asked.upstream == "" || c.repo == "" {
		return req
	}
	return req.WithContext(auth.ForNamespace(req.Context(), c.asked.upstream))
}
