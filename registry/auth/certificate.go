package auth

import (
	"net/http"
	"strings"
	"unicode/utf8"
)

// certPrefix begins the names of those who have shown a certificate; users cannot have it. So alice's certificate is not
// the user alice: whoever gives out certificates and whoever writes the htpasswd file need not be the same.
const certPrefix = "cert:"

// certified is the identity of the certificate that the connection has shown: its name is the common name, its groups
// are the organizations, as Kubernetes has it. nobody: there is none, or it says no name.
func (g *Guard) certified(r *http.Request) *Identity {
	if g.options.Certificate == nil {
		return nobody
	}
	c := g.options.Certificate(r)
	if c == nil || !printable(c.Subject.CommonName) {
		return nobody
	}
	return &Identity{Name: certPrefix + c.Subject.CommonName, cert: true, orgs: c.Subject.Organization}
}

// printable checks a common name. It may have colons, unlike a user's: system:kube-apiserver is one.
func printable(name string) bool {
	return name != "" && len(name) <= maxUserName && utf8.ValidString(name) &&
		!strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f })
}
