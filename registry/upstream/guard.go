package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// Guard prevents server-side request forgery: the server must not connect to an internal address because an answer of
// an upstream, or a client, names its host. It checks the address of each connection when the socket connects, after
// the name was resolved: a check before that could be bypassed by another answer of the name server (DNS rebinding).
//
// Hosts that an administrator has written in the settings may have any address; at one of this machine, only with the
// port that is written, because each port of this machine is another service.
type Guard struct {
	dialer  net.Dialer
	proxy   func(*url.URL) (*url.URL, error) // what the environment says, see net/http.ProxyFromEnvironment
	proxies []string                         // host:port
	refused atomic.Pointer[[]netip.Prefix]   // in addition to internal
	own     []netip.Prefix                   // addresses of this machine beside loopback; does not change
}

// internal are the addresses outside of the Internet, by the registries of special-purpose addresses (RFC 6890, IANA).
// IPv6 addresses outside of 2000::/3 are refused as a whole: those are unspecified, loopback, link-local (fe80::/10),
// site-local, unique local (fc00::/7), multicast (ff00::/8), IPv4-compatible (::/96) and translated (::ffff:0:0:0/96),
// NAT64 (64:ff9b::/96, RFC 6052; 64:ff9b:1::/48, RFC 8215), discarded (100::/64) and segments (5f00::/16), and what is
// not assigned yet.
var internal = prefixes(
	"0.0.0.0/8",        // this network, unspecified
	"10.0.0.0/8",       // private
	"100.64.0.0/10",    // shared, of carriers and of clouds
	"127.0.0.0/8",      // loopback
	"168.63.129.16/32", // what Azure answers to the machines that run there, metadata among it
	"169.254.0.0/16",   // link-local, the metadata of clouds
	"172.16.0.0/12",    // private
	"192.0.0.0/24",     // protocol assignments
	"192.0.2.0/24",     // documentation
	"192.88.99.0/24",   // 6to4 relays
	"192.168.0.0/16",   // private
	"198.18.0.0/15",    // benchmarks
	"198.51.100.0/24",  // documentation
	"203.0.113.0/24",   // documentation
	"224.0.0.0/4",      // multicast
	"240.0.0.0/4",      // reserved, and broadcast
	"2001::/23",        // protocol assignments: Teredo, benchmarks, ORCHID
	"2001:db8::/32",    // documentation
	"2002::/16",        // 6to4
	"3fff::/20",        // documentation
)

// global6 are the IPv6 addresses of the Internet.
var global6 = netip.MustParsePrefix("2000::/3")

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// NewGuard returns a Guard that looks up names as the system does, and uses the proxies of the environment.
func NewGuard() *Guard {
	config := httpproxy.FromEnvironment()
	g := &Guard{dialer: net.Dialer{Timeout: dialTime, KeepAlive: 30 * time.Second}, proxy: config.ProxyFunc(),
		own: ownAddresses()}
	for _, text := range []string{config.HTTPProxy, config.HTTPSProxy} {
		if u, err := parseProxy(text); err == nil && u.Host != "" {
			g.proxies = append(g.proxies, net.JoinHostPort(strings.ToLower(u.Hostname()), portOf(u)))
		}
	}
	return g
}

// ownAddresses returns the addresses of this machine, at which this server and other local services listen; none if
// they cannot be listed.
func ownAddresses() (all []netip.Prefix) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
		}
	}
	return all
}

// isOwn reports whether an address is one of this machine: the kernel connects to it for an unspecified one.
func (g *Guard) isOwn(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return addr.IsLoopback() || addr.IsUnspecified() || within(g.own, addr)
}

func within(all []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// dialTime bounds a connection attempt. A registry that does not accept within this time is down.
const dialTime = 10 * time.Second

// parseProxy parses a proxy as package httpproxy does: without a scheme it is http.
func parseProxy(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return url.Parse("http://" + text)
	}
	return u, nil
}

// portOf returns the port of a URL.
func portOf(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "http":
		return "80"
	case strings.HasPrefix(u.Scheme, "socks5"):
		return "1080"
	}
	return "443"
}

