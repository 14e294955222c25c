package address_test

import (
	"net/netip"
	"testing"

	"trow/registry/address"
)

func TestNetwork(t *testing.T) {
	for text, want := range map[string]string{"10.0.0.7": "10.0.0.7", "::ffff:10.0.0.7": "10.0.0.7", "::1": "::",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "fe80::1%eth0": "fe80::"} {
		if got := address.Network(netip.MustParseAddr(text)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	if address.Network(netip.Addr{}).IsValid() {
		t.Error("no address became one")
	}
}
