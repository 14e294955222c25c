package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// dialTimeout leaves time for three attempts of TCP.
const dialTimeout = 10 * time.Second

// target is the server that is measured.
type target struct {
	url      string // scheme and host as given
	host     string // of the Host field
	addr     string // host:port to dial
	tls      *tls.Config
	protocol string
	access   *access
}

// newTarget returns the server of o.URL. Errors: the URL or the CA is not valid.
func newTarget(o Options) (*target, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%.100q is not a valid address; want for example https://localhost:8443", o.URL)
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("%s://%s: the address must have scheme, host and port only; use --user and "+
			"--password-file for a login", u.Scheme, u.Host)
	}
	t := &target{url: u.Scheme + "://" + u.Host, host: u.Host, protocol: o.Protocol}
	port := u.Port()
	if u.Scheme == "https" {
		if t.tls, err = tlsConfig(o, u.Hostname()); err != nil {
			return nil, err
		}
	}
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	t.addr = net.JoinHostPort(u.Hostname(), port)
	t.access = newAccess(t, o.User, o.Password)
	return t, nil
}

func tlsConfig(o Options, name string) (*tls.Config, error) {
	c := &tls.Config{ServerName: name, InsecureSkipVerify: o.Insecure, MinVersion: tls.VersionTLS12,
		// Connections after the first resume its session: the server is not measured by its handshakes.
		ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	if len(o.CA) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(o.CA) {
			return nil, errors.New("cacert: the file has no certificate; want PEM")
		}
		c.RootCAs = pool
	}
	return c, nil
}

// local reports whether the server has an address of this machine.
func (t *target) local() bool {
	host, _, _ := net.SplitHostPort(t.addr)
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// dial connects for HTTP/1.1. The handshake of TLS is done, so its errors are returned here.
func (t *target) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, err
	}
	if t.tls == nil {
		return raw, nil
	}
	c := tls.Client(raw, t.tls)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// connect returns a caller with its own connection. The caller must close it.
func (t *target) connect(ctx context.Context) *caller {
	c := &caller{ctx: ctx, target: t}
	if t.protocol == protocolHTTP2 {
		c.conn = newHTTP2(ctx, t)
	} else {
		c.conn = newHTTP1(ctx, t)
	}
	return c
}

// ping checks that a registry answers and accepts the login. A 404 is accepted: a static file server has no /v2/.
func (t *target) ping(ctx context.Context) error {
	c := t.connect(ctx)
	defer c.close()
	resp, err := c.do(&request{method: "GET", path: "/v2/"})
	switch {
	case err != nil:
		return t.explain(err)
	case resp.status == 200, resp.status == 404:
		return nil
	case resp.status/100 == 3:
		return fmt.Errorf("%s: redirects to %.200s; use that address", t.url, resp.location)
	}
	return fmt.Errorf("%s: %w; check that it is a registry", t.url, c.refusal("GET", "/v2/", resp))
}

// explain adds a remedy to an error of reaching the server.
func (t *target) explain(err error) error {
	unknown, authority := errors.AsType[x509.UnknownAuthorityError](err)
	host, name := errors.AsType[x509.HostnameError](err)
	_, plain := errors.AsType[tls.RecordHeaderError](err)
	_, login := errors.AsType[*loginError](err)
	dns, lookup := errors.AsType[*net.DNSError](err)
	switch {
	case login:
		return err
	case authority && unknown.Cert != nil:
		return fmt.Errorf("%s: the certificate is signed by an unknown authority; give the CA with --cacert "+
			"(Trow serves it at /ca.crt), or use --insecure", t.url)
	case name:
		return fmt.Errorf("%s: the certificate is not valid for this name (%s); use one of its names, or --insecure",
			t.url, host.Error())
	case plain:
		return fmt.Errorf("%s: the server does not use TLS; use http:// instead", t.url)
	case lookup:
		return fmt.Errorf("%s: host %s not found; check the address", t.url, dns.Name)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: connection refused; check the port, and that the server is running", t.url)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no answer within %s; check the address and any firewall", t.url, dialTimeout)
	case errors.Is(err, errMalformed) || errors.Is(err, errNoAnswer) || errors.Is(err, errShort):
		return fmt.Errorf("%s: the server does not speak %s (%w); check the port, and whether it wants https",
			t.url, t.protocol, err)
	}
	return fmt.Errorf("%s: %w", t.url, err)
}
