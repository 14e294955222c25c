package address

import (
	"fmt"
	"net/netip"
	"slices"
)

// Networks are the addresses and networks that a setting lists.
type Networks []netip.Prefix

// ParseNetworks reads addresses (10.0.0.7) and networks (10.0.0.0/8). An error quotes the first text that is neither.
func ParseNetworks(all []string) (networks Networks, err error) {
	for _, text := range all {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); aerr == nil && a.Zone() == "" { // PrefixFrom would drop the zone
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%.50q is not an address or network; want 10.0.0.7 or 10.0.0.0/8", text)
		}
		networks = append(networks, p)
	}
	return networks, nil
}

// Contain reports whether a peer is in one of the networks: the RemoteAddr of a request. One that has no IP address,
// as at a socket in the file system, is in none.
func (n Networks) Contain(peer string) bool {
	if len(n) == 0 {
		return false
	}
	a, err := netip.ParseAddrPort(peer)
	return err == nil && slices.ContainsFunc(n, func(p netip.Prefix) bool {
		return p.Contains(a.Addr().Unmap().WithZone(""))
	})
}
