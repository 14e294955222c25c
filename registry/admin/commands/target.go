package commands

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"trow/registry/admin"
	"trow/registry/auth"
	"trow/registry/client"
	"trow/registry/inventory"
)

// target are the flags with which a command finds its server: by the socket in a data directory, or over the network
// with a login.
type target struct {
	dataDir func() (string, error)
	names   []string // under which nodes know the server

	server, user, passwordFile, ca string
	several                        bool // registries: the user is for --server alone
}

// target adds the flags to a command.
func (p Program) target(cmd *cobra.Command) *target {
	t := &target{dataDir: p.DataDir(cmd), names: p.Servers}
	f := cmd.Flags()
	f.StringVar(&t.server, "server", "", "URL of the server, https://host[:port] (default: by the socket in "+
		"--data-dir)")
	t.addCA(cmd)
	f.StringVar(&t.user, "user", "", "user to log in as (default: the login of docker login)")
	f.StringVar(&t.passwordFile, "password-file", "", "file with the password of --user; - for standard input")
	cmd.MarkFlagsMutuallyExclusive("server", "data-dir")
	cmd.MarkFlagsRequiredTogether("user", "password-file")
	return t
}

func (t *target) addCA(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.ca, "cacert", "",
		"file of the CA (PEM) of registries (also: those of /etc/docker/certs.d/HOST)")
}

// endpoint is a registry to which a command talks.
type endpoint struct {
	*client.Client
	admin *admin.Client // nil: a registry that was named by its host, of any kind
	dir   string        // the data directory; empty over the network
	name  string        // what references to it begin with
}

// inventory is the registry to list.
func (e *endpoint) inventory() inventory.Registry {
	return inventory.Registry{Client: e.Client, Admin: e.admin}
}

// listing is the registry for a list that one bad manifest does not end: it is named on standard error.
func (e *endpoint) listing(cmd *cobra.Command) inventory.Registry {
	r := e.inventory()
	var mu sync.Mutex
	r.Unreadable = func(repo string, err *inventory.UnreadableError) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(cmd.ErrOrStderr(), printable(fmt.Sprintf("%s: %v; its parts are not counted", e.name+repo, err)))
	}
	return r
}

// open returns the server of the command.
func (t *target) open(cmd *cobra.Command) (*endpoint, error) {
	if t.server == "" {
		if t.user != "" {
			return nil, errors.New("user: the socket needs no login; name the server with --server")
		}
		dir, err := t.dataDir()
		if err != nil {
			return nil, err
		}
		return socketEndpoint(cmd, dir)
	}
	u, err := url.Parse(t.server)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || !auth.ValidHost(u.Host) ||
		strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("server: %.100q is not a valid URL; want https://host[:port]", t.server)
	}
	e, err := t.dial(cmd, u.Scheme+"://"+u.Host, t.user != "")
	if err == nil {
		e.admin = admin.NewRemote(e.URL(), e.Client)
	}
	return e, err
}

func socketEndpoint(cmd *cobra.Command, dir string) (*endpoint, error) {
	a := admin.NewClient(dir)
	c, err := client.New(client.Options{URL: admin.URL, HTTP: &a.HTTP, Busy: waiting(cmd, "the server")})
	return &endpoint{Client: c, admin: a, dir: dir}, err
}

// find returns the registry of a reference: the server of the command, or the one that the reference names. On the
// machine of a server its names on the nodes mean the server itself, which answers on its socket.
func (t *target) find(cmd *cobra.Command, r *reference) (*endpoint, error) {
	if t.server == "" && r.url != "" {
		if dir, err := t.dataDir(); err == nil && admin.Exists(dir) {
			r.local(t.names)
		}
	} else if u, err := url.Parse(t.server); err == nil && r.url != "" {
		r.local([]string{u.Host})
	}
	if r.url == "" {
		return t.open(cmd)
	}
	// A password goes to one registry: --server or, without it, the only one that the command names.
	if t.user != "" && t.server == "" && t.several {
		return nil, errors.New("user: it is the user of --server; for other registries use docker login")
	}
	return t.dial(cmd, r.url, t.user != "" && t.server == "")
}

