package admission

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
)

// The values of validate-hints.
const (
	hintsAuthenticated = "authenticated"
	hintsAll           = "all"
	hintsOff           = "off"
)

// The warnings for hints that are left out. They do not depend on what the registry holds.
const (
	hintsNeedLogin = "tags here are shown to a caller with a login: set validate-token-file (or a CA) for the API " +
		"server"
	hintsAreOff = "tags here are not shown: setting validate-hints is off"
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

// of returns what says, of a repository, the warning in place of its tags and digests, "" if the sender of a request
// may have them. r is nil for a review that did not come by HTTP. A nil *Hints withholds nothing. The sender is asked
// about once.
func (h *Hints) of(r *http.Request) (withhold func(repo string) string) {
	switch {
	case h == nil || r == nil || h.mode == hintsAll:
		return nothing
	case h.mode == hintsOff:
		return func(string) string { return hintsAreOff }
	case h.callers.Authenticate(): // its credentials are not those of the registry
		return nothing
	}
	reads := sync.OnceValues(func() (bool, func(string) bool) { return h.reads(r) })
	return func(repo string) string {
		login, readable := reads()
		if (login || h.mode != hintsAuthenticated) && (readable == nil || readable(repo)) {
			return ""
		}
		return hintsNeedLogin
	}
}

// nothing withholds nothing.
func nothing(string) string { return "" }

// annotated returns the images for the audit annotation of an answer: all, with the digests that the sender of the
// request may know. The setting off is about people, who get the warnings; the API server that has proved what it is
// gets the digests all the same, for its audit log.
func (h *Hints) annotated(d *Decision, withhold func(repo string) string) []string {
	if h != nil && h.callers.Authenticate() {
		return d.Images
	}
	for i := range d.Verdicts {
		if v := &d.Verdicts[i]; v.named() && withhold(v.repo) != "" {
			return listImages(d.Verdicts, func(v *Verdict) bool { return withhold(v.repo) == "" })
		}
	}
	return d.Images
}