// errProxy refuses hosts that no entry names where a proxy connects.
var errProxy = errors.New("a proxy in the environment (HTTPS_PROXY) connects to whatever address a name has, so that " +
	"internal ones cannot be refused here; list the hosts in upstreams, or set upstream-proxy-filters where the " +
	"proxy refuses them")

// hasProxy reports whether the environment has a proxy.
func hasProxy() bool {
	config := httpproxy.FromEnvironment()
	return config.HTTPProxy != "" || config.HTTPSProxy != ""
}

// Refuse sets the networks that are refused in addition to the special-purpose ones and to the addresses of this
// machine: those of nodes, pods and services.
func (g *Guard) Refuse(all ...netip.Prefix) { g.refused.Store(&all) }

// AddressError is the refusal of an address.
type AddressError struct {
	Host string
	Addr netip.Addr
}

func (e *AddressError) Error() string {
	return fmt.Sprintf("%.255s has the address %s, which is not one of the Internet; if it is meant, name the host "+
		"(at an address of this machine with its port) in also: of the upstream", e.Host, e.Addr)
}

// Check returns nil if a host that is not written may have an address. Errors: *AddressError.
func (g *Guard) Check(host string, addr netip.Addr) error {
	plain := addr.Unmap().WithZone("")
	bad := addr.Zone() != "" || !plain.IsValid() || plain.Is6() && !global6.Contains(plain) ||
		within(internal, plain) || g.isOwn(plain)
	if more := g.refused.Load(); more != nil {
		bad = bad || within(*more, plain)
	}
	if bad {
		return &AddressError{host, addr}
	}
	return nil
}

// written are the hosts that the settings name: hosts without ports, which may have any address but those of this
// machine, and services with ports, which may have any.
type written struct{ hosts, services map[string]bool }

// add adds a host[:port] in lower case.
func (w *written) add(host string) {
	u := url.URL{Host: host}
	if u.Port() != "" {
		w.services[net.JoinHostPort(u.Hostname(), u.Port())] = true
	}
	w.hosts[u.Hostname()] = true
}

// permit returns nil if a connection to a port of a host may be made at an address. Errors: *AddressError.
func (g *Guard) permit(w written, host, port string, addr netip.Addr) error {
	if w.services[net.JoinHostPort(host, port)] || w.hosts[host] && !g.isOwn(addr) {
		return nil
	}
	return g.Check(host, addr)
}

// transport returns the transport for the requests to an endpoint, and to the hosts that its answers name.
func (g *Guard) transport(w written) *http.Transport {
	for _, p := range g.proxies {
		w.services[p] = true
	}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			host = strings.TrimSuffix(strings.ToLower(host), ".")
			d := g.dialer
			// ControlContext is called for each address of the name, just before the socket connects to it.
			d.ControlContext = func(_ context.Context, _, at string, _ syscall.RawConn) error {
				to, err := netip.ParseAddrPort(at)
				if err != nil {
					return err
				}
				return g.permit(w, host, port, to.Addr())
			}
			return d.DialContext(ctx, network, addr)
		},
		// The proxy resolves names, so their addresses are not known here. An address as the host of a URL is.
		Proxy: func(req *http.Request) (*url.URL, error) {
			proxy, err := g.proxy(req.URL)
			host := strings.ToLower(req.URL.Hostname())
			if proxy != nil && err == nil && !w.hosts[host] {
				if addr, parseErr := netip.ParseAddr(host); parseErr == nil {
					err = g.Check(host, addr)
				}
			}
			return proxy, err
		},
		// The digest is that of the bytes as the upstream has them.
		DisableCompression: true,
		// HTTP/1 on purpose (no ForceAttemptHTTP2): each blob has a connection, and does not wait for the flow control
		// of others.
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: dialTime, ResponseHeaderTimeout: answerTime, IdleConnTimeout: time.Minute,
		MaxIdleConns: 64, MaxIdleConnsPerHost: 16, MaxResponseHeaderBytes: 64 << 10,
	}
}
