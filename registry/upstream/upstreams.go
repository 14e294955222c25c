package upstream

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"trow/registry/auth"
	"trow/registry/glob"
	"trow/registry/namespace"
	"trow/storage/files"
)

// maxAny bounds how many hosts that no entry names are remembered, because clients choose them. Those that were used
// last stay.
const maxAny = 256

// unnamedTokens is how many bytes of tokens each of them keeps.
const unnamedTokens = 64 << 10

// Upstreams are the upstreams that the settings name. It is safe for concurrent use.
type Upstreams struct {
	config Config
	now    atomic.Pointer[[]*Upstream]   // those of the settings, replaced as a whole: requests need no lock
	any    *lru.Cache[string, *Upstream] // those of hosts that no entry names
	others *http.Transport               // to those: all together may keep the idle connections of one host
	public *publicity
	asked  *questions

	mu        sync.Mutex                // guards all below; serializes Set and Reread
	endpoints map[endpointKey]*endpoint // those in use
	entries   []Entry                   // as Set got them
}

// Config is what does not change while the server runs.
type Config struct {
	// Names gets the elements of the hosts (as:) from Set. nil: namespace.NewTable(nil).
	Names   *namespace.Table
	Guard   *Guard  // nil: NewGuard()
	Secrets Secrets // nil: the server does not run in a cluster
	// As in [Options].
	Any, Offline, ProxyFilters bool
	// Memory is how many bytes the answers may take that are kept whole, such as manifests and lists.
	Memory int64
}

// New returns Upstreams without any; see Set.
func New(c Config) *Upstreams {
	if c.Guard == nil {
		c.Guard = NewGuard()
	}
	if c.Names == nil {
		c.Names = namespace.NewTable(nil)
	}
	others, err := lru.New[string, *Upstream](maxAny)
	if err != nil {
		panic(err) // only for a size below 1
	}
	u := &Upstreams{config: c, any: others, public: newPublicity(), asked: newQuestions(c.Memory),
		others: c.Guard.transport((&endpointKey{unnamed: true}).written())}
	u.now.Store(&[]*Upstream{})
	return u
}

// Set replaces the upstreams. Requests under way end with the settings with which they began. Endpoints whose settings
// are the same keep their tokens, connections, rates and breakers. Errors: those of the settings; then nothing has
// changed.
func (u *Upstreams) Set(entries []Entry) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.set(entries)
}

// Files returns what is in the files that the upstreams name and that are read only when they are set: ca-file and
// docker-config. Of a file that cannot be read, it is the error.
func (u *Upstreams) Files() (contents [][]byte) {
	u.mu.Lock()
	entries := u.entries
	u.mu.Unlock()
	read := func(path string) {
		if path == "" {
			return
		}
		b, err := files.Read(path, maxFile)
		if err != nil {
			b = []byte(err.Error())
		}
		contents = append(contents, b)
	}
	for _, e := range entries {
		read(e.CAFile)
		for _, p := range e.Endpoints {
			read(p.DockerConfig)
		}
	}
	return contents
}

// Reread sets the same upstreams with what is in their files now. changed reports whether that is something else.
// Errors: as Set.
func (u *Upstreams) Reread() (changed bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	before := u.endpoints
	err = u.set(u.entries)
	for k := range u.endpoints {
		changed = changed || before[k] == nil
	}
	return changed, err
}

// set is Set, with mu held.
func (u *Upstreams) set(entries []Entry) error {
	all, err := compile(entries, true)
	if err != nil {
		return err
	}
	endpoints := map[endpointKey]*endpoint{}
	closed := map[string]bool{}
	var list []*Upstream
	for i, c := range all {
		up := &Upstream{Host: c.host, Path: c.path, Name: c.name, Fresh: c.fresh, Read: c.read, MayRun: c.mayRun,
			allow: c.allow, deny: c.deny, keep: c.keep, offline: u.config.Offline, source: source(c.endpoints),
			questions: u.asked}
		up.from = up.Title()
		for j, k := range c.endpoints {
			e := endpoints[k]
			if e == nil {
				e = u.endpoints[k]
			}
			if e == nil {
				if e, err = newEndpoint(k, k.transport(u.config.Guard), 0, u.config.Secrets); err != nil {
					return fmt.Errorf("upstreams: entry %d (%s): endpoints: entry %d: %w", i+1, c.host, j+1, err)
				}
			}
			endpoints[k] = e
			up.endpoints = append(up.endpoints, e)
		}
		list = append(list, up)
		if up.hasLogin() || len(up.Read) > 0 {
			closed[up.Title()] = true
		}
	}
	// The longest path comes first, so that the first match of Find is the entry that counts.
	slices.SortStableFunc(list, func(a, b *Upstream) int { return len(b.Path) - len(a.Path) })
	for k, e := range u.endpoints {
		if endpoints[k] == nil {
			e.transport.CloseIdleConnections()
		}
	}
	u.endpoints, u.entries = endpoints, entries
	u.public.close(closed) // before the change: what it opens must be asked about
	u.now.Store(&list)
	elements := map[string]string{}
	for _, up := range list {
		elements[up.Host] = up.Name
	}
	u.config.Names.Set(elements)
	return nil
}

// Title returns the name of the upstream in the settings: the host, or host/path.
func (u *Upstream) Title() string {
	if u.Path == "" {
		return u.Host
	}
	return u.Host + "/" + u.Path
}

// All returns the upstreams of the settings.
func (u *Upstreams) All() []*Upstream { return slices.Clone(*u.now.Load()) }

