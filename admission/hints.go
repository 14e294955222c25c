package admission

import (
	"fmt"
	"net/http"
	"slices"
)

// The values of validate-hints.
const (
	hintsAuthenticated = "authenticated"
	hintsAll           = "all"
	hintsOff           = "off"
)

// The warnings for hints that are left out. They do not depend on what the registry holds.
const (
	hintsNeedLogin = "tags here are shown to a caller with a login: set validate-token-file (or a CA) for the API server"
	hintsAreOff    = "tags here are not shown: setting validate-hints is off"
)

func (o *CallersOptions) checkHints() error {
	if slices.Contains([]string{"", hintsAuthenticated, hintsAll, hintsOff}, o.Hints) {
		return nil
	}
	return fmt.Errorf("validate-hints: %s is not a valid value; want authenticated, all or off", quote(o.Hints))
}

// Hints says who gets the hints that name tags and digests of the registry.
type Hints struct {
	mode    string
	callers *Callers
	reads   func(*http.Request) (login bool, readable func(repo string) bool)
}

// NewHints returns the Hints that the settings describe. callers admits the API server, and is nil if any client may
// call. reads returns whether the sender of a request has a login to the registry, and which repositories it may pull
// from; readable is nil for all.
func NewHints(o CallersOptions, c *Callers, reads func(*http.Request) (login bool, readable func(string) bool)) *Hints {
	return &Hints{o.Hints, c, reads}
}

// withhold returns the warning in place of hints about a repository, "" if the sender of the request may have them. r
// is nil for a review that is no request. A nil *Hints withholds nothing.
func (h *Hints) withhold(r *http.Request, repo string) string {
	switch {
	case h == nil || r == nil || h.mode == hintsAll:
		return ""
	case h.mode == hintsOff:
		return hintsAreOff
	case h.callers.Authenticate(): // its credentials are none of the registry
		return ""
	}
	login, readable := h.reads(r)
	if (login || h.mode != hintsAuthenticated) && (readable == nil || readable(repo)) {
		return ""
	}
	return hintsNeedLogin
}
