package auth

import (
	"net/http"
	"strings"
	"unicode/utf8"
)

// certPrefix begins the names of holders of certificates; names of users cannot begin with it. So alice's certificate
// is not the user alice: the authority that issues certificates and the author of the htpasswd file may be different
// people.
const certPrefix = "cert:"

// certified returns the identity of the certificate of the request's connection: the name is its common name, the
// organizations are its groups, as in Kubernetes. Without a certificate, or with one that has no usable name, the
// request is anonymous.
func (g *Guard) certified(r *http.Request) *Identity {
	if g.options.Certificate == nil {
		return anonymous
	}
	c := g.options.Certificate(r)
	if c == nil || !printable(c.Subject.CommonName) {
		return anonymous
	}
	return &Identity{Name: certPrefix + c.Subject.CommonName, cert: true, orgs: c.Subject.Organization}
}

// printable reports whether a common name can be a name here. It may contain colons, unlike a user's: an example is
// system:kube-apiserver.
func printable(name string) bool {
	return name != "" && len(name) <= maxUserName && utf8.ValidString(name) &&
		!strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f })
}
