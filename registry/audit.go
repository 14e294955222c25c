package registry

import (
	"errors"
	"net/http"

	"trow/registry/audit"
	"trow/registry/auth"
)

// audit tells of something that was done.
func (r *Registry) audit(req *http.Request, rt route, a auth.Action, e audit.Event) {
	if e.Outcome == "" {
		e.Outcome = audit.OK
	}
	e.User, e.Kind, e.From = rt.who.Name, rt.who.Kind(), audit.From(req.RemoteAddr)
	e.Action, e.Repo = string(a), rt.repo
	r.options.Audit(req.Context(), e)
}

// auditRefusal tells of a request that was refused to whom we know. That somebody is asked for credentials who brought
// none is nothing to tell of.
func (r *Registry) auditRefusal(req *http.Request, rt route, a auth.Action, err error) {
	e := audit.Event{What: audit.Request, Outcome: audit.Denied, Digest: rt.digest.String()}
	if rt.endpoint == endpointManifest && rt.digest == "" {
		e.Tags = []string{rt.ref}
	}
	var f *fault
	switch {
	case rt.hidden:
		e.Outcome = audit.Hidden
	case errors.As(err, &f) && (f.code == codeDenied || f.code == codeUnauthorized && !rt.who.Anonymous()):
		e.Reason = f.message
	default:
		return
	}
	r.audit(req, rt, a, e)
}
