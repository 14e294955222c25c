package cache

import (
	"path/filepath"
	"testing"
)

// origin is a registry behind an injector.
type origin struct {
	*injector
	client *client // of the registry itself
	entry  func(host string, more ...string) string
	again  func(t *testing.T) *origin // the same registry behind another injector
}

// push pushes an image, not through the injector.
func (o *origin) push(repo string, i *image, tags ...string) {
	o.t.Helper()
	o.client.t = o.t
	o.client.push(repo, i, tags...)
}

// release opens the gate of a digest.
func (i *injector) release(digest string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if g := i.gates[digest]; g != nil {
		delete(i.gates, digest)
		g.once()
	}
}

// origins starts each kind of origin.
var origins = map[string]func(t *testing.T) *origin{
	"distribution":                openOrigin,
	"distribution with passwords": basicOrigin,
	"distribution with tokens":    tokenOrigin,
	"distribution with redirects": redirectOrigin,
	"olareg":                      olaregOrigin,
}

// newOrigin returns the origin at a URL. entry returns the entry of the setting upstreams for an injector.
func newOrigin(t *testing.T, c *client, url string, prepare func(*injector),
	entry func(host string, i *injector, more ...string) string) *origin {
	t.Helper()
	o := &origin{injector: newInjector(t, url), client: c}
	prepare(o.injector)
	o.entry = func(host string, more ...string) string { return entry(host, o.injector, more...) }
	o.again = func(t *testing.T) *origin { return newOrigin(t, c, url, prepare, entry) }
	return o
}

func asIs(*injector) {}

func openOrigin(t *testing.T) *origin {
	p := distribution(t, t.TempDir(), "")
	return newOrigin(t, newClient(t, p.url), p.url, asIs, entry)
}

func olaregOrigin(t *testing.T) *origin {
	p := olareg(t, t.TempDir())
	return newOrigin(t, newClient(t, p.url), p.url, asIs, entry)
}

// basic starts Distribution with a password, and returns a client that has it.
func basic(t *testing.T) (*client, string) {
	file := write(t, filepath.Join(t.TempDir(), "htpasswd"), originHash)
	p := distribution(t, t.TempDir(), "auth: {htpasswd: {realm: origin, path: "+file+"}}\n")
	c := newClient(t, p.url)
	c.user, c.pass = originUser, originPassword
	return c, p.url
}

func basicOrigin(t *testing.T) *origin {
	c, url := basic(t)
	return newOrigin(t, c, url, asIs, withLogin(t))
}

// redirectOrigin answers each GET of a blob with a redirect to a storage, with a signature and without a login.
func redirectOrigin(t *testing.T) *origin {
	c, url := basic(t)
	entry := withLogin(t)
	return newOrigin(t, c, url, (*injector).redirect, func(host string, i *injector, more ...string) string {
		return entry(host, i, append([]string{`also: ["` + i.storage + `"]`}, more...)...)
	})
}

// tokenOrigin has a token server. Images are pushed by another process on the same directory, without a login.
func tokenOrigin(t *testing.T) *origin {
	root, store := filepath.Join(t.TempDir(), "root.pem"), t.TempDir()
	tokens := newTokenServer(t, root)
	p := distribution(t, store, "auth: {token: {realm: \""+tokens.url+"/token\", service: origin, issuer: lab, "+
		"rootcertbundle: "+root+"}}\n")
	entry := withLogin(t)
	return newOrigin(t, newClient(t, distribution(t, store, "").url), p.url, asIs,
		func(host string, i *injector, more ...string) string {
			return entry(host, i, append([]string{`realm: ["` + tokens.url[len("http://"):] + `"]`}, more...)...)
		})
}
