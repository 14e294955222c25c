package tls

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// names are what a leaf is for, sorted and without duplicates, so that two lists of the same names are equal.
type names struct {
	dns []string
	ips []string // in the form of netip.Addr.String
}

// maxName is the length of the longest DNS name (RFC 1035, section 2.3.4: 255 octets on the wire).
const maxName = 253

// parseNames sorts the wanted names into DNS names and IP addresses.
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
		return names{}, fmt.Errorf("no names given for the certificate")
	}
	return n.sorted(), nil
}

// cutPort takes the port off host:port and the brackets off an IPv6 address.
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

// checkDNS says what keeps a name from being a host's. An underscore is let through: DNS allows it, clients
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
		return fmt.Errorf("not an IP address, and no host name ends in a number")
	}
	return nil
}

// checkLabel checks what stands between two dots (RFC 1123, section 2.1: letters, digits, hyphens within; at
// most 63).
func checkLabel(label string) error {
	switch {
	case label == "":
		return fmt.Errorf("not a host name or IP address: an empty part")
	case len(label) > 63:
		return fmt.Errorf("not a host name: a part is longer than 63 characters")
	case label[0] == '-' || label[len(label)-1] == '-':
		return fmt.Errorf("not a host name: a part begins or ends with a hyphen")
	}
	for _, c := range label {
		if c > 0x7f {
			return fmt.Errorf("not a host name: write it in its ASCII form (xn--…)")
		}
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return fmt.Errorf("not a host name or IP address: %q is not allowed", c)
		}
	}
	return nil
}

// namesOf returns the names that a certificate is for.
func namesOf(c *x509.Certificate) names {
	n := names{dns: slices.Clone(c.DNSNames)}
	for _, ip := range c.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			n.ips = append(n.ips, a.Unmap().String())
		}
	}
	return n.sorted()
}

// addrs returns the IP addresses in the form that x509 takes.
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
