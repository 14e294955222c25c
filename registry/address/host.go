package address

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// Hub is the canonical host of Docker Hub.
const Hub = "docker.io"

// httpsPort is the port of a host that is written without one.
const httpsPort = "443"

// Host returns the form of host[:port] in which hosts are compared: two spellings for which a container
// runtime dials the same address of the same name have one form. It is in lower case, without the dot that may end a
// DNS name, without port 443 and without leading zeros of other ports; docker.io stands for every name of Docker Hub.
// IP addresses are compared by value: an IPv6 address that means an IPv4 address is that one, and the unspecified
// address is loopback, which the kernel dials for it. A canonical host is returned as it is, without allocations.
// Errors: a port or an IP address that the parser of references accepts and that does not exist.
//
// A host whose name does not look like one to the parser (foo) keeps or gets a port, because foo/x is docker.io/foo/x.
func Host(domain string) (string, error) {
	domain = strings.ToLower(domain)
	name, port := SplitPort(domain)
	number, err := canonicalPort(port)
	if err != nil {
		return "", err
	}
	name = strings.TrimSuffix(name, ".")
	switch name {
	case Hub, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		if number == "" {
			return Hub, nil
		}
	}
	if name, err = canonicalIP(name); err != nil {
		if address, ok := parseInetAton(name); ok {
			return "", fmt.Errorf("%w; write %s", err, JoinPort(address.String(), number))
		}
		return "", err
	}
	if number == "" && !LooksLikeHost(name) {
		number = httpsPort
	}
	if rest, ok := strings.CutPrefix(domain, name); ok {
		if rest, colon := strings.CutPrefix(rest, ":"); rest == number && colon == (number != "") {
			return domain, nil // it is canonical, and joining would allocate
		}
	}
	return JoinPort(name, number), nil
}

// LooksLikeHost reports whether the first part of an image name is a host to the parser of references.
func LooksLikeHost(s string) bool { return s == "localhost" || strings.ContainsAny(s, ".:") }

// JoinPort is the reverse of SplitPort.
func JoinPort(name, port string) string {
	if port == "" {
		return name
	}
	return name + ":" + port
}

// SplitPort splits host[:port]; port is empty if it does not exist. The colons of an IPv6 address are in brackets.
func SplitPort(s string) (host, port string) {
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// canonicalPort returns a port without leading zeros, and "" for that of HTTPS.
func canonicalPort(port string) (string, error) {
	if port == "" {
		return "", nil
	}
	port = strings.TrimLeft(port, "0")
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("not valid: its port is not between 1 and 65535")
	}
	if port == httpsPort {
		return "", nil
	}
	return port, nil
}

// canonicalIP returns the canonical form of a host that is an IP address, and any DNS name as it is. A host whose last
// label is a number is not a DNS name (RFC 1123, section 2.1; the URL standard decides by the same label), but the C
// library takes many such texts for IPv4 addresses: 127.1, 0x7f.0.0.1, 2130706433.
func canonicalIP(host string) (string, error) {
	if inner, ok := strings.CutPrefix(host, "["); ok {
		address, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil {
			return host, errors.New("not a valid IPv6 address")
		}
		address = dialed(address)
		if address.Is4() {
			return address.String(), nil
		}
		return "[" + address.String() + "]", nil
	}
	if _, isNumber := parseNumber(host[strings.LastIndexByte(host, '.')+1:]); !isNumber {
		return host, nil
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return host, errors.New("not a valid IPv4 address")
	}
	if address.IsUnspecified() {
		return dialed(address).String(), nil
	}
	return host, nil // four numbers without leading zeros have one form
}

// dialed returns the address that is dialed for another one.
func dialed(a netip.Addr) netip.Addr {
	switch a = a.Unmap(); {
	case a == netip.IPv4Unspecified():
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case a == netip.IPv6Unspecified():
		return netip.IPv6Loopback()
	}
	return a
}

// parseNumber parses a part of an IPv4 address as inet_aton of the C library does: decimal, octal after 0, or
// hexadecimal after 0x. It reports whether a C library may take it for a number; one that is too large is
// math.MaxUint64.
func parseNumber(s string) (n uint64, ok bool) {
	base, digits, set := 10, s, "0123456789"
	if rest, hex := strings.CutPrefix(s, "0x"); hex {
		base, digits, set = 16, rest, "0123456789abcdef"
	} else if strings.HasPrefix(s, "0") {
		base = 8
	}
	if strings.Trim(digits, set) != "" { // first, because nearly no host is one, and an error allocates
		return 0, false
	}
	if digits == "" {
		return 0, base == 16 // 0x alone is 0
	}
	if n, err := strconv.ParseUint(digits, base, 64); err == nil {
		return n, true
	}
	return math.MaxUint64, true
}

// parseInetAton parses an IPv4 address in the forms of inet_aton(3): up to four numbers, the last of which fills the
// bytes that are left.
func parseInetAton(s string) (netip.Addr, bool) {
	parts := strings.SplitN(s, ".", 5)
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var address uint64
	for i, part := range parts {
		n, ok := parseNumber(part)
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (5 - len(parts))
		}
		if !ok || n >= 1<<bits {
			return netip.Addr{}, false
		}
		address = address<<bits | n
	}
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(address)))), true
}
