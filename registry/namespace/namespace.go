// Package namespace defines the names of the repositories that hold content of other registries, and finds the one that
// a request means.
//
// # Words
//
//   - namespace: the host[:port] of a registry as images name it, in the canonical form of package address; docker.io
//     for every name of Docker Hub. It is what clients send in ?ns= (distribution spec, "Registry Proxying").
//   - name: that of a repository of another registry: its namespace, and its name there. A repository of Docker Hub
//     with one part is the one below library/.
//   - local name: f/<element>/<repository>. The element stands for the namespace: it is the host, a port as __5000, or
//     what as: of an upstream says.
//   - site: a host name of this registry that stands for a namespace, for clients that send no ?ns= (Docker's
//     registry-mirrors).
//
// # Invariants
//
//  1. Each name has one local name, and no other name has the same one: Table.Upstream(Table.Local(n)) is n.
//  2. A local name is a valid name of a repository, of at most 255 characters, below f/ and of three parts or more. So
//     nothing that a client sends as a namespace leads to a repository that is not below f/.
//  3. This package handles names only, and connects to no host. Package upstream finds the upstream of a name, in the
//     settings.
package namespace

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"trow/registry/address"
)

const (
	// Prefix begins the local names.
	Prefix = "f/"
	// MaxName bounds a local name, and a host and a repository with a slash between them: many clients allow 255
	// characters for these (distribution spec, "Pulling manifests").
	MaxName = 255
	// official is where Docker Hub keeps the repositories whose names have one part.
	official = "library/"
	// oldHub is the element under which Trow 0.x cached Docker Hub: another spelling of docker.io, unless as: names it.
	oldHub = "docker"
	// portMark stands for the colon before a port. No valid host contains it, so that it can be replaced back.
	portMark = "__"
)

// Within reports whether a repository is below f/, where the content of other registries is.
func Within(repo string) bool { return strings.HasPrefix(repo, Prefix) }

// Host returns the canonical form of a namespace. Errors: the text is not a valid host[:port].
func Host(text string) (string, error) {
	if text == "" {
		return "", errors.New("it is missing; want that of a registry as images name it, such as quay.io")
	}
	name, port := address.SplitPort(strings.ToLower(text))
	if len(text) > MaxName || !ValidHost(address.JoinPort(strings.TrimSuffix(name, "."), port)) ||
		strings.HasSuffix(text, ":") {
		return "", fmt.Errorf("%.80q is not a valid host[:port]", text)
	}
	form, err := address.Host(text)
	if err != nil {
		return "", fmt.Errorf("%.80q is %w", text, err)
	}
	return form, nil
}

// Fold returns a repository's name with the library/ that people leave out at Docker Hub. host is in its canonical
// form.
func Fold(host, repo string) string {
	if host == address.Hub && repo != "" && !strings.Contains(repo, "/") {
		return official + repo
	}
	return repo
}

// Name is that of a repository of another registry. Make it with [Parse].
type Name struct{ Host, Repo string }

func (n Name) String() string { return n.Host + "/" + n.Repo }

// Parse returns the name of a repository, of which host and repo are as images name them. Errors: one of them is not
// valid.
func Parse(host, repo string) (n Name, err error) {
	if n.Host, err = Host(host); err != nil {
		return Name{}, err
	}
	if n.Repo = Fold(n.Host, repo); !ValidRepo(n.Repo) {
		return Name{}, fmt.Errorf("%.80q is not a valid name of a repository", repo)
	}
	return n, nil
}

// Element returns the element of a host for which no as: is set. Errors: an IPv6 address has none.
func Element(host string) (string, error) {
	e := strings.Replace(host, ":", portMark, 1)
	if !validElement(e) {
		return "", fmt.Errorf("%.80q cannot be part of a repository's name; choose another name with the key as", host)
	}
	return e, nil
}

// CheckElement checks the element that as: sets for a host. Errors: it is not one part of a repository's name, or
// longer than half of MaxName.
func CheckElement(e string) error {
	if len(e) > MaxName/2 || !validElement(e) {
		return fmt.Errorf("%.80q is not one part of a repository's name; want lower-case letters, digits, . _ and -", e)
	}
	return nil
}

// Join returns the local name of a repository whose host has the element e.
func Join(e, repo string) string { return Prefix + e + "/" + repo }

// Table maps hosts to elements, and sites to namespaces. A nil Table has no sites and no as:, so that each element is
// the host. It is safe for concurrent use.
type Table struct {
	sites map[string]string // the namespaces of sites, by host[:port]; never changes
	as    atomic.Pointer[aliases]
}