// Find returns the upstream of a repository of a host, both as an image names them, and the repository's name there.
// Errors: ErrRefused, if no entry names the host or the path, or the names are not valid.
func (u *Upstreams) Find(host, repo string) (*Upstream, string, error) {
	form, err := namespace.Host(host)
	if err != nil {
		return nil, "", &Error{Kind: ErrRefused, Host: host, Repo: repo, Reason: "the host is not valid", Cause: err}
	}
	if repo = namespace.Fold(form, repo); !namespace.ValidRepo(repo) {
		return nil, "", &Error{Kind: ErrRefused, Host: form, Repo: repo,
			Reason: "the name of the repository is not valid"}
	}
	element, _ := namespace.Element(form) // empty for an IPv6 address, which only an entry with as: can name
	named := false
	for _, up := range *u.now.Load() {
		named = named || up.Host == form || up.Name == element
		if up.Host == form && below(repo, up.Path) {
			return up, repo, up.fits(repo)
		}
	}
	// upstream-any does not open the other paths of a host that entries limit to some. The element must not be that of
	// an entry: the repositories of two hosts would be one. A host without a dot is a name of the cluster's or the
	// node's network.
	if !u.config.Any || named || element == "" || !strings.Contains(form, ".") {
		return nil, "", &Error{Kind: ErrRefused, Host: form, Repo: repo, Reason: "no entry of upstreams names it"}
	}
	if len(u.config.Guard.proxies) > 0 && !u.config.ProxyFilters {
		return nil, "", &Error{Kind: ErrRefused, Host: form, Repo: repo,
			Reason: "a proxy that does not filter is in use",
			Cause:  errProxy}
	}
	up, err := u.unnamed(form)
	if err != nil {
		return nil, "", err
	}
	return up, repo, up.fits(repo)
}

// unnamed returns the upstream for a host that no entry names.
func (u *Upstreams) unnamed(host string) (*Upstream, error) {
	if up, ok := u.any.Get(host); ok {
		return up, nil
	}
	all, err := compile([]Entry{{Host: host}}, true)
	if err != nil {
		return nil, &Error{Kind: ErrRefused, Host: host, Reason: "the host is not valid", Cause: err}
	}
	c := all[0]
	// The host is from a request and not from the settings, so it is not written, and reaches no internal address.
	k := c.endpoints[0]
	k.unnamed = true
	e, err := newEndpoint(k, u.others, unnamedTokens, nil)
	if err != nil {
		return nil, err
	}
	up := &Upstream{Host: c.host, Name: c.name, Fresh: c.fresh, endpoints: []*endpoint{e}, offline: u.config.Offline,
		source: source(c.endpoints), questions: u.asked, from: unnamedHosts}
	u.any.Add(host, up)
	return up, nil
}

// Upstream is one registry, or a part of it.
type Upstream struct {
	Host, Path string
	Name       string        // the element of the host in local names
	Fresh      time.Duration // how long a confirmed tag counts without asking again
	Read       auth.Who      // empty: see Upstreams.Readers
	MayRun     MayRun

	allow, deny glob.Set
	keep        []keep
	endpoints   []*endpoint
	offline     bool
	source      string // see source

	questions *questions
	from      string    // what its questions count for
	question  *question // that is under way, see Begin
}

// source returns a text that is the same for endpoints with the same URLs, of which the same ones have a login.
func source(all []endpointKey) string {
	h := sha256.New()
	for _, k := range all {
		fmt.Fprintf(h, "%s %t\n", k.url, k.hasLogin())
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Local returns the local name of a repository of the upstream.
func (u *Upstream) Local(repo string) string { return namespace.Join(u.Name, repo) }

// fits returns nil if the settings permit a repository, and its local name is short enough. Errors: ErrRefused.
func (u *Upstream) fits(repo string) error {
	switch {
	case len(u.Local(repo)) > namespace.MaxName || len(u.Host)+1+len(repo) > namespace.MaxName:
		return u.refused(repo, fmt.Sprintf("its name here would have more than %d characters", namespace.MaxName))
	case u.deny.Match(repo):
		return u.refused(repo, "deny: of the upstream names it")
	case len(u.allow) > 0 && !u.allow.Match(repo):
		return u.refused(repo, "allow: of the upstream does not name it")
	}
	return nil
}

func (u *Upstream) refused(repo, reason string) *Error {
	return &Error{Kind: ErrRefused, Host: u.Host, Repo: repo, Reason: reason}
}

// Keeps reports whether keep: names a tag of a repository.
func (u *Upstream) Keeps(repo, tag string) bool {
	return slices.ContainsFunc(u.keep, func(k keep) bool { return k.repo == repo && k.tags.Match(tag) })
}

// Kept returns the repositories that keep: names.
func (u *Upstream) Kept() (repos []string) {
	for _, k := range u.keep {
		if !slices.Contains(repos, k.repo) {
			repos = append(repos, k.repo)
		}
	}
	return repos
}

// KeptTags returns the tags of a repository that keep: names one by one. all is false if there are patterns as well.
func (u *Upstream) KeptTags(repo string) (tags []string, all bool) {
	all = true
	for _, k := range u.keep {
		if k.repo == repo {
			tags, all = append(tags, k.names...), all && k.names != nil
		}
	}
	return tags, all
}

// Rates returns the last rates that the endpoints have sent, by host. Endpoints that have sent none are left out.
func (u *Upstream) Rates() map[string]Rate {
	all := map[string]Rate{}
	for _, e := range u.endpoints {
		if r := e.lastRate(); !r.At.IsZero() {
			all[e.host] = r
		}
	}
	return all
}

// MayPoll reports whether the rates of all endpoints leave room for requests that no client waits for.
func (u *Upstream) MayPoll() bool {
	return !u.offline && !slices.ContainsFunc(u.endpoints, func(e *endpoint) bool { return e.lastRate().low() })
}
