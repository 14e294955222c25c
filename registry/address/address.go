// Package address says which addresses count as one client, for all that is shared out by address: connections,
// password guesses, limits, lines of the audit log; which requests have certainly come from this machine; and which
// names of a host are the same one. It is a leaf: webhook and nodes import it too, so that a host has one form to all
// of them.
//
// # Words
//
//   - canonical host: the form of host[:port] in which hosts are compared.
//   - network: an IPv4 address, or the /64 of an IPv6 address, which one host has to itself (RFC 4291, section 2.5.4).
//
// # Invariants
//
// An address has one spelling: IPv4 in IPv6 is IPv4, and there is no zone.
//
// # What it does not do
//
// It does not see behind a proxy: everybody there has its address, and a proxy that says nothing looks like a client.
package address

import "net/netip"

// Network returns the network of an address.
func Network(a netip.Addr) netip.Addr {
	if a = a.Unmap().WithZone(""); a.Is6() {
		return netip.PrefixFrom(a, 64).Masked().Addr()
	}
	return a
}
