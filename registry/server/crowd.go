package server

import (
	"net"
	"net/netip"

	"trow/registry/address"
	"trow/registry/crowd"
)

// crowdOf and memberOf are places or requests that can give way to new ones, by address.
type (
	crowdOf[V any]  = crowd.Crowd[netip.Addr, V]
	memberOf[V any] = crowd.Member[netip.Addr, V]
)

// addressOf returns the address that a connection counts for: an IPv4 address, or the /64 of an IPv6 address, because
// one client has all addresses of a /64 (RFC 6177).
func addressOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return address.Network(tcp.AddrPort().Addr())
}
