package registry

import (
	"net/http"

	"trow/registry/audit"
	"trow/registry/auth"
	"trow/registry/ocierror"
)

// audit reports something that a call did, or that it was refused.
func (r *Registry) audit(req *http.Request, c *call, e audit.Event) {
	if e.Outcome == "" {
		e.Outcome = audit.OK
	}
	e.User, e.Kind, e.From = c.who.Name, c.who.Kind(), audit.From(req.RemoteAddr)
	e.Action, e.Repo = string(c.action), c.repo
	r.options.Audit(req.Context(), e)
}

// auditRefusal reports a call that err refuses to a known identity. A client without credentials that is asked for some
// is not reported: every login starts that way.
func (r *Registry) auditRefusal(req *http.Request, c *call, err error) {
	e := audit.Event{What: audit.Request, Outcome: audit.Denied, Digest: c.digest.String()}
	if c.endpoint == endpointManifest && c.digest == "" {
		e.Tags = []string{c.ref}
	}
	switch {
	case c.hidden:
		e.Outcome = audit.Hidden
	case !refuses(err, c.who):
		return
	default:
		e.Reason = ocierror.As(err).Message
	}
	r.audit(req, c, e)
}

// refuses reports whether err denies something to who.
func refuses(err error, who *auth.Identity) bool {
	e := ocierror.As(err)
	return e != nil && (e.Code == ocierror.Denied || e.Code == ocierror.Unauthorized && !who.Anonymous())
}