// aliases are the elements that settings name, by host, and the hosts by element. They are not changed, but replaced as
// a whole, so that requests need no lock.
type aliases struct {
	elements, hosts map[string]string
	generation      uint64 // how often they have been replaced
}

// host returns the host whose element e is although it is not e itself.
func (a *aliases) host(e string) (host string, ok bool) {
	if host, ok = a.hosts[e]; !ok && e == oldHub {
		return address.Hub, true
	}
	return host, ok
}

// NewTable returns a Table with the sites of options that are valid.
func NewTable(sites []Site) *Table {
	t := &Table{sites: map[string]string{}}
	for _, s := range sites {
		host, _ := Host(s.Host)
		t.sites[host], _ = Host(s.Upstream)
	}
	t.as.Store(&aliases{})
	return t
}

// Set replaces the elements that settings name, by host. Hosts are in their canonical form, and no two of them have the
// same element. Set keeps the map. Calls of Set are not concurrent.
func (t *Table) Set(elements map[string]string) {
	a := &aliases{elements, map[string]string{}, t.as.Load().generation + 1}
	for host, e := range elements {
		a.hosts[e] = host
	}
	t.as.Store(a)
}

// Generation returns a number that changes with each Set: what was derived from local names before is to be derived
// anew.
func (t *Table) Generation() uint64 { return t.aliases().generation }

func (t *Table) aliases() *aliases {
	if t == nil {
		return &aliases{}
	}
	return t.as.Load()
}

// Local returns the local name of a repository. Errors: it has none, because it would have more than MaxName
// characters, or because the host's element is that of another host.
func (t *Table) Local(n Name) (string, error) {
	a := t.aliases()
	e, ok := a.elements[n.Host]
	if !ok {
		var err error
		if e, err = Element(n.Host); err != nil {
			return "", err
		}
		if other, ok := a.host(e); ok {
			return "", fmt.Errorf("the repositories of %s have the name of this host here (as: of its upstream)", other)
		}
	}
	local := Join(e, n.Repo)
	if len(local) > MaxName || len(n.Host)+1+len(n.Repo) > MaxName {
		return "", fmt.Errorf("its name here would have more than %d characters", MaxName)
	}
	return local, nil
}

// Upstream returns the name of the repository whose local name this is, also in another spelling: with an alias of
// Docker Hub or oldHub, without its library/, or with the host where as: has another element. ok is false if it is no
// local name.
func (t *Table) Upstream(local string) (n Name, ok bool) {
	rest, ok := strings.CutPrefix(local, Prefix)
	e, repo, more := strings.Cut(rest, "/")
	if !ok || !more || !validElement(e) {
		return Name{}, false
	}
	host, ok := t.aliases().host(e)
	if !ok {
		host = strings.Replace(e, portMark, ":", 1)
		if !address.LooksLikeHost(host) { // f/team/app: no image names such a host
			return Name{}, false
		}
	}
	n, err := Parse(host, repo)
	if err != nil {
		return Name{}, false
	}
	// A name without a local name (too long, or with the element of another host) has no other spelling either.
	if _, err := t.Local(n); err != nil {
		return Name{}, false
	}
	return n, true
}

// Here returns the local name of the repository that a request means with the namespace host, in its canonical form,
// and the repo of its path. repo may be a local name of the same host already: containerd sends that where the URL of a
// mirror has the path f/<element> (override_path). Errors: those of Parse and of Local.
func (t *Table) Here(host, repo string) (string, error) {
	if n, ok := t.Upstream(repo); ok && n.Host == host {
		return t.Local(n)
	}
	n, err := Parse(host, repo)
	if err != nil {
		return "", err
	}
	return t.Local(n)
}

// Site returns the namespace of a site; host is from the Host header or ?ns= of a request. A site without a port is for
// all ports. ok is false if the host is not a site.
func (t *Table) Site(host string) (upstream string, ok bool) {
	if t == nil || len(t.sites) == 0 {
		return "", false
	}
	form, err := Host(host)
	if err != nil {
		return "", false
	}
	if upstream, ok = t.sites[form]; !ok {
		name, _ := address.SplitPort(form)
		upstream, ok = t.sites[name]
	}
	return upstream, ok
}

// Known reports whether a setting names a namespace, in its canonical form: a site stands for it, or Set has its
// element.
func (t *Table) Known(host string) bool {
	if t == nil {
		return false
	}
	if _, ok := t.aliases().elements[host]; ok {
		return true
	}
	for _, upstream := range t.sites {
		if upstream == host {
			return true
		}
	}
	return false
}