// dial returns a registry over the network. login says that --user is for it; else it gets the login of docker login.
func (t *target) dial(cmd *cobra.Command, at string, login bool) (*endpoint, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	o := client.Options{URL: at, Busy: waiting(cmd, u.Host)}
	if o.HTTP, err = t.transport(u.Host); err != nil {
		return nil, err
	}
	if login {
		o.Username = t.user
		if o.Password, err = readPassword(cmd.InOrStdin(), t.passwordFile); err != nil {
			return nil, err
		}
	} else if o.Logins, err = client.DockerLogins(); err != nil {
		return nil, err
	}
	c, err := client.New(o)
	return &endpoint{Client: c, name: strings.TrimPrefix(at, "https://") + "/"}, err
}

// waiting says once that a command waits for a registry, which can take minutes.
func waiting(cmd *cobra.Command, registry string) func(*http.Response) {
	var once sync.Once
	return func(resp *http.Response) {
		once.Do(func() {
			fmt.Fprintf(cmd.ErrOrStderr(), "Waiting for %s, which answers %s\n", registry, printable(resp.Status))
		})
	}
}

// certDirs is where docker, podman and skopeo keep the CAs of registries, in a directory for each host.
var certDirs = []string{"/etc/docker/certs.d", "/etc/containers/certs.d"}

// transport trusts the CAs of the system, those that docker has for the host, and --cacert.
func (t *target) transport(host string) (*http.Client, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, dir := range certDirs {
		// host is a valid one: it has no slash. A file that cannot be read is for another user.
		all, _ := filepath.Glob(filepath.Join(dir, host, "*.crt"))
		for _, name := range all {
			if pem, err := os.ReadFile(name); err == nil {
				pool.AppendCertsFromPEM(pem)
			}
		}
	}
	if t.ca != "" {
		pem, err := os.ReadFile(t.ca)
		if err != nil {
			return nil, fmt.Errorf("cacert: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("cacert: %s has no certificate in PEM", t.ca)
		}
	}
	h := http.DefaultTransport.(*http.Transport).Clone()
	h.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return &http.Client{Transport: naming{h}}, nil
}

// naming puts the host into the error of a request: a command may talk to several.
type naming struct{ http.RoundTripper }

func (n naming) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := n.RoundTripper.RoundTrip(req)
	var plain tls.RecordHeaderError
	switch {
	case err == nil || req.Context().Err() != nil:
		return resp, err
	case errors.As(err, &plain) && string(plain.RecordHeader[:]) == "HTTP/":
		err = fmt.Errorf("it speaks plain HTTP; name it by http://%s", req.URL.Host)
	}
	return resp, fmt.Errorf("%s: %w", req.URL.Host, err)
}

// explain adds the remedy to an error of a registry, and its name where a command may talk to several.
func explain(ctx context.Context, err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	e, refused := errors.AsType[*client.Error](err)
	dial, unreachable := errors.AsType[*net.OpError](err)
	if refused && !strings.HasSuffix(admin.URL, "//"+e.Registry) && !strings.Contains(err.Error(), e.Registry) {
		err = fmt.Errorf("%s: %w", e.Registry, err)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil: // the error is what happened to the request under way
		return errors.New("interrupted; what was done stays, and the same command continues")
	case errors.As(err, &unknown):
		return fmt.Errorf("%w; name the CA of the registry with --cacert", err)
	case errors.As(err, &name):
		return fmt.Errorf("%w; use a name that the certificate has (the setting tls-names of a Trow adds some)", err)
	case refused && e.Status == http.StatusUnauthorized:
		return fmt.Errorf("%w; log in with docker login, or with --user and --password-file", err)
	case unreachable && dial.Op == "dial" && dial.Net != "unix":
		return fmt.Errorf("%w; is this the host and the port of the registry, and does it run?", err)
	}
	return err
}
