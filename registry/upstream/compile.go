package upstream

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"trow/registry/address"
	trowauth "trow/registry/auth"
	"trow/registry/client"
	"trow/registry/glob"
	"trow/registry/namespace"
	"trow/storage/files"
)

const (
	// defaultFresh is fresh: if an entry has none.
	defaultFresh = 10 * time.Minute
	// maxFile bounds a file with a password or certificates, in bytes. All the CA certificates of a system have
	// 250,000.
	maxFile = 1 << 20
	// hubEndpoint answers for Docker Hub.
	hubEndpoint = "https://registry-1.docker.io"
)

var (
	// validHelper matches a name without a path: it becomes that of a program.
	validHelper = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	validSecret = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?/[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
)

// keep is a parsed [Keep].
type keep struct {
	repo  string
	tags  glob.Set
	names []string // the tags, if no pattern has a wildcard
}

// compiled is a parsed [Entry].
type compiled struct {
	host, path, name string
	fresh            time.Duration
	allow, deny      glob.Set
	read             trowauth.Who
	mayRun           MayRun
	keep             []keep
	endpoints        []endpointKey
}

// endpointKey has all settings of an endpoint. Two with the same key are one endpoint, with its tokens and its breaker,
// which also lasts when other settings change.
type endpointKey struct {
	url, ca      string // ca: the certificates, in PEM
	realm, also  string // joined by spaces
	insecure     bool
	unnamed      bool   // the host is from a request
	Endpoint            // only where the login is
	configLogins string // the content of DockerConfig, so that a change is noticed with the next change of the settings
}

// compile parses and validates entries, with the files that they name if read is set. Errors name the entry and the
// key, and have no password.
func compile(entries []Entry, read bool) (all []compiled, err error) {
	names, hosts := map[string]string{}, map[string]string{} // the host of a name, and the name of a host
	for i, e := range entries {
		c, err := e.compile(read)
		if err == nil && slices.ContainsFunc(all, func(o compiled) bool {
			return o.host == c.host && o.path == c.path
		}) {
			err = fmt.Errorf("host: an earlier entry has %s with the same path; join them, or give each a path", c.host)
		}
		if err == nil {
			// An element is that of one host, or two registries would share repositories.
			switch other, ok := names[c.name]; {
			case ok && other != c.host:
				err = fmt.Errorf("as: an earlier entry has the name %s for %s; choose another", c.name, other)
			case hosts[c.host] != "" && hosts[c.host] != c.name:
				err = fmt.Errorf("as: an earlier entry has the name %s for this host; write the same", hosts[c.host])
			}
			names[c.name], hosts[c.host] = c.host, c.name
		}
		if err != nil {
			host := e.Host
			if host != "" {
				host = fmt.Sprintf(" (%.80s)", host)
			}
			return nil, fmt.Errorf("upstreams: entry %d%s: %w", i+1, host, err)
		}
		all = append(all, c)
	}
	return all, nil
}

func (e *Entry) compile(read bool) (c compiled, err error) {
	c = compiled{path: strings.Trim(e.Path, "/"), fresh: defaultFresh}
	if c.host, err = namespace.Host(e.Host); err != nil {
		return c, fmt.Errorf("host: %w", err)
	}
	if c.path != "" && !namespace.ValidRepo(c.path) {
		return c, fmt.Errorf("path: %.80q is not the beginning of a repository's name", e.Path)
	}
	if c.name = e.As; c.name == "" {
		c.name, err = namespace.Element(c.host)
	}
	if err == nil {
		err = namespace.CheckElement(c.name)
	}
	if err != nil {
		return c, fmt.Errorf("as: %w", err)
	}
	if c.mayRun = e.MayRun; c.mayRun != "" && !slices.Contains(mayRuns, c.mayRun) {
		return c, fmt.Errorf("may-run: %.80q is not one of deny, allow, held, fetch", e.MayRun)
	}
	if e.Fresh != nil {
		c.fresh = time.Duration(*e.Fresh)
	}
	if err := e.compileRights(&c); err != nil {
		return c, err
	}
	for i, k := range e.Keep {
		r, err := k.compile(c.host, c.path)
		if err != nil {
			return c, fmt.Errorf("keep: entry %d: %w", i+1, err)
		}
		c.keep = append(c.keep, r)
	}
	c.endpoints, err = e.compileEndpoints(c.host, read)
	return c, err
}

func (e *Entry) compileRights(c *compiled) (err error) {
	if c.allow, err = glob.Compile(e.Allow...); err != nil {
		return fmt.Errorf("allow: %w", err)
	}
	if c.deny, err = glob.Compile(e.Deny...); err != nil {
		return fmt.Errorf("deny: %w", err)
	}
	if len(e.Read) > 0 {
		if c.read, err = trowauth.ParseWho(e.Read); err != nil {
			return fmt.Errorf("read: %w", err)
		}
	}
	return nil
}

func (k *Keep) compile(host, path string) (keep, error) {
	repo := namespace.Fold(host, k.Repository)
	switch tags, err := glob.Compile(k.Tags...); {
	case !namespace.ValidRepo(repo):
		return keep{}, fmt.Errorf("repository: %.80q is not the name of a repository", k.Repository)
	case !below(repo, path):
		return keep{}, fmt.Errorf("repository: %.80q is not below the path %s of the entry", k.Repository, path)
	case err != nil:
		return keep{}, fmt.Errorf("tags: %w", err)
	case len(tags) == 0:
		return keep{}, fmt.Errorf("tags: at least one pattern is needed; * matches all")
	default:
		k := keep{repo: repo, tags: tags, names: k.Tags}
		if slices.ContainsFunc(k.names, func(tag string) bool { return !namespace.ValidTag(tag) }) {
			k.names = nil
		}
		return k, nil
	}
}

// below reports whether a repository is at path or below it; every one is below an empty path.
func below(repo, path string) bool {
	rest, ok := strings.CutPrefix(repo, path)
	return ok && (path == "" || rest == "" || rest[0] == '/')
}

func (e *Entry) compileEndpoints(host string, read bool) (all []endpointKey, err error) {
	endpoints := e.Endpoints
	if len(endpoints) == 0 {
		endpoints = []Endpoint{{URL: "https://" + host}}
	}
	ca := ""
	if e.CAFile != "" && read {
		b, err := files.Read(e.CAFile, maxFile)
		if err != nil {
			return nil, fmt.Errorf("ca-file: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("ca-file: %s has no PEM certificate", e.CAFile)
		}
		ca = string(b)
	}
	for key, hosts := range map[string][]string{"realm": e.Realm, "also": e.Also} {
		for _, h := range hosts {
			if !namespace.ValidHost(strings.ToLower(h)) {
				return nil, fmt.Errorf("%s: %.80q is not a valid host[:port]", key, h)
			}
		}
	}
	for i, p := range endpoints {
		k, err := p.compile(e.Insecure, read)
		if err != nil {
			return nil, fmt.Errorf("endpoints: entry %d: %w", i+1, err)
		}
		k.ca, k.realm, k.also = ca, lowerJoined(e.Realm), lowerJoined(e.Also)
		all = append(all, k)
	}
	return all, nil
}

func lowerJoined(hosts []string) string { return strings.ToLower(strings.Join(hosts, " ")) }

func (p *Endpoint) compile(insecure, read bool) (k endpointKey, err error) {
	k = endpointKey{insecure: insecure, Endpoint: *p}
	if k.url, err = endpointURL(p.URL, insecure); err != nil {
		return k, fmt.Errorf("url: %w", err)
	}
	k.URL = "" // k.url has it, in the canonical form
	sources := 0
	for _, s := range []string{p.PasswordFile, p.DockerConfig, p.Secret, p.Helper} {
		if s != "" {
			sources++
		}
	}
	switch {
	case sources > 1:
		return k, fmt.Errorf("password-file, docker-config, secret and helper: only one of them may be set")
	case p.Username != "" && p.PasswordFile == "":
		return k, fmt.Errorf("username: requires password-file")
	case p.PasswordFile != "" && (p.Username == "" || strings.Contains(p.Username, ":")):
		return k, fmt.Errorf("password-file: requires username, without a colon")
	case p.Secret != "" && !validSecret.MatchString(p.Secret):
		return k, fmt.Errorf("secret: %.80q is not of the form NAMESPACE/NAME", p.Secret)
	case p.Helper != "" && !validHelper.MatchString(p.Helper):
		return k, fmt.Errorf("helper: %.80q is not the end of the name of a program docker-credential-…", p.Helper)
	}
	if !read {
		return k, nil
	}
	if p.PasswordFile != "" {
		_, err = readPassword(p.PasswordFile)
	}
	if p.DockerConfig != "" {
		b, readErr := files.Read(p.DockerConfig, maxFile)
		if k.configLogins, err = string(b), readErr; err == nil {
			_, err = client.FileLogins(p.DockerConfig)
		}
		if err != nil {
			err = fmt.Errorf("docker-config: %w", err)
		}
	}
	return k, err
}

// endpointURL returns the canonical form of an endpoint's URL. Errors do not quote it: it may have a password.
func endpointURL(text string, insecure bool) (string, error) {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return "", fmt.Errorf("it is missing; want https://host[:port]")
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" ||
		u.RawQuery != "" || u.Fragment != "" || !namespace.ValidHost(strings.ToLower(u.Host)):
		return "", fmt.Errorf("not of the form https://host[:port]")
	case u.User != nil:
		return "", fmt.Errorf("it has a login; set username and password-file instead")
	case u.Scheme == "http" && !insecure:
		return "", fmt.Errorf("http sends passwords and content in the clear; write https, or set insecure: true")
	}
	host := strings.ToLower(u.Host)
	if form, err := address.Host(host); err == nil && form == address.Hub {
		return hubEndpoint, nil // Docker Hub serves the registry API under this name alone
	}
	return u.Scheme + "://" + host, nil
}

// readPassword reads a password. It is called for each login, because a mounted Secret may change.
func readPassword(path string) (string, error) {
	password, err := passwordIn(path)
	if err != nil {
		return "", fmt.Errorf("password-file: %w", err)
	}
	return password, nil
}

func passwordIn(path string) (string, error) {
	b, err := files.Read(path, maxFile)
	if err != nil {
		return "", err
	}
	if password := strings.TrimRight(string(b), "\r\n"); password != "" {
		return password, nil
	}
	return "", fmt.Errorf("%s is empty", path)
}

// secretType is the type of a Secret with a login, as pods use it.
const secretType = "kubernetes.io/dockerconfigjson"

// Secrets returns the .dockerconfigjson of a Secret of the cluster.
type Secrets func(ctx context.Context, namespace, name string) ([]byte, error)

// hasLogin reports whether a setting says where the login of an endpoint is.
func (k *endpointKey) hasLogin() bool { return k.PasswordFile+k.DockerConfig+k.Helper+k.Secret != "" }

// logins returns the source of the login of an endpoint; nil if it has none.
func (k *endpointKey) logins(secrets Secrets) (client.Logins, error) {
	switch {
	case k.PasswordFile != "":
		own := strings.SplitN(k.url, "://", 2)[1]
		return func(_ context.Context, host string) (auth.Credential, error) {
			if host != own {
				return auth.EmptyCredential, nil
			}
			password, err := readPassword(k.PasswordFile)
			return auth.Credential{Username: k.Username, Password: password}, err
		}, nil
	case k.DockerConfig != "":
		return client.FileLogins(k.DockerConfig)
	case k.Helper != "":
		return client.HelperLogins(k.Helper), nil
	case k.Secret != "":
		namespace, name, _ := strings.Cut(k.Secret, "/")
		return func(ctx context.Context, host string) (auth.Credential, error) {
			if secrets == nil {
				return auth.EmptyCredential, fmt.Errorf("secret: %s cannot be read by this server; mount the Secret "+
					"into the pod, and name its file in docker-config", k.Secret)
			}
			config, err := secrets(ctx, namespace, name)
			if err != nil {
				return auth.EmptyCredential, fmt.Errorf("secret: %s: %w", k.Secret, err)
			}
			store, err := credentials.NewMemoryStoreFromDockerConfig(config)
			if err != nil { // the library's text may have a part of the content
				return auth.EmptyCredential, fmt.Errorf("secret: %s is not of the type %s", k.Secret, secretType)
			}
			return client.StoredLogins(store, "secret "+k.Secret)(ctx, host)
		}, nil
	}
	return nil, nil
}

// written returns the hosts that the settings of an endpoint name.
func (k *endpointKey) written() written {
	w := written{hosts: map[string]bool{}, services: map[string]bool{}}
	if u, err := url.Parse(k.url); err == nil && !k.unnamed {
		w.add(u.Host)
		w.services[net.JoinHostPort(u.Hostname(), portOf(u))] = true
	}
	for _, list := range []string{k.realm, k.also} {
		for host := range strings.FieldsSeq(list) {
			w.add(host)
		}
	}
	return w
}
