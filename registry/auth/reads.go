package auth

import "net/http"

// Reads returns whether the sender of a request has a login, and which repositories it may pull from, as
// [Guard.Readable] does. Credentials that are not valid read nothing. Like [Guard.Permits] it is for what is left out
// of an answer.
func (g *Guard) Reads(r *http.Request) (login bool, readable func(repo string) bool) {
	who, err := g.Identify(r)
	if err != nil {
		return false, func(string) bool { return false }
	}
	known := g.Readable(r.Context(), who)
	if known == nil {
		return !who.Anonymous(), nil
	}
	return !who.Anonymous(), func(repo string) bool {
		ok, err := known(repo)
		return ok && err == nil
	}
}
