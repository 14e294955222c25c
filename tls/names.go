package tls

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// names are the names of a leaf, sorted and without duplicates, so that they can be compared.
type names struct {
	dns []string
	ips []string // in the form of netip.Addr.String
}

// maxName is the length of the longest DNS name (RFC 1035, section 2.3.4: 255 octets on the wire).
const maxName = 253

// parseNames divides names into DNS names and IP addresses. Errors: there is no name; one is invalid, with that name.
func parseNames(wanted []string) (names, error) {
	var n names
	for _, w := range wanted {
		host := cutPort(w)
		if ip, err := netip.ParseAddr(host); err == nil && ip.Zone() == "" {
			n.ips = append(n.ips, ip.Unmap().String())
			continue
		}
		host = strings.ToLower(strings.TrimSuffix(host, "."))
		if err := checkDNS(host); err != nil {
			return names{}, fmt.Errorf("certificate name %q: %w", w, err)
		}
		n.dns = append(n.dns, host)
	}
	if len(n.dns)+len(n.ips) == 0 {
		return names{}, errors.New("the server's certificate needs at least one name")
	}
	return n.sorted(), nil
}

// cutPort removes the port of host:port, and the brackets of an IPv6 address.
func cutPort(s string) string {
	if host, port, err := net.SplitHostPort(s); err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err == nil {
			return host
		}
	}
	if len(s) > 1 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1]
	}
	return s
}

// checkDNS returns an error if a name is not a valid host name. An underscore is accepted: DNS allows it, clients
// accept it, and some clusters use it.
func checkDNS(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("longer than %d characters", maxName)
	}
	for label := range strings.SplitSeq(strings.TrimPrefix(name, "*."), ".") {
		if err := checkLabel(label); err != nil {
			return err
		}
	}
	if last := name[strings.LastIndexByte(name, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return errors.New("neither an IP address nor a host name: a host name does not end in a number")
	}
	return nil
}

// checkLabel checks the part between two dots (RFC 1123, section 2.1: letters, digits, and hyphens except at the ends;
// at most 63 characters).
func checkLabel(label string) error {
	switch {
	case label == "":
		return errors.New("not a host name or IP address: a part is empty")
	case len(label) > 63:
		return errors.New("not a host name: a part is longer than 63 characters")
	case label[0] == '-' || label[len(label)-1] == '-':
		return errors.New("not a host name: a part starts or ends with a hyphen")
	}
	for _, c := range label {
		if c > 0x7f {
			return errors.New("not a host name: use its ASCII form (xn--…)")
		}
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return fmt.Errorf("not a host name or IP address: %q is not allowed", c)
		}
	}
	return nil
}

// namesOf returns the names of a certificate.
func namesOf(c *x509.Certificate) names {
	n := names{dns: slices.Clone(c.DNSNames)}
	for _, ip := range c.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			n.ips = append(n.ips, a.Unmap().String())
		}
	}
	return n.sorted()
}

// addrs returns the IP addresses in the form of package x509.
func (n names) addrs() []net.IP {
	var out []net.IP
	for _, s := range n.ips {
		out = append(out, net.ParseIP(s))
	}
	return out
}

func (n names) equal(m names) bool {
	return slices.Equal(n.dns, m.dns) && slices.Equal(n.ips, m.ips)
}

func (n names) sorted() names {
	slices.Sort(n.dns)
	slices.Sort(n.ips)
	return names{dns: slices.Compact(n.dns), ips: slices.Compact(n.ips)}
}
